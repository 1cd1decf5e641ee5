"""What our diffusers models share: built narrow from a config with kept channels, and loaded strictly."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from region_workers.networks.packed_weights import unpack
from region_workers.pruning.slim import slim
from region_workers.storage.integrity import check_sealed
from schemas.job import KeptChannels

KeptConfig = dict[str, dict[str, list[int] | None]]


class NoFreshWeights(TorchFunctionMode):
    """Within this context layers are built without drawing weights that are loaded afterwards, or never looked at.

    What lies in them meanwhile is undefined; buffers have their values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def takes_arguments_of(dense: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Show diffusers, which reads signatures, the arguments of `dense` before an `__init__`'s own named ones."""

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        named = inspect.Parameter.KEYWORD_ONLY
        own = [parameter for parameter in inspect.signature(init).parameters.values() if parameter.kind is named]
        arguments = inspect.signature(dense.__init__).parameters.values()  # type: ignore[misc]
        init.__signature__ = inspect.Signature([*arguments, *own])  # type: ignore[attr-defined]
        return init

    return decorate


class LoadedStrictly:
    """Mixin of diffusers models: `from_pretrained` reads safetensors only, and every weight must fit."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """diffusers' `from_pretrained`, from safetensors; ValueError if a weight is missing, unknown or misshapen.

        So is a file that is not what the seal of the ticket or the ensemble says of it.

        The weights lie in memory of their own, as a built network's do, and so give the same bits.
        """
        place, wants_report = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        if Path(place).is_dir():
            check_sealed(Path(place, kwargs.get("subfolder") or ""))
        kwargs = {"low_cpu_mem_usage": False, **kwargs, "use_safetensors": True, "output_loading_info": True}
        model, report = super().from_pretrained(place, **kwargs)  # type: ignore[misc]
        problems = {what: names for what, names in report.items() if names}
        if problems:
            raise ValueError(f"{place}: the weights do not fit config.json: {problems}.")
        for weight in (*model.parameters(), *model.buffers()):
            weight.data = weight.data.clone()  # it lay in the mapped file, at any address
        model.register_to_config(_name_or_path="")  # no part of the network: a path of this machine
        return (model, report) if wants_report else model

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, torch.Tensor]) -> None:
        """What diffusers calls before it looks at names and shapes: the weights of a packed file become whole."""
        weights = unpack(state_dict, self)  # type: ignore[arg-type]  # it is a mixin of networks
        state_dict.clear()
        state_dict.update(weights)
        super()._fix_state_dict_keys_on_load(state_dict)  # type: ignore[misc]


def build_narrow(model: nn.Module, build: Callable[[], None], kept: Mapping[str, Any] | None) -> None:
    """Run `build`, which fills `model` with its dense layers, and narrow them to the kept channels, if there are any.

    The narrow layers get fresh weights on torch's default device; no dense weights are made on the way.
    """
    device = torch.empty(0).device
    if not kept:
        build()
        return
    with torch.device("meta"), NoFreshWeights():
        build()
    slim(model, {name: KeptChannels.model_validate(channels) for name, channels in kept.items()})
    if device.type != "meta":
        model.to_empty(device=device)
        _initialise(model)


def _initialise(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            raise ValueError(
                f"{name} = {type(module).__name__}: expected a layer with reset_parameters in a pruned network. "
                'Use time_embedding_type = "positional".'
            )
        reset()
