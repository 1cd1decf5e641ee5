"""Files made to do harm: pickles under other names, headers that lie, paths and links that lead out, bombs."""

import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from finished_run import finished_run
from places import WEIGHTS, lying_offsets, plan_of, png
from small_training import job_of, small_plan, train_here

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.ensemble import load_ensemble
from ebdiff_orchestrator.evaluation.extractors import choose_extractor
from ebdiff_orchestrator.evaluation.inception import load_inception
from ebdiff_orchestrator.evaluation.reference import given_reference
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.reports.masks import recorded_masks
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.reuse import reuse_stages
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from region_workers.data.decode import Transform, UnreadableImageError, decode
from region_workers.data.store import SAMPLES, ensure_store
from region_workers.networks.dense import load_verified
from region_workers.networks.pretrained import find_dense
from region_workers.storage.integrity import file_digest, file_digests, is_whole, seal_folder
from region_workers.worker.run import run_job
from schemas.digest import digest
from schemas.errors import PlanError, RunFailed, UserError
from schemas.evaluation import Measure
from schemas.job import Artifact, WorkerJob
from schemas.plan import DataPlan

_MEASURE = Measure(extractor=choose_extractor("random-conv"))

PEOPLE = (UserError, RunFailed)
EXPERT = "train/all/expert"
CHECKPOINT = "train/all/checkpoints/step-000000004"


class _Harm:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._mark,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> tuple[Path, WorkerJob]:
    """A trained run of one region, and its worker's job."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    return run_dir, train_here(run_dir, cache_dir)


@pytest.fixture
def run_dir(trained: tuple[Path, WorkerJob], tmp_path: Path) -> Path:
    """A copy of the trained run, to be spoilt."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def good_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experts, untrained."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    finished_run(run_dir, plan_of())
    return run_dir / "ensemble"


@pytest.fixture
def ensemble(good_ensemble: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(good_ensemble, tmp_path / "ensemble"))


def _sealed_ensemble(ensemble: Path, data: bytes) -> Path:
    """The ensemble, its first expert's weights replaced by `data` and its seals made to fit."""
    (ensemble / "unet" / "0-260" / WEIGHTS).write_bytes(data)
    _seal(ensemble)
    return ensemble


def _seal(ensemble: Path) -> None:
    seal_folder(ensemble / "unet")
    seal_folder(ensemble)


def _resealed(file: Path, **changes: Any) -> None:
    """A record with other values and a seal that fits them."""
    values = {**json.loads(file.read_text()), **changes}
    values.pop("seal", None)
    file.write_text(json.dumps({**values, "seal": digest(values)}))


def _go_on_from(run_dir: Path, state: bytes, cache_dir: Path) -> None:
    """Train further from a checkpoint with this state, whose digests are made to fit."""
    folder = run_dir / CHECKPOINT
    (folder / "state.safetensors").write_bytes(state)
    info = folder / "checkpoint.json"
    digests = json.loads(info.read_text())["sha256"]
    _resealed(info, sha256={**digests, "state.safetensors": file_digest(folder / "state.safetensors")})
    run_job(job_of(small_plan(training={**small_plan().training.model_dump(), "steps": 6}), run_dir, cache_dir))


def _read_as(kind: str, data: bytes, run_dir: Path, ensemble: Path, cache_dir: Path, folder: Path) -> None:
    """Have `data` read as weights of some kind."""
    if kind == "checkpoint":
        _go_on_from(run_dir, data, cache_dir)
    elif kind == "expert":
        (run_dir / EXPERT / WEIGHTS).write_bytes(data)
        load_verified(run_dir / EXPERT, file_digests(run_dir / EXPERT))
    elif kind == "ensemble":
        load_ensemble(_sealed_ensemble(ensemble, data))
    elif kind == "offloaded ensemble":
        pipeline = load_ensemble(_sealed_ensemble(ensemble, data), offload=True)
        pipeline(batch_size=1, num_inference_steps=2, show_progress=False)
    elif kind == "pretrained":
        network = Path(shutil.copytree(run_dir / EXPERT, folder / "network"))
        config = json.loads((network / "config.json").read_text())
        (network / "config.json").write_text(json.dumps({**config, "kept_channels": None}))
        (network / WEIGHTS).write_bytes(data)
        find_dense(str(network))
    else:
        file = folder / {"inception": "inception.safetensors", "inception of torch": "inception.pth"}[kind]
        file.write_bytes(data)
        load_inception(file, torch.device("cpu"))


