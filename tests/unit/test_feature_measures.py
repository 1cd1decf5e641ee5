"""Kernel distance, precision and recall: against sums written out, torch-fidelity's numbers and clear cases."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from ebdiff_orchestrator.evaluation import feature_measures
from ebdiff_orchestrator.evaluation.feature_measures import kernel_distance, measures_of_features, precision_and_recall


def points(count: int, seed: int = 0, size: int = 3, shift: float = 0.0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal((count, size)) + shift).astype(np.float32)


def test_the_kernel_distance_of_few_is_the_unbiased_sum_written_out() -> None:
    ours, theirs = points(5), points(5, 1, shift=0.5)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((np.dot(x.astype(float), y.astype(float)) / 3 + 1) ** 3)

    within = sum(np.mean([kernel(x, y) for x, y in permutations(side, 2)]) for side in (ours, theirs))
    between = np.mean([kernel(x, y) for x, y in product(ours, theirs)])
    assert kernel_distance(ours, theirs) == (pytest.approx(within - 2 * between), None)


def test_the_kernel_distance_over_subsets_is_torch_fidelity_s() -> None:
    """Of torch-fidelity 0.4.0 with rng_seed=0, 100 subsets of 1,000, on the same features: written down."""
    mean, deviation = kernel_distance(points(1500, 0, 16), points(1200, 1, 16, 0.1))
    assert (mean, deviation) == (pytest.approx(0.0394174266, rel=1e-5), pytest.approx(0.0045718655, rel=1e-5))


def test_equal_sets_are_at_no_distance_and_each_within_the_other_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    same, others = points(60, 0, 8), points(60, 2, 8, 0.3)
    mixed = np.random.RandomState(4).permutation(same)
    measures = ("kid", "precision-recall")
    for equal in (same, mixed):
        found = measures_of_features(measures, equal, same)
        assert (found["precision"], found["recall"], found["feature_images"]) == (1.0, 1.0, 60)
        assert found["kid"] is not None
        assert found["kid"] <= 0  # each image's likeness to itself is left out of one side only
    apart = measures_of_features(measures, same, others)
    assert measures_of_features(measures, mixed, others) == pytest.approx(apart)
    monkeypatch.setattr(feature_measures, "_ROWS", 7)
    assert measures_of_features(measures, mixed, others) == pytest.approx(apart)
    assert measures_of_features(("kid",), same, others).keys() == {"feature_images", "kid", "kid_deviation"}
    assert measures_of_features((), same, others) == {}


def test_precision_is_lost_by_strangers_and_recall_by_copies() -> None:
    theirs = points(400)
    half_far = np.concatenate([points(200, 1), points(200, 2, shift=50.0)])
    precision, recall = precision_and_recall(half_far, theirs)
    assert 0.4 < precision <= 0.5
    assert recall > 0.8
    copies = np.repeat(points(8, 3), 50, axis=0)
    precision, recall = precision_and_recall(copies, theirs)
    assert precision > 0.7
    assert recall < 0.05


def test_neighbours_are_counted_exactly() -> None:
    """On a line: balls of 0, 1, 2, 3, 10 reach 3, 2, 2, 3, 9 (their third neighbour); 13.5 lies in that of 10."""
    theirs = np.array([[0], [1], [2], [3], [10]], np.float32)
    ours = np.array([[-2.5], [6.5], [19.5], [-3.5], [13.5]], np.float32)
    precision, _ = precision_and_recall(ours, theirs)
    assert precision == 3 / 5  # -2.5 by the ball of 0, 6.5 and 13.5 by that of 10, which reaches 8
