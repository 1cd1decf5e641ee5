"""`ebdiff compare`: the paper's speed-up and what a table may say, on manifests made here."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakePlan
from finished_run import an_evaluation
from rich.console import Console
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.reports.compare import Comparison, compare_runs, comparison_table
from ebdiff_orchestrator.reports.formats import TextTable, print_table
from ebdiff_orchestrator.reports.measures import method_of
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.networks.dense import dense_config
from schemas.data import RasterPlan
from schemas.digest import digest
from schemas.errors import UserError
from schemas.job import Artifact, Hardware
from schemas.manifest import DenseCost, DenseSource, DeviceUsage, Evaluation, Launch
from schemas.plan import Plan

DENSE = "regions=[{train: [0, 1000], pruning_ratio: 0}]"
HALF = "regions=[{train: [0, 1000], pruning_ratio: 0.5}]"
TWO_SPARSE = "regions=[{train: [0, 500], pruning_ratio: 0, sparsity: 0.3}, {train: [500, 1000], pruning_ratio: 0}]"
ONE_SHOT = ("draw.method=one-shot", "model.pretrained=somewhere")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ([DENSE], "Dense"),
        ([DENSE, "training.timesteps.sampling=speed", "training.timesteps.weighting=speed"], "Dense + SpeeD"),
        ([HALF, *ONE_SHOT, "draw.inherit_weights=false"], "Scratch 50%"),
        ([HALF, *ONE_SHOT], "Magnitude finetune 50%"),
        ([HALF, *ONE_SHOT, "draw.importance=random"], "Random finetune 50%"),
        ([HALF, *ONE_SHOT, "draw.importance=diff-pruning"], "Diff-Pruning finetune 50%"),
        ([HALF], "EB magnitude 50%"),
        ([HALF, "draw.interval_steps=1", "draw.importance=taylor"], "Iter-wise EB Taylor 50%"),
        ([HALF, "training.timesteps.weighting=min-snr"], "EB magnitude 50% + Min-SNR"),
        ([], "TA-EB 30/60/80% (magnitude)"),
        ([DENSE, "sparsity.method=static"], "Static-DM 50%"),
        ([HALF, "sparsity.method=magran", "sparsity.sparsity=0.25"], "EB magnitude 50% + MagRan-DM 25%"),
        ([TWO_SPARSE, "sparsity.method=rigl"], "TA RigL-DM 30/50%"),
        (["draw.scope=shared", "regions.0.pruning_ratio=0.25"], "TA-EB 25/60/80% (magnitude, shared draw)"),
        (["training.timesteps.sampling=speed"], "TA-EB 30/60/80% (magnitude) + SpeeD sampling"),
        (["model.pretrained=x"], "TA-EB 30/60/80% (magnitude) (from a dense start)"),
    ],
)
def test_a_plan_has_the_papers_name_of_its_method(tiny_plan: MakePlan, changes: list[str], name: str) -> None:
    assert method_of(tiny_plan("draw.interval_steps=null", *changes)) == name


def _write(
    folder: Path,
    plan: Plan,
    train_s: list[float],
    draw_s: float = 10.0,
    wall_s: float = 100.0,
    gpus: float = 1.0,
    held: int = 2,
    weights_bytes: int = 0,
    records: Mapping[str, dict[str, Any]] | None = None,
    **fields: Any,
) -> Path:
    """A finished run: each region's training took `train_s`, each draw `draw_s`, all of it `wall_s` by the clock.

    `held`: how often devices were, first by the training, then by an evaluation. `weights_bytes`: of an expert's file.
    `records`, `fields`: what is otherwise in the records of some stages and in the manifest.
    """
    manifest = Ledger.begin(RunDirectory(folder), plan).manifest
    device = Hardware(device="A GPU" if gpus else "cpu", world_size=1, cpu_threads=1)
    seconds = iter(train_s)
    for record in list(manifest.stages.values()):
        work = next(seconds) if record.name.startswith("train/") else draw_s if record.name.startswith("draw/") else 1.0
        update = {
            "status": "done",
            "started_at": 1000.0,
            "finished_at": 1000.0 + wall_s,
            "active_s": work,
            "steps": plan.training.steps,
            "hardware": device,
            "peak_memory_bytes": 3 << 30,
        }
        if weights_bytes and record.name.startswith("train/"):
            sizes = {"config.json": 300, "diffusion_pytorch_model.safetensors": weights_bytes}
            files = (Artifact(path=f"{record.name}/expert/{n}", size_bytes=s, sha256="0") for n, s in sizes.items())
            update["artifacts"] = tuple(files)
        update |= (records or {}).get(record.name, {})
        manifest = manifest.with_stage(record.model_copy(update=update))
    span = {"started_at": 1000.0, "ended_at": 1000.0 + wall_s}
    usage = (
        DeviceUsage(job="region", attempt=1, workers=1, gpus=gpus, **span),
        DeviceUsage(job="evaluate", attempt=2, workers=8, gpus=8, started_at=2e6, ended_at=3e6),
    )
    told = {"attempts": 1, "usage": usage[:held], "launches": (Launch(**span),), **fields}
    RunDirectory(folder).write(manifest.model_copy(update=told))
    return folder


def _cells(comparison: Comparison) -> list[dict[str, str]]:
    """Of each row by heading."""
    table = comparison_table(comparison)
    return [dict(zip(table.headings, row, strict=True)) for row in table.rows]


def _evaluation(fid: float, images: int, at: float, ensemble: str = digest([])) -> Evaluation:
    return an_evaluation(key=f"{images}-{at}", ensemble_digest=ensemble, fid=fid, num_images=images, at=at)


def test_speed_up_is_dense_training_over_the_slowest_region_without_the_draw(
    tmp_path: Path, tiny_plan: MakePlan
) -> None:
    dense = _write(tmp_path / "dense", tiny_plan(DENSE), [800.0], draw_s=0.0, wall_s=1000.0)
    ours = _write(tmp_path / "ours", tiny_plan(), [100.0, 50.0, 20.0], draw_s=300.0, wall_s=500.0)
    row = compare_runs([ours], against=dense).rows[0]
    assert row.speed_up == 8.0
    assert row.wall_speed_up == 2.0
    assert row.hours_saved == 0.5
    assert row.measures.draw_share == pytest.approx(900 / 1070)
    assert row.costs == preview_plan(tiny_plan()).weighted


def test_a_dense_run_among_the_rows_is_what_they_are_measured_against(tmp_path: Path, tiny_plan: MakePlan) -> None:
    dense = _write(tmp_path / "dense", tiny_plan(DENSE), [800.0])
    ours = _write(tmp_path / "ours", tiny_plan(), [100.0, 50.0, 20.0])
    comparison = compare_runs([ours, dense])
    assert [row.method for row in comparison.rows] == ["TA-EB 30/60/80% (magnitude)", "Dense"]
    assert [row.speed_up for row in comparison.rows] == [8.0, 1.0]
    with pytest.raises(UserError, match="dense run"):
        compare_runs([dense], against=ours)


def test_runs_of_different_data_are_told_apart(tmp_path: Path, tiny_plan: MakePlan) -> None:
    ours = _write(tmp_path / "ours", tiny_plan(), [1.0] * 3)
    half = _write(tmp_path / "half", tiny_plan(HALF), [1.0])
    photos = _write(tmp_path / "photos", tiny_plan(DENSE, f"data.path={tmp_path}"), [1.0])
    for runs, named in (
        ([ours, half], ["TA-EB 30/60/80% (magnitude)", "EB magnitude 50%"]),
        ([ours, photos], ["TA-EB 30/60/80% (magnitude) [ours]", "Dense [photos]"]),
    ):
        assert [row["method"] for row in _cells(compare_runs(runs))] == named


def test_a_finetune_is_charged_the_dense_training_that_it_starts_from(tmp_path: Path, tiny_plan: MakePlan) -> None:
    """The paper's 0.92 = 800 / (800 + 100 / 1.44)."""
    dense = _write(tmp_path / "dense", tiny_plan(DENSE), [800.0])
    cost = DenseCost(steps=12, active_s=800.0, worker_hours=0.0, gpu_hours=100 / 3600)
    plan = tiny_plan(HALF, *ONE_SHOT)
    network = {"class_name": "UNet2DModel", "arguments": dense_config(plan.model, plan.data)}
    known = DenseSource(path=str(dense), digest="d", cost=cost, **network)
    tuned = _write(tmp_path / "tuned", plan, [100 / 1.44], wall_s=20.0, dense=known)
    unknown = _write(
        tmp_path / "unknown", plan, [100 / 1.44], dense=known.model_copy(update={"path": "gone", "cost": None})
    )
    there = known.model_copy(update={"path": str(tmp_path / "moved")})
    moved = _write(tmp_path / "moved", plan, [100 / 1.44], dense=there)  # to where its start was
    assert compare_runs([moved], against=dense).rows[0].wall_speed_up is None
    comparison = compare_runs([tuned, unknown], against=dense)
    rows = comparison.rows
    assert rows[0].speed_up == pytest.approx(0.92, abs=0.001)
    assert rows[0].hours_saved == pytest.approx(-0.2)
    assert rows[0].wall_speed_up == pytest.approx(100 / (100 + 20))
    assert (rows[1].speed_up, rows[1].wall_speed_up, rows[1].hours_saved) == (None, None, None)
    assert [cells["steps"] for cells in _cells(comparison)] == ["12 (+12)", "12 (+?)"]


