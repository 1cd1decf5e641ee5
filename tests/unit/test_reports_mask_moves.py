"""`ebdiff tickets` of sparse trainings: how masks of weights have moved, in tables, JSON, CSV and a figure."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakePlan
from finished_run import end_stage, save_checkpoint
from PIL import Image
from rich.console import Console

from ebdiff_orchestrator.reports.tickets import Settings, TicketsReport, report_tickets
from ebdiff_orchestrator.reports.tickets_view import draw_pictures, show, write_report
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.pruning.weight_masks import random_mask
from region_workers.storage.tables import write_mask_moves
from region_workers.training.sparse import MaskMoves, RecordedMask
from schemas.errors import UserError
from schemas.job import MASK_MOVES_FILE
from schemas.plan import Plan

Masks = dict[str, torch.Tensor]
ALONE = ("regions=[{train: [0, 1000], pruning_ratio: 0, name: all}]", "sparsity.method=rigl")
MOVES = f"train/all/{MASK_MOVES_FILE}"
SHAPES = {"first.weight": (6, 4), "second.weight": (8, 3, 3, 3)}


def _series(updates: int) -> list[Masks]:
    """A third of each layer kept, in other places after each update."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    return [{n: random_mask(s, s.numel() // 3, generator) for n, s in shapes.items()} for _ in range(updates + 1)]


def _record(series: list[Masks]) -> MaskMoves:
    moves = MaskMoves({name: (mask.numel(), int(mask.sum())) for name, mask in series[0].items()})
    recorded = {name: RecordedMask(mask, mask) for name, mask in series[0].items()}
    for index, masks in enumerate(series[1:]):
        moves.note(10 * (index + 1), [recorded[name].move(masks[name])[1] for name in SHAPES])
    return moves


def _finished(run_dir: Path, plan: Plan, moves: MaskMoves) -> Path:
    """A run whose training has left these moves."""
    Ledger.begin(RunDirectory(run_dir), plan)
    write_mask_moves(run_dir / MOVES, moves.table())
    end_stage(run_dir, "train/all")
    return run_dir


def _shown(report: TicketsReport, last: int | None = None) -> str:
    file = io.StringIO()
    show(report, Console(file=file, width=120), last)
    return file.getvalue()


def test_shares_are_those_of_the_masks_themselves(tmp_path: Path, tiny_plan: MakePlan) -> None:
    series = _series(5)
    (found,) = report_tickets(_finished(tmp_path, tiny_plan(*ALONE), _record(series)), Settings()).moves
    bits = [torch.cat([mask.flatten() for mask in masks.values()]) for masks in series]
    kept, shares = int(bits[0].sum()), found.over_time()
    pairs = list(zip(bits[:1] + bits, bits, strict=False))
    assert found.steps.tolist() == [0, 10, 20, 30, 40, 50]
    assert shares["exchanged"].tolist() == [int((a & ~b).sum()) / kept for a, b in pairs]
    assert shares["replaced"].tolist() == [int((bits[0] & ~b).sum()) / kept for b in bits]
    assert shares["distance"].tolist() == [pytest.approx(float((bits[0] != b).float().mean())) for b in bits]
    ever = [torch.stack(bits[: n + 1]).any(dim=0).float().mean() for n in range(len(bits))]
    assert shares["ever_kept"].tolist() == [pytest.approx(float(share)) for share in ever]
    assert found.layers == tuple(SHAPES)
    assert found.densities.tolist() == [8 / 24, 72 / 216]
    by_chance = np.mean([shares["replaced"][n] for n in range(1, 6)])
    assert found.replaced_by_chance() == pytest.approx(2 / 3)
    assert by_chance == pytest.approx(2 / 3, abs=0.1)


