"""What else the features of two sets of images tell: the kernel distance (KID), precision and recall."""

from typing import Any

import numpy as np

Features = np.ndarray[Any, Any]

SUBSETS, SUBSET_IMAGES = 100, 1000
NEIGHBOURS = 3
MOST_FEATURES = 10_000  # of each side that are compared, so that an exact search takes minutes
_SEED = 0
_ROWS = 1000  # whose distances to all others are held at a time


def measures_of_features(
    measures: tuple[str, ...], ours_NF: Features, theirs_NF: Features
) -> dict[str, float | int | None]:
    """What an `Evaluation` holds of these measures; both sides have equally many features."""
    assert len(ours_NF) == len(theirs_NF)
    found: dict[str, float | int | None] = {}
    if "kid" in measures:
        found["kid"], found["kid_deviation"] = kernel_distance(ours_NF, theirs_NF)
    if "precision-recall" in measures:
        found["precision"], found["recall"] = precision_and_recall(ours_NF, theirs_NF)
    return {"feature_images": len(ours_NF), **found} if found else {}


def kernel_distance(ours_NF: Features, theirs_NF: Features) -> tuple[float, float | None]:
    """Mean and deviation over subsets of the squared maximum mean discrepancy, unbiased (Binkowski et al., 2018).

    The kernel is (x.y / features + 1)^3; subsets are 100 of at most 1,000 features of either side, drawn without
    putting back. Where either side is one subset whole there is just that one, and the deviation is None.
    """
    size = min(SUBSET_IMAGES, len(ours_NF), len(theirs_NF))
    if size == len(ours_NF) == len(theirs_NF):
        return _discrepancy(ours_NF, theirs_NF), None
    random = np.random.RandomState(_SEED)  # numpy's oldest generator, which is frozen
    found = []
    for _ in range(SUBSETS):
        ours = ours_NF[random.choice(len(ours_NF), size, replace=False)]
        found.append(_discrepancy(ours, theirs_NF[random.choice(len(theirs_NF), size, replace=False)]))
    return float(np.mean(found)), float(np.std(found))


def _discrepancy(ours_NF: Features, theirs_NF: Features) -> float:
    """The unbiased squared discrepancy of two sets of equal size."""
    count = len(ours_NF)
    between = _kernel(ours_NF, theirs_NF).mean()
    within = 0.0
    for features_NF in (ours_NF, theirs_NF):
        kernel_NN = _kernel(features_NF, features_NF)
        within += (kernel_NN.sum() - np.trace(kernel_NN)) / (count * (count - 1))
    return float(within - 2 * between)


def _kernel(one_NF: Features, other_NF: Features) -> Features:
    one, other = one_NF.astype(np.float64), other_NF.astype(np.float64)
    kernel: Features = (one @ other.T / one.shape[1] + 1) ** 3
    return kernel


def precision_and_recall(ours_NF: Features, theirs_NF: Features) -> tuple[float, float]:
    """The share of ours within the reference's manifold, and of the reference within ours (Kynkaanniemi et al., 2019).

    A set's manifold are the balls around its features that reach to their third nearest neighbours. Exact, a thousand
    rows of distances at a time: of 10,000 features of 2,048 numbers each side some 8 x 10^11 multiply-adds.
    """
    assert min(len(ours_NF), len(theirs_NF)) > NEIGHBOURS
    centre = theirs_NF.mean(axis=0, dtype=np.float64)
    ours, theirs = ours_NF - centre, theirs_NF - centre  # distances lose fewer digits about zero
    return _share_within(ours, theirs), _share_within(theirs, ours)


def _share_within(points_NF: Features, set_MF: Features) -> float:
    reach_M = np.concatenate(
        [
            np.partition(_squared_distances(set_MF[rows], set_MF), NEIGHBOURS, axis=1)[:, NEIGHBOURS]
            for rows in _row_slices(len(set_MF))  # its nearest is itself
        ]
    )
    within = [
        (_squared_distances(points_NF[rows], set_MF) <= reach_M).any(axis=1) for rows in _row_slices(len(points_NF))
    ]
    return float(np.concatenate(within).mean())


def _row_slices(count: int) -> list[slice]:
    return [slice(first, first + _ROWS) for first in range(0, count, _ROWS)]


def _squared_distances(one_NF: Features, other_MF: Features) -> Features:
    """[N, M]; what is only rounding is 0, so that a copy lies within its original's ball."""
    sizes_NM = (one_NF**2).sum(axis=1)[:, None] + (other_MF**2).sum(axis=1)[None]
    squared_NM: Features = sizes_NM - 2 * (one_NF @ other_MF.T)
    squared_NM[squared_NM < 1e-12 * sizes_NM] = 0.0
    return squared_NM