def test_what_was_not_measured_is_a_dash(tmp_path: Path, tiny_plan: MakePlan) -> None:
    open_stage = {"train/0-260": {"status": "pending", "peak_memory_bytes": None}}
    comparison = compare_runs([_write(tmp_path, tiny_plan(), [3.0, 2.0, 1.0], held=0, records=open_stage)])
    (cells,) = _cells(comparison)
    for heading in ("FID", "steps", "speed-up", "wall-clock", "wall speed-up", "hours", "saved", "draw"):
        assert cells[heading] == "-", heading
    assert cells["memory GiB"] == "3.00"
    assert any("--against" in footnote for footnote in comparison_table(comparison).footnotes)


def test_fid_is_of_most_images_then_newest_and_says_if_they_are_few(tmp_path: Path, tiny_plan: MakePlan) -> None:
    found = [_evaluation(9.0, 500, 30.0), _evaluation(8.0, 2500, 10.0), _evaluation(7.5, 2500, 20.0)]
    found.append(_evaluation(1.0, 50_000, 40.0, ensemble="before the run was extended"))
    run = _write(tmp_path / "few", tiny_plan(), [1.0] * 3, evaluations={e.key: e for e in found})
    full = _evaluation(7.69, 50_000, 1.0)
    other = _write(tmp_path / "full", tiny_plan(), [1.0] * 3, evaluations={full.key: full})
    assert [cells["FID"] for cells in _cells(compare_runs([run, other]))] == ["7.50 (2.5k)", "7.69"]
    for runs, is_said in (([run, other], True), ([other], False)):
        footnotes = comparison_table(compare_runs(runs)).footnotes
        assert any("FID-50K" in footnote for footnote in footnotes) == is_said


