"""Latents are encoded once, whole, and the same however the work is shared out or interrupted."""

import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import ForkedProcess
from latent_fixtures import latent_model, save_kl, save_vq
from pictures import save_images
from processes import wait_until

import region_workers.data.latents as latents
from region_workers.data.batches import BatchSource
from region_workers.data.latents import LatentStore, RunMany, ensure_latents, find_latents, open_latents
from region_workers.data.store import ImageStore, ensure_store
from region_workers.data.vae import encode, load_vae
from region_workers.storage.locks import Report
from schemas.errors import PlanError, RunFailed
from schemas.model import LatentModelPlan
from schemas.plan import CropPlan, DataPlan

CPU = torch.device("cpu")

# Encodes the latents of a folder of images; each shard is announced when it begins.
ENCODER = """
import sys, time
from pathlib import Path
import region_workers.data.latents as latents
from region_workers.data.store import ensure_store
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan

latents.SHARD_IMAGES = 32
plain = latents.encode_shard
def slow(job, start, *others, **options):
    print("encoding", start, flush=True)
    time.sleep(2.0 if start == 64 else 0.1)  # time enough to be killed there
    return plain(job, start, *others, **options)
latents.encode_shard = slow
model, data = LatentModelPlan.model_validate_json(sys.argv[1]), DataPlan.model_validate_json(sys.argv[2])
cache = Path(sys.argv[3])
print("digest", latents.ensure_latents(model, data, ensure_store(data, cache), cache).digest, flush=True)
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "SHARD_IMAGES", 32)


@dataclass(frozen=True)
class Case:
    """150 images of 12 x 12 in three classes, so five shards, the last of them short; a VAE; and a cache."""

    model: LatentModelPlan
    data: DataPlan
    cache: Path

    def images(self) -> ImageStore:
        return ensure_store(self.data, self.cache)

    def encode(self, workers: RunMany | None = None, report: Report | None = None) -> LatentStore:
        return ensure_latents(self.model, self.data, self.images(), self.cache, workers, report)

    def found(self) -> LatentStore | None:
        return find_latents(self.model, self.data, self.images(), self.cache)

    def elsewhere(self, name: str = "elsewhere") -> "Case":
        """The same with another cache, as on another machine."""
        return replace(self, cache=self.cache / name)

    def with_model(self, **values: Any) -> "Case":
        return replace(self, model=self.model.model_copy(update=values))

    def with_data(self, **values: Any) -> "Case":
        return replace(self, data=self.data.model_copy(update=values))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    save_kl(tmp_path / "vae")
    for label, count in enumerate((70, 40, 40)):
        save_images(tmp_path / "data" / f"class-{label}", [(12, 12)] * count, seed=label)
    path = str(tmp_path / "data")
    data = DataPlan(path=path, resolution=12, channels=3, random_flip=True, label_column="label")
    return Case(latent_model(tmp_path / "vae", posterior="mode"), data, tmp_path)


class Workers:
    """Stands for a cluster: carries out the calls, the last first if wanted, and notes which images were encoded."""

    def __init__(self, reverse: bool = False, limit: int = 99) -> None:
        self.order, self.limit = -1 if reverse else 1, limit
        self.starts: list[int] = []

    def __call__(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for number in range(len(calls))[:: self.order]:
            if len(self.starts) == self.limit:
                raise KeyboardInterrupt
            self.starts.append(calls[number][1])
            yield number, function(*calls[number])


def start_encoder(case: Case) -> ForkedProcess:
    return ForkedProcess("-c", ENCODER, case.model.model_dump_json(), case.data.model_dump_json(), case.cache)


def images_of(store: ImageStore, rows: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(store.array[rows])).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_all(store: LatentStore) -> None:
    store.samples().read(np.arange(2 * len(store)))


def records_of(store: LatentStore) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((store.folder / "shards").iterdir())}


@torch.no_grad()
def test_a_row_is_the_latent_of_its_image_and_of_the_mirrored_image(case: Case) -> None:
    images, store = case.images(), case.encode()
    assert store.array.shape == (2, 150, 3, 6, 6)
    assert store.array.dtype == np.float16
    vae, info = load_vae(case.model)
    rows = [0, 31, 32, 99, 149]
    plain, mirrored = encode(vae, images_of(images, rows)), encode(vae, images_of(images, rows).flip(3))
    np.testing.assert_allclose(store.array[0, rows], plain.numpy(), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(store.array[1, rows], mirrored.numpy(), rtol=2e-3, atol=1e-4)
    assert not np.allclose(plain.flip(3), mirrored, atol=1e-2)  # so the second half is no mirror of the first
    assert store.info.vae == info
    read_all(store)


@torch.no_grad()
def test_samples_of_the_posterior_are_a_store_of_their_own_and_the_same_wherever_they_are_drawn(case: Case) -> None:
    images, modes = case.images(), case.encode()
    sampling = case.with_model(posterior=None)
    samples = sampling.encode()
    assert samples.info.key != modes.info.key
    vae, _ = load_vae(case.model)
    rows = [0, 31, 32, 149]
    deviations = (samples.array[:, rows].astype(np.float32) - modes.array[:, rows]) / vae.config.scaling_factor
    flips = [images_of(images, rows), images_of(images, rows).flip(3)]
    noise = deviations / np.stack([vae.encode(flip).latent_dist.std.numpy() for flip in flips])
    assert noise.mean() == pytest.approx(0, abs=0.2)
    assert noise.std() == pytest.approx(1, rel=0.2)
    drawn = noise.reshape(2 * len(rows), -1)
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.5, "two latents share their noise"
    assert sampling.elsewhere().encode(Workers(reverse=True)).digest == samples.digest


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_without_flips_there_is_one_latent_an_image(case: Case, posterior: str) -> None:
    both = case.with_model(posterior=posterior)
    once = both.with_data(random_flip=False).encode()
    assert once.array.shape == (1, 150, 3, 6, 6)
    assert np.array_equal(once.array[0], both.encode().array[0])


def test_the_images_labels_come_along(case: Case) -> None:
    store, unlabelled = case.encode(), case.with_data(label_column=None).encode()
    assert store.labels is not None
    assert store.labels.tolist() == [0] * 70 + [1] * 40 + [2] * 40
    assert (store.info.num_classes, store.info.class_names) == (3, ("class-0", "class-1", "class-2"))
    assert unlabelled.labels is None
    assert unlabelled.digest != store.digest


def test_a_store_is_opened_and_not_encoded_again(case: Case) -> None:
    workers = Workers()
    assert case.found() is None
    reports: list[tuple[int, int]] = []
    built = case.encode(workers, lambda done, total: reports.append((done, total)))
    assert workers.starts == [0, 32, 64, 96, 128]
    assert reports == [(32, 150), (64, 150), (96, 150), (128, 150), (150, 150)]
    assert case.encode(workers).digest == built.digest
    assert len(workers.starts) == 5
    found = case.found()
    assert found is not None
    assert found.digest == built.digest


def test_the_bits_do_not_depend_on_who_encodes_and_in_which_order(case: Case) -> None:
    everybody = (None, Workers(), Workers(reverse=True))
    stores = [case.elsewhere(str(number)).encode(workers) for number, workers in enumerate(everybody)]
    assert len({store.digest for store in stores}) == 1
    assert len({(store.folder / "samples.npy").read_bytes() for store in stores}) == 1


def test_what_an_interrupted_encoding_left_whole_is_kept(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        case.encode(Workers(reverse=True, limit=3))
    assert case.found() is None
    workers = Workers()
    store = case.encode(workers)
    assert workers.starts == [0, 32]
    assert store.digest == case.elsewhere().encode().digest
    read_all(store)


def test_only_damaged_shards_are_encoded_again(case: Case) -> None:
    store = case.encode()
    before, digest, folder = records_of(store), store.digest, store.folder
    with (folder / "samples.npy").open("r+b") as file:
        file.truncate((folder / "samples.npy").stat().st_size - 2)  # the last shard's mirrored half
        file.seek(128 + 40 * 3 * 6 * 6 * 2)  # image 40, in the second shard
        file.write(b"damaged")
    (folder / "shards" / "00002.json").unlink()
    with pytest.raises(RunFailed, match="no whole latent store"):
        LatentStore(folder)
    workers = Workers()
    repaired = case.encode(workers)
    assert workers.starts == [32, 64, 128]
    assert repaired.digest == digest
    after = records_of(repaired)
    assert [name for name in before if before[name] == after[name]] == ["00000.json", "00003.json"]


def test_another_vae_or_scaling_is_another_store(case: Case) -> None:
    save_kl(case.cache / "other", seed=1)
    cases = [case, case.with_model(vae=str(case.cache / "other"), posterior=None), case.with_model(scaling_factor=1.0)]
    stores = [each.encode() for each in cases]
    assert len({store.folder for store in stores}) == 3
    assert len({store.digest for store in stores}) == 3
    save_kl(case.cache / "vae", seed=2)  # the same path, other weights
    assert case.found() is None


def test_a_killed_encoder_is_taken_up_where_it_was(case: Case) -> None:
    encoder = start_encoder(case)
    wait_until(lambda: "encoding 64\n" in encoder.said(), "the third shard", encoder)
    encoder.send_signal(signal.SIGKILL)
    assert encoder.communicate(timeout=60)[0].split("\n")[:-1] == ["encoding 0", "encoding 32", "encoding 64"]
    workers = Workers()
    store = case.encode(workers)
    assert workers.starts == [64, 96, 128]
    read_all(store)


def test_processes_that_ask_at_once_encode_once(case: Case) -> None:
    encoders = [start_encoder(case) for _ in range(2)]
    outputs = [encoder.communicate(timeout=120)[0].splitlines() for encoder in encoders]
    assert [encoder.returncode for encoder in encoders] == [0, 0]
    assert sorted(sum(line.startswith("encoding") for line in lines) for lines in outputs) == [0, 5]
    assert len({lines[-1] for lines in outputs}) == 1


def test_a_worker_opens_the_latents_by_their_digest_alone(case: Case) -> None:
    made = case.encode()
    for name in ("images", "data", "vae"):
        shutil.rmtree(case.cache / name)
    assert open_latents(case.model, case.data, case.cache, made.digest).folder == made.folder


def test_a_worker_on_another_machine_encodes_for_itself(case: Case) -> None:
    made = case.encode()
    there = open_latents(case.model, case.data, case.cache / "elsewhere", made.digest)
    assert there.folder != made.folder
    assert there.digest == made.digest
    with pytest.raises(RunFailed, match=r"are not those the run began with .* expected 000000000000"):
        open_latents(case.model, case.data, case.cache / "elsewhere", "0" * 64)


def test_a_worker_with_other_images_or_another_vae_says_so(case: Case) -> None:
    def with_another_vae(function: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        save_kl(case.cache / "vae", seed=5)
        yield 0, function(*calls[0])

    def with_other_images(function: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        save_images(case.cache / "data" / "class-1", [(12, 12)], seed=9)
        job, *span = calls[0]
        yield 0, function(job.model_copy(update={"cache_dir": str(case.cache / "elsewhere")}), *span)

    for workers, field in ((with_another_vae, r"model\.vae"), (with_other_images, r"data\.path")):
        with pytest.raises(RunFailed, match=rf"{field} = .*on this machine it is not what the driver has"):
            case.encode(workers)


def test_sides_that_the_vae_cannot_divide_are_refused(case: Case) -> None:
    with pytest.raises(PlanError, match=r"data\.resolution = 13: expected a multiple of model\.latent_downscale = 2"):
        case.with_data(resolution=13).encode()


def test_a_disk_without_room_is_told_before_anything_is_encoded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.images()
    usage = namedtuple("usage", "total used free")(1, 1, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    workers = Workers()
    with pytest.raises(RunFailed, match=r"the latents of .* need 0\.0 GB more .*Make room"):
        case.encode(workers)
    assert workers.starts == []


def test_latents_beyond_float16_are_refused(case: Case) -> None:
    with pytest.raises(RunFailed, match=r"beyond float16 for images 0 to 15"):
        case.with_model(scaling_factor=1e9).encode()


def test_encoding_leaves_torchs_settings_as_they_were(case: Case) -> None:
    torch.set_num_threads(2)
    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32)
    case.encode()
    assert torch.get_num_threads() == 2
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == before


def test_batches_pick_the_variant_of_each_flip(case: Case) -> None:
    store = case.encode()
    source = BatchSource(store.samples(), CPU, 40, random_flip=True, seed=3, num_classes=3, label_dropout=0.2)
    assert source.steps_per_epoch == 3
    for step in (4, 0):
        batch, flips, indices = source.batch(step), source.flips(step).astype(int), source.indices(step)
        assert batch.dtype == torch.float32
        assert batch.shape == (40, 3, 6, 6)
        assert 0 < flips.sum() < 40
        assert np.array_equal(batch.numpy(), store.array[flips, indices].astype(np.float32))
        assert torch.equal(torch.cat([source.batch(step, slice(0, 17)), source.batch(step, slice(17, 40))]), batch)
        labels = source.labels(step)
        assert labels is not None
        assert store.labels is not None
        expected = np.where(source.dropped(step), 3, store.labels[indices])
        assert labels.tolist() == expected.tolist()


def test_batches_without_flips_are_the_plain_latents(case: Case) -> None:
    store = case.encode()
    source = BatchSource(store.samples(), CPU, 8, random_flip=False, seed=3)
    assert np.array_equal(source.batch(1).numpy(), store.array[0, source.indices(1)].astype(np.float32))
    assert np.shares_memory(source._samples.rows, store.array)  # the file's pages, no copy


@torch.no_grad()
@pytest.mark.parametrize(
    ("sizes", "suffix", "values"),
    [
        ([(178, 218)] * 5, "jpg", {"crop": CropPlan(center_x=89, center_y=121, size=128), "resolution": 64}),
        ([(256, 341), (300, 256), (256, 256)], "webp", {"resolution": 32}),
        ([(260, 256), (256, 400), (512, 256)], "jpg", {"resolution": 32, "interpolation": "bicubic"}),
    ],
    ids=["celeba", "lsun webp", "lsun jpg"],
)
def test_the_papers_kinds_of_images_become_latents(
    sizes: list[tuple[int, int]], suffix: str, values: dict[str, Any], tmp_path: Path
) -> None:
    save_images(tmp_path / "data", sizes, suffix)
    save_vq(tmp_path / "vae")
    plan = DataPlan(path=str(tmp_path / "data"), channels=3, **values)
    model, images = latent_model(tmp_path / "vae"), ensure_store(plan, tmp_path)
    store = ensure_latents(model, plan, images, tmp_path)
    side = plan.resolution // 2
    assert store.array.shape == (1, len(sizes), 3, side, side)
    expected = encode(load_vae(model)[0], images_of(images, list(range(len(sizes)))))
    np.testing.assert_allclose(store.array[0], expected.numpy(), rtol=2e-3, atol=1e-3)
