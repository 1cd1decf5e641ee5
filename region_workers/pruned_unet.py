"""The pruned UNet: a diffusers model that is rebuilt from its config and kept channels, then loaded strictly."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from region_workers.pruning.slim import narrowed_tensors, slim
from schemas.ticket import KeptChannels

KeptConfig = dict[str, dict[str, list[int] | None]]


def _takes_the_dense_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Show diffusers, which reads signatures, UNet2DModel's arguments before `kept_channels`."""
    own = inspect.signature(init).parameters["kept_channels"]
    dense = inspect.signature(UNet2DModel.__init__).parameters.values()
    init.__signature__ = inspect.Signature([*dense, own])  # type: ignore[attr-defined]
    return init


class PrunedUNet2DModel(UNet2DModel):  # type: ignore[misc]  # diffusers is untyped
    """A `UNet2DModel` narrowed to its kept channels.

    Its arguments and config are UNet2DModel's, which describe the dense network, and `kept_channels`: by layer,
    {"outputs": indices or None, "inputs": indices or None}; None or {} leaves the network dense. A new model has fresh
    weights. `save_pretrained` writes safetensors and config.json; `from_pretrained` needs neither torch-pruning nor
    the dense weights.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    @_takes_the_dense_arguments
    def __init__(self, *args: Any, kept_channels: KeptConfig | None = None, **kwargs: Any) -> None:
        device = torch.empty(0).device
        if not kept_channels:
            super().__init__(*args, **kwargs)
            return
        with torch.device("meta"):  # the dense weights would be thrown away
            super().__init__(*args, **kwargs)
        slim(self, {name: KeptChannels.model_validate(kept) for name, kept in kept_channels.items()})
        if device.type != "meta":
            self.to_empty(device=device)
            _initialise(self)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """diffusers' `from_pretrained`, from safetensors; ValueError if a weight is missing, unknown or misshapen."""
        wants_report = kwargs.pop("output_loading_info", False)
        kwargs = {"low_cpu_mem_usage": False, **kwargs, "use_safetensors": True}
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        problems = {what: names for what, names in report.items() if names}
        if problems:
            raise ValueError(f"{args[0] if args else cls.__name__}: the weights do not fit config.json: {problems}.")
        return (model, report) if wants_report else model


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


@torch.no_grad()
def extract_expert(dense: UNet2DModel, kept: Mapping[str, KeptChannels]) -> PrunedUNet2DModel:
    """The expert: `dense` narrowed to `kept`, with copies of its weights there, on its device and in its mode.

    `dense` is left alone. The expert's weights are contiguous, and it has passed one small forward pass. ValueError as
    for `slim`.
    """
    config = {name: value for name, value in dense.config.items() if not name.startswith("_")}
    config["kept_channels"] = {name: channels.model_dump(mode="json") for name, channels in kept.items()} or None
    with torch.device("meta"):
        expert: PrunedUNet2DModel = PrunedUNet2DModel(**config)
    expert.load_state_dict(_inherited(dense, kept), strict=True, assign=True)
    for name, buffer in dense.named_buffers():  # also those that no state dict holds
        owner, _, own_name = name.rpartition(".")
        setattr(expert.get_submodule(owner), own_name, buffer.clone())
    for own, inherited in zip(expert.parameters(), dense.parameters(), strict=True):
        own.requires_grad_(inherited.requires_grad)
    expert.eval()
    _prove(expert)
    expert.train(dense.training)
    return expert


def _inherited(dense: nn.Module, kept: Mapping[str, KeptChannels]) -> dict[str, Tensor]:
    narrowed = {
        f"{name}.{tensor_name}": tensor
        for name, channels in kept.items()
        for tensor_name, tensor in narrowed_tensors(name, dense.get_submodule(name), channels).items()
    }
    return {
        # Contiguous like a loaded expert's, so that a resumed run computes in the same order.
        name: narrowed[name] if name in narrowed else old.clone(memory_format=torch.contiguous_format)
        for name, old in dense.state_dict().items()
    }


def _prove(expert: PrunedUNet2DModel) -> None:
    """One forward pass on the smallest image: what goes in comes out, in shape. Channels are what may not fit."""
    config = expert.config
    side = 2 ** len(config.block_out_channels)
    sample = torch.zeros(1, config.in_channels, side, side, device=expert.device, dtype=expert.dtype)
    labels = None
    if expert.class_embedding is not None:
        labels = torch.zeros(1, dtype=torch.long, device=expert.device)
    predicted = expert(sample, torch.ones(1, dtype=torch.long, device=expert.device), class_labels=labels).sample
    assert predicted.shape == (1, config.out_channels, side, side), f"the expert gives {tuple(predicted.shape)}"