def test_each_measure_has_a_column_of_its_own(tmp_path: Path, tiny_plan: MakePlan) -> None:
    fid = _evaluation(7.5, 50_000, 1.0)
    other_weights = fid.model_copy(update={"key": "other", "inception_sha256": "abcdef0123", "fid": 3.0})
    random = Evaluation.model_validate(
        {
            **fid.model_dump(exclude={"fid", "inception_sha256"}),
            **{"key": "random", "extractor": "random-conv", "extractor_sha256": "c", "num_images": 1000},
            "frechet_distance": 0.12345,
        }
    )

    def run(name: str, *found: Evaluation) -> Path:
        return _write(tmp_path / name, tiny_plan(), [1.0] * 3, evaluations={each.key: each for each in found})

    rendered = [random.model_copy(update={"raster": RasterPlan(margin=margin)}) for margin in (0.05, 0.1)]
    by_random, by_both = run("random", random), run("both", fid, random)
    of_drawings = [run(f"drawings{index}", each) for index, each in enumerate(rendered)]
    for runs, shown in (
        ([by_random], {"FD-random-conv": ["0.1235 (1k)"]}),
        ([by_random, by_both], {"FID": ["-", "7.50"], "FD-random-conv": ["0.1235 (1k)"] * 2}),
        (of_drawings, {f"FD-random-conv, 64 px, line 1 px, margin {margin}%": None for margin in (5, 10)}),
        ([by_both, run("weights", other_weights)], {"FID [i]": ["7.50", "-"], "FID [abcdef01]": ["-", "3.00"]}),
    ):
        table = comparison_table(compare_runs(runs))
        columns = dict(zip(table.headings, zip(*table.rows, strict=True), strict=True))
        for name, cells in shown.items():
            assert columns[name].count("-") == 1 if cells is None else list(columns[name]) == cells
        assert ("FID" in columns) == ("FID" in shown)
        assert any("nothing with the literature" in note for note in table.footnotes)
        assert not any("different reference" in note for note in table.footnotes)
    assert not any("FID-50K" in note for note in comparison_table(compare_runs([by_random])).footnotes)
    fields = compare_runs([by_random]).rows[0].as_json()
    assert (fields["fid"], fields["fd_random_conv"], fields["fd_random_conv_images"]) == (None, 0.12345, 1000)
    assert compare_runs(of_drawings).rows[1].as_json()["fd_random_conv_measure"].endswith("margin 10%")


def test_a_reused_stage_counts_in_the_speed_up_but_not_by_the_clock(tmp_path: Path, tiny_plan: MakePlan) -> None:
    dense = _write(tmp_path / "dense", tiny_plan(DENSE), [800.0])
    reused = {"train/0-260": {"reused_from": "elsewhere", "started_at": 1.0, "finished_at": 2.0}}
    run = _write(tmp_path / "run", tiny_plan(), [100.0, 50.0, 20.0], wall_s=40.0, records=reused)
    comparison = compare_runs([run], against=dense)
    row = comparison.rows[0]
    assert (row.speed_up, row.measures.wall_s) == (8.0, 40.0)
    footnotes = comparison_table(comparison).footnotes
    assert any("train/0-260 taken over" in footnote for footnote in footnotes)


