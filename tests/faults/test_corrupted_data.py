"""A damaged store of images or latents is found before a training sees it: built anew, or refused with its remedy."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from damage import Damage, damages_of, flip_bit, flip_some_bit
from latent_fixtures import latent_model, tiny_vae
from pictures import save_images
from run_products import products
from serial_cluster import SerialCluster
from small_runs import small_plan

from ebdiff_orchestrator.run import launch as driver
from region_workers.data.latents import ensure_latents
from region_workers.data.store import Store, ensure_store
from schemas.errors import RunFailed
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan

_KINDS = ("images", "latents")
_FILES = ("samples.npy", "checksums.npy", "labels.npy", "store.json")
_IMAGES = 12


@dataclass(frozen=True)
class Source:
    """Images in two classes and a VAE, as plans name them, and a cache in which both stores are built."""

    data: DataPlan
    model: LatentModelPlan
    cache: Path
    served: dict[str, tuple[bytes, list[int]]]

    def open(self, kind: str, cache: Path) -> Store:
        """The store, as a launch opens it."""
        images = ensure_store(self.data, cache)
        return images if kind == "images" else ensure_latents(self.model, self.data, images, cache)

    def serve(self, kind: str, cache: Path) -> tuple[bytes, list[int]]:
        """All that a training can be given of the store: every row, and the labels."""
        store = self.open(kind, cache)
        samples = store.samples()
        assert store.labels is not None
        return samples.read(np.arange(len(samples.rows))).tobytes(), store.labels.tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Twelve images of 8 x 8, with both stores built."""
    folder = tmp_path_factory.mktemp("source")
    save_images(folder / "images", [(8, 8)] * _IMAGES, classes=2)
    data = DataPlan(path=str(folder / "images"), channels=3, random_flip=True, label_column="label")
    source = Source(data, latent_model(tiny_vae(folder / "vae")), folder / "cache", {})
    source.served.update({kind: source.serve(kind, source.cache) for kind in _KINDS})
    return source


def _folder(cache: Path, kind: str) -> Path:
    (info,) = (cache / kind).glob(f"*/{_FILES[-1]}")
    return info.parent


def _cases() -> Iterator[object]:
    for kind in _KINDS:
        for name in _FILES:
            for damage in damages_of(name):
                yield pytest.param(kind, name, damage, id=f"{kind} {name}: {damage}")


def _comes_right(source: Source, kind: str, cache: Path, folder: Path, said: Callable[[], str]) -> None:
    """What is served is right at once, from a store built anew; or it is refused, and right once the folder is gone."""
    try:
        served = source.serve(kind, cache)
        told = said()
    except RunFailed as error:
        told = str(error)
        shutil.rmtree(folder)
        served = source.serve(kind, cache)
    assert re.search(f"{folder}.*Delete (the folder|it)", told), told
    assert served == source.served[kind]


@pytest.mark.parametrize(("kind", "name", "damage"), _cases())
def test_a_damaged_store_serves_what_it_was_built_of_or_nothing(
    source: Source, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str, name: str, damage: Damage
) -> None:
    cache = Path(shutil.copytree(source.cache, tmp_path / "cache"))
    folder = _folder(cache, kind)
    damage.harm(folder / name, folder / _FILES[-2 if name != "labels.npy" else 1])
    if (folder / _FILES[-1]).exists():
        _comes_right(source, kind, cache, folder, lambda: caplog.text)
    else:  # a store in the making, of which there is nothing to say
        assert source.serve(kind, cache) == source.served[kind]


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("kind", _KINDS)
def test_any_flipped_bit_of_what_a_store_serves_is_seen(source: Source, tmp_path: Path, kind: str, seed: int) -> None:
    cache = Path(shutil.copytree(source.cache, tmp_path / "cache"))
    folder = _folder(cache, kind)
    rows = folder / _FILES[0]
    header = 10 + int.from_bytes(rows.read_bytes()[8:10], "little")
    chosen = np.random.default_rng(seed)
    flip_bit(rows, int(chosen.integers(header, rows.stat().st_size)), int(chosen.integers(8)))
    with pytest.raises(RunFailed, match=r"row .* is not what was written\. Delete the folder"):
        source.serve(kind, cache)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_any_flipped_bit_of_a_store_s_record_is_seen(
    source: Source, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str, seed: int
) -> None:
    cache = Path(shutil.copytree(source.cache, tmp_path / "cache"))
    folder = _folder(cache, kind)
    flip_some_bit(folder / _FILES[-1], seed)
    _comes_right(source, kind, cache, folder, lambda: caplog.text)


def test_a_run_stops_at_a_damaged_image_and_goes_on_once_the_store_is_built_anew(
    source: Source, tmp_path: Path
) -> None:
    cache, changes = tmp_path / "cache", (f"data.path={source.data.path}", "data.channels=3")
    plan = small_plan(*changes, f"workers.cache_dir={cache}", "regions=[{train: [0, 1000], pruning_ratio: 0.5}]")
    driver.launch(plan, tmp_path / "whole", executor=SerialCluster())
    folder = _folder(cache, "images")
    for number in range(_IMAGES):
        flip_bit(folder / "samples.npy", 128 + number * 8 * 8 * 3 + 5, 4)
    with pytest.raises(RunFailed, match=f"{folder}: row .*Delete the folder"):
        driver.launch(plan, tmp_path / "run", executor=SerialCluster())
    assert not list((tmp_path / "run").glob("*/*/result.json"))

    shutil.rmtree(folder)
    driver.resume(tmp_path / "run", executor=SerialCluster())
    assert products(tmp_path / "run") == products(tmp_path / "whole")
