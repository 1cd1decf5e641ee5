"""What the pipelines of all kinds of ensembles share: the way down the timesteps, and the folder they are saved as."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from ebdiff_orchestrator.ensemble.folders import write_own_folder, write_sums
from ebdiff_orchestrator.ensemble.network_files import write_network
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.scheduler import Generators
from region_workers.storage.integrity import read_object, seal_folder
from schemas.errors import user_error

MODEL_INDEX = "model_index.json"


class RoutedPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline whose `unet` is a `TimestepRouter` and whose `scheduler` is any of diffusers' that steps by timestep.

    What a kind of ensemble adds: the shape of a sample and how its noise is predicted (`__call__`), and what becomes of
    a sample (`sample_type`, `finished`).
    """

    noun: ClassVar[str]  # what samples are called
    sample_type: ClassVar[str]  # the `output_type` of samples as numbers, which tell whether a network has diverged

    @property
    def num_classes(self) -> int | None:
        """Classes of a class-conditional ensemble; None without. Label `num_classes` is "no class"."""
        return cast(int | None, self.unet.num_classes)

    def finished(self, samples: Any) -> Any:
        """What is kept of a call's finite samples, given as `sample_type`."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True) -> None:
        """Write the ensemble as a folder that appears whole or not at all.

        Its model_index.json names the pipeline's class: DDPMPipeline, which plain diffusers knows and which runs any
        scheduler, for images without classes or a VAE; our own where no pipeline of diffusers' does the work. Once
        `ebdiff_orchestrator.ensemble` is imported, `DiffusionPipeline.from_pretrained` loads either; before, it stops
        with a ValueError that names the module to import, or with an AttributeError that names our class.
        """
        if not safe_serialization:
            raise user_error("safe_serialization", False, "True", "Weights are saved as safetensors only.")
        write_own_folder(Path(save_directory), self._write, is_ensemble, "an ensemble")

    def _class_saved(self) -> str:
        return type(self).__name__

    def _write(self, folder: Path) -> None:
        self.unet.save_pretrained(folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        components = ["scheduler", "unet"]
        if self.components.get("vae") is not None:
            write_network(self.vae, folder / "vae")
            components.append("vae")
        index = {
            "_class_name": self._class_saved(),
            "_diffusers_version": diffusers.__version__,
            **{name: list(self.config[name]) for name in components},
        }
        (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n")
        write_sums(folder)
        seal_folder(folder)

    def _denoise(
        self,
        shape: tuple[int, ...],
        predict: Callable[[torch.Tensor, int | float], torch.Tensor],
        generator: Generators,
        eta: float | None,
        show_progress: bool,
        on_step: Callable[[], None] | None,
    ) -> torch.Tensor:
        """A batch from noise of `shape` down the scheduler's timesteps, float32; these stay on the host.

        `predict` is the noise, float32, in samples at a timestep.
        """
        options = self._step_options(eta, generator)
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        sample, steps = noise * self.scheduler.init_noise_sigma, self._steps()
        for timestep, value in self.progress_bar(steps) if show_progress else steps:
            predicted = predict(self.scheduler.scale_model_input(sample, timestep), value)
            sample = self.scheduler.step(predicted, timestep, sample, **options).prev_sample
            if on_step is not None:
                on_step()
        return cast(torch.Tensor, sample)

    def _check_call(self, batch_size: int, generator: Generators, output_type: str, kinds: Sequence[str]) -> None:
        if batch_size < 1:
            raise user_error("batch_size", batch_size, "1 or more", "Change it.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise user_error(
                "generator", f"a list of {len(generator)}", f"{batch_size}, one for each", "Or pass just one."
            )
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

    def _steps(self) -> list[tuple[Any, int | float]]:
        """Each timestep as the scheduler takes it, ours a plain number, diffusers' own its tensor; and as a number."""
        tensors = self.scheduler.timesteps
        values = tensors.tolist()
        return list(zip(values if getattr(self.scheduler, "takes_numbers", False) else tensors, values, strict=True))

    def _step_options(self, eta: float | None, generator: Generators) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        options: dict[str, Any] = {"generator": generator} if "generator" in accepted else {}
        if "eta" in accepted:
            eta = self.scheduler.config.get("eta") if eta is None else eta
            return options if eta is None else {**options, "eta": eta}
        if eta:
            raise user_error(
                "eta", eta, f"0, since {type(self.scheduler).__name__} takes none", "Use ListDDIMScheduler."
            )
        return options


def listed(values: int | Sequence[int] | torch.Tensor) -> list[Any]:
    """One number for all samples, or one each, as they are."""
    if isinstance(values, torch.Tensor | np.ndarray):
        return values.reshape(-1).tolist()
    return list(values) if isinstance(values, Sequence) else [values]


def one_each(field: str, values: int | Sequence[int] | torch.Tensor, batch: int, sample: str) -> list[Any]:
    """A number for each of `batch` samples. Raises `UserError` if there are neither so many nor just one."""
    numbers = listed(values)
    numbers = numbers * batch if len(numbers) == 1 else numbers
    if len(numbers) != batch:
        raise user_error(field, f"{len(numbers)} of them", f"{batch}, one {sample}", "Or give a single number.")
    return numbers


def is_ensemble(folder: Path) -> bool:
    """Whether `folder` is an ensemble: a model index whose `unet` is a `TimestepRouter`."""
    return (folder / MODEL_INDEX).is_file() and component(folder, "unet")[1] == TimestepRouter.__name__


def component(folder: Path, name: str) -> tuple[str | None, str | None]:
    """The library and the class of one of the pipeline's components; None for one that it has not."""
    try:
        entry = read_object(folder / MODEL_INDEX).get(name) or [None, None]
        library, kind = entry
    except (ValueError, TypeError) as error:
        remedy = f"Save the ensemble again ({error})."
        raise user_error("path", folder / MODEL_INDEX, "a pipeline's index", remedy) from None
    return library, kind
