"""Previews: what they show, when they come, what they may cost, and that they are nothing to the run."""

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakePlan
from drawing_files import VECTOR
from event_files import events_of
from forked import ForkedProcess
from latent_fixtures import tiny_vae
from listener import Listener
from pictures import save_images
from processes import processes, wait_until
from run_products import products

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.previews.preview import make_preview
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.previews import Spent, seconds_to_wait
from region_workers.data.drawing_store import ensure_data
from region_workers.training.checkpoints import Checkpoints, newest_readable
from region_workers.training.failures import StopRequestedError
from region_workers.worker.run import run_job
from schemas.execution import PreviewRecord, PreviewsPlan
from schemas.job import WorkerJob
from schemas.plan import Plan

TWO = (
    "regions=[{train: [0, 600], pruning_ratio: 0.5, name: low}, {train: [500, 1000], pruning_ratio: 0.25, name: high}]"
)
SHOWN = "previews={interval_s: 0.1, num_images: 4, steps: 4, measure: wavelet}"  # images and steps: as the samples
RARELY = SHOWN.replace("0.1", "1e6")
LIMIT_S = 600.0  # a preview is drawn at the lowest priority: on a busy machine it waits for everybody


def _until(there: Callable[[], Any]) -> Any:
    return wait_until(there, "the previews", look_s=0.02, limit_s=LIMIT_S)


class Stopping(ThisProcess):
    """Some jobs stop at first after a step of their first stage; `look` is called when a job has ended or stopped."""

    def __init__(self, look: Callable[[WorkerJob], None]) -> None:
        super().__init__()
        self._look = look
        self._to_be_stopped = {"region low", "shared draw"}

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        stops = job.name in self._to_be_stopped
        self._to_be_stopped.discard(job.name)
        try:
            run_job(job, preemption_notice=(lambda: True) if stops else None)
        except StopRequestedError:
            assert stops
        self._look(job)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _record(run_dir: Path, number: int) -> PreviewRecord:
    return PreviewRecord.model_validate_json((run_dir / f"previews/{number:06d}.json").read_text())


def _picture(run_dir: Path, number: int) -> bytes:
    return (run_dir / f"previews/{number:06d}.png").read_bytes()


def _watched_run(plan: Plan, run_dir: Path, by_process: bool) -> tuple[list[PreviewRecord | None], list[str]]:
    """Launch; what previews show after each job, the second also by the run's own process, and what the driver said."""
    made: list[PreviewRecord | None] = []
    view = Listener()

    def look(job: WorkerJob) -> None:
        if by_process and len(made) == 1:
            _until(lambda: any("review" in line for line in view.said))
        made.append(make_preview(job.run_dir, job.owner))

    launch(plan, run_dir, executor=Stopping(look), view=view)
    return made, view.said


