"""A small UNet with attention and skips, with every weight random: a default norm would hide a wrong channel."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

from region_workers.dense import build_dense, example_inputs
from region_workers.pruning.groups import ChannelGroup, find_groups
from schemas.model import PixelModelPlan
from schemas.plan import DataPlan

DATA = DataPlan(resolution=8, channels=3)
MODEL = PixelModelPlan(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
    dropout=0.1,
)


def random_unet(model: PixelModelPlan = MODEL, seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    return randomise(build_dense(model, DATA)).eval()


def randomise(network: UNet2DModel) -> UNet2DModel:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def groups_of(network: UNet2DModel) -> tuple[ChannelGroup, ...]:
    return find_groups(network, example_inputs(MODEL, DATA))


def noisy_images(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
