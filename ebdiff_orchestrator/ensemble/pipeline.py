"""The ensemble as one diffusers pipeline, and how it is loaded."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from diffusers.utils.torch_utils import randn_tensor

from ebdiff_orchestrator.ensemble.folders import check_whole, has_sums, read_sealed, write_own_folder, write_sums
from ebdiff_orchestrator.ensemble.guidance import ClassLabels, labels_of_batch, predicted_noise, scale_of
from ebdiff_orchestrator.ensemble.network_files import cast_to, check_dtype, check_vae, read_network, write_network
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.scheduler import Generators, ListDDIMScheduler
from region_workers.data.vae import decode
from region_workers.storage.integrity import seal_folder
from region_workers.storage.json_files import read_object
from schemas.errors import UserError, user_error

MODEL_INDEX = "model_index.json"


class EnsemblePipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images from an ensemble: `unet` is a `TimestepRouter`, `scheduler` any of diffusers' that steps by timestep.

    With a `vae` (AutoencoderKL or VQModel) the experts work on its latents, scaled as its config says.
    Swap schedulers as in diffusers: `pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`.
    `pipe.to(device)` moves every expert at once; `load_ensemble` can offload them. Raises `UserError` if the VAE's
    latents are not what experts take.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012 - diffusers' own form

    def __init__(self, unet: TimestepRouter, scheduler: SchedulerMixin, vae: ModelMixin | None = None) -> None:
        super().__init__()
        if vae is not None:
            check_vae(vae, unet.config.in_channels)
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

    @property
    def num_classes(self) -> int | None:
        """Classes of a class-conditional ensemble; None without. Label `num_classes` is "no class"."""
        return cast(TimestepRouter, self.unet).num_classes

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
        self._check(batch_size, generator, output_type)
        labels_B = labels_of_batch(class_labels, batch_size, self.num_classes, self._execution_device)
        scale = scale_of(guidance_scale, self.scheduler.config.get("guidance_scale"), self.num_classes)
        self._set_timesteps(num_inference_steps, timesteps)
        options = self._step_options(eta, generator)
        image, steps = self._noise(batch_size, generator), self._steps()
        for timestep, value in self.progress_bar(steps) if show_progress else steps:
            model_input = self.scheduler.scale_model_input(image, timestep)
            noise = predicted_noise(self.unet, model_input, value, labels_B, scale)
            image = self.scheduler.step(noise, timestep, image, **options).prev_sample
            if on_step is not None:
                on_step()

        images = self._as(output_type, image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True) -> None:
        """Write the ensemble as a folder that appears whole or not at all.

        Its model_index.json names DDPMPipeline, which plain diffusers knows and which runs any scheduler; with classes
        or a VAE, which no pipeline of diffusers' runs together with a router, it names EnsemblePipeline. Once
        `ebdiff_orchestrator.ensemble` is imported, `DiffusionPipeline.from_pretrained` loads either; before, it stops
        with a ValueError that names the module to import, or with an AttributeError that names EnsemblePipeline.
        """
        if not safe_serialization:
            raise user_error("safe_serialization", False, "True", "Weights are saved as safetensors only.")
        write_own_folder(Path(save_directory), self._write, is_ensemble, "an ensemble")

    def _write(self, folder: Path) -> None:
        self.unet.save_pretrained(folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        components = ["scheduler", "unet"]
        if self.vae is not None:
            write_network(self.vae, folder / "vae")
            components.append("vae")
        plain = self.vae is None and self.num_classes is None
        index = {
            "_class_name": "DDPMPipeline" if plain else EnsemblePipeline.__name__,
            "_diffusers_version": diffusers.__version__,
            **{name: list(self.config[name]) for name in components},
        }
        (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n")
        write_sums(folder)
        seal_folder(folder)

    def _check(self, batch_size: int, generator: Generators, output_type: str) -> None:
        if isinstance(generator, list) and len(generator) != batch_size:
            raise user_error(
                "generator", f"a list of {len(generator)}", f"{batch_size}, one an image", "Or pass just one."
            )
        kinds = ["pil", "np", "pt"] if self.vae is None else ["pil", "np", "pt", "latent"]
        if output_type not in kinds:
            raise user_error("output_type", output_type, f"one of {', '.join(kinds)}", "Change it.")

    def _set_timesteps(self, num_inference_steps: int | None, timesteps: Sequence[int] | None) -> None:
        if timesteps is not None:
            if "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
                name = type(self.scheduler).__name__
                raise user_error("timesteps", "a list", f"None, since {name} takes no list", "Use ListDDIMScheduler.")
            self.scheduler.set_timesteps(timesteps=list(timesteps))
            return
        default = self.scheduler.config.get("num_inference_steps")
        count = default if num_inference_steps is None else num_inference_steps
        if count is None:
            raise user_error(
                "num_inference_steps", None, "a number", "This scheduler's config has no default; pass one."
            )
        self.scheduler.set_timesteps(count)

    def _noise(self, batch_size: int, generator: Generators) -> torch.Tensor:
        """Where trajectories begin, float32 [B, C, H, W]."""
        shape_BCHW = (batch_size, self.unet.config.in_channels, *_height_width(self.unet.config.sample_size))
        noise = randn_tensor(shape_BCHW, generator=generator, device=self._execution_device, dtype=torch.float32)
        return cast(torch.Tensor, noise * self.scheduler.init_noise_sigma)

    def _steps(self) -> list[tuple[Any, int | float]]:
        """Each timestep as the scheduler takes it, ours a plain number, diffusers' own its tensor; and as a number."""
        tensors = self.scheduler.timesteps
        values = tensors.tolist()
        return list(zip(values if isinstance(self.scheduler, ListDDIMScheduler) else tensors, values, strict=True))

    def _step_options(self, eta: float | None, generator: Generators) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        options: dict[str, Any] = {"generator": generator} if "generator" in accepted else {}
        eta = self.scheduler.config.get("eta") if eta is None else eta
        if "eta" in accepted:
            return options if eta is None else {**options, "eta": eta}
        if eta:
            raise user_error(
                "eta", eta, f"0, since {type(self.scheduler).__name__} takes none", "Use ListDDIMScheduler."
            )
        return options

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


