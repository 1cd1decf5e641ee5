"""The parts of an evaluation: shards, statistics, labels, weights, the steps that each region gets."""

import pickle
import socket
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import MakePlan
from finished_run import an_evaluation
from local_inception import write_local_inception
from PIL import Image
from pydantic import ValidationError
from pytorch_fid.fid_score import compute_statistics_of_path, get_activations
from pytorch_fid.inception import FID_WEIGHTS_URL
from safetensors.torch import load_file

from ebdiff_orchestrator.evaluation import inception
from ebdiff_orchestrator.evaluation.extractors import choose_extractor, load_extractor
from ebdiff_orchestrator.evaluation.inception import FEATURES, load_inception, weights_file
from ebdiff_orchestrator.evaluation.random_conv import NUM_FEATURES, weights_digest
from ebdiff_orchestrator.evaluation.records import steps_by_region
from ebdiff_orchestrator.evaluation.statistics import (
    Statistics,
    frechet_distance,
    read_statistics,
    shard_statistics,
    write_statistics,
)
from ebdiff_orchestrator.evaluation.values import OFFICIAL_SHA256, label_of
from ebdiff_orchestrator.evaluation.work import shards_of, write_shard
from region_workers.storage.integrity import file_digest
from schemas.errors import RunFailed, UserError
from schemas.evaluation import ExtractorChoice, Measure
from schemas.manifest import Evaluation

CPU = torch.device("cpu")
INCEPTION = Measure(extractor=ExtractorChoice(name="inception", digest="i", num_features=FEATURES))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_inception(tmp_path_factory.mktemp("inception") / "weights.safetensors")


@pytest.fixture(scope="module")
def network(weights: Path) -> torch.nn.Module:
    return load_inception(weights, CPU)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, FEATURES), np.float32)


def test_shards_are_fixed_ranges_in_whole_batches_of_pytorch_fid() -> None:
    shards = shards_of(1030)
    expected = [(0, 250), (250, 250), (500, 250), (750, 250), (1000, 30)]
    assert [(shard.first, shard.count) for shard in shards] == expected
    assert shards_of(500) == shards[:2]
    assert all(shard.first % inception.BATCH_IMAGES == 0 for shard in shards)


def test_statistics_over_shards_are_numpy_s_over_all_features(tmp_path: Path) -> None:
    features = noise(310)
    for shard in shards_of(310):
        write_shard(tmp_path, shard, features[shard.first : shard.first + shard.count], 0, "cpu")
    statistics = shard_statistics(tmp_path, 310)
    wide = features.astype(np.float64)
    assert np.allclose(statistics.mean, wide.mean(axis=0), rtol=0, atol=1e-14)
    assert np.allclose(statistics.covariance, np.cov(wide, rowvar=False), rtol=0, atol=1e-13)