def test_tables_say_how_masks_move_and_how_dense_layers_are(tmp_path: Path, tiny_plan: MakePlan) -> None:
    report = report_tickets(_finished(tmp_path, tiny_plan(*ALONE), _record(_series(40))), Settings())
    text = _shown(report)
    for part in (
        "weights of all (rigl 50%): 80 of 240 kept in 2 masked layers, 40 updates up to step 400\n",
        "(16 of 41, evenly chosen); 66.7% would be replaced by chance",
        "first ",
        "33.3%",
    ):
        assert part in text
    assert "Masks after each update;" in _shown(report, last=3)
    assert report.notes == ()
    (region,) = report.as_json()["sparse"]
    assert (region["region"], region["method"], region["training_finished"]) == ("all", "rigl", True)
    assert len(region["steps"]) == len(region["ever_kept"]) == 41
    assert region["layers"]["density"] == [0.333333, 0.333333]


def test_a_training_that_goes_on_shows_its_newest_checkpoint_and_a_still_mask_its_layers(
    tmp_path: Path, tiny_plan: MakePlan
) -> None:
    Ledger.begin(RunDirectory(tmp_path), tiny_plan(*ALONE))
    assert [note for note in report_tickets(tmp_path, Settings()).notes if "not trained yet" in note]
    series = _series(3)
    for updates, step in ((0, 5), (3, 30)):
        file = tmp_path / f"train/all/checkpoints/step-{step:09d}" / MASK_MOVES_FILE
        write_mask_moves(file, _record(series[: updates + 1]).table())
        save_checkpoint(file, step)
        text = _shown(report_tickets(tmp_path, Settings()))
        assert ("no update; it trains on" if not updates else "3 updates up to step 30; it trains on") in text
        assert ("Masks after each update" in text) == (updates > 0)


def test_files_hold_every_row_and_a_figure(tmp_path: Path, tiny_plan: MakePlan) -> None:
    moves = _record(_series(2))
    report = report_tickets(_finished(tmp_path / "run", tiny_plan(*ALONE), moves), Settings())
    table, picture = write_report(report, tmp_path / "out", last=None)
    recorded = [{name: str(value) for name, value in row.items()} for row in moves.table().to_pylist()]
    assert list(csv.DictReader(table.open())) == recorded
    alone, joined = Image.open(picture), Image.open(draw_pictures(report, tmp_path / "all.png", last=None))
    assert alone.size == joined.size
    assert len(alone.getcolors(1 << 20) or []) > 50


def test_a_training_that_has_left_no_moves_is_told_by_what_its_manifest_has(
    tmp_path: Path, tiny_plan: MakePlan
) -> None:
    Ledger.begin(RunDirectory(tmp_path), tiny_plan(*ALONE))
    end_stage(tmp_path, "train/all")
    report = report_tickets(tmp_path, Settings())
    assert report.moves == ()
    assert "50% of the weights are masked (rigl)" in report.notes[0]


@pytest.mark.parametrize("fault", ["a row less", "other names", "more kept than there are", "no rows", "no table"])
def test_a_table_that_is_not_of_moves_is_refused(tmp_path: Path, tiny_plan: MakePlan, fault: str) -> None:
    moves = _record(_series(2))
    table = moves.table()
    spoilt = {
        "a row less": table.slice(1),
        "other names": table.set_column(1, table.schema.field("layer"), [[*map(str, range(len(table)))]]),
        "more kept than there are": table.set_column(3, table.schema.field("kept"), [[1000] * len(table)]),
        "no rows": table.slice(0, 0),
        "no table": table,
    }
    run_dir = _finished(tmp_path, tiny_plan(*ALONE), moves)
    file = run_dir / MOVES
    write_mask_moves(file, spoilt[fault])
    if fault == "no table":
        file.write_bytes(b"PAR1" + file.read_bytes()[100:])
    end_stage(run_dir, "train/all")
    with pytest.raises(UserError, match=r"mask_moves\.parquet: expected as its stage has written it.*Restore"):
        report_tickets(run_dir, Settings())
