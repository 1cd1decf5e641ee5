"""The Frechet wavelet distance: packets against PyWavelets', distances against the closed form and pytorchfwd's."""

from itertools import product

import numpy as np
import pytest
import pywt
from scipy.linalg import sqrtm

from ebdiff_orchestrator.evaluation.wavelet import (
    distance_of_packets,
    distance_of_statistics,
    packet_groups,
    packet_level,
    packets,
    quick_measure,
)
from schemas.errors import UserError


def some_images(count: int, side: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Uint8, neighbours alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, side + 1, side + 1, channels))
    return ((noise[:, 1:, 1:] + noise[:, :-1, :-1]) // 2).astype(np.uint8)


def covariances(values_PNF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values_PNF.mean(axis=1), np.stack([np.atleast_2d(np.cov(values.T)) for values in values_PNF])


@pytest.mark.parametrize(("side", "level"), [(8, 3), (16, 4), (32, 4), (256, 4), (28, 2), (30, 1), (15, 0)])
def test_the_level_is_the_papers_where_the_side_has_it(side: int, level: int) -> None:
    assert packet_level(side) == level


@pytest.mark.parametrize(("side", "level"), [(8, 3), (32, 4), (12, 2)])
def test_packets_are_pywavelets_haar_packets(side: int, level: int) -> None:
    images = some_images(2, side)
    names = ["".join(path) for path in product("ahvd", repeat=level)]
    expected = [
        [
            np.stack([pywt.WaveletPacket2D(colour / 255, "haar", maxlevel=level)[name].data for colour in colours])
            for colours in images.transpose(0, 3, 1, 2)
        ]
        for name in names
    ]
    found = packets(images, level)
    assert found.shape == (4**level, 2, 3 * (side // 2**level) ** 2)
    expected_PNF = np.array(expected).reshape(found.shape)
    misses = [np.abs(np.abs(found) - np.abs(packet)).max(axis=(1, 2)) for packet in expected_PNF]
    assert np.min(misses, axis=1).max() < 1e-5  # each is there, up to its sign
    assert sorted(np.argmin(misses, axis=1)) == list(range(4**level))
    assert np.array_equal(packets(images, level, slice(3, 5)), found[3:5])


def test_the_distance_is_the_mean_of_the_packets_frechet_distances() -> None:
    one, other = (packets(some_images(40, seed=seed), 3) for seed in (0, 1))
    other += np.float32(0.1)
    (means, sigmas), (other_means, other_sigmas) = covariances(one), covariances(other)
    closed_form = [
        ((means[p] - other_means[p]) ** 2).sum()
        + np.trace(sigmas[p] + other_sigmas[p] - 2 * sqrtm(sigmas[p] @ other_sigmas[p]).real)
        for p in range(len(means))
    ]
    assert distance_of_packets(one, other) == pytest.approx(np.mean(closed_form), rel=1e-5)
    by_statistics = distance_of_statistics(means, sigmas, (other_means, other_sigmas))
    assert by_statistics == pytest.approx(np.mean(closed_form), rel=1e-5)


def test_packets_in_groups_are_all_packets() -> None:
    groups = packet_groups(256, 768)
    assert max(group.stop - group.start for group in groups) * 768**2 * 8 < 2**26
    assert np.concatenate([np.arange(256)[group] for group in groups]).tolist() == list(range(256))


def test_equal_sets_are_at_no_distance_in_any_order_and_grey_ones_are_three_colours() -> None:
    images, others = some_images(12), some_images(12, seed=1)
    apart = quick_measure(images, others)
    assert quick_measure(images, images[::-1]) < 1e-5 < apart
    assert quick_measure(images[::-1], others) == pytest.approx(apart)
    assert quick_measure(others, images) == pytest.approx(apart)
    grey, other_grey = images[..., :1], others[..., :1]
    threefold = [np.repeat(each, 3, axis=-1) for each in (grey, other_grey)]
    assert quick_measure(grey, other_grey) == pytest.approx(quick_measure(*threefold))


def test_the_number_is_pytorchfwd_s() -> None:
    """Of pytorchfwd 1.0.1 (Haar, level 3) on the same images as PNGs, written down: it cannot be installed beside."""
    assert quick_measure(some_images(60, 8), some_images(60, 8, seed=5)) == pytest.approx(0.0092104365, rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (some_images(1), some_images(4)),
        (some_images(4), some_images(4, 8)),
        (some_images(4, 15), some_images(4, 15)),
    ],
)
def test_what_has_no_quick_measure_is_refused(ours: np.ndarray, theirs: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"previews\.measure"):
        quick_measure(ours, theirs)