def test_statistics_on_disk_are_pytorch_fid_s_too_and_never_pickles(tmp_path: Path) -> None:
    statistics = Statistics(noise(1)[0].astype(np.float64), np.eye(FEATURES), 12)
    write_statistics(tmp_path / "a.npz", statistics)
    mean, covariance = compute_statistics_of_path(str(tmp_path / "a.npz"), None, 50, FEATURES, "cpu")
    assert np.array_equal(mean, statistics.mean)
    assert np.array_equal(covariance, statistics.covariance)
    assert read_statistics(tmp_path / "a.npz", INCEPTION).num_images == 12
    np.savez(tmp_path / "theirs.npz", mu=mean, sigma=covariance)
    assert read_statistics(tmp_path / "theirs.npz", INCEPTION).num_images == 0
    np.savez(tmp_path / "pickled.npz", mu=np.array([object()]), sigma=covariance)
    np.savez(tmp_path / "small.npz", mu=mean[:64], sigma=covariance[:64, :64])
    (tmp_path / "half.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:1000])
    for name in ("pickled", "small", "half"):
        with pytest.raises(ValueError, match=r".+"):
            read_statistics(tmp_path / f"{name}.npz", INCEPTION)


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    one, other = Statistics(np.zeros(2), np.diag([4.0, 9.0]), 3), Statistics(np.ones(2), np.diag([1.0, 1.0]), 3)
    assert frechet_distance(one, other) == pytest.approx(2 + 1 + 4)


def test_a_distance_that_is_no_number_is_a_failure_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def imaginary(*_: object) -> float:
        raise ValueError("Imaginary component 0.5")

    monkeypatch.setattr("ebdiff_orchestrator.evaluation.statistics.calculate_frechet_distance", imaginary)
    few = Statistics(np.zeros(FEATURES), np.eye(FEATURES), 3)
    with pytest.raises(RunFailed, match=r"Imaginary component 0.5.*take more"):
        frechet_distance(few, few)


@pytest.mark.parametrize(
    ("num_images", "sha256", "label"),
    [
        (50_000, OFFICIAL_SHA256, "FID-50k"),
        (1_000, OFFICIAL_SHA256, "FID-1k (1,000 images; not comparable with FID-50k)"),
        (2_500, OFFICIAL_SHA256, "FID-2.5k (2,500 images; not comparable with FID-50k)"),
        (64, OFFICIAL_SHA256, "FID-64 (64 images; not comparable with FID-50k)"),
        (50_000, "ab" * 32, "FID-50k (Inception weights abababab are not pytorch-fid's: not a published FID)"),
    ],
)
def test_fewer_than_50_000_images_and_other_weights_than_pytorch_fid_s_are_labelled_so(
    num_images: int, sha256: str, label: str
) -> None:
    assert label_of(an_evaluation(num_images=num_images, inception_sha256=sha256)) == label
    assert FID_WEIGHTS_URL.endswith(f"-{OFFICIAL_SHA256[:8]}.pth")


@pytest.mark.parametrize(("num_images", "label"), [(50_000, "FD-random-conv-50k"), (1_000, "FD-random-conv-1k")])
def test_the_distance_of_random_filters_is_never_called_an_fid(num_images: int, label: str) -> None:
    no_fid = {"fid": None, "inception_sha256": None, "num_images": num_images}
    measured = an_evaluation(extractor="random-conv", frechet_distance=1.0, extractor_sha256="c", **no_fid)
    assert label_of(measured) == label
    for fault in ({"fid": 1.0}, {"frechet_distance": None}, {"extractor": "inception"}, {"inception_sha256": "i"}):
        with pytest.raises(ValidationError, match="are Inception's"):
            Evaluation.model_validate({**measured.model_dump(), **fault})


def test_what_inception_measured_is_written_as_before_there_were_others() -> None:
    written = an_evaluation().model_dump_json()
    assert written.startswith('{"key":"k","ensemble_digest":"e","fid":1.0,"num_images":50000,"steps":100,"seed":0,')
    assert '"guidance_scale":1.0,"inception_sha256":"i","reference_digest":"r",' in written
    assert "extractor" not in written


@pytest.mark.parametrize(("spacing", "steps"), [("quadratic", [55, 19, 26]), ("uniform", [24, 20, 56])])
def test_steps_crowd_where_the_spacing_puts_them(tiny_plan: MakePlan, spacing: str, steps: list[int]) -> None:
    plan = tiny_plan(f"sampling.spacing={spacing}")
    assert list(steps_by_region(plan, 100).values()) == steps


def test_weights_that_cannot_be_downloaded_are_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05-6726825d.pth .*--inception-weights FILE.*random"):
        weights_file(None)
    cached = tmp_path / "checkpoints" / inception.WEIGHTS_NAME
    cached.write_bytes(b"")
    assert weights_file(None) == cached
    with pytest.raises(UserError, match=r"--inception-weights = .*expected a file"):
        weights_file(tmp_path / "nowhere.pth")


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth"
        monkeypatch.setattr(inception, "FID_WEIGHTS_URL", address)
        with pytest.raises(UserError, match=r"could not be downloaded .*timed out"):
            weights_file(None)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("published", [False, True])
def test_weights_are_never_unpickled_into_objects(
    published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(marker)))
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    for name in ("evil.pth", "other.pth", "list.pth", "broken.safetensors"):
        if published:
            monkeypatch.setattr(inception, "OFFICIAL_SHA256", file_digest(tmp_path / name))
        with pytest.raises(UserError, match=r"--inception-weights = .*Inception network"):
            load_inception(tmp_path / name, CPU)
    assert not marker.exists()


def test_a_pth_of_other_bytes_than_the_published_is_not_opened(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_file(weights), tmp_path / "weights.pth")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
        with pytest.raises(UserError, match=r"of other bytes.*\.safetensors"):
            load_inception(tmp_path / "weights.pth", CPU)
    monkeypatch.setattr(inception, "OFFICIAL_SHA256", file_digest(tmp_path / "weights.pth"))
    load_inception(tmp_path / "weights.pth", CPU)


class _Evil:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._marker,)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_bit_for_bit_those_that_pytorch_fid_makes_of_the_same_pngs(
    network: torch.nn.Module, weights: Path, tmp_path: Path, channels: int
) -> None:
    torch.set_num_threads(2)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), np.uint8)
    files = [tmp_path / f"{index:05d}.png" for index in range(5)]
    for file, image_HWC in zip(files, images, strict=True):
        Image.fromarray(image_HWC.squeeze()).save(file)
    theirs = get_activations(files, network, batch_size=5, num_workers=0)
    ours = load_extractor(choose_extractor("inception", weights), CPU).features(images)
    assert ours.dtype == np.float32
    assert ours.std() > 1e-2, "the features tell nothing apart"
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(8, 8), (16, 16), (40, 24), (64, 64), (256, 256), (8, 100)])
def test_random_filters_see_images_of_any_size(sides: tuple[int, int], channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *sides, channels), np.uint8)
    extractor = load_extractor(choose_extractor("random-conv"), CPU)
    features = extractor.features(images)
    assert features.shape == (3, NUM_FEATURES)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.ptp(features, axis=0).min() > 0, "a feature that tells nothing apart"
    grey = np.repeat(images[..., :1], 3, axis=3)
    assert np.array_equal(extractor.features(images[..., :1]), extractor.features(grey))


def test_the_weights_of_random_filters_are_the_same_everywhere_and_always() -> None:
    assert weights_digest() == "d838a098a1427a780ad5ff53422ba37d49f485c623bcb8aee9652b5f5682f8ad"
