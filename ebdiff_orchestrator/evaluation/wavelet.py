"""The Frechet wavelet distance (Veeramacheneni et al., ICLR 2025): packets of Haar wavelets, which need no network.

An image's packets of level L are its 2^L x 2^L blocks seen through 4^L patterns, from flat to the finest checks; each
packet has one number a block and colour. The distance is the mean over packets of the Frechet distance between the
two sets' Gaussians. Values of images are in [0, 1], and grey ones count as three equal colours, as in `pytorchfwd`.
"""

from typing import Any

import numpy as np

from schemas.errors import user_error
from schemas.limits import MOST_WAVELET_PX

Array = np.ndarray[Any, Any]

_MOST_LEVELS = 4  # the paper's, of 256 pixels
_NUMBERS_AT_ONCE = 2**22  # of covariances


def packet_level(side_px: int) -> int:
    """How often the side is halved: 4 times as in the paper, or as often as goes without a rest; 0: it is odd."""
    return min(_MOST_LEVELS, (side_px & -side_px).bit_length() - 1)


def packets(images_NHWC: Array, level: int, chosen: slice = slice(None)) -> Array:
    """Float32 [chosen packets, N, 3 x blocks] of uint8 [N, H, W, 1 or 3]; of all 4^level."""
    count, height, width, channels = images_NHWC.shape
    block = 2**level
    assert height % block == width % block == 0, "the level is of images of this size"

    blocks = images_NHWC.reshape(count, height // block, block, width // block, block, channels)
    pixels_NFB = blocks.transpose(0, 5, 1, 3, 2, 4).reshape(count, -1, block**2).astype(np.float32)
    patterns_PB = _patterns(level)[chosen].astype(np.float32)
    found_NFP = pixels_NFB @ patterns_PB.T  # sums of at most 256 bytes: exact, whatever their order
    found_PNF = np.ascontiguousarray(found_NFP.transpose(2, 0, 1)) / np.float32(255 * block)
    return found_PNF if channels == 3 else np.tile(found_PNF, 3)


def packet_distances(means_PF: Array, roots_PRF: Array, other_means_PF: Array, other_roots_PRF: Array) -> Array:
    """Of each packet the Frechet distance [P] of two Gaussians with covariances root^T root, in any number of rows R.

    The trace of the root of the covariances' product is the sum of the singular values of root x other root^T.
    """
    shared = np.linalg.svd(roots_PRF @ other_roots_PRF.transpose(0, 2, 1), compute_uv=False).sum(axis=1)
    traces = (roots_PRF**2).sum(axis=(1, 2)) + (other_roots_PRF**2).sum(axis=(1, 2))
    distances: Array = ((means_PF - other_means_PF) ** 2).sum(axis=1) + traces - 2 * shared
    return distances.clip(min=0)


def distance_of_packets(one_PNF: Array, other_PNF: Array) -> float:
    """The mean distance of packets held in memory, of few images: their covariances are never written out."""
    distances = packet_distances(*_mean_and_root(one_PNF), *_mean_and_root(other_PNF))
    return float(distances.mean())


def distance_of_statistics(means_PF: Array, covariances_PFF: Array, other: tuple[Array, Array]) -> float:
    """The mean distance of packets whose means and covariances are known."""
    found = []
    for part in packet_groups(*means_PF.shape):
        ours = means_PF[part], _root(covariances_PFF[part])
        found.append(packet_distances(*ours, other[0][part], _root(other[1][part])))
    return float(np.concatenate(found).mean())


def quick_measure(images_NHWC: Array, reference_NHWC: Array) -> float:
    """The distance of few images in memory, uint8 [N, H, W, 1 or 3], from a reference of the same size: for previews.

    Of few images it is far above that of many: it compares like numbers only. UserError for fewer than two images, or
    a size that has no packets.
    """
    sides = {images.shape[1:3] for images in (images_NHWC, reference_NHWC)}
    if len(sides) > 1 or min(len(images_NHWC), len(reference_NHWC)) < 2:
        expected = "two or more images on either side, all of one size"
        raise user_error("previews.measure", "wavelet", expected, "Leave it out.")
    height, width = sides.pop()
    level = packet_level(height)
    if height != width or not level or height > MOST_WAVELET_PX:
        expected = f"square images of an even side of at most {MOST_WAVELET_PX} pixels, not {height}x{width}"
        raise user_error("previews.measure", "wavelet", expected, "Leave it out.")
    return distance_of_packets(packets(images_NHWC, level), packets(reference_NHWC, level))


def packet_groups(num_packets: int, num_features: int) -> list[slice]:
    """All packets in groups whose covariances fit in memory together."""
    size = max(1, _NUMBERS_AT_ONCE // num_features**2)
    return [slice(first, first + size) for first in range(0, num_packets, size)]


def _patterns(level: int) -> Array:
    """[4^L, 4^L]: a pattern a row, of 1 and -1 over a block's pixels."""
    line = np.ones((1, 1), np.int8)
    for _ in range(level):
        line = np.concatenate([np.kron(line, [1, 1]), np.kron(line, [1, -1])])
    return np.kron(line, line)


def _mean_and_root(values_PNF: Array) -> tuple[Array, Array]:
    means_PF = values_PNF.mean(axis=1, dtype=np.float64)
    centred_PNF = values_PNF - means_PF[:, None]
    return means_PF, np.linalg.qr(centred_PNF, mode="r") / np.sqrt(values_PNF.shape[1] - 1)


def _root(covariances_PFF: Array) -> Array:
    variances_PF, axes_PFF = np.linalg.eigh(covariances_PFF)
    root: Array = np.sqrt(variances_PF.clip(min=0))[:, :, None] * axes_PFF.transpose(0, 2, 1)
    return root