KINDS = ("checkpoint", "expert", "ensemble", "offloaded ensemble", "pretrained", "inception", "inception of torch")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain", "of torch"])
def test_a_pickle_under_the_name_of_weights_is_refused_and_not_run(
    kind: str, form: str, run_dir: Path, ensemble: Path, cache_dir: Path, tmp_path: Path
) -> None:
    mark, file = tmp_path / "harm", tmp_path / "pickle"
    if form == "plain":
        file.write_bytes(pickle.dumps({"weight": _Harm(mark)}))
    else:
        torch.save({"weight": _Harm(mark)}, file)
    with pytest.raises(PEOPLE) as refused:
        _read_as(kind, file.read_bytes(), run_dir, ensemble, cache_dir, tmp_path)
    assert not mark.exists()
    assert "xpected" in str(refused.value)
    pickle.loads(pickle.dumps(_Harm(mark)))  # noqa: S301 - the proof that it would have done its harm
    assert mark.exists()


def test_pickled_arrays_are_refused_and_not_run(cache_dir: Path, tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    array = np.array([_Harm(mark)], dtype=object)
    np.savez(tmp_path / "statistics.npz", mu=array, sigma=array)
    with pytest.raises(UserError, match=r"--reference.*mu and sigma"):
        given_reference(tmp_path / "statistics.npz", tmp_path, _MEASURE)
    store = ensure_store(DataPlan(path=_folder_of_images(tmp_path / "images")), tmp_path / "cache")
    assert (store.folder / SAMPLES).exists()
    np.save(store.folder / SAMPLES, array)
    again = ensure_store(DataPlan(path=str(tmp_path / "images")), tmp_path / "cache")
    assert again.digest == store.digest  # built anew
    assert not mark.exists()


def _lies(whole: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", whole[:8])[0]
    header = whole[8 : 8 + length]
    return {
        "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + whole[8:],
        "a header of all bytes": struct.pack("<Q", len(whole)) + whole[8:],
        "a header of no bytes": struct.pack("<Q", 0) + whole[8:],
        "a header one byte short": struct.pack("<Q", length - 1) + whole[8:],
        "a header that is no JSON": whole[:8] + b"\xff" * length + whole[8 + length :],
        "offsets behind the end": lying_offsets(whole),
        "a shape that the data has not": whole[:8]
        + header.replace(b'"shape":[', b'"shape":[9', 1)
        + whole[8 + length :],
        "a type that there is not": whole[:8] + header.replace(b'"F32"', b'"F99"', 1) + whole[8 + length :],
        "no data": whole[: 8 + length],
        "half of the data": whole[: (8 + length + len(whole)) // 2],
        "more data": whole + b"\0" * 64,
        "nothing": b"",
        "seven bytes": whole[:7],
    }


@pytest.mark.parametrize("kind", ["checkpoint", "expert", "ensemble", "pretrained"])
def test_a_safetensors_file_that_lies_about_itself_is_refused(
    kind: str, trained: tuple[Path, WorkerJob], good_ensemble: Path, cache_dir: Path, tmp_path: Path
) -> None:
    whole = (trained[0] / EXPERT / WEIGHTS).read_bytes()
    for number, (name, data) in enumerate(_lies(whole).items()):
        if kind == "checkpoint" and number % 4:  # each is a worker's start: a few will do
            continue
        place = tmp_path / str(number)
        place.mkdir()
        run_dir = Path(shutil.copytree(trained[0], place / "run"))
        ensemble = Path(shutil.copytree(good_ensemble, place / "ensemble"))
        with pytest.raises(PEOPLE) as refused:
            _read_as(kind, data, run_dir, ensemble, cache_dir, place)
        assert "xpected" in str(refused.value), name


def test_a_manifest_whose_files_lie_outside_the_run_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    manifest = Ledger.begin(directory, plan_of()).manifest
    for path in ("../outside", "/etc/passwd", "ensemble/../../outside", ".."):
        stages = json.loads(manifest.model_dump_json())["stages"]
        stages["ensemble"]["artifacts"] = [{"path": path, "size_bytes": 1, "sha256": "0"}]
        _resealed(directory.manifest_file, stages=stages)
        with pytest.raises(UserError, match=r"manifest\.json.*inside the run"):
            directory.read()


def test_a_run_to_be_reused_cannot_have_files_written_outside(run_dir: Path, tmp_path: Path, cache_dir: Path) -> None:
    Ledger.begin(RunDirectory(run_dir), small_plan())
    secret = tmp_path / "secret"
    secret.write_text("mine")
    result = run_dir / "train/all/result.json"
    size, sha256 = secret.stat().st_size, file_digest(secret)
    ours = RunDirectory(tmp_path / "ours")
    Ledger.begin(ours, small_plan())
    jobs = outline_jobs(small_plan(), Inputs(ensure_store(small_plan().data, cache_dir).digest))
    for path in ("train/all/../../../secret", "../secret", str(secret), "ticket.json"):
        _resealed(result, artifacts=[{"path": path, "size_bytes": size, "sha256": sha256}])
        (run_dir / "ticket.json").write_text("mine")
        reuse_stages(ours, jobs, [run_dir], lambda _: None)
        assert not (ours.path / "train/all/result.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "run", "secret"]


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..", "a/b", ""])
def test_an_ensemble_whose_experts_lie_outside_is_refused_before_they_are_read(name: str, ensemble: Path) -> None:
    config = ensemble / "unet" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "names": [name, *values["names"][1:]]}))
    _seal(ensemble)
    with pytest.raises(UserError, match="names"):
        load_ensemble(ensemble)


@pytest.mark.parametrize(
    "path",
    [
        *("os.system", "subprocess.Popen", "diffusers.utils.logging", "region_workers.worker.run.run_job"),
        "antigravity.Expert",  # of a module that nobody has imported
        "region_workers.of_a_newer_version.Expert",
    ],
)
def test_an_ensemble_cannot_choose_which_code_runs(path: str, ensemble: Path) -> None:
    config = ensemble / "unet" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "expert_classes": [path, *values["expert_classes"][1:]]}))
    _seal(ensemble)
    with pytest.raises(UserError, match="xpected"):
        load_ensemble(ensemble)


