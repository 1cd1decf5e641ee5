"""Tiny experts, constant experts and ensembles for the tests of the ensemble."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from pruning_networks import magnitude_ticket
from torch import nn

from ebdiff_orchestrator.ensemble import ListDDIMScheduler, TimestepRouter, VectorPipeline, ensemble_of
from ebdiff_orchestrator.ensemble.loading import pipeline_of
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.pruned_unet import PrunedUNet2DConditionModel, PrunedUNet2DModel, extract_expert
from schemas.plan import DiffusionPlan, SamplingPlan

ROUTES = [(0, 260), (260, 440), (440, 1000)]
NAMES = ["0-260", "240-460", "440-1000"]
PRUNED_ROUTES, PRUNED_NAMES = [(0, 500), (500, 1000)], ["0-500", "500-1000"]
CLASSES = 4
VAES = ("AutoencoderKL", "VQModel")
UNCONDITIONAL = ("pixels", "drawings", "pruned", "packed")
KINDS = ("classes", *VAES, *UNCONDITIONAL)  # latents are of four classes
LENGTH_COUNTS = (0, 0, 1, 0, 2, 0, 3)  # of tiny drawings: the longest has 6 rows


def tiny_unet(width: int = 8, seed: int = 0, **options: Any) -> UNet2DModel:
    """A one-level UNet on 8x8 greyscale images, in eval mode."""
    torch.manual_seed(seed)
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, **options}
    return UNet2DModel(
        block_out_channels=(width,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
        **shape,
    ).eval()


def tiny_experts(**options: Any) -> list[UNet2DModel]:
    """Three experts of different widths and weights."""
    return [tiny_unet(width, seed, **options) for seed, width in enumerate((8, 4, 12))]


def class_experts(**options: Any) -> list[UNet2DModel]:
    """`tiny_experts` of four classes and "no class"."""
    experts = tiny_experts(num_class_embeds=CLASSES + 1, **options)
    for expert in experts:  # classes that look different, as after training
        nn.init.normal_(expert.class_embedding.weight, std=4)
    return experts


def attending_unet(seed: int = 0, width: int = 8, **options: Any) -> PrunedUNet2DConditionModel:
    """A two-level UNet on 3x4x4 latents whose CrossAttn block attends to one of four classes, in eval mode."""
    torch.manual_seed(seed)
    expert = PrunedUNet2DConditionModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=1,
        cross_attention_dim=8,
        **{"num_context_classes": CLASSES + 1, **options},
    )
    if expert.context_embedding is not None:
        nn.init.normal_(expert.context_embedding.weight, std=40)
    return expert.eval()


def attending_experts() -> list[PrunedUNet2DConditionModel]:
    """Three `attending_unet`s of different widths and weights."""
    return [attending_unet(seed, width) for seed, width in enumerate((8, 4, 12))]


def drawing_experts(**options: Any) -> list[DrawingGRU]:
    """Three networks of drawings, of different widths and weights, in eval mode."""
    experts = []
    for seed, width in enumerate((8, 4, 12)):
        torch.manual_seed(seed)
        options = {"num_layers": 1, "length_counts": LENGTH_COUNTS, **options}
        experts.append(DrawingGRU((0.5, -1.0), hidden_size=width, **options).eval())
    return experts


def _pruned_expert(ratio: float, seed: int) -> PrunedUNet2DModel:
    """A two-level UNet with attention, its channels ranked by magnitude and `ratio` of them removed."""
    torch.manual_seed(seed)
    dense = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=None,
    ).eval()
    return extract_expert(dense, magnitude_ticket(dense, ratio))


def pruned_experts() -> list[PrunedUNet2DModel]:
    """Two experts of different widths and weights, for PRUNED_ROUTES."""
    return [_pruned_expert(0.25, 0), _pruned_expert(0.75, 1)]


def packed_experts() -> list[PrunedUNet2DModel]:
    """`pruned_experts` with a third of their convolutions' weights, which their files then hold packed."""
    generator, experts = torch.Generator().manual_seed(2), pruned_experts()
    for expert in experts:
        masks = {}
        for name, weight in expert.named_parameters():
            if weight.ndim == 4:
                mask = torch.rand(weight.shape, generator=generator) < 0.33
                weight.data *= mask
                masks[name] = torch.from_numpy(np.packbits(mask.numpy()))
        expert.packed_masks = masks
    return experts


