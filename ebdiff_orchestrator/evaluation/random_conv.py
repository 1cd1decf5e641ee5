"""A small convolutional network with fixed random weights: features that need no file, to compare runs of this tool.

Untrained filters see edges, textures, colours and layout, not what is in a picture: the distance of their features
orders the runs of this tool, and says nothing beside a published FID.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SEED = 0
_STAGES, _CHANNELS = 4, 32
_SMALLEST_PX, _LARGEST_PX = 16, 64  # sides that the filters see; images beyond are enlarged or reduced
_GRID = 2
_CONTRAST_FLOOR = 0.1
_BIAS = 0.1

NUM_FEATURES = _STAGES * 2 * _CHANNELS + (_GRID**2 - 1) * _CHANNELS
"""352: the means and deviations of each stage's channels, the last stage's means in each quarter of the image."""


def weights_digest() -> str:
    """SHA-256 of the network's weights, equal on every machine."""
    whole = hashlib.sha256()
    for stage in _weights():
        for array in stage:
            whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


class RandomConv:
    """Four stages of 3x3 filters, contrast made even, a leaky ReLU and half the side."""

    def __init__(self, device: torch.device) -> None:
        self._stages = [tuple(torch.from_numpy(array).to(device) for array in stage) for stage in _weights()]

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Float32 [B, 352] of uint8 [B, 3, H, W]; a quarter's mean weighs half, so that four weigh as one of all."""
        maps_BCHW = _fitted(images_BCHW.float().div(127.5).sub(1))
        found = []
        for index, (filters, biases) in enumerate(self._stages):
            padded = nn.functional.pad(maps_BCHW, (1, 1, 1, 1), mode="replicate")
            maps_BCHW = nn.functional.conv2d(padded, filters, biases)
            energy_B1HW = maps_BCHW.square().mean(dim=1, keepdim=True)
            maps_BCHW = nn.functional.leaky_relu(maps_BCHW / (energy_B1HW + _CONTRAST_FLOOR**2).sqrt(), 0.1)
            last = index == len(self._stages) - 1
            means = nn.functional.adaptive_avg_pool2d(maps_BCHW, _GRID).div(_GRID) if last else maps_BCHW.mean((2, 3))
            found += [means.flatten(1), maps_BCHW.flatten(2).std(dim=2, correction=0)]
            maps_BCHW = nn.functional.avg_pool2d(maps_BCHW, 2)
        return torch.cat(found, dim=1)


def _fitted(images_BCHW: Tensor) -> Tensor:
    """The images with sides of 16 to 64 pixels."""
    height, width = (min(max(side, _SMALLEST_PX), _LARGEST_PX) for side in images_BCHW.shape[2:])
    if height < images_BCHW.shape[2] or width < images_BCHW.shape[3]:
        return nn.functional.adaptive_avg_pool2d(images_BCHW, (height, width))
    return nn.functional.interpolate(images_BCHW, (height, width), mode="bilinear", align_corners=False)


def _weights() -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Filters float32 [32, channels, 3, 3] and biases [32] of each stage, of numpy's oldest generator, which is frozen.

    Filters have length one; half of the first stage's see no brightness, only edges. All are rounded to 1/4096, so that
    no processor's order of summing shows in a bit.
    """
    numbers, channels, stages = np.random.RandomState(_SEED), 3, []
    for stage in range(_STAGES):
        filters = numbers.random_sample((_CHANNELS, channels, 3, 3)) * 2 - 1
        if stage == 0:
            edges = filters[: _CHANNELS // 2]
            edges -= edges.mean(axis=(2, 3), keepdims=True)
        filters *= 2 / np.sqrt((filters**2).sum(axis=(1, 2, 3), keepdims=True))
        biases = (numbers.random_sample(_CHANNELS) * 2 - 1) * _BIAS
        stages.append((_rounded(filters), _rounded(biases)))
        channels = _CHANNELS
    return stages


def _rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rounded: np.ndarray[Any, Any] = (np.round(values * 4096) / 4096).astype(np.float32)
    return rounded
