"""Files made to do harm: pickled arrays, paths and links that lead out, bombs (weights: test_hostile_weights.py)."""

import json
import os
import shutil
import struct
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_run import finished_run
from places import WEIGHTS, Harm, plan_of, png, reseal
from small_training import small_plan, train_here

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.ensemble import load_ensemble
from ebdiff_orchestrator.evaluation.extractors import choose_extractor
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
from region_workers.networks.pretrained import find_dense
from region_workers.storage.integrity import file_digest, is_whole, seal_folder
from schemas.errors import PlanError, RunFailed, UserError
from schemas.evaluation import Measure
from schemas.job import Artifact
from schemas.plan import DataPlan

_MEASURE = Measure(extractor=choose_extractor("random-conv"))

PEOPLE = (UserError, RunFailed)
EXPERT = "train/all/expert"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A trained run of one region."""
    return train_here(tmp_path_factory.mktemp("trained") / "run", cache_dir)


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


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


def test_pickled_arrays_are_refused_and_not_run(cache_dir: Path, tmp_path: Path) -> None:
    mark = tmp_path / "harm"
    array = np.array([Harm(mark)], dtype=object)
    np.savez(tmp_path / "statistics.npz", mu=array, sigma=array)
    with pytest.raises(UserError, match=r"--reference.*mu and sigma"):
        given_reference(tmp_path / "statistics.npz", tmp_path, _MEASURE)
    store = ensure_store(DataPlan(path=_folder_of_images(tmp_path / "images")), tmp_path / "cache")
    assert (store.folder / SAMPLES).exists()
    np.save(store.folder / SAMPLES, array)
    again = ensure_store(DataPlan(path=str(tmp_path / "images")), tmp_path / "cache")
    assert again.digest == store.digest  # built anew
    assert not mark.exists()


def test_a_manifest_whose_files_lie_outside_the_run_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    manifest = Ledger.begin(directory, plan_of()).manifest
    for path in ("../outside", "/etc/passwd", "ensemble/../../outside", ".."):
        stages = json.loads(manifest.model_dump_json())["stages"]
        stages["ensemble"]["artifacts"] = [{"path": path, "size_bytes": 1, "sha256": "0"}]
        reseal(directory.manifest_file, stages=stages)
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
        reseal(result, artifacts=[{"path": path, "size_bytes": size, "sha256": sha256}])
        (run_dir / "ticket.json").write_text("mine")
        reuse_stages(ours, jobs, [run_dir], lambda _: None)
        assert not (ours.path / "train/all/result.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "run", "secret"]


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        *(("names", name, "names") for name in ("../../outside", "/tmp/outside", "..", "a/b", "")),
        *(
            ("expert_classes", path, "xpected")
            for path in (
                *("os.system", "subprocess.Popen", "diffusers.utils.logging", "region_workers.worker.run.run_job"),
                "antigravity.Expert",  # of a module that nobody has imported
                "region_workers.of_a_newer_version.Expert",
            )
        ),
    ],
)
def test_an_ensemble_names_neither_experts_outside_nor_which_code_runs(
    field: str, value: str, match: str, ensemble: Path
) -> None:
    config = ensemble / "unet" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, field: [value, *values[field][1:]]}))
    seal_folder(ensemble / "unet")
    seal_folder(ensemble)
    with pytest.raises(UserError, match=match):
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
    assert len(recorded_masks(RunDirectory(run_dir), plan)[0]) == 2
    for data in (b"", whole[: len(whole) // 2], b"ARROW1\0\0" + b"\xff" * 200, whole[:-20] + b"\xff" * 20):
        masks.write_bytes(data)
        with pytest.raises(UserError, match=r"masks\.arrow.*Restore"):
            recorded_masks(RunDirectory(run_dir), plan)
    masks.write_bytes(whole)
    (run_dir / "draw/all/tickets/all/ticket.json").write_text("{")
    with pytest.raises(UserError, match=r"ticket\.json.*Restore"):
        recorded_masks(RunDirectory(run_dir), plan)
