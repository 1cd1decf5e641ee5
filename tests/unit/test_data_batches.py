"""A batch is a function of the seed and the step, however it is cut and whenever it is asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import save_images

import region_workers.data.batches as batches
from region_workers.data.batches import BatchSource
from region_workers.data.store import ImageStore, ensure_store
from schemas.errors import PlanError
from schemas.plan import DataPlan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """23 random RGB images of 8 x 8."""
    folder = save_images(tmp_path_factory.mktemp("images"), [(8, 8)] * 23)
    return ensure_store(DataPlan(path=str(folder), channels=3), tmp_path_factory.mktemp("cache"))


def test_an_epoch_is_a_permutation_without_its_tail(store: ImageStore) -> None:
    source = BatchSource(store.samples(), CPU, batch_size=4, random_flip=False, seed=0)
    assert source.steps_per_epoch == 5
    epochs = [np.concatenate([source.indices(epoch * 5 + k) for k in range(5)]) for epoch in range(3)]
    assert all(len(set(epoch.tolist())) == 20 for epoch in epochs)
    assert all(epoch.min() >= 0 and epoch.max() < 23 for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(np.concatenate(epochs).tolist()) == set(range(23))


def test_a_step_gives_the_same_batch_in_any_order_and_process(store: ImageStore) -> None:
    first = BatchSource(store.samples(), CPU, 4, random_flip=True, seed=7)
    forward = [first.batch(step) for step in range(12)]
    resumed = BatchSource(store.samples(), CPU, 4, random_flip=True, seed=7)
    for step in (11, 0, 6, 5, 11):
        assert torch.equal(resumed.batch(step), forward[step])


def test_the_order_is_that_of_the_seed(store: ImageStore) -> None:
    one, other = (BatchSource(store.samples(), CPU, 4, random_flip=True, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.indices(0), other.indices(0))
    assert BatchSource(store.samples(), CPU, 4, False, seed=0).indices(0).dtype == np.int64


def test_values_are_the_images_scaled_to_one(store: ImageStore) -> None:
    source = BatchSource(store.samples(), CPU, 4, random_flip=False, seed=0)
    images_BCHW = source.batch(2)
    expected = store.array[source.indices(2)].transpose(0, 3, 1, 2) / 127.5 - 1
    assert images_BCHW.shape == (4, 3, 8, 8)
    assert images_BCHW.dtype == torch.float32
    assert images_BCHW.is_contiguous()
    np.testing.assert_allclose(images_BCHW.numpy(), expected, atol=1e-6)


def test_reading_every_image_leaves_the_file_out_of_the_process_memory(tmp_path: Path) -> None:
    save_images(tmp_path, [(256, 256)] * 8)
    store = ensure_store(DataPlan(path=str(tmp_path), resolution=256, channels=3), tmp_path / "cache")
    source = BatchSource(store.samples(), CPU, 4, random_flip=False, seed=0)
    served = torch.cat([source.batch(0), source.batch(1)])
    _, *lines = Path("/proc/self/smaps").read_text().split(str(store.folder / "samples.npy"))[1].splitlines()
    resident_kib = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    assert resident_kib < store.array.nbytes / 1024 / 2
    first = store.array[source.indices(0)[0]].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(served[0].numpy(), first, atol=1e-6)


def test_black_and_white_are_minus_one_and_one(tmp_path: Path) -> None:
    images = BatchSource(ensure_store(DataPlan(), tmp_path).samples(), CPU, 64, random_flip=False, seed=0).batch(0)
    assert images.min().item() == -1.0
    assert images.max().item() == 1.0


def test_flips_mirror_the_width_of_about_half_the_images(store: ImageStore) -> None:
    plain = BatchSource(store.samples(), CPU, 20, random_flip=False, seed=3)
    mirrored = BatchSource(store.samples(), CPU, 20, random_flip=True, seed=3)
    total = 0
    for step in range(20):
        flips = mirrored.flips(step)
        before, after = plain.batch(step), mirrored.batch(step)
        assert torch.equal(after[flips], before[flips].flip(3))
        assert torch.equal(after[~flips], before[~flips])
        total += int(flips.sum())
    assert 150 < total < 250
    assert not np.array_equal(mirrored.flips(0), mirrored.flips(1))


@pytest.mark.parametrize("share", [1, 3, 4, 6])
def test_a_batch_cut_in_shares_has_the_same_images(store: ImageStore, share: int) -> None:
    source = BatchSource(store.samples(), CPU, 12, random_flip=True, seed=5)
    whole = source.batch(4)
    parts = [source.batch(4, slice(start, start + share)) for start in range(0, 12, share)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_caller_that_writes_into_the_indices_changes_nothing(store: ImageStore) -> None:
    source = BatchSource(store.samples(), CPU, 4, random_flip=False, seed=0)
    before = source.indices(1).copy()
    source.indices(1)[:] = 0
    assert np.array_equal(source.indices(1), before)


def test_a_batch_larger_than_the_data_is_refused(store: ImageStore) -> None:
    with pytest.raises(PlanError, match=r"training\.batch_size = 24: expected at most the 23 images"):
        BatchSource(store.samples(), CPU, 24, random_flip=False, seed=0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """The digits and what they show."""
    return ensure_store(DataPlan(label_column="label"), tmp_path_factory.mktemp("cache"))


def test_a_batch_has_the_labels_of_its_images(digits: ImageStore) -> None:
    assert digits.labels is not None
    source = BatchSource(digits.samples(), CPU, 32, random_flip=True, seed=0, num_classes=10)
    labels = source.labels(3)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == digits.labels[source.indices(3)].tolist()
    assert BatchSource(digits.samples(), CPU, 32, random_flip=True, seed=0).labels(3) is None


def test_dropped_labels_are_the_null_class_whatever_the_share_of_the_batch(digits: ImageStore) -> None:
    source = BatchSource(digits.samples(), CPU, 32, random_flip=True, seed=4, num_classes=10, label_dropout=0.25)
    kept = BatchSource(digits.samples(), CPU, 32, random_flip=True, seed=4, num_classes=10)
    total = 0
    for step in (90, 0, 3, 57, 3):
        labels, plain, dropped = source.labels(step), kept.labels(step), torch.from_numpy(source.dropped(step))
        assert labels is not None
        assert plain is not None
        assert (labels[dropped] == 10).all()
        assert torch.equal(labels[~dropped], plain[~dropped])
        shares = [source.labels(step, slice(start, start + 8)) for start in range(0, 32, 8)]
        assert torch.equal(torch.cat([share for share in shares if share is not None]), labels)
        total += int(dropped.sum())
    assert 20 < total < 60
    assert not np.array_equal(source.dropped(0), source.dropped(1))
    assert not np.array_equal(source.dropped(0), source.flips(0))
    assert not kept.dropped(0).any()


def test_serving_labels_does_not_change_those_of_the_store(digits: ImageStore) -> None:
    assert digits.labels is not None
    before = digits.labels.copy()
    BatchSource(digits.samples(), CPU, 32, random_flip=False, seed=4, num_classes=10, label_dropout=0.9).labels(0)
    assert np.array_equal(digits.labels, before)


def test_labels_must_be_there_and_below_the_models_classes(digits: ImageStore, store: ImageStore) -> None:
    for num_classes in (None, 10, 1000):
        BatchSource(digits.samples(), CPU, 4, random_flip=False, seed=0, num_classes=num_classes)
    with pytest.raises(PlanError, match=r"model\.num_classes = 9: expected at least 10"):
        BatchSource(digits.samples(), CPU, 4, random_flip=False, seed=0, num_classes=9)
    with pytest.raises(PlanError, match=r"data\.label_column = null: expected labels"):
        BatchSource(store.samples(), CPU, 4, random_flip=False, seed=0, num_classes=9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("limit_bytes", [0, 1 << 30], ids=["copied", "resident"])
def test_a_gpu_gets_the_same_batches(store: ImageStore, limit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "RESIDENT_LIMIT_BYTES", limit_bytes)
    there = BatchSource(store.samples(), torch.device("cuda"), 12, random_flip=True, seed=5)
    here = BatchSource(store.samples(), CPU, 12, random_flip=True, seed=5)
    for step in range(4):
        torch.testing.assert_close(there.batch(step).cpu(), here.batch(step), rtol=0, atol=1e-6)
