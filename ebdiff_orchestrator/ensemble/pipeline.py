"""The pipeline of an ensemble that draws images."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin, SchedulerMixin

from ebdiff_orchestrator.ensemble.guidance import ClassLabels, labels_of_batch, predicted_noise, scale_of
from ebdiff_orchestrator.ensemble.network_files import check_vae
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline
from ebdiff_orchestrator.ensemble.scheduler import Generators
from region_workers.data.vae import decode


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
        batch_size = _images_asked_for(class_labels) if batch_size is None else batch_size
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


def _images_asked_for(class_labels: ClassLabels) -> int:
    """One a label; one if there is one label or none."""
    if class_labels is None or isinstance(class_labels, int):
        return 1
    return class_labels.numel() if isinstance(class_labels, torch.Tensor) else len(class_labels)


def _height_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width
