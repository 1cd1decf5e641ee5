"""The pruned UNets, rebuilt from config and kept channels, and the extraction of pruned networks from dense ones."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.pruned_network import KeptConfig, LoadedStrictly, build_narrow, takes_arguments_of
from region_workers.networks.supported import check_text_free, network_inputs
from region_workers.pruning.slim import narrowed_tensors
from schemas.errors import user_error
from schemas.job import KeptChannels


class PrunedUNet2DModel(LoadedStrictly, UNet2DModel):  # type: ignore[misc]  # diffusers is untyped
    """A `UNet2DModel` narrowed to its kept channels.

    Its arguments and config are UNet2DModel's, which describe the dense network, and `kept_channels`: by layer,
    {"outputs": indices or None, "inputs": indices or None}; None or {} leaves the network dense. A new model has fresh
    weights. `save_pretrained` writes safetensors and config.json; `from_pretrained` needs neither torch-pruning nor
    the dense weights.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    @takes_arguments_of(UNet2DModel)
    def __init__(self, *args: Any, kept_channels: KeptConfig | None = None, **kwargs: Any) -> None:
        build_narrow(self, lambda: super(PrunedUNet2DModel, self).__init__(*args, **kwargs), kept_channels)


class PrunedUNet2DConditionModel(LoadedStrictly, UNet2DConditionModel):  # type: ignore[misc]  # diffusers is untyped
    """A `UNet2DConditionModel` that looks its context up by class, dense or narrowed to its kept channels.

    Its arguments and config are UNet2DConditionModel's, which describe the dense network, and

    - `num_context_classes`: rows of `context_embedding`, the classes and a last one for `no class`; every CrossAttn
      block attends to a class's row as to a sequence of one token (LDM, arXiv 2112.10752, cin256). None: no such
      table; the context is then what `forward` is given.
    - `kept_channels`: by layer, {"outputs": indices or None, "inputs": indices or None}; None or {}: dense.

    A new model has fresh weights. `save_pretrained` writes safetensors and config.json; `from_pretrained` needs
    neither torch-pruning nor the dense weights.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    @takes_arguments_of(UNet2DConditionModel)
    def __init__(
        self,
        *args: Any,
        num_context_classes: int | None = None,
        kept_channels: KeptConfig | None = None,
        **kwargs: Any,
    ) -> None:
        def build() -> None:
            super(PrunedUNet2DConditionModel, self).__init__(*args, **kwargs)
            self.context_embedding = None
            if num_context_classes is not None:
                self.context_embedding = nn.Embedding(num_context_classes, _context_width(self.config))

        build_narrow(self, build, kept_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """UNet2DConditionModel's `forward`, where `encoder_hidden_states` may be left out.

        `sample` is [B, in_channels, H, W], `timestep` a number or [B], `class_labels` int64 [B]: rows of
        `context_embedding` where there is one, otherwise of diffusers' own class embedding. ValueError without labels
        for the former.
        """
        if self.context_embedding is not None and encoder_hidden_states is None:
            if class_labels is None:
                raise ValueError(
                    "class_labels = None: expected one class for each sample, int64 [B]. Pass "
                    f"{self.config.num_context_classes - 1} for `no class`."
                )
            encoder_hidden_states = self.context_embedding(class_labels).unsqueeze(1)
        return super().forward(sample, timestep, encoder_hidden_states, class_labels, *args, **kwargs)


PrunedNetwork: TypeAlias = PrunedUNet2DModel | PrunedUNet2DConditionModel | DrawingGRU


@torch.no_grad()
def extract_expert(dense: nn.Module, kept: Mapping[str, KeptChannels]) -> PrunedNetwork:
    """The expert: `dense` narrowed to `kept`, with copies of its weights there, on its device and in its mode.

    `dense` is a UNet2DModel or a UNet2DConditionModel, diffusers' or ours, or a DrawingGRU, and is left alone. The
    expert's weights are contiguous, and it has passed one small forward pass. ValueError as for `slim`, and for a
    network of another kind, conditioned on text, or pruned already.
    """
    expert = _without_weights(dense, kept)
    expert.load_state_dict(_inherited(dense, kept), strict=True, assign=True)
    for name, buffer in dense.named_buffers():  # also those that no state dict holds
        owner, _, own_name = name.rpartition(".")
        setattr(expert.get_submodule(owner), own_name, buffer.clone())
    expert.eval()
    _prove(expert)
    expert.train(dense.training)
    return expert


def _without_weights(dense: nn.Module, kept: Mapping[str, KeptChannels]) -> PrunedNetwork:
    kind = _pruned_class(dense)
    config = dense.narrow_config(kept) if isinstance(dense, DrawingGRU) else _pruned_config(dense, kept)
    arguments = inspect.signature(kind.__init__).parameters
    with torch.device("meta"):
        expert: PrunedNetwork = kind(**{name: value for name, value in config.items() if name in arguments})
    return expert


def _pruned_config(dense: Any, kept: Mapping[str, KeptChannels]) -> dict[str, Any]:
    config: Mapping[str, Any] = dense.config
    check_text_free(config)
    if config.get("kept_channels"):
        raise ValueError("dense: expected a network that is not pruned. Extract from the one that it came from.")
    return {**config, "kept_channels": {name: part.model_dump(mode="json") for name, part in kept.items()} or None}


def _pruned_class(dense: nn.Module) -> type[Any]:
    kinds: dict[type[Any], type[Any]] = {
        UNet2DConditionModel: PrunedUNet2DConditionModel,
        UNet2DModel: PrunedUNet2DModel,
        DrawingGRU: DrawingGRU,
    }
    for kind, pruned in kinds.items():
        if isinstance(dense, kind):
            return pruned
    raise ValueError(f"dense = {type(dense).__name__}: expected UNet2DModel, UNet2DConditionModel or DrawingGRU.")


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


def _prove(expert: PrunedNetwork) -> None:
    """One forward pass on a small sample: what goes in comes out, in shape. Channels are what may not fit."""
    draws = isinstance(expert, DrawingGRU)
    side = 2 if draws else 2 ** len(expert.config.block_out_channels)
    inputs = network_inputs(expert, expert.device, side)
    predicted = expert(**{**inputs, "sample": inputs["sample"].to(expert.dtype)}).sample
    shape = inputs["sample"].shape if draws else (1, expert.config.out_channels, side, side)
    assert predicted.shape == shape, f"the expert gives {tuple(predicted.shape)}"


def _context_width(config: Any) -> int:
    width = config.cross_attention_dim
    if isinstance(width, int):
        return width
    expected = "one number with num_context_classes"
    raise user_error("cross_attention_dim", width, expected, "Make all levels equally wide.")
