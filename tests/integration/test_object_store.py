"""A run in an object store: a real S3 server, workers in processes of their own, kills, and the same bits."""

import errno
import io
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ONE_REGION, MakeJobs, MakePlan
from event_files import events_of
from finished_run import finished_run
from process_cluster import ProcessCluster, run_worker
from processes import RunningProcess
from s3_server import BUCKET, s3_server
from serial_cluster import SerialCluster

from ebdiff_orchestrator.evaluation.evaluate import evaluate
from ebdiff_orchestrator.evaluation.sampling import SampleJob, sample_here
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.previews.preview import make_preview
from ebdiff_orchestrator.reports.masks import newest_of_run
from ebdiff_orchestrator.reports.page import write_report
from ebdiff_orchestrator.reports.tickets import Settings, report_tickets
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.metrics_feed import fed_trackers
from ebdiff_orchestrator.run.ownership import RunTakenOverError
from ebdiff_orchestrator.run.placing import place_jobs
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.run_table import read_status
from ebdiff_orchestrator.run.stages import ASSEMBLE, inputs_of, outline_jobs
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.sharing.export import export_run
from region_workers.storage.checkpoint_files import CHECKPOINT_FILE, CheckpointInfo, checkpoint_name
from region_workers.storage.durable import write_model
from region_workers.storage.integrity import artifact, file_digests
from region_workers.storage.object_store import ObjectStore
from region_workers.storage.run_files import RunFiles
from region_workers.storage.tables import read_masks, write_masks
from schemas.errors import PlanError, UserError
from schemas.execution import PreviewRecord, picture_key
from schemas.job import MASKS_FILE, WorkerJob
from schemas.manifest import Evaluation, Manifest

SLOW = ("training.steps=300", "checkpointing.interval_steps=20")


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with s3_server():
        yield


def _digests(manifest: Manifest) -> dict[str, str]:
    artifacts = [item for record in manifest.stages.values() for item in record.artifacts]
    return {item.path: item.sha256 for item in artifacts if not item.path.endswith("metrics.parquet")}


