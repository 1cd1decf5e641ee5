"""The router: one network to its callers, which runs only the expert that owns each timestep."""

from __future__ import annotations

import inspect
import json
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from ebdiff_orchestrator.ensemble.batches import in_order, take_rows, to_device
from ebdiff_orchestrator.ensemble.folders import write_own_folder
from ebdiff_orchestrator.ensemble.network_files import CONFIG, cast_to, class_path, read_network, write_network
from ebdiff_orchestrator.ensemble.routes import Routes
from schemas.errors import UserError, problem

_MUST_AGREE = ("sample_size", "in_channels", "out_channels")
_MUST_AGREE_IF_ANY = ("cross_attention_dim", "class_embed_type", "num_class_embeds", "num_context_classes")

Timestep = int | float | torch.Tensor


class TimestepRouter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The experts of an ensemble behind the call of one UNet.

    `experts[i]` owns the timesteps `routes[i]` = [start, stop) and is called `names[i]`; the routes partition [0, T).
    `.config` holds what pipelines read from a UNet (sample_size, in_channels, out_channels), what the experts' configs
    say of classes and context, and routes, names and expert_classes. Raises `UserError` (a ValueError) if routes, names
    or the experts' shapes do not fit together.
    """

    config_name = CONFIG

    def __init__(self, experts: Sequence[nn.Module], routes: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        super().__init__()
        self._routes = Routes(routes, names)
        if len(experts) != len(self._routes.routes):
            raise UserError(
                problem("experts", len(experts), f"{len(routes)}, one a route", "Give one expert for each route.")
            )
        self.experts = nn.ModuleList(experts)
        self._needs_context = [_needs_context(expert) for expert in experts]
        self.register_to_config(
            **_shared_config(experts, self._routes.names),
            routes=[list(route) for route in self._routes.routes],
            names=list(self._routes.names),
            expert_classes=[class_path(expert) for expert in experts],
        )

    def forward(
        self, sample: torch.Tensor, timestep: Timestep, *positional: Any, return_dict: bool = True, **conditioning: Any
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The owners' predictions for `sample` [B, C, H, W]: `.sample` [B, C, H, W], or a tuple of it.

        `timestep`: a number, or a tensor with one value or B of them; the timesteps of a batch may have different
        owners, then batched conditioning (a first dimension of B) is split alike. Fractions go to their floor's owner.
        A number or a CPU tensor makes no wait for the device; a tensor on the device makes one.
        Raises `UserError` (a ValueError) for a timestep that no expert owns.
        """
        batch = sample.shape[0]
        values = _host_values(timestep)
        if len(values) not in (1, batch):
            raise UserError(
                problem("timestep", f"{len(values)} values", f"1 or {batch}, the batch size", "Give one an image.")
            )
        owners = [self._routes.owner(value) for value in values]
        timesteps = _on_device(timestep, values, batch, sample.device)
        if len(set(owners)) == 1:
            prediction = self._run(owners[0], sample, timesteps, positional, conditioning)
        else:
            prediction = self._run_split(owners, sample, timesteps, positional, conditioning)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)

    @property
    def num_classes(self) -> int | None:
        """Classes of a class-conditional ensemble: labels 0 to `num_classes` - 1; label `num_classes` is "no class".

        None for an ensemble without classes.
        """
        if self.config.get("num_context_classes") is not None:
            return int(self.config.num_context_classes) - 1
        if self.config.get("num_class_embeds") is not None:
            return int(self.config.num_class_embeds) - 1
        return None

    def expert_of(self, timestep: int | float) -> str:
        """The name of the expert that owns `timestep`."""
        return self._routes.names[self._routes.owner(timestep)]

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True) -> None:
        """Write config.json and one subfolder an expert, named as it is. The folder appears whole or not at all."""
        if not safe_serialization:
            raise UserError(problem("safe_serialization", False, "True", "Weights are saved as safetensors only."))
        write_own_folder(Path(save_directory), self._write, _is_router, "a router")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """The router that `save_pretrained` wrote, on the CPU, in eval mode; weights are loaded strictly.

        `torch_dtype` (or `dtype`) and `subfolder` mean what they mean in diffusers; what else a pipeline passes along
        is accepted where it changes nothing. Raises `UserError` if the folder is no router or an expert is incomplete.
        """
        dtype = options.pop("torch_dtype", None) or options.pop("dtype", None)
        folder = Path(pretrained_model_name_or_path, options.pop("subfolder", None) or "")
        _refuse_unsupported(options)
        if not _is_router(folder):
            raise UserError(problem("path", folder, f"a folder that {cls.__name__} saved", "Check the path."))
        config = json.loads((folder / CONFIG).read_text())
        experts = [
            read_network(folder / name, path)
            for name, path in zip(config["names"], config["expert_classes"], strict=True)
        ]
        router = cls(experts, config["routes"], config["names"])
        return cast(Self, cast_to(router, dtype).eval())

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Self:
        """Always a `UserError`: a router's config does not hold its experts. diffusers' device_map asks for this."""
        raise UserError(
            problem(cls.__name__, "its config", "a saved folder", "Use from_pretrained, and load without device_map.")
        )

    def _run(
        self, owner: int, sample: torch.Tensor, timesteps: torch.Tensor, positional: Any, conditioning: Any
    ) -> torch.Tensor:
        if self._needs_context[owner] and not positional:
            conditioning = {"encoder_hidden_states": None, **conditioning}
        output = self.experts[owner](sample, timesteps, *positional, return_dict=False, **conditioning)
        return cast(torch.Tensor, output[0])

    def _run_split(
        self, owners: list[int], sample: torch.Tensor, timesteps: torch.Tensor, positional: Any, conditioning: Any
    ) -> torch.Tensor:
        batch = len(owners)
        rows_of_parts, parts = [], []
        for owner in sorted(set(owners)):
            rows = [row for row in range(batch) if owners[row] == owner]
            index = to_device(torch.tensor(rows), sample.device)
            inputs = take_rows((sample, timesteps, positional, conditioning), index, batch)
            parts.append(self._run(owner, *inputs))
            rows_of_parts.append(rows)
        return in_order(parts, rows_of_parts)

    def _write(self, folder: Path) -> None:
        for name, expert in zip(self._routes.names, self.experts, strict=True):
            write_network(expert, folder / name)
        self.save_config(folder)