def tiny_vae(kind: str = "VQModel", scaling_factor: float = 0.5) -> AutoencoderKL | VQModel:
    """A VAE from 8x8 greyscale images to 3x4x4 latents."""
    torch.manual_seed(9)
    options: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 3,
        "scaling_factor": scaling_factor,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    if kind == "AutoencoderKL":
        return AutoencoderKL(sample_size=8, **options).eval()
    vae = VQModel(num_vq_embeddings=16, vq_embed_dim=3, **options)
    nn.init.normal_(vae.quantize.embedding.weight)
    return vae.eval()


class Marker(nn.Module):
    """An expert that answers with its own number plus what it was called with, and counts its calls."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.calls: list[int] = []
        self.config = SimpleNamespace()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool = True, **conditioning: Any
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        self.calls.append(len(sample))
        extra = sum(tensor for tensor in conditioning.values()) if conditioning else torch.zeros(len(sample))
        value = self.number * 1e6 + timestep.float() + extra
        return (value.reshape(-1, 1, 1, 1).expand_as(sample),)


def markers() -> tuple[list[Marker], TimestepRouter]:
    """Three marker experts and their router."""
    experts = [Marker(number) for number in range(3)]
    for expert in experts:
        expert.config = {"sample_size": 2, "in_channels": 1, "out_channels": 1}  # type: ignore[assignment]
    return experts, TimestepRouter(experts, ROUTES, NAMES)


def parts_of(kind: str) -> tuple[list[Any], AutoencoderKL | VQModel | None]:
    """The experts of one of the `KINDS`, and the VAE of those on latents."""
    if kind in VAES:
        return attending_experts(), tiny_vae(kind)
    experts: dict[str, Any] = {
        "pixels": tiny_experts,
        "classes": class_experts,
        "drawings": drawing_experts,
        "pruned": pruned_experts,
        "packed": packed_experts,
    }
    return experts[kind](), None


def routes_of(experts: list[Any]) -> tuple[list[tuple[int, int]], list[str]]:
    """Routes and names of as many experts."""
    return (PRUNED_ROUTES, PRUNED_NAMES) if len(experts) == len(PRUNED_NAMES) else (ROUTES, NAMES)


def ensemble(kind: str = "pixels", experts: list[Any] | None = None, **scheduler: Any) -> Any:
    """An ensemble of this kind, or of these experts, without a progress bar; the options are its scheduler's."""
    own, vae = parts_of(kind)
    router = TimestepRouter(experts or own, *routes_of(experts or own)).eval()
    made = pipeline_of(router, ListDDIMScheduler(**{"num_inference_steps": 6, **scheduler}), vae)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(*seeds: int) -> list[torch.Generator]:
    """One generator a seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def by_hand(made: Any, start: torch.Tensor, predict: Callable[[nn.Module, torch.Tensor, int], torch.Tensor]) -> Any:
    """The end of six steps of DDIM from `start`, over the experts themselves."""
    scheduler, x = ListDDIMScheduler(), start
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for timestep in scheduler.timesteps.tolist():
            expert = made.unet.experts[sum(timestep >= start for start, _ in ROUTES) - 1]
            x = scheduler.step(predict(expert, x, timestep), timestep, x).prev_sample
    return x


def noise_of(shape: tuple[int, ...], *seeds: int) -> torch.Tensor:
    """A sample's noise a seed."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in seeded(*seeds)])


def draw(pipe: Any, *seeds: int, **options: Any) -> torch.Tensor:
    """A sample a seed: an image, [B, C, H, W], with classes each of a class that follows from its seed; or a drawing's
    rows, [B, 6, 3]."""
    if isinstance(pipe, VectorPipeline):
        (rows,) = pipe(len(seeds), generator=seeded(*seeds), output_type="rows", show_progress=False, **options)
        return torch.stack([nn.functional.pad(torch.from_numpy(each), (0, 0, 0, 6 - len(each))) for each in rows])
    labels = {"class_labels": [seed % CLASSES for seed in seeds]} if getattr(pipe, "num_classes", None) else {}
    options = {"generator": seeded(*seeds), "output_type": "pt", "show_progress": False, **labels, **options}
    return pipe(len(seeds), **options).images


def saved_ensemble(path: Path, sampling: SamplingPlan | None = None, kind: str = "pixels") -> list[Any]:
    """Save an ensemble of this kind at `path`; returns the experts."""
    experts, vae = parts_of(kind)
    saved = ensemble_of(experts, *routes_of(experts), DiffusionPlan(), sampling or SamplingPlan(steps=6), vae)
    saved.save_pretrained(path)
    return experts