def load_ensemble(
    path: str | Path,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    compile: bool = False,  # noqa: A002 - torch's word and the plan's
    offload: bool = False,
) -> EnsemblePipeline:
    """The pipeline in an ensemble folder, or in a run directory's `ensemble/`; from local files alone.

    `torch_dtype`: float32, bfloat16 or float16 for the networks; default: as saved, float32. `device`: default the CPU.
    `compile`: `torch.compile` each expert at its first step, and again at another batch size.
    `offload`: the experts' weights stay in their files; only the expert at work has its own in memory, on `device`. A
    trajectory reads each expert once, to the same bits; the pipeline then stays on its device and in its dtype.
    Raises `UserError` if there is no ensemble there, a file of it is missing or not what was saved, or the options do
    not go together.
    """
    folder = _folder_of_ensemble(Path(path))
    check_dtype(torch_dtype, device)
    home = torch.device(device or "cpu")
    router = TimestepRouter.from_pretrained(
        folder / "unet", torch_dtype=torch_dtype, offload_to=home if offload else None
    )
    if compile:
        router.compile()
    library, name = _component(folder, "vae")
    vae = None if name is None else cast_to(read_network(folder / "vae", f"{library}.{name}"), torch_dtype)
    for network in (vae,) if offload else (router, vae):
        if network is not None:
            network.to(home)
    return EnsemblePipeline(router, _read_scheduler(folder), vae)


def _folder_of_ensemble(path: Path) -> Path:
    """`path` or the ensemble's folder below it, checked to be whole where we sealed it."""
    candidates = (path, path / "ensemble")
    for each in candidates:
        check_whole(each, has_sums)  # plain diffusers seals no pipeline, only our router in it
    folder = next((each for each in candidates if is_ensemble(each)), None)
    if folder is None:
        expected = f"an ensemble (a folder with {MODEL_INDEX} and unet/) or a run directory with one in ensemble/"
        remedy = "Check the path; an unfinished run has no ensemble yet: `ebdiff launch` goes on with it."
        raise user_error("path", path, expected, remedy)
    return folder


def is_ensemble(folder: Path) -> bool:
    """Whether `folder` is an ensemble: a model index whose `unet` is a `TimestepRouter`."""
    return (folder / MODEL_INDEX).is_file() and _component(folder, "unet")[1] == TimestepRouter.__name__


def _component(folder: Path, name: str) -> tuple[str | None, str | None]:
    """The library and the class of one of the pipeline's components; None for one that it has not."""
    try:
        entry = read_object(folder / MODEL_INDEX).get(name) or [None, None]
        library, kind = entry
    except (ValueError, TypeError) as error:
        remedy = f"Save the ensemble again ({error})."
        raise user_error("path", folder / MODEL_INDEX, "a pipeline's index", remedy) from None
    return library, kind


def _read_scheduler(folder: Path) -> Any:
    _, name = _component(folder, "scheduler")
    kind = ListDDIMScheduler if name == ListDDIMScheduler.__name__ else getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise user_error("scheduler", name, "ListDDIMScheduler or one of diffusers'", f"Edit {MODEL_INDEX}.")
    try:
        return cast(Any, kind).from_config(json.loads(read_sealed(folder / "scheduler" / SCHEDULER_CONFIG_NAME)))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        remedy = f"Save the ensemble again ({str(error).splitlines()[0]})."
        raise user_error("scheduler", folder / "scheduler", f"the config of a {name}", remedy) from None


def _height_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width