def _shared_config(experts: Sequence[nn.Module], names: Sequence[str]) -> dict[str, Any]:
    configs = [dict(getattr(expert, "config", {})) for expert in experts]
    optional = [key for key in _MUST_AGREE_IF_ANY if any(config.get(key) is not None for config in configs)]
    shared = {}
    for key in (*_MUST_AGREE, *optional):
        values = [config.get(key) for config in configs]
        plain = [list(value) if isinstance(value, list | tuple) else value for value in values]
        if any(value != plain[0] for value in plain):
            raise UserError(
                problem(key, dict(zip(names, plain, strict=True)), "one value", "Experts of an ensemble must agree.")
            )
        shared[key] = values[0]
    return shared


def _needs_context(expert: nn.Module) -> bool:
    """Whether `expert` must be told that there is no context, as diffusers' UNet2DConditionModel must be."""
    context = inspect.signature(expert.forward).parameters.get("encoder_hidden_states")
    return context is not None and context.default is inspect.Parameter.empty


def _host_values(timestep: Timestep) -> list[int | float]:
    if isinstance(timestep, torch.Tensor):
        return cast(list[int | float], timestep.detach().reshape(-1).tolist())
    return [int(timestep) if isinstance(timestep, numbers.Integral) else float(timestep)]


def _on_device(timestep: Timestep, values: list[int | float], batch: int, device: torch.device) -> torch.Tensor:
    """The timesteps [B] on `device`. Built there when they are one number: a copy would wait for the device."""
    if isinstance(timestep, torch.Tensor) and timestep.device == device:
        return timestep.reshape(-1).expand(batch)
    dtype = torch.int64 if all(isinstance(value, int) for value in values) else torch.float32
    if len(set(values)) == 1:
        return torch.full((batch,), values[0], dtype=dtype, device=device)
    return to_device(torch.tensor(values, dtype=dtype), device)


def _is_router(folder: Path) -> bool:
    config = folder / CONFIG
    return config.is_file() and json.loads(config.read_text()).get("_class_name") == TimestepRouter.__name__


def _refuse_unsupported(options: dict[str, Any]) -> None:
    for option in ("device_map", "variant", "quantization_config"):
        if options.get(option) is not None:
            raise UserError(
                problem(option, options[option], "None", "Load the ensemble first, then move or convert the router.")
            )