@pytest.fixture(scope="module")
def watched(tiny_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Any:
    """A run of pixels: its directory, what previews show after each job, and what the driver said."""
    run_dir = tmp_path_factory.mktemp("watched") / "run"
    return run_dir, *_watched_run(tiny_plan(TWO, SHOWN), run_dir, by_process=True)


def test_previews_come_while_a_run_trains_and_end_in_the_samples_of_the_run(watched: Any) -> None:
    run_dir, (first, mixed, last), said = watched
    assert first is None, "one region had nothing yet"
    own = _record(run_dir, 1)  # the run's own process has drawn it, the others this one
    assert (own.source, own.steps) == ({"high": "expert", "low": "dense"}, {"high": 12, "low": 1})
    assert (own.num_images, own.sampling_steps, own.number) == (4, 4, 1)
    assert min(own.seconds, own.processor_s) > 0
    assert (mixed.number, mixed.source, mixed.steps) == (2, own.source, own.steps)
    assert min(own.measures["wavelet"], last.measures["wavelet"]) > 0
    assert mixed.measures == own.measures
    assert _picture(run_dir, 2) == _picture(run_dir, 1), "the same checkpoints give the same images"
    assert (last.number, last.source, last.steps) == (3, {"low": "expert", "high": "expert"}, {"low": 12, "high": 12})
    assert _picture(run_dir, 3) == (run_dir / "samples/grid.png").read_bytes()
    assert _picture(run_dir, 3) != _picture(run_dir, 2)
    assert f"Preview 1: {run_dir}/previews/000001.png" in said
    assert sorted(path.name for path in (run_dir / "previews").iterdir()) == [
        f"{number:06d}.{kind}" for number in (1, 2, 3) for kind in ("json", "png")
    ]


def test_previews_and_what_they_measure_are_in_the_trackers(watched: Any) -> None:
    run_dir, _, _ = watched
    events = events_of(run_dir, "run")
    assert [event.step for event in events.Images("previews")] == [1, 2, 3]
    curve = {event.step: event.value for event in events.Scalars("measures/wavelet")}
    assert curve == {number: pytest.approx(_record(run_dir, number).measures["wavelet"]) for number in (1, 2, 3)}


def _latents(images: Path, vae: Path) -> tuple[str, ...]:
    blocks = "down_block_types: [DownBlock2D, DownBlock2D], up_block_types: [UpBlock2D, UpBlock2D]"
    small = "block_out_channels: [16, 32], layers_per_block: 1, norm_num_groups: 4, num_classes: 2"
    return (
        f"model={{family: latent, vae: {vae}, latent_channels: 3, latent_downscale: 2, {small}, {blocks}}}",
        f"data={{path: {images}, resolution: 16, channels: 3, label_column: label}}",
        "sampling.guidance_scale=2",
        "draw.scope=shared",
    )


@pytest.mark.parametrize("kind", ["drawings", "latents of classes, drawn together"])
def test_previews_of_other_families_end_in_the_samples_too(tiny_plan: MakePlan, tmp_path: Path, kind: str) -> None:
    together = kind != "drawings"
    images = save_images(tmp_path / "images", [(16, 16)] * 16, classes=2)
    changes = _latents(images, tiny_vae(tmp_path / "vae")) if together else VECTOR
    run_dir = tmp_path / "run"
    made = _watched_run(tiny_plan(*changes, TWO, RARELY), run_dir, by_process=False)[0]
    shown = [record and {name: (record.source[name], record.steps[name]) for name in record.steps} for record in made]
    dense, ticket, first, whole = ("dense", 1), ("expert", 0), ("expert", 1), ("expert", 12)
    assert shown == (
        [
            {"low": dense, "high": dense},
            {"low": ticket, "high": ticket},
            {"low": ticket, "high": whole},
            {"low": first, "high": whole},
            {"low": whole, "high": whole},
        ]
        if together
        else [None, {"low": dense, "high": whole}, {"low": whole, "high": whole}]
    )
    assert all(record.measures["wavelet"] > 0 for record in made if record is not None)
    pictures = [_picture(run_dir, number + 1) for number in range(len(made) - made.count(None))]
    assert pictures[-1] == (run_dir / "samples/grid.png").read_bytes()
    assert pictures[0] != pictures[-1]


def _drawing_processes(run_dir: Path) -> list[int]:
    """The processes that draw previews of the run."""
    words = {"ebdiff_orchestrator.previews", str(run_dir)}
    return [process.pid for process in processes() if words <= set(process.command.split())]


@pytest.fixture(scope="module")
def failing(tiny_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> tuple[Path, list[str]]:
    """A run whose every preview fails, and what the driver said."""
    run_dir, view = tmp_path_factory.mktemp("failing") / "run", Listener()
    plan = tiny_plan(TWO, SHOWN)
    ensure_data(plan.data, cache_dir)  # decoded by processes that the patch would break, too

    def look(job: WorkerJob) -> None:
        if (run_dir / "train/low/result.json").is_file():
            _until(lambda: any("No more previews" in line for line in view.said))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        launch(plan, run_dir, executor=Stopping(look), view=view)
    return run_dir, view.said


def test_failed_previews_are_warnings_and_the_run_ends_in_the_same_bits(
    watched: Any, failing: tuple[Path, list[str]]
) -> None:
    run_dir, said = failing
    failure = "No preview: its process ended with exit status 1. The run goes on."
    last = "No more previews in this launch, after 3 failures in a row."
    assert [line for line in said if "review" in line] == [failure, failure, failure, last]
    assert not (run_dir / "previews").exists()
    assert products(run_dir) == products(watched[0])


_DRIVER = """
import sys, time
from pathlib import Path
from ebdiff_orchestrator.run.launch import RunHandle
from ebdiff_orchestrator.run.previews import Previews
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import inputs_of, outline_jobs
from ebdiff_orchestrator.run.view import View

manifest = RunHandle(sys.argv[1]).manifest
jobs = outline_jobs(manifest.plan, inputs_of(manifest))
with Previews(manifest.plan.previews, RunDirectory(sys.argv[1]), jobs, View()):
    time.sleep(600)
"""


def test_a_killed_driver_leaves_neither_a_process_nor_half_a_preview(failing: tuple[Path, list[str]]) -> None:
    run_dir, _ = failing
    driver = ForkedProcess("-c", _DRIVER, run_dir)
    try:
        (process,) = _until(lambda: _drawing_processes(run_dir))
        _until(lambda: os.getpriority(os.PRIO_PROCESS, process) == 19)
        session = Path(f"/proc/{process}/autogroup")  # where Linux weighs sessions, its own counts least, too
        _until(lambda: not session.exists() or session.read_text().endswith("nice 19\n"))
        driver.send_signal(signal.SIGKILL)
        _until(lambda: not _drawing_processes(run_dir))
    finally:
        driver.send_signal(signal.SIGKILL)
    assert not (run_dir / "previews").exists()


@pytest.mark.parametrize(
    ("elapsed_s", "since_last_s", "spent", "cores", "expected_s"),
    [
        pytest.param(0, 0, Spent(), 2, 60, id="the first comes after the interval"),
        pytest.param(60, 60, Spent(), 2, 0, id="whatever it may cost"),
        pytest.param(60, 60, Spent(0, 6), 2, 540, id="unless an earlier launch's tells what one costs"),
        pytest.param(100, 10, Spent(10, 10), 2, 1900, id="10 s for the one drawn and 10 s for the next, of 2 cores"),
        pytest.param(100, 10, Spent(10, 10), 64, 50, id="on many cores the interval decides"),
        pytest.param(2000, 60, Spent(10, 10), 2, 0, id="when that is 0.5% of what has passed"),
        pytest.param(2000, 60, Spent(10, 30), 2, 2000, id="a dear one makes the next wait"),
    ],
)
def test_previews_wait_for_the_interval_and_for_their_share_of_the_processor_time(
    elapsed_s: float, since_last_s: float, spent: Spent, cores: float, expected_s: float
) -> None:
    plan = PreviewsPlan(interval_s=60)
    assert seconds_to_wait(plan, elapsed_s, since_last_s, spent, cores) == pytest.approx(expected_s)


def test_a_reader_beside_the_worker_takes_the_newest_whole_checkpoint_and_changes_nothing(tmp_path: Path) -> None:
    assert newest_readable(tmp_path, "key") is None
    with Checkpoints(tmp_path, "key", keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, 0.0, {"weights.w": torch.tensor(step)}, [])
    newest = newest_readable(tmp_path, "key")
    assert newest is not None
    assert newest.info.step == 2
    (tmp_path / "step-000000002/state.safetensors").unlink()  # as the worker does, in the midst of it
    older = newest_readable(tmp_path, "key")
    assert older is not None
    assert older.info.step == 1
    assert newest_readable(tmp_path, "another key") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]


def test_previews_are_no_part_of_the_experiment_nor_of_a_plan_without_them(tiny_plan: MakePlan) -> None:
    without, withs = tiny_plan(TWO), tiny_plan(TWO, SHOWN)
    assert "previews" not in without.model_dump(mode="json")
    assert without.experiment_digest() == withs.experiment_digest()
    assert withs == Plan.model_validate(withs.model_dump(mode="json"))
