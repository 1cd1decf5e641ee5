"""A whole evaluation of a small run, in this process: the number, what is recorded, and what is refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import TINY, MakePlan
from finished_run import finished_run
from forked import run_forked
from listener import Listener
from local_inception import write_local_inception
from PIL import Image
from pytorch_fid import fid_score
from rich.console import Console
from safetensors.torch import load_file

from ebdiff_orchestrator import evaluate
from ebdiff_orchestrator.cli.evaluate import report_table
from ebdiff_orchestrator.evaluation import work
from ebdiff_orchestrator.evaluation.extractors import choose_extractor
from ebdiff_orchestrator.evaluation.features import shared_out
from ebdiff_orchestrator.evaluation.inception import WEIGHTS_NAME
from ebdiff_orchestrator.evaluation.records import evaluation_folder, recorded_report
from ebdiff_orchestrator.evaluation.statistics import Statistics, write_statistics
from ebdiff_orchestrator.evaluation.work import Shard, make_shards
from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.ownership import write_claim
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.store import ensure_store
from region_workers.storage.integrity import file_digest, files_in
from region_workers.storage.run_files import RunFiles
from schemas.errors import RunFailed, UserError
from schemas.evaluation import EvaluationReport, FeatureJob, FolderImages, Measure, SampledImages
from schemas.job import Claim, Progress
from schemas.manifest import Evaluation
from schemas.process import unix_time

IMAGES = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; also where torch hub would keep pytorch-fid's, so that its own command finds them."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    weights = write_local_inception(folder / "weights.safetensors")
    torch.save(load_file(weights), folder / WEIGHTS_NAME)
    return weights


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    finished_run(path, plan_from_values(dict(TINY), ()))
    return path


@pytest.fixture(scope="module")
def quick_root() -> Iterator[None]:
    """The root of the product of two covariances in a moment: that of a few images has few values beside zeros.

    scipy's takes half a minute for 2048 numbers an image; the distance needs only the trace of it.
    """

    def root(product: np.ndarray, disp: bool = True) -> tuple[np.ndarray, float]:
        sketch = np.random.default_rng(0).standard_normal((len(product), 2 * IMAGES))
        basis, _ = np.linalg.qr(product @ sketch)
        values = np.linalg.eigvals(basis.T @ product @ basis).real
        return np.diag(np.sqrt(np.where(values > 1e-12 * values.max(), values, 0.0))), 0.0

    with patch("scipy.linalg.sqrtm", root):
        yield


@pytest.fixture(scope="module")
def evaluation(run_dir: Path, weights: Path, quick_root: None) -> Evaluation:
    return evaluate(
        run_dir, IMAGES, reference_images=IMAGES, inception_weights=weights, keep_images=True, in_process=True
    )


@pytest.mark.slow
def test_fid_is_that_of_pytorch_fid_s_own_command_on_the_same_images(
    run_dir: Path,
    evaluation: Evaluation,
    weights: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = ensure_store(RunDirectory(run_dir).read().plan.data, cache_dir)
    for index, image_HWC in enumerate(store.array[:IMAGES]):
        Image.fromarray(np.asarray(image_HWC).squeeze()).save(tmp_path / f"{index:05d}.png")
    command = ["pytorch_fid", "--num-workers", "0", "--device", "cpu"]
    monkeypatch.setattr(
        sys, "argv", [*command, str(evaluation_folder(run_dir, evaluation.key) / "images"), str(tmp_path)]
    )
    monkeypatch.setenv("TORCH_HOME", str(weights.parents[2]))
    fid_score.main()
    theirs = float(capsys.readouterr().out.split("FID:")[1])
    assert theirs > 0
    assert evaluation.fid == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_what_is_recorded_says_all_that_the_number_depends_on(
    run_dir: Path, evaluation: Evaluation, weights: Path
) -> None:
    manifest = RunDirectory(run_dir).read()
    assert manifest.evaluations[evaluation.key] == evaluation
    assert evaluation.inception_sha256 == file_digest(weights)
    assert (evaluation.num_images, evaluation.steps, evaluation.reference_images) == (IMAGES, 4, IMAGES)
    assert 0 < evaluation.seconds_per_image < evaluation.wall_s
    assert [(held.job, held.attempt, held.workers, held.gpus) for held in manifest.usage] == [("evaluate", 1, 1, 0)]
    folder = evaluation_folder(run_dir, evaluation.key)
    report = recorded_report(run_dir, evaluation)
    assert report == EvaluationReport.model_validate_json((folder / "report.json").read_text())
    assert report.label.startswith(f"FID-{IMAGES} ({IMAGES} images; not comparable with FID-50k")
    assert report.reference == f"only the first {IMAGES} of the 1,797 images of the run's data"
    assert report.stored_bytes == sum(path.stat().st_size for path in files_in(run_dir / "ensemble"))
    assert sum(share.steps for share in report.shares) == 4
    assert sorted(path.name for path in folder.iterdir()) == ["images", "report.json", "statistics.npz"]
    assert len(list((folder / "images").iterdir())) == IMAGES
    assert not list(folder.parent.glob("reference-*"))


@pytest.mark.slow
def test_a_recorded_evaluation_is_shown_not_repeated(run_dir: Path, evaluation: Evaluation, weights: Path) -> None:
    with patch("ebdiff_orchestrator.evaluation.features.make_shards", side_effect=AssertionError("made again")):
        again = evaluate(run_dir, IMAGES, reference_images=IMAGES, inception_weights=weights, in_process=True)
    assert again == evaluation
    options = ["-n", str(IMAGES), "--reference-images", str(IMAGES), "--inception-weights", str(weights)]
    shown = run_forked("ebdiff", "evaluate", run_dir, *options)
    assert "evaluated before" in shown.stdout
    assert "not comparable with FID-50k" in shown.stdout.replace("\n", " ")
    listed = run_forked("ebdiff", "evaluate", run_dir, *options, "--json")
    assert json.loads(listed.stdout)["evaluation"]["fid"] == evaluation.fid


def test_a_folder_of_images_or_statistics_of_it_serve_as_a_reference(
    run_dir: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Statistics] = []

    def distance(_: Statistics, theirs: Statistics) -> float:
        compared.append(theirs)
        return 1.0

    monkeypatch.setattr("ebdiff_orchestrator.evaluation.evaluate.frechet_distance", distance)
    for index, level in enumerate((10, 200, 90)):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / f"{index}.png")
    options = {"extractor": "random-conv", "in_process": True, "steps": 2}
    by_folder = evaluate(run_dir, 2, reference=tmp_path, **options)
    assert by_folder.reference_images == 3
    write_statistics(tmp_path / "folder.npz", compared[0])
    by_file = evaluate(run_dir, 2, reference=tmp_path / "folder.npz", **options)
    assert by_file.reference_digest == file_digest(tmp_path / "folder.npz")
    assert np.array_equal(compared[0].covariance, compared[1].covariance)
    assert compared[0].mean.std() > 0
    Image.new("RGB", (9, 8)).save(tmp_path / "3.png")
    with pytest.raises(UserError, match=r"images of one size.*3.png of 9x8"):
        evaluate(run_dir, 2, reference=tmp_path, inception_weights=weights, in_process=True, steps=2)


class Watcher(Listener):
    """`heard_at`: when what it was told of jobs was so."""

    def __init__(self) -> None:
        super().__init__()
        self.heard_at: list[float] = []

    def job(self, name: str, progress: Progress) -> None:
        self.heard_at.append(progress.updated_at)


def test_waiting_for_a_silent_owner_is_told_to_the_view_and_nothing_is_printed(
    tiny_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(tmp_path, tiny_plan())
    silent = Claim(number=1, token="aaaaaaaa", host="elsewhere", pid=1, lease_s=0.1)
    write_claim(RunFiles(tmp_path), silent)
    with pytest.raises(UserError, match="--measure = beauty"):
        evaluate(tmp_path, 4, measures=["beauty"], in_process=True, view=(view := Listener()))
    assert "process 1 on elsewhere has not said that it ended" in view.said[0]
    assert capsys.readouterr().out == ""


def test_random_filters_need_no_weights_and_their_distance_is_no_fid(
    tiny_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    finished_run(run_dir, tiny_plan())
    how = {"extractor": "random-conv", "in_process": True, "steps": 2}
    found = evaluate(run_dir, 6, reference_images=30, **how, view=(view := Watcher()))
    assert view.heard_at
    assert all(unix_time() - at < 600 for at in view.heard_at), "else a live view takes the work for silent"
    assert found.distance == found.frechet_distance > 0
    recorded = json.loads((run_dir / "manifest.json").read_text())["evaluations"][found.key]
    assert (recorded["extractor"], recorded["frechet_distance"]) == ("random-conv", found.distance)
    assert {"fid", "inception_sha256"}.isdisjoint(recorded)
    assert evaluate(run_dir, 6, reference_images=30, **how) == found
    report = recorded_report(run_dir, found)
    assert report.label == "FD-random-conv-6"
    Console().print(report_table(report))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"FD-random-conv-6: {found.distance:.4g}" in shown
    assert "nothing with the literature" in shown
    assert "FID" not in shown + report.model_dump_json()
    own = evaluation_folder(run_dir, found.key) / "statistics.npz"
    itself = evaluate(run_dir, 6, reference=own, **how)
    assert itself.distance == pytest.approx(0, abs=1e-4)
    write_statistics(tmp_path / "inception.npz", Statistics(np.zeros(2048), np.eye(2048), 9))
    (tmp_path / "large").mkdir()
    for index in range(2):
        Image.new("L", (16, 16), index).save(tmp_path / f"large/{index}.png")
    for wrong, told in (("inception.npz", r"mu \(2048,\).*not \(352,\)"), ("large", "images of 8x8, .*Not of 16x16")):
        with pytest.raises(UserError, match=f"--reference = .*{told}"):
            evaluate(run_dir, 6, reference=tmp_path / wrong, **how)


@pytest.fixture
def job(run_dir: Path, weights: Path, tmp_path: Path) -> FeatureJob:
    plan = RunDirectory(run_dir).read().plan
    drawn = {"seed": 3, "steps": 2, "guidance_scale": 1, "batch_size": 2, "keep_images": False}
    return FeatureJob(
        folder=str(tmp_path / "shards"),
        num_images=3,
        images=SampledImages(ensemble=str(run_dir / "ensemble"), **drawn),
        measure=Measure(extractor=choose_extractor("inception", weights)),
        training=plan.training,
    )


def test_how_shards_are_shared_out_changes_no_bit(
    job: FeatureJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SHARD_IMAGES", 1)
    other = job.model_copy(update={"folder": str(tmp_path / "other")})
    assert make_shards(job.model_dump_json(), (0, 1, 2)) is None
    torch.set_num_threads(2)
    assert make_shards(other.model_dump_json(), (2,)) is None
    assert make_shards(other.model_dump_json(), (1, 0)) is None
    for index in range(3):
        name = f"features-{index:05d}.npy"
        assert file_digest(Path(job.folder) / name) == file_digest(Path(other.folder) / name)
    assert not np.array_equal(*(np.load(Path(job.folder) / f"features-0000{index}.npy") for index in (0, 1)))


def test_a_worker_with_other_weights_than_the_driver_s_says_so(job: FeatureJob) -> None:
    for extractor, told in ((job.measure.extractor, "on every node"), (choose_extractor("random-conv"), "same one")):
        wrong = job.model_copy(update={"measure": Measure(extractor=extractor.model_copy(update={"digest": "0" * 64}))})
        assert told in (make_shards(wrong.model_dump_json(), (0,)) or "")


def test_a_reference_image_that_does_not_read_is_named(job: FeatureJob, tmp_path: Path) -> None:
    (tmp_path / "references").mkdir()
    for index in range(6):
        Image.new("L", (40, 40), index).save(tmp_path / f"references/{index}.png")
    torn = tmp_path / "references" / "2.png"
    torn.write_bytes(torn.read_bytes()[:50])
    small = FolderImages(folder=str(tmp_path / "references"), max_pixels=1000)
    large = small.model_copy(update={"max_pixels": 2000})
    for images, told in ((small, "0.png does not read as an image"), (large, "2.png does not read as an image")):
        of_folder = job.model_copy(update={"images": images})
        assert told in (make_shards(of_folder.model_dump_json(), (0,)) or "")


def test_what_a_killed_worker_was_writing_is_gone_when_another_has_done_its_part(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    def make_and_leave(job: str, indices: tuple[int, ...]) -> str | None:
        folder = Path(FeatureJob.model_validate_json(job).folder)
        for file in (
            folder / ".partial-0123456789ab-features-00000.npy",
            folder / "images/.partial-0123456789ab-1.png",
        ):
            file.parent.mkdir(exist_ok=True)
            file.touch()
        return make_shards(job, indices)

    finished_run(tmp_path, tiny_plan(f"workers.cache_dir={tmp_path}/cache"))
    with patch("ebdiff_orchestrator.evaluation.features.make_shards", make_and_leave):
        found = evaluate(tmp_path, 2, steps=1, extractor="random-conv", keep_images=True, in_process=True)
    folder = evaluation_folder(tmp_path, found.key)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.glob("images/*")) == ["00000.png", "00001.png"]


def test_shards_are_shared_out_evenly_and_all() -> None:
    missing = [Shard(index, 0, 1) for index in (0, 2, 3, 7, 8)]
    assert shared_out(missing, 2) == [(0, 3, 8), (2, 7)]
    assert sorted(index for part in shared_out(missing, 16) for index in part) == [0, 2, 3, 7, 8]


def test_a_failure_of_a_worker_is_one_line_that_says_how_to_go_on(
    run_dir: Path, weights: Path, tiny_plan: MakePlan, tmp_path: Path
) -> None:
    finished_run(tmp_path / "broken", tiny_plan())
    with (
        patch("ebdiff_orchestrator.evaluation.features.make_shards", return_value="The device ran out of memory."),
        pytest.raises(RunFailed, match=r"out of memory. What is finished is kept"),
    ):
        evaluate(tmp_path / "broken", 4, reference_images=4, inception_weights=weights, in_process=True, seed=9)
    assert [held.job for held in RunDirectory(tmp_path / "broken").read().usage] == ["evaluate"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 1}, r"--num-images = 1: expected at least 2"),
        ({"measures": ("fid", "is")}, r"--measure = is: expected fid, kid, precision-recall, wavelet"),
        ({"measures": ("fid", "wavelet")}, r"--measure = fid, wavelet: expected wavelet by itself"),
        ({"measures": ("wavelet",)}, r"--inception-weights = .*: expected none with --measure wavelet"),
        ({"measures": ("wavelet",), "extractor": "inception"}, r"--extractor = inception: expected none with"),
        ({"measures": ("precision-recall",), "num_images": 3}, r"--num-images = 3: expected at least 4 with"),
        ({"measures": ("precision-recall",), "reference_images": 3}, r"--reference-images = 3: expected at least 4"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_work(
    run_dir: Path, weights: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(run_dir, in_process=True, **{"inception_weights": weights, **options})  # type: ignore[arg-type]