def _kill_once_saved(
    url: str, then: Callable[[], object] = lambda: None
) -> Callable[[WorkerJob, int, RunningProcess], None]:
    """Kills a worker by SIGKILL once the store holds a checkpoint of its training; `then`: while it stands still."""

    def sabotage(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
        store = ObjectStore(url)
        while attempt == 1 and process.poll() is None:
            if any("train/" in key and key.endswith("checkpoint.json") for key in store.list_keys()):
                process.send_signal(signal.SIGSTOP)
                then()
                process.send_signal(signal.SIGKILL)
                return
            time.sleep(0.05)

    return sabotage


def _steps_in_tensorboard(run: Path) -> list[int]:
    return [event.step for event in events_of(run, "all").Scalars("train/loss")]


def test_a_run_in_a_bucket_whose_worker_is_killed_or_object_damaged_ends_in_the_bits_of_one_in_a_folder(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/runs/mine"
    plan = tiny_plan(ONE_REGION, *SLOW, "previews={interval_s: 1e6, num_images: 2, steps: 2}")
    whole_dir = tmp_path / "whole"
    whole = driver.launch(plan, whole_dir, executor=ProcessCluster(1)).manifest

    previews: list[PreviewRecord | None] = []
    cluster = ProcessCluster(1, _kill_once_saved(url, lambda: previews.append(make_preview(url))))
    handle = driver.launch(plan, url, executor=cluster)
    assert cluster.attempts == {"region all": 2}
    preview = previews[0]
    assert preview is not None
    assert (preview.source, preview.steps["all"] % 20) == ({"all": "expert"}, 0)
    for place in (url, whole_dir):
        make_preview(str(place))
    first, second = (ObjectStore(url).read(picture_key(number)) for number in (1, 2))
    assert second == (whole_dir / picture_key(1)).read_bytes()
    assert (second == first) == (preview.steps["all"] == 300), "a quick worker may have been done"
    assert _digests(handle.manifest) == _digests(whole)
    assert handle.ensemble(batch_size=1, output_type="pt").images.shape == (1, 1, 8, 8)
    assert read_status(url).progress["train/all"].first_step > 0, "the second attempt began anew"

    shutil.rmtree(RunDirectory(url).path)  # as on another machine
    drawn, expected = (sample_here(SampleJob(str(run), 2, 2), lambda done, total: None) for run in (url, whole_dir))
    assert np.array_equal(drawn.samples, expected.samples)
    shutil.rmtree(RunDirectory(url).path)
    exports = [export_run(Path(run), tmp_path / name / "mine") for run, name in ((url, "theirs"), (whole_dir, "ours"))]
    first, second = (file_digests(folder) for folder in exports)
    assert (len(first) > 10, first.pop("README.md") != "", second.pop("README.md") != "") == (True, True, True)
    assert first == second

    stored = ObjectStore(url).list_keys()
    assert not [key for key in stored if ".partial" in key or key.endswith(".lock")]
    steps = {key.split("/")[3] for key in stored if key.startswith("train/all/checkpoints/")}
    assert steps == {"step-000000280", "step-000000300"}, "old checkpoints stay in the store"

    again = ProcessCluster(1)
    assert driver.launch(
        plan, Path(url), executor=again
    ).manifest.finished()  # as the command line's paths have it: one slash
    assert again.attempts == {}

    store, key = ObjectStore(url), "train/all/expert/diffusion_pytorch_model.safetensors"
    expert = store.read(key)
    store.write(key, expert[:-1] + bytes([expert[-1] ^ 1]))
    shutil.rmtree(RunDirectory(url).path)
    mended = ProcessCluster(1)
    assert _digests(driver.launch(plan, url, executor=mended).manifest) == _digests(whole)
    assert mended.attempts == {"region all": 1}
    assert store.read(key) == expert

    RunFiles(url, tmp_path / "elsewhere").fetch_folder("tensorboard")  # once each, though three launches wrote them
    assert _steps_in_tensorboard(tmp_path / "elsewhere") == _steps_in_tensorboard(whole_dir) != []


def test_an_evaluation_on_record_in_a_bucket_is_shown_on_another_machine_too(tiny_plan: MakePlan) -> None:
    url, lines = f"s3://{BUCKET}/runs/measured", list[str]()
    view = View()
    view.line = lines.append  # type: ignore[method-assign]
    finished_run(RunDirectory(url).path, tiny_plan(ONE_REGION))
    RunFiles(url).publish("")

    def measured() -> Evaluation:
        how = {"extractor": "random-conv", "reference_images": 4, "keep_images": True, "in_process": True}
        return evaluate(url, 2, **how, view=view)  # type: ignore[arg-type]

    first = measured()
    shutil.rmtree(RunDirectory(url).path)
    assert measured() == first
    assert lines[-1] == "This was evaluated before; nothing to do."
    [kept] = RunDirectory(url).path.glob("evaluation/*/images")
    assert len(list(kept.glob("*.png"))) == 2


def test_what_is_taken_over_from_a_bucket_is_put_down_to_the_run_there(
    tiny_plan: MakePlan, serial_cluster: SerialCluster
) -> None:
    first, second = (f"s3://{BUCKET}/runs/{name}" for name in ("first", "second"))
    quick = (ONE_REGION, "sampling.num_images=1", "sampling.steps=1", "draw.threshold=1.0", "logging.trackers=[]")
    driver.launch(tiny_plan(*quick, "training.steps=2"), first, executor=serial_cluster)
    handle = driver.launch(tiny_plan(*quick, "training.steps=3"), second, executor=serial_cluster, reuse=[first])
    stages = handle.manifest.stages
    assert (stages["draw/all"].reused_from, stages["train/all"].reused_from) == (first, first)


def test_telling_of_a_run_in_a_bucket_fetches_no_weights(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/runs/told"
    quick = (ONE_REGION, "sampling.num_images=1", "sampling.steps=1", "training.steps=2", "logging.trackers=[]")
    driver.launch(tiny_plan(*quick), url, executor=serial_cluster)
    assert any(key.startswith("draw/") and key.endswith(".safetensors") for key in RunFiles(url).list_keys())
    shutil.rmtree(RunDirectory(url).path)
    write_report([url], tmp_path / "page.html")
    [told] = report_tickets(Path(url), Settings()).tickets
    assert told.masks.finished
    assert told.masks.ticket is not None
    assert told.masks.ticket.step in told.masks.steps
    assert not list(RunDirectory(url).path.rglob("*.safetensors"))


def test_masks_that_an_older_run_left_on_this_machine_are_not_told_of() -> None:
    run = RunDirectory(f"s3://{BUCKET}/runs/anew")
    for step, is_published in ((20, True), (300, False)):
        folder = run.path / f"draw/all/checkpoints/{checkpoint_name(step)}"
        write_masks(folder / MASKS_FILE, [{"region": "all", "interval": 1, "step": step, "bits": 8, "mask": b"1"}])
        info = CheckpointInfo(key="", step=step, active_s=0, sha256=file_digests(folder))
        write_model(folder / CHECKPOINT_FILE, info)
        if is_published:
            run.files.publish("draw")
    rows, finished = newest_of_run(run, "draw/all", MASKS_FILE, read_masks)
    assert rows is not None
    assert ([row["step"] for row in rows], finished) == ([20], False)


def test_trackers_call_a_run_in_a_bucket_by_its_own_name(tiny_plan: MakePlan) -> None:
    from mlflow import MlflowClient

    run = RunDirectory(f"s3://{BUCKET}/runs/for-people")
    finished_run(run.path, tiny_plan(ONE_REGION, "logging.trackers=[mlflow]"))
    run.files.publish("")
    with fed_trackers(Ledger(run), View()):
        pass
    client = MlflowClient(tracking_uri=(run.path / "mlflow").resolve().as_uri())
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [each.info.run_name for each in found] == ["for-people"]


def test_two_workers_of_a_region_share_a_run_in_a_bucket(
    tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path
) -> None:
    job = make_jobs(tiny_plan(ONE_REGION), tmp_path)[0]
    run_worker(job.model_copy(update={"run_dir": f"s3://{BUCKET}/runs/two"}), workers=2)
    run_worker(job)
    ticket = "draw/all/tickets/all/ticket.json"
    assert ObjectStore(f"s3://{BUCKET}/runs/two").read(ticket) == (tmp_path / ticket).read_bytes()


def test_one_driver_at_a_time_and_the_one_that_lost_the_run_writes_nothing(tiny_plan: MakePlan) -> None:
    first, second = RunDirectory(f"s3://{BUCKET}/runs/held"), RunDirectory(f"s3://{BUCKET}/runs/held")
    with first.held(print):
        manifest = Ledger.begin(first, tiny_plan()).manifest
        with pytest.raises(UserError, match="--take-over"), second.held(print):
            pytest.fail("two drivers held one run")
        with second.held(print, take_over=True):
            second.write(manifest.model_copy(update={"attempts": 7}))
            with pytest.raises(RunTakenOverError):
                first.write(manifest)
    assert second.read().attempts == 7


def test_what_an_older_run_left_on_this_machine_is_not_taken_for_the_ensemble(tiny_plan: MakePlan) -> None:
    run = RunDirectory(f"s3://{BUCKET}/runs/begun")
    with run.held(print):
        Ledger.begin(run, tiny_plan(ONE_REGION))
    left = run.path / ASSEMBLE
    left.mkdir()
    (left / "model_index.json").write_text('{"unet": ["ebdiff_orchestrator.ensemble", "TimestepRouter"]}')
    with pytest.raises(UserError, match="has no ensemble yet"):
        sample_here(SampleJob(run.location, 1, 1), lambda done, total: None)


class _BadDisk(io.FileIO):
    """A file of which only the first 9 MiB can be read."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 9 << 20:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size) or b""


def test_a_file_that_cannot_be_read_to_its_end_is_not_shown_as_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"s3://{BUCKET}/cut")
    path = tmp_path / "weights"
    path.write_bytes(b"1" * (17 << 20))
    store.upload(path, "whole")
    assert store.stamps(["whole"])[0] == (17 << 20, pytest.approx(time.time_ns(), rel=1e-6))
    monkeypatch.setattr(Path, "open", lambda path, mode: _BadDisk(path, mode))
    with pytest.raises(OSError, match="Input/output error"):
        store.upload(path, "cut")
    assert store.list_keys() == ["whole"]


def test_what_is_discarded_is_no_neighbour_whose_name_begins_alike(tmp_path: Path) -> None:
    store = ObjectStore(f"s3://{BUCKET}/alike")
    kept = ["train/ab/weights", "train/abc"]
    for key in (*kept, "train/a/weights", "train/a/deep/weights"):
        store.write(key, b"1" * (1 << 20))
    files = RunFiles(store.url, tmp_path)
    files.fetch(store.list_keys())
    fetched = [(tmp_path / key).stat().st_ino for key in kept]
    files.discard("train/a")
    assert store.list_keys() == kept
    files.fetch(kept)
    assert [(tmp_path / key).stat().st_ino for key in kept] == fetched, "they were fetched again"


@pytest.mark.parametrize("place", ["folder", "store"])
def test_nobody_can_tell_the_files_of_a_run_in_a_folder_from_those_in_a_store(place: str, tmp_path: Path) -> None:
    location = str(tmp_path / "run") if place == "folder" else f"s3://{BUCKET}/same"
    ours, other = RunFiles(location, tmp_path / "ours"), RunFiles(location, tmp_path / "other")
    made = [ours.folder / name for name in ("train/a/weights", "train/a/deep/part", "train/ab")]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    ours.publish("train")
    ours.write(".owners/00000001-abcdabcd.json", b"{}")
    ours.write("stop", b"1")
    other.write("stop", b"2")
    assert ours.read("stop") == b"2"
    assert {".owners/00000001-abcdabcd.json", "stop", "train/a", "train/ab"} <= set(other.outline())
    assert other.list_keys("train") == ["train/a/deep/part", "train/a/weights", "train/ab"]
    assert other.claims() == ["00000001-abcdabcd.json"]
    assert other.has_newer_owner("00000000-ffffffff.json")
    assert not other.has_newer_owner("00000001-abcdabcd.json")
    other.fetch(["stop", "train/a/weights", "nothing"])
    other.fetch_folder("train/a/deep")
    for key, text in {"stop": "2", "train/a/weights": "weights", "train/a/deep/part": "part"}.items():
        assert (other.folder / key).read_text() == text
    assert not (other.folder / "nothing").exists()
    ours.discard("train/a")
    ours.delete("stop")
    other.fetch(["stop", "train/a/weights", "train/ab"])
    assert [(other.folder / key).exists() for key in ("stop", "train/a/weights", "train/ab")] == [False, False, True]
    other.fetch_folder("train")
    assert not (other.folder / "train/a/deep/part").exists(), "the run has lost it"
    for key in ("stop", "train/a/weights"):
        with pytest.raises(FileNotFoundError):
            other.read(key)


@pytest.mark.parametrize("place", ["folder", "store"])
def test_the_driver_knows_how_far_a_training_is_wherever_its_checkpoints_are(
    place: str, tiny_plan: MakePlan, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run" if place == "folder" else f"s3://{BUCKET}/runs/far")
    regions = (
        "regions=[{train: [0, 500], pruning_ratio: 0.5, name: a}, {train: [500, 1000], pruning_ratio: 0.5, name: b}]"
    )
    plan = tiny_plan(regions, "placement=packed", "training.steps=100")
    ledger = Ledger.begin(run, plan)
    ledger.record_samples("digest", None)
    ledger.record_step_seconds({0.0: 1.0, 0.5: 1.0})
    jobs, preview = outline_jobs(plan, inputs_of(ledger.manifest)), preview_plan(plan)
    for step, first in ((10, "region a"), (60, "region b")):
        RunFiles(run.location).write(f"train/a/checkpoints/step-{step:09d}/checkpoint.json", b"{}")
        RunFiles(run.location).write(f"train/b/checkpoints/step-{40:09d}/checkpoint.json", b"{}")
        workers_of, _ = place_jobs(jobs, preview, 1797, ledger, ProcessCluster(2), View())
        assert next(iter(workers_of)) == first, "the one with more steps to go comes first"
    with pytest.raises(PlanError, match="expected at least the 60 that are made"):
        driver.extend(run.location, ["training.steps=50"], executor=ProcessCluster(1))


def test_a_file_that_the_store_has_lost_or_another_is_damaged_though_a_copy_of_it_is_here(tmp_path: Path) -> None:
    files = RunFiles(f"s3://{BUCKET}/lost", tmp_path)
    paths = [tmp_path / "train/a" / name for name in ("lost", "cut", "whole")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1" * 100)
    recorded = [artifact(tmp_path, path) for path in paths]
    files.publish("train")
    assert files.damaged(recorded) == []
    store = ObjectStore(files.location)
    store.delete("train/a/lost")
    store.write("train/a/cut", b"1" * 99)
    for opened_anew in (files, RunFiles(files.location, tmp_path)):
        assert opened_anew.damaged(recorded) == ["train/a/lost", "train/a/cut"]


_CLAIM = ".owners/00000001-abcdabcd.json"


@pytest.mark.parametrize(
    ("keys", "foreign"),
    [
        (["photo.png", "a/b/c"], "a, photo.png"),
        ([".owners/notes.json", "ray.log/mine"], ".owners/notes.json, ray.log"),
        (["ray.log", ".owners/.partial-0123456789ab-x"], None),
        ([_CLAIM, "draw/a/result.json"], None),  # it lost its manifest
    ],
)
def test_a_prefix_with_somebody_s_objects_is_refused_and_left_alone(
    keys: list[str], foreign: str | None, request: pytest.FixtureRequest, tiny_plan: MakePlan
) -> None:
    store = ObjectStore(f"s3://{BUCKET}/foreign/{request.node.callspec.id[:5]}")
    for key in keys:
        store.write(key, b"mine")
    run = RunDirectory(store.url)
    if foreign is None:
        with run.held(print, take_over=True):
            Ledger.begin(run, tiny_plan())
        assert run.exists()
        return
    refusal = re.escape(f"DIR = {store.url}: expected a run, or an empty folder for a new one, but it holds {foreign},")
    with pytest.raises(UserError, match=refusal), run.held(print):
        pytest.fail("it took the prefix for its own")
    assert store.list_keys() == sorted(keys)
    assert {store.read(key) for key in keys} == {b"mine"}


def test_a_bucket_that_is_not_there_is_a_user_s_error(tiny_plan: MakePlan) -> None:
    with pytest.raises(UserError, match="a bucket that exists"):
        driver.launch(tiny_plan(), "s3://no-such-bucket/run", executor=ProcessCluster(1))
