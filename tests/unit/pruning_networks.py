"""Small UNets with attention and skips, with every weight random: a default norm would hide a wrong channel."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from forked import run_forked
from safetensors.torch import save_file
from torch import nn

from region_workers.networks.dense import build_dense
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import ChannelGroup, Member, find_groups
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import compute_mask, kept_channels
from schemas.job import KeptChannels
from schemas.model import LatentModelPlan, PixelModelPlan
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
LATENT_DATA = DataPlan(resolution=32, channels=3, label_column="label")
LATENT_MODEL = LatentModelPlan(
    family="latent",
    vae="a-vae",
    num_classes=10,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
    cross_attention_dim=24,
)


def random_unet(model: PixelModelPlan = MODEL, seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    return randomise(build_dense(model, DATA)).eval()


def random_latent_unet(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(build_dense(LATENT_MODEL.model_copy(update=changes), LATENT_DATA)).eval()


def randomise(network: Any) -> Any:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def random_drawing_gru() -> DrawingGRU:
    torch.manual_seed(0)
    return randomise(DrawingGRU([0.3, -1.2, 2.0, 0.7], hidden_size=8, num_layers=3, num_train_timesteps=35)).eval()


def groups_of(network: nn.Module) -> tuple[ChannelGroup, ...]:
    return find_groups(network, network_inputs(network))


def positions(member: Member) -> torch.Tensor:
    """Where the group's channels are in the layer."""
    return torch.arange(member.layer_size)[member.indices]


def magnitude_mask(network: nn.Module, ratio: float = 0.6) -> torch.Tensor:
    groups = groups_of(network)
    return compute_mask(groups, channel_scores(groups, dict(network.named_parameters()), "magnitude"), ratio)


def magnitude_ticket(network: nn.Module, ratio: float = 0.6) -> dict[str, KeptChannels]:
    """The channels that magnitude keeps."""
    return kept_channels(groups_of(network), magnitude_mask(network, ratio))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def noisy_images() -> torch.Tensor:
    return noise(2, 3, 8, 8)


CLASS_LABELS = torch.tensor([0, 4, 10])  # of LATENT_MODEL, "no class" among them
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, torch.Tensor]]] = {  # a network, and what it takes
    "pixels": (random_unet, {"sample": noisy_images()}),
    "latents": (random_latent_unet, {"sample": noise(3, 3, 8, 8), "class_labels": CLASS_LABELS}),
    "drawings": (random_drawing_gru, {"sample": noise(3, 7, 3), "lengths": torch.tensor([3, 7, 1])}),
}


@torch.no_grad()
def silence_half(network: nn.Module, groups: tuple[ChannelGroup, ...], seed: int = 0) -> torch.Tensor:
    """Let no layer listen to two of each four neighbouring channels, drawn at random; the mask without them.

    Where a norm looks, the two are copies of the other two: mean and variance are the same with them as without. So
    the network without them computes the same, if the groups name the right channels of every layer. (Silent channels
    have no queries: they would count in the products.)
    """
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for group in groups:
        assert group.size // (group.norm_groups or 1) % 4 == 0, f"{group.root}: chunks of other than fours"
        fours = (
            torch.rand(group.size // 4, 4, generator=generator).argsort(1) + 4 * torch.arange(group.size // 4)[:, None]
        )
        kept, silent = fours[:, :2].flatten(), fours[:, 2:].flatten()
        normed = any(member.kind == "norm" for member in group.members)
        for member in group.members:
            _silence(network, member, kept, silent, normed)
        masks.append(torch.zeros(group.size, dtype=torch.bool).index_fill_(0, kept, True))
    return torch.cat(masks)


def _silence(network: nn.Module, member: Member, kept: torch.Tensor, silent: torch.Tensor, normed: bool) -> None:
    kept, silent = positions(member)[kept], positions(member)[silent]
    for name, parameter in network.get_submodule(member.layer).named_parameters():
        if member.kind == "in":
            if name == "weight":
                parameter[:, silent] = 0
        elif member.layer.endswith("to_q"):
            parameter[silent] = 0
        elif normed:
            parameter[silent] = parameter[kept]


@torch.no_grad()
def undo_the_scale_of_half_the_width(expert: nn.Module) -> None:
    """Attention divides by the root of a head's width, which is half what it was in the dense network."""
    for module in expert.modules():
        if isinstance(module, Attention):
            for parameter in module.to_q.parameters():
                parameter.mul_(0.5**0.5)


_LOAD_WITHOUT_TORCH_PRUNING = """
import importlib, os, sys
assert "torch_pruning" not in sys.modules, "what loads an expert has imported it"
sys.modules["torch_pruning"] = None  # any import of it fails
import torch
from safetensors.torch import load_file
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
expert = getattr(importlib.import_module(sys.argv[1]), sys.argv[2]).from_pretrained(sys.argv[3])
inputs = load_file(sys.argv[4])
predicted = inputs.pop("predicted")
with torch.no_grad():
    found = expert(timestep=5, **inputs).sample
assert torch.equal(found, predicted), (found - predicted).abs().max()
"""


def check_loads_without_torch_pruning(expert: nn.Module, folder: Path, **inputs: torch.Tensor) -> None:
    """A saved expert predicts the same bits in a process in which torch-pruning is not installed."""
    expert.save_pretrained(folder / "expert")
    with torch.no_grad():
        predicted = expert(timestep=5, **inputs).sample
    save_file({"predicted": predicted, **inputs}, folder / "expected.safetensors")
    kind = (type(expert).__module__, type(expert).__name__)
    program = ("-c", _LOAD_WITHOUT_TORCH_PRUNING, *kind, folder / "expert", folder / "expected.safetensors")
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # the bits are those of so many
    loaded = run_forked(*program, env=threads, timeout=120)
    assert loaded.returncode == 0, loaded.stderr
