"""DDIM for any list of timesteps: the previous timestep is the list's next entry (arXiv 2010.02502, eq. 12)."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ebdiff_orchestrator.ensemble.folders import damaged
from region_workers.storage.integrity import DamagedFileError, check_sealed
from schemas.errors import user_error

Generators = torch.Generator | list[torch.Generator] | None


def spaced_timesteps(spacing: str, count: int, total: int, offset: int = 0) -> list[int]:
    """`count` timesteps out of [0, `total`), largest first; each `offset` later than the spacing says (LDM's: 1).

    quadratic: int(linspace(0, sqrt(0.8 T), count)^2), the DDIM reference code's and the paper's; it starts at 0.8 T
    and repeats its smallest values. uniform: i * (T // count), "leading" in diffusers. Raises `UserError`.
    """
    if count < 1:
        raise user_error("num_inference_steps", count, "at least 1", "Raise it.")
    if count > total:
        raise user_error("num_inference_steps", count, f"at most {total}, the timesteps", "Lower it.")
    if spacing == "quadratic":
        ascending = [int(root**2) for root in np.linspace(0, math.sqrt(0.8 * total), count)]
    elif spacing == "uniform":
        ascending = [index * (total // count) for index in range(count)]
    else:
        raise user_error("spacing", spacing, "quadratic or uniform", "Change the scheduler's spacing.")
    if ascending[-1] + offset >= total:
        expected = f"at most {total - 1 - ascending[-1]} with {count} steps, so that the first is below {total}"
        raise user_error("steps_offset", offset, expected, "Lower it, or take fewer steps.")
    return [timestep + offset for timestep in reversed(ascending)]


def check_timesteps(timesteps: Sequence[int], total: int) -> list[int]:
    """A custom list as it is, if it never rises and lies in [0, `total`); raises `UserError` otherwise."""
    listed = [int(timestep) for timestep in timesteps]
    if not listed or listed[0] >= total or listed[-1] < 0:
        raise user_error("timesteps", listed, f"values from {total - 1} down to 0", "Change the list.")
    if any(later > earlier for earlier, later in itertools.pairwise(listed)):
        raise user_error("timesteps", listed, "values that never rise", "Sort the list, largest first.")
    return listed


class ListDDIMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DDIM over a list of timesteps: entry k steps to entry k + 1, the last one to the clean image.

    diffusers' DDIMScheduler takes t - T // S as the previous timestep whatever its list says, which is wrong for
    quadratic spacing. A repeated timestep is a step of no length: it changes nothing but rounding.
    As there, `trained_betas` stand in for the schedule of betas, `steps_offset` is added to the spaced timesteps, and
    the clean image has alpha_bar = 1, or that of timestep 0 without `set_alpha_to_one`: 1 and False are LDM's sampler.
    Of the noise of `eta` a step adds the share `variance_strength`: over all timesteps, with eta = 1, DDPM's mean and
    that share of its noise, as ChiroDiff samples. The network predicts the noise. `num_inference_steps`, `eta` and
    `guidance_scale` are what a call of the pipeline that names none uses; the scheduler itself does not guide.
    """

    order = 1
    takes_numbers = True  # as timesteps of `step`: a tensor would be read back
    init_noise_sigma = 1.0
    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012 - diffusers' own form

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        spacing: str = "quadratic",
        eta: float = 0.0,
        clip_sample: bool = False,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        trained_betas: Sequence[float] | None = None,
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        variance_strength: float = 1.0,
    ) -> None:
        _check_eta(eta)
        if not 0 <= variance_strength <= 1:
            raise user_error(
                "variance_strength", variance_strength, "0 (no noise) to 1 (all that eta says)", "Change it."
            )
        left_out = self.config.get("_use_default_values")
        if left_out is not None:  # Another scheduler of this config takes its own defaults for these: not clip_sample's
            self.register_to_config(_use_default_values=[name for name in left_out if name != "clip_sample"])
        if trained_betas is None:
            betas = _betas(num_train_timesteps, beta_start, beta_end, beta_schedule)
        else:
            betas = torch.as_tensor(trained_betas, dtype=torch.float64)
        alpha_bars = torch.cumprod(1 - betas, dim=0)
        self._alpha_bars: list[float] = alpha_bars.tolist()
        self._clean_alpha_bar = 1.0 if set_alpha_to_one else self._alpha_bars[0]
        self.betas, self.alphas_cumprod = betas.float(), alpha_bars.float()
        self.num_inference_steps: int | None = None
        self._list = list(range(len(self)))[::-1]
        self.timesteps = torch.tensor(self._list)
        self._next_index: int | None = None
        self._last_timestep = len(self)  # of the step before; at first above all

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, subfolder: str | None = None, **options: Any
    ) -> Any:
        """As diffusers'. Raises `UserError` if the config is not what the seal of the ensemble around it says."""
        folder = Path(pretrained_model_name_or_path or "", subfolder or "")
        try:
            check_sealed(folder)
        except DamagedFileError as error:
            raise damaged(error.path) from None
        return super().from_pretrained(pretrained_model_name_or_path, subfolder, **options)

    def to_json_string(self) -> str:
        """The config as it is saved; a `variance_strength` of 1 goes unsaid, as before there was one."""
        config = json.loads(super().to_json_string())
        if config["variance_strength"] == 1:
            del config["variance_strength"]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def __len__(self) -> int:
        """T, the number of timesteps trained on."""
        return len(self._alpha_bars)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Start a trajectory over `timesteps`, or over `num_inference_steps` (default: the config's) spaced ones.

        `.timesteps` is int64 [S], on the CPU unless `device` is given: there they cost no wait for the device.
        """
        if timesteps is not None:
            self._list = check_timesteps(timesteps, len(self))
        else:
            count = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
            if count is None:
                raise user_error("num_inference_steps", None, "a number", "The config has no default; pass one.")
            self._list = spaced_timesteps(self.config.spacing, count, len(self), self.config.steps_offset)
        self.num_inference_steps = len(self._list)
        self.timesteps = torch.tensor(self._list, device=device)
        self._next_index, self._last_timestep = None, len(self)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step down the list: eq. 12 with x = `sample` and eps = `model_output`, both [B, C, H, W].

        The first timestep after `set_timesteps` says where in the list to begin, the following ones must be the
        entries after it: by value a repeated timestep is ambiguous. A timestep that is not in the list steps to the
        nearest entry below, from where the list goes on. The only wait for the device is for the first timestep, if it
        is a tensor there. Raises `UserError` for a timestep out of turn.
        """
        eta = self.config.eta if eta is None else eta
        _check_eta(eta)
        here, following = self._advance(timestep)
        alpha_bar = self._alpha_bars[here]
        alpha_bar_next = self._clean_alpha_bar if following is None else self._alpha_bars[following]
        sigma = eta * math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next))

        x0 = (sample - math.sqrt(1 - alpha_bar) * model_output) / math.sqrt(alpha_bar)
        if self.config.clip_sample:
            x0 = x0.clamp(-1, 1)
        direction = math.sqrt(max(0.0, 1 - alpha_bar_next - sigma**2)) * model_output
        previous = math.sqrt(alpha_bar_next) * x0 + direction
        if eta > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            previous = previous + sigma * self.config.variance_strength * noise
        return DDIMSchedulerOutput(prev_sample=previous, pred_original_sample=x0) if return_dict else (previous, x0)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """`sample` itself: DDIM scales no input."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """q(x_t | x_0) of DDPM: `original_samples` and `noise` [B, ...] at `timesteps` [B]."""
        alpha_bar = self.alphas_cumprod.to(original_samples.device)[timesteps.to(original_samples.device)]
        alpha_bar = alpha_bar.reshape(-1, *[1] * (original_samples.ndim - 1))
        noisy = alpha_bar.sqrt() * original_samples + (1 - alpha_bar).sqrt() * noise
        return noisy.to(original_samples.dtype)

    def _advance(self, timestep: int | torch.Tensor) -> tuple[int, int | None]:
        """The timestep of this step and the one that it leads to, None for the clean image; remembers both."""
        index = self._next_index
        on_host = not isinstance(timestep, torch.Tensor) or timestep.device.type == "cpu"
        known = index is not None and index < len(self._list) and not on_host
        here = self._list[index] if index is not None and known else int(timestep)
        following = self._index_after(here)
        if following is None:
            raise user_error(
                "timestep",
                timestep,
                f"entry {index} of the list of {len(self._list)}, in order, or between two of them",
                "Call set_timesteps before each trajectory and pass scheduler.timesteps one after another.",
            )
        self._next_index, self._last_timestep = following, here
        return here, self._list[following] if following < len(self._list) else None

    def _index_after(self, timestep: int) -> int | None:
        """The index of the entry that a step from `timestep` leads to; None if it is out of turn."""
        index, end = self._next_index, len(self._list)
        if timestep in self._list:
            own = self._list.index(timestep) if index is None else index
            return own + 1 if own < end and self._list[own] == timestep else None
        if index == end or not 0 <= timestep < self._last_timestep:
            return None
        return next((i for i, entry in enumerate(self._list) if entry < timestep), end)


def _betas(total: int, start: float, end: float, schedule: str) -> torch.Tensor:
    """The betas [T], float64."""
    if schedule == "linear":
        return torch.linspace(start, end, total, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), total, dtype=torch.float64) ** 2
    raise user_error("beta_schedule", schedule, "linear or scaled_linear", "Change diffusion.beta_schedule.")


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise user_error("eta", eta, "0 (DDIM) to 1 (as noisy as DDPM)", "Change it.")
