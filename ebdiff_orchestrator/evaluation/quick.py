"""A measure of few images in memory, which needs no weights and no second: for curves of previews."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebdiff_orchestrator.evaluation.wavelet import LARGEST_PX, distance_of_packets, packet_level, packets
from schemas.errors import user_error

Images = np.ndarray[Any, Any]


def quick_measure(name: str, images_NHWC: Images, reference_NHWC: Images) -> float:
    """The Frechet wavelet distance (`wavelet`) of uint8 [N, H, W, 1 or 3] from a reference of the same size.

    Of few images it is far above that of many: it compares like numbers only. UserError for another name, fewer than
    two images, or a size that it does not take.
    """
    if name != "wavelet":
        raise user_error("previews.measure", name, "wavelet", "Change it.")
    sides, counts = {images.shape[1:3] for images in (images_NHWC, reference_NHWC)}, (images_NHWC, reference_NHWC)
    if len(sides) > 1 or min(map(len, counts)) < 2:
        raise user_error(
            "previews.measure", name, "two or more images on either side, all of one size", "Leave it out."
        )
    height, width = sides.pop()
    level = packet_level(height)
    if height != width or not level or height > LARGEST_PX:
        expected = f"square images of an even side of at most {LARGEST_PX} pixels, not {height}x{width}"
        raise user_error("previews.measure", name, expected, "Leave it out.")
    return distance_of_packets(packets(images_NHWC, level), packets(reference_NHWC, level))