def test_an_index_of_weights_that_names_a_file_outside_is_refused(run_dir: Path) -> None:
    network = run_dir / EXPERT
    config = json.loads((network / "config.json").read_text())
    (network / "config.json").write_text(json.dumps({**config, "kept_channels": None}))
    (network / WEIGHTS).rename(network / "part.safetensors")
    index = {"weight_map": {"conv_in.weight": "../../outside.safetensors"}}
    (network / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(PlanError, match="outside the folder"):
        find_dense(str(network))


@pytest.mark.parametrize("link", ["train", "train/all/expert", "ensemble", "train/all/checkpoints/step-000000002"])
def test_a_link_out_of_a_run_is_not_followed(link: str, run_dir: Path, tmp_path: Path, cache_dir: Path) -> None:
    Ledger.begin(RunDirectory(run_dir), small_plan())
    outside = tmp_path / "outside"
    if (run_dir / link).exists():
        (run_dir / link).rename(outside)
    else:
        outside.mkdir()
        (outside / "mine.txt").write_text("mine")
    (run_dir / link).symlink_to(outside)
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    with pytest.raises(UserError, match=r"symbolic link.*Replace it"):
        driver.launch(small_plan(), run_dir, executor=ThisProcess())
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


def test_a_file_behind_a_link_does_not_count_as_the_run_s(run_dir: Path, tmp_path: Path) -> None:
    weights = run_dir / EXPERT / WEIGHTS
    item = Artifact(path=f"{EXPERT}/{WEIGHTS}", size_bytes=weights.stat().st_size, sha256=file_digest(weights))
    assert is_whole(run_dir, item)
    weights.rename(tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside")
    assert not is_whole(run_dir, item)


def _folder_of_images(folder: Path) -> str:
    for index in range(4):
        png(folder / f"{index}.png", seed=index)
    return str(folder)


def _huge_png(path: Path, side: int) -> None:
    """A few kilobytes that unpack to `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def test_a_decompression_bomb_counts_as_unreadable_at_once(tmp_path: Path) -> None:
    images = Path(_folder_of_images(tmp_path / "images"))
    _huge_png(images / "bomb.png", 60_000)
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        decode(str(images / "bomb.png"), Transform(8, 1))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    store = ensure_store(DataPlan(path=str(images), max_unreadable=0.5), tmp_path / "cache")
    assert store.info.unreadable_names == ("bomb.png",)
    with pytest.raises(PlanError, match=r"bomb\.png.*decompression bomb"):
        ensure_store(DataPlan(path=str(images), max_unreadable=0.1), tmp_path / "other cache")
    with pytest.raises(UserError, match=r"--reference.*bomb\.png"):
        given_reference(images, tmp_path, "0")
    assert time.process_time() - began < 5


def test_a_reference_that_is_no_picture_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    images = Path(_folder_of_images(tmp_path / "images"))
    (images / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"--reference = .*a\.png: expected an image"):
        given_reference(images, tmp_path, "0")
    (images / "a.png").unlink()
    os.mkfifo(images / "a.png")
    with pytest.raises(UserError, match=r"--reference = .*a\.png: expected an image.*no regular file"):
        given_reference(images, tmp_path, "0")


def test_statistics_that_unpack_without_bound_are_refused_at_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("mu.npy", b"\0" * (129 << 20))
    with pytest.raises(UserError, match="unpacks to"):
        given_reference(tmp_path / "bomb.npz", tmp_path, _MEASURE)


def test_anchors_that_explode_are_refused_within_a_second_and_little_memory(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    plan = tmp_path / "plan.yaml"
    plan.write_text("\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *levels]))
    merged = tmp_path / "merged.yaml"
    merged.write_text(
        "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}" for n in range(1, 40))])
    )
    for file in (plan, merged):
        began = time.process_time()
        tracemalloc.start()
        with pytest.raises(PlanError, match="unfold"):
            load_plan(str(file))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6
        assert time.process_time() - began < 1


def test_a_garbled_table_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    png(tmp_path / "image.png")
    image = (tmp_path / "image.png").read_bytes()
    pq.write_table(pa.table({"image": [image] * 8, "label": list(range(8))}), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    refused = 0
    for seed in range(60):
        chosen = np.random.default_rng(seed)
        data = bytearray(whole)
        for position in chosen.integers(0, len(whole), 3):
            data[position] ^= int(chosen.integers(1, 256))
        table = tmp_path / f"{seed}.parquet"
        table.write_bytes(data if seed % 3 else data[: int(chosen.integers(0, len(data)))])
        try:
            ensure_store(DataPlan(path=str(table), label_column="label"), tmp_path / "cache")
        except PEOPLE:
            refused += 1
    assert refused > 30


def test_damaged_masks_and_tickets_are_refused_by_reports(run_dir: Path) -> None:
    plan = small_plan()
    masks = run_dir / "draw/all/masks.arrow"
    whole = masks.read_bytes()
    assert len(recorded_masks(run_dir, plan)[0]) == 2
    for data in (b"", whole[: len(whole) // 2], b"ARROW1\0\0" + b"\xff" * 200, whole[:-20] + b"\xff" * 20):
        masks.write_bytes(data)
        with pytest.raises(UserError, match=r"masks\.arrow.*Restore"):
            recorded_masks(run_dir, plan)
    masks.write_bytes(whole)
    (run_dir / "draw/all/tickets/all/ticket.json").write_text("{")
    with pytest.raises(UserError, match=r"ticket\.json.*Restore"):
        recorded_masks(run_dir, plan)
