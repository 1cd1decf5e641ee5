"""What turns images to the features that a Frechet distance compares: pytorch-fid's Inception, or random filters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ebdiff_orchestrator.evaluation.inception import BATCH_IMAGES, Inception, choose_inception
from ebdiff_orchestrator.evaluation.random_conv import NUM_FEATURES, RandomConv, weights_digest
from ebdiff_orchestrator.evaluation.wavelet import packet_level
from schemas.digest import digest
from schemas.errors import RunFailed, user_error
from schemas.evaluation import ExtractorChoice
from schemas.limits import MOST_WAVELET_PX
from schemas.manifest import ExtractorName


@dataclass(frozen=True)
class Extractor:
    """A network with its weights, on a device: features [B, N] of uint8 [B, 3, H, W]."""

    network: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device

    @torch.no_grad()
    def features(
        self, images_NHWC: np.ndarray[Any, Any], report: Callable[[int, int], None] = lambda done, total: None
    ) -> np.ndarray[Any, Any]:
        """Float32 [N, features], or bytes. Takes uint8 [N, H, W, 1 or 3]; `report(done, total)` counts images."""
        parts = []
        for start in range(0, len(images_NHWC), BATCH_IMAGES):
            batch_BHWC = torch.from_numpy(np.array(images_NHWC[start : start + BATCH_IMAGES])).to(self.device)
            batch_BCHW = batch_BHWC.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
            parts.append(self.network(batch_BCHW).cpu().numpy())
            report(min(start + BATCH_IMAGES, len(images_NHWC)), len(images_NHWC))
        return np.concatenate(parts)


def choose_extractor(name: str, inception_weights: Path | None = None) -> ExtractorChoice:
    """The extractor of that name, known by its weights. UserError if there is none, or its weights cannot be had."""
    if name == "inception":
        return choose_inception(inception_weights)
    if name != "random-conv":
        known = " or ".join(name for name in get_args(ExtractorName) if name != "wavelet")
        raise user_error("--extractor", name, known, "Change it.")
    if inception_weights is not None:
        raise user_error("--inception-weights", inception_weights, "none with --extractor random-conv", "Leave it out.")
    return ExtractorChoice(name="random-conv", digest=weights_digest(), num_features=NUM_FEATURES)


def choose_packets(side_px: int) -> ExtractorChoice:
    """Haar packets of images of that side. UserError if it has none, or they are too many numbers."""
    level = packet_level(side_px)
    if not level or side_px > MOST_WAVELET_PX:
        expected = f"images of an even side of at most {MOST_WAVELET_PX} pixels; the run's have {side_px}"
        raise user_error("--measure", "wavelet", expected, "Use another measure.")
    identity = digest({"wavelet": "haar", "level": level})
    return ExtractorChoice(name="wavelet", digest=identity, num_features=3 * side_px**2, packet_level=level)


def load_extractor(choice: ExtractorChoice, device: torch.device) -> Extractor:
    """The chosen extractor. RunFailed if its weights on this node are not the driver's; UserError for a wrong file."""
    if choice.name == "inception":
        return Extractor(Inception(choice, device), device)
    if choice.name == "wavelet":
        return Extractor(_pixels, torch.device("cpu"))
    if choice.digest != weights_digest():
        raise RunFailed("This node has another version of ebdiff-orchestrator than the driver. Install the same one.")
    return Extractor(RandomConv(device), device)


def _pixels(images_BCHW: torch.Tensor) -> torch.Tensor:
    """The bytes [B, H x W x 3]: packets take four times the room, so they are made where their statistics are."""
    return images_BCHW.permute(0, 2, 3, 1).flatten(1)