def test_on_cpus_hours_are_worker_hours_and_shared_cores_are_mentioned(tmp_path: Path, tiny_plan: MakePlan) -> None:
    comparison = compare_runs([_write(tmp_path, tiny_plan(), [1.0] * 3, gpus=0.0, wall_s=1800.0, held=1)])
    assert _cells(comparison)[0]["worker-hours"] == "0.5"
    assert any("shared cores" in footnote for footnote in comparison_table(comparison).footnotes)
    assert comparison.rows[0].as_json()["gpu_hours"] is None


def test_a_sparse_run_brings_columns_of_what_it_keeps_that_say_theoretical(tmp_path: Path, tiny_plan: MakePlan) -> None:
    plan = tiny_plan(TWO_SPARSE, "sparsity.method=static", "sparsity.distribution=uniform")  # 30%, then 50%
    runs = (
        _write(tmp_path / "dense", tiny_plan(DENSE), [300.0], weights_bytes=4_000_000),
        _write(tmp_path / "sparse", plan, [150.0, 150.0], weights_bytes=1_234_567),
    )
    comparison = compare_runs(runs)
    dense, sparse = comparison.rows
    assert dense.sparse is None
    assert sparse.sparse is not None
    assert sparse.costs == dense.costs  # nothing is smaller or faster
    assert sparse.sparse.kept / sparse.sparse.maskable == pytest.approx(0.6, abs=1e-3)
    assert sparse.sparse.step_macs == pytest.approx(3 * sparse.sparse.forward_macs, abs=3)
    assert 0.6 * sparse.costs.macs < sparse.sparse.forward_macs < 0.65 * sparse.costs.macs_with_attention
    assert sparse.as_json()["theoretical_forward_macs"] == sparse.sparse.forward_macs
    cells = _cells(comparison)
    assert cells[0]["kept M"] == "-"
    assert cells[1]["theoretical G"] == f"{sparse.sparse.forward_macs / 1e9:.3f}"
    assert [row["stored MB"] for row in cells] == ["4.00", "2.47"]  # of all experts
    assert sparse.as_json()["stored_bytes"] == 2 * 1_234_567
    assert any("no device at hand skips them" in note for note in comparison_table(comparison).footnotes)
    assert "kept M" not in _cells(compare_runs(runs[:1]))[0]


def test_every_format_has_a_row_a_run_in_the_order_given(tmp_path: Path, tiny_plan: MakePlan) -> None:
    dense = str(_write(tmp_path / "dense", tiny_plan(DENSE), [800.0]))
    ours = str(_write(tmp_path / "ours", tiny_plan(), [100.0, 50.0, 20.0]))

    def show(form: str) -> str:
        result = CliRunner().invoke(app, ["compare", ours, dense, "--format", form], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    assert [row["run"] for row in json.loads(show("json"))["rows"]] == [ours, dense]
    assert [row["speed_up"] for row in csv.DictReader(io.StringIO(show("csv")))] == ["8.0", "1.0"]
    markdown = show("markdown").splitlines()
    assert markdown[0].startswith("| method |")
    assert markdown[2].startswith("| TA-EB 30/60/80% (magnitude) |")
    assert markdown[3].startswith("| Dense |")
    assert "8.00x" in show("table")


RUNS = ("Dense", "TA-EB 30/60/80% (magnitude)", "Scratch 50%", "TA-EB 30/60/80% (magnitude, shared draw) [a-run]")


@pytest.mark.parametrize(
    ("runs", "width", "columns"),
    [(1, 40, 13), (3, 80, 13), (3, 100, 13), (3, 200, 13), (12, 20, 1), (12, 80, 5), (12, 100, 7), (12, 220, 13)],
)
def test_a_comparison_is_one_table_that_fits_and_names_what_it_leaves_out(
    runs: int, width: int, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    headings = tuple(f"measure_{index}" for index in range(13))
    rows = tuple((RUNS[run % 4], *(f"{run:02d}.{index:04d}" for index in range(13))) for run in range(runs))
    wanted = (headings[9], headings[1], headings[5])
    table = TextTable(("method", *headings), rows, ("A footnote.",), wanted, "--format csv")
    print_table(table, Console(width=width))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    shown = [index for index in range(13) if f"00.{index:04d}" in text]
    assert len(shown) == columns
    assert set(shown) >= set((9, 1, 5)[:columns])
    assert all(cells[1 + index] in text for cells in rows for index in shown)
    left_out = [heading for index, heading in enumerate(headings) if index not in shown]
    said = " ".join(text.replace("\n", " ").split())
    assert said.endswith("A footnote.")
    assert (f"Too narrow for: {', '.join(left_out)}. " in said and "--format csv" in said) == bool(left_out)
    assert sum("╇" in line for line in text.splitlines()) == 1, "one table"
