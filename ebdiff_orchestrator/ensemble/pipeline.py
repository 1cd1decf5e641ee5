"""The pipeline of an ensemble that draws images, also by class, with classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin, SchedulerMixin

from ebdiff_orchestrator.ensemble.network_files import check_vae
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline, listed, one_each
from ebdiff_orchestrator.ensemble.routes import to_device
from ebdiff_orchestrator.ensemble.scheduler import Generators
from region_workers.data.vae import decode
from schemas.errors import user_error


class EnsemblePipeline(RoutedPipeline):
    """Images from an ensemble: `unet` is a `TimestepRouter`, `scheduler` any of diffusers' that steps by timestep.

    With a `vae` (AutoencoderKL or VQModel) the experts work on its latents, scaled as its config says.
    Swap schedulers as in diffusers: `pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`.
    `pipe.to(device)` moves every expert at once; `load_ensemble` can offload them. Raises `UserError` if the VAE's
    latents are not what experts take.
    """

    noun: ClassVar[str] = "images"
    sample_type: ClassVar[str] = "np"
    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012 - diffusers' own form

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, vae: ModelMixin | None = None) -> None:
        super().__init__()
        if vae is not None:
            check_vae(vae, unet.config.in_channels)
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        timesteps: Sequence[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        show_progress: bool = True,
        on_step: Callable[[], None] | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images: PIL images ("pil"), float32 [B, H, W, C] ("np") or [B, C, H, W] ("pt") in [0, 1].

        An ensemble on latents gives them undecoded, float32 [B, C, h, w], for "latent". A class-conditional one needs
        `class_labels`: one for all images or one an image, the number of classes meaning "no class";
        `guidance_scale` s steers by eps_null + s (eps_class - eps_null): 1 is the class as trained, 0 "no class".
        With a list of generators, one an image, an image depends on its own generator and class alone.
        `num_inference_steps`, `eta` and `guidance_scale` default to the ensemble's. Timesteps stay on the host, the
        trajectory in float32. `on_step` is called after each step. Raises `UserError` for options that do not fit.
        """
        if batch_size is None:
            batch_size = 1 if class_labels is None else len(listed(class_labels))
        kinds = ("pil", "np", "pt") if self.vae is None else ("pil", "np", "pt", "latent")
        self._check_call(batch_size, generator, output_type, kinds)
        labels_B = labels_of_batch(class_labels, batch_size, self.num_classes, self._execution_device)
        scale = scale_of(guidance_scale, self.scheduler.config.get("guidance_scale"), self.num_classes)
        self._set_timesteps(num_inference_steps, timesteps)
        shape_BCHW = (batch_size, self.unet.config.in_channels, *_height_width(self.unet.config.sample_size))

        def predict(image_BCHW: torch.Tensor, timestep: int | float) -> torch.Tensor:
            return predicted_noise(self.unet, image_BCHW, timestep, labels_B, scale)

        image_BCHW = self._denoise(shape_BCHW, predict, generator, eta, show_progress, on_step)
        images = self._as(output_type, image_BCHW)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def finished(self, samples: np.ndarray) -> np.ndarray:
        """Images in [0, 1] as uint8 [B, H, W, C]."""
        return (samples * 255).round().astype(np.uint8)

    def _class_saved(self) -> str:
        plain = self.vae is None and self.num_classes is None
        return "DDPMPipeline" if plain else EnsemblePipeline.__name__

    def _as(self, output_type: str, image_BCHW: torch.Tensor) -> Any:
        """The end of a trajectory, an image in [-1, 1] or a latent, as what was asked for."""
        if output_type == "latent":
            return image_BCHW
        if self.vae is not None:
            image_BCHW = decode(self.vae, image_BCHW).float()
        image_BCHW = (image_BCHW / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return image_BCHW
        image_BHWC = image_BCHW.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(image_BHWC) if output_type == "pil" else image_BHWC


ClassLabels = int | Sequence[int] | torch.Tensor | None


def labels_of_batch(
    class_labels: ClassLabels, batch: int, num_classes: int | None, device: torch.device
) -> torch.Tensor | None:
    """One class an image, int64 [B] on `device`; None for an ensemble without classes.

    `class_labels` is one class for all images or one an image, from 0 to `num_classes` - 1, or `num_classes` for
    "no class". Raises `UserError` for a missing label, one that is no class, or the wrong number of them.
    """
    if num_classes is None:
        if class_labels is not None:
            raise user_error("class_labels", class_labels, "None, since the ensemble has no classes", "Leave it out.")
        return None
    expected = f"a class from 0 to {num_classes - 1}, or {num_classes} for `no class`"
    if class_labels is None:
        raise user_error(
            "class_labels", None, f"{expected}, since the ensemble has classes", "Give one, or one an image."
        )
    labels = one_each("class_labels", class_labels, batch, "an image")
    check_classes(labels, num_classes)
    return to_device(torch.tensor(labels, dtype=torch.int64), device)


def check_classes(classes: Sequence[int], num_classes: int) -> None:
    """Raise `UserError` unless every entry is a class, or `num_classes` for "no class"."""
    unknown = sorted({label for label in classes if label not in range(num_classes + 1)})
    if unknown:
        expected = f"classes from 0 to {num_classes - 1}, or {num_classes} for `no class`"
        raise user_error("class_labels", unknown, expected, "Change them.")


def scale_of(guidance_scale: float | None, default: float | None, num_classes: int | None) -> float:
    """The guidance scale of a call: its own, else the ensemble's, else 1. Raises `UserError`."""
    if num_classes is None and guidance_scale not in (None, 1):
        raise user_error("guidance_scale", guidance_scale, "1, since the ensemble has no classes", "Leave it out.")
    scale = default if guidance_scale is None else guidance_scale
    scale = 1.0 if scale is None else float(scale)
    if not 0 <= scale < float("inf"):
        raise user_error("guidance_scale", scale, "0 (no class) or more; 1 is the class as trained", "Change it.")
    return scale


def predicted_noise(
    unet: ModelMixin, sample_BCHW: torch.Tensor, timestep: int | float, labels_B: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """eps_null + scale (eps_class - eps_null), float32 [B, C, H, W], from one pass.

    The pass runs a doubled batch, first "no class" and then the classes, unless a scale of 1 (the class alone) or 0
    ("no class" alone) needs just one of them. Without labels it is the ensemble's own prediction.
    """
    sample_BCHW = sample_BCHW.to(unet.dtype)
    if labels_B is None:
        return _run(unet, sample_BCHW, timestep)
    assert unet.num_classes is not None, "labels are checked against the classes"
    no_class_B = torch.full_like(labels_B, unet.num_classes)
    if scale == 1:
        return _run(unet, sample_BCHW, timestep, class_labels=labels_B)
    if scale == 0:
        return _run(unet, sample_BCHW, timestep, class_labels=no_class_B)
    twice = torch.cat([sample_BCHW, sample_BCHW])
    both = _run(unet, twice, timestep, class_labels=torch.cat([no_class_B, labels_B]))
    eps_null, eps_class = both.chunk(2)
    return eps_null + scale * (eps_class - eps_null)


def _run(unet: ModelMixin, sample: torch.Tensor, timestep: int | float, **labels: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, unet(sample, timestep, **labels).sample.float())


def _height_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width
