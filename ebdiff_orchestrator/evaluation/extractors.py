"""What turns images to the features that a Frechet distance compares: pytorch-fid's Inception, or random filters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch

from ebdiff_orchestrator.evaluation.inception import Inception, choose_inception
from ebdiff_orchestrator.evaluation.random_conv import NUM_FEATURES, RandomConv, weights_digest
from ebdiff_orchestrator.evaluation.wavelet import LARGEST_PX, packet_level
from schemas.digest import digest
from schemas.errors import RunFailed, user_error
from schemas.evaluation import ExtractorChoice
from schemas.manifest import ExtractorName


class Extractor(Protocol):
    """A network with its weights, on a device."""

    def features(
        self, images_NHWC: np.ndarray[Any, Any], report: Callable[[int, int], None] = ...
    ) -> np.ndarray[Any, Any]:
        """Float32 [N, features], or bytes. Takes uint8 [N, H, W, 1 or 3]; `report(done, total)` counts images."""


def choose_extractor(name: str, inception_weights: Path | None = None) -> ExtractorChoice:
    """The extractor of that name, known by its weights. UserError if there is none, or its weights cannot be had."""
    if name == "inception":
        return choose_inception(inception_weights)
    if name != "random-conv":
        raise user_error(
            "--extractor",
            name,
            " or ".join(name for name in get_args(ExtractorName) if name != "wavelet"),
            "Change it.",
        )
    if inception_weights is not None:
        raise user_error("--inception-weights", inception_weights, "none with --extractor random-conv", "Leave it out.")
    return ExtractorChoice(name="random-conv", digest=weights_digest(), num_features=NUM_FEATURES)


def choose_packets(side_px: int) -> ExtractorChoice:
    """Haar packets of images of that side. UserError if it has none, or they are too many numbers."""
    level = packet_level(side_px)
    if not level or side_px > LARGEST_PX:
        expected = f"images of an even side of at most {LARGEST_PX} pixels; the run's have {side_px}"
        raise user_error("--measure", "wavelet", expected, "Use another measure.")
    identity = digest({"wavelet": "haar", "level": level})
    return ExtractorChoice(name="wavelet", digest=identity, num_features=3 * side_px**2, packet_level=level)


class Pixels:
    """Images as they are: wavelet packets take four times the room, so they are made where their statistics are."""

    def features(
        self, images_NHWC: np.ndarray[Any, Any], report: Callable[[int, int], None] = lambda done, total: None
    ) -> np.ndarray[Any, Any]:
        """Uint8 [N, 3 x pixels]; grey images are three equal colours."""
        count, height, width, _ = images_NHWC.shape
        report(count, count)
        return np.broadcast_to(images_NHWC, (count, height, width, 3)).reshape(count, -1)


def load_extractor(choice: ExtractorChoice, device: torch.device) -> Extractor:
    """The chosen extractor. RunFailed if its weights on this node are not the driver's; UserError for a wrong file."""
    if choice.name == "inception":
        return Inception(choice, device)
    if choice.name == "wavelet":
        return Pixels()
    if choice.digest != weights_digest():
        raise RunFailed("This node has another version of ebdiff-orchestrator than the driver. Install the same one.")
    return RandomConv(device)
