"""The router: one network to its callers, which runs only the expert that owns each timestep."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard, cast

import torch
import torch._dynamo
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from ebdiff_orchestrator.ensemble.folders import check_whole, write_own_folder
from ebdiff_orchestrator.ensemble.network_files import (
    CONFIG,
    cast_to,
    class_path,
    empty_network,
    read_network,
    write_network,
)
from ebdiff_orchestrator.ensemble.routes import (
    OffloadedExperts,
    Routes,
    Timestep,
    host_values,
    take_rows,
    timesteps_of_batch,
    to_device,
)
from region_workers.storage.integrity import read_object, seal_folder
from schemas.errors import UserError, shown, user_error

_MUST_AGREE = ("sample_size", "in_channels", "out_channels")
_MUST_AGREE_IF_ANY = (
    "cross_attention_dim",
    "class_embed_type",
    "num_class_embeds",
    "num_context_classes",
    "coordinates",
    "length_counts",
)
_COMPILATIONS_AN_EXPERT = 8  # batch sizes, with gradients or without, ...


class TimestepRouter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The experts of an ensemble behind the call of one UNet.

    `experts[i]` owns the timesteps `routes[i]` = [start, stop) and is called `names[i]`; the routes partition [0, T).
    `.config` holds what pipelines read from a UNet (sample_size, in_channels, out_channels), what the experts' configs
    say of classes, context and drawings, and routes, names and expert_classes. Raises `UserError` (a ValueError) if
    routes, names or the experts' shapes do not fit together.
    """

    config_name = CONFIG

    def __init__(self, experts: Sequence[nn.Module], routes: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        super().__init__()
        self._routes = Routes(routes, names)
        if len(experts) != len(self._routes.routes):
            raise user_error("experts", len(experts), f"{len(routes)}, one a route", "Give one expert for each route.")
        self.experts = nn.ModuleList(experts)
        self._needs_context = [_needs_context(expert) for expert in experts]
        self._offloaded: OffloadedExperts | None = None
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
        values = host_values(timestep)
        if len(values) not in (1, batch):
            raise user_error("timestep", f"{len(values)} values", f"1 or {batch}, the batch size", "Give one an image.")
        owners = [self._routes.owner(value) for value in values]
        timesteps = timesteps_of_batch(timestep, values, batch, sample.device)
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

    @property
    def device(self) -> torch.device:
        """Where the experts work; an offloaded one's weights are there only while it does."""
        return cast(torch.device, super().device) if self._offloaded is None else self._offloaded.device

    def compile(self, *args: Any, **options: Any) -> None:
        """`torch.compile` each expert, at its first step; also in place of compiling the router as a whole.

        Weights, saving and loading stay as they are. An expert is compiled again for another batch size.
        """
        for expert in self.experts:
            expert.compile(*args, **options)
        # Experts of one class share its code, to which torch allows few compilations.
        limit = _COMPILATIONS_AN_EXPERT * len(self.experts)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True) -> None:
        """Write config.json and one subfolder an expert, named as it is. The folder appears whole or not at all."""
        if not safe_serialization:
            raise user_error("safe_serialization", False, "True", "Weights are saved as safetensors only.")
        write_own_folder(Path(save_directory), self._write, _is_router, "a router")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """The router that `save_pretrained` wrote, on the CPU, in eval mode; weights are loaded strictly.

        `torch_dtype` (or `dtype`) and `subfolder` mean what they mean in diffusers; what else a pipeline passes along
        is accepted where it changes nothing. With `offload_to` (a device) the experts work there, and one at a time has
        its weights in memory, read at its first step: a batch whose timesteps have several owners reads them in every
        step. Raises `UserError` if the folder is no router or a file of it is not what was saved.
        """
        dtype = options.pop("torch_dtype", None) or options.pop("dtype", None)
        offload_to = options.pop("offload_to", None)
        folder = Path(pretrained_model_name_or_path, options.pop("subfolder", None) or "")
        _refuse_unsupported(options)
        check_whole(folder, _is_router)
        if not _is_router(folder):
            raise user_error("path", folder, f"a folder that {cls.__name__} saved", "Check the path.")
        config = _saved_config(folder)
        folders = [folder / name for name in config["names"]]
        networks = list(zip(folders, config["expert_classes"], strict=True))
        if offload_to is None:
            experts = [cast_to(read_network(*network), dtype) for network in networks]
        else:
            experts = [empty_network(*network, dtype) for network in networks]
        router = cls(experts, config["routes"], config["names"])
        if offload_to is not None:
            router._offloaded = OffloadedExperts(experts, folders, torch.device(offload_to))
        return cast(Self, router.eval())

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Self:
        """Always a `UserError`: a router's config does not hold its experts. diffusers' device_map asks for this."""
        raise user_error(
            cls.__name__, "its config", "a saved folder", "Use from_pretrained, and load without device_map."
        )

    def _run(
        self, owner: int, sample: torch.Tensor, timesteps: torch.Tensor, positional: Any, conditioning: Any
    ) -> torch.Tensor:
        if self._needs_context[owner] and not positional:
            conditioning = {"encoder_hidden_states": None, **conditioning}
        if self._offloaded is not None:
            self._offloaded.load(owner)
        try:
            output = self.experts[owner](sample, timesteps, *positional, return_dict=False, **conditioning)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise user_error(
                "compile", True, f"a machine on which torch.compile works ({reason})", "Leave compile out."
            ) from error
        return cast(torch.Tensor, output[0])

    def _run_split(
        self, owners: list[int], sample: torch.Tensor, timesteps: torch.Tensor, positional: Any, conditioning: Any
    ) -> torch.Tensor:
        device, batch = sample.device, len(owners)
        rows_of = {owner: [row for row in range(batch) if owners[row] == owner] for owner in sorted(set(owners))}
        parts = []
        for owner, rows in rows_of.items():
            index = to_device(torch.tensor(rows), device)
            parts.append(self._run(owner, *take_rows((sample, timesteps, positional, conditioning), index, batch)))
        back = torch.argsort(torch.tensor(list(itertools.chain(*rows_of.values()))))
        return torch.cat(parts).index_select(0, to_device(back, device))

    def _write(self, folder: Path) -> None:
        for index, name in enumerate(self._routes.names):
            if self._offloaded is not None:
                self._offloaded.load(index)
            write_network(self.experts[index], folder / name)
        self.save_config(folder)
        seal_folder(folder)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` and the like come down to."""
        if self._offloaded is not None:
            raise user_error(
                "offload",
                True,
                "False for an ensemble that is moved or cast",
                "Or give load_ensemble the device and torch_dtype.",
            )
        return cast(Self, super()._apply(fn, recurse))


def _shared_config(experts: Sequence[nn.Module], names: Sequence[str]) -> dict[str, Any]:
    configs = [dict(getattr(expert, "config", {})) for expert in experts]
    optional = [key for key in _MUST_AGREE_IF_ANY if any(config.get(key) is not None for config in configs)]
    shared = {}
    for key in (*_MUST_AGREE, *optional):
        values = [config.get(key) for config in configs]
        plain = [list(value) if isinstance(value, list | tuple) else value for value in values]
        if any(value != plain[0] for value in plain):
            raise user_error(
                key, shown(dict(zip(names, plain, strict=True))), "one value", "Experts of an ensemble must agree."
            )
        shared[key] = values[0]
    return shared


def _needs_context(expert: nn.Module) -> bool:
    """Whether `expert` must be told that there is no context, as diffusers' UNet2DConditionModel must be."""
    context = inspect.signature(expert.forward).parameters.get("encoder_hidden_states")
    return context is not None and context.default is inspect.Parameter.empty


def _is_router(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and _config_in(folder).get("_class_name") == TimestepRouter.__name__


def _config_in(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / CONFIG)
    except ValueError as error:
        raise _bad_config(folder, str(error)) from None


def _saved_config(folder: Path) -> dict[str, Any]:
    """The config of a saved router, checked before any file is looked for by its names."""
    config = _config_in(folder)
    names, classes = config.get("names"), config.get("expert_classes")
    if not (_are_texts(names) and _are_texts(classes) and len(names) == len(classes)):
        raise _bad_config(folder, "names and expert_classes do not go together")
    try:
        Routes(config.get("routes") or [], names)
    except (UserError, TypeError) as error:
        raise _bad_config(folder, str(error)) from None
    return config


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _bad_config(folder: Path, reason: str) -> UserError:
    expected = f"the {CONFIG} of a {TimestepRouter.__name__}"
    return user_error("path", folder, expected, f"Save the ensemble again ({reason}).")


def _refuse_unsupported(options: dict[str, Any]) -> None:
    for option in ("device_map", "variant", "quantization_config"):
        if options.get(option) is not None:
            raise user_error(
                option, options[option], "None", "Load the ensemble first, then move or convert the router."
            )
