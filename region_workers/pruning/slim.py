"""Slimming: a network's layers narrowed to their kept channels, sizes and all."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from schemas.job import KeptChannels

PRUNABLE_LAYERS = "Conv2d (one group), Linear, GroupNorm, LayerNorm (of one dimension) or Embedding"


def slim(model: nn.Module, kept: Mapping[str, KeptChannels]) -> None:
    """Narrow `model`, in place, to the `kept` channels of each named layer.

    Conv2d, Linear, GroupNorm, LayerNorm and Embedding get new parameters (also on the meta device), and every size
    that they or diffusers' blocks remember is made true. ValueError, naming the layer, if it is missing, of another
    kind, or has fewer channels than an index asks for; the model is then unchanged.
    """
    narrowed = {name: narrowed_tensors(name, _layer(model, name), channels) for name, channels in kept.items()}
    for name, tensors in narrowed.items():
        layer = _layer(model, name)
        for tensor_name, tensor in tensors.items():
            old = layer.get_parameter(tensor_name)
            setattr(layer, tensor_name, nn.Parameter(tensor, requires_grad=old.requires_grad))
        _set_layer_sizes(name, layer)
    for module in model.modules():
        _set_block_sizes(module)


def narrowed_tensors(name: str, layer: nn.Module, kept: KeptChannels) -> dict[str, Tensor]:
    """The `layer`'s own parameters at its kept channels: new, contiguous tensors by parameter name.

    ValueError as for `slim`; `name` is the layer's name in it.
    """
    output_dimension = 1 if isinstance(layer, nn.Embedding) else 0
    sizes = layer_sizes(layer)
    if sizes is None:
        raise ValueError(f"kept_channels.{name}: expected {PRUNABLE_LAYERS}, not {layer}.")
    outputs = _checked(name, "outputs", kept.outputs, sizes[0])
    inputs = _checked(name, "inputs", kept.inputs, sizes[1])
    tensors = {}
    for tensor_name, parameter in layer.named_parameters(recurse=False):
        tensor = parameter.detach()
        if outputs is not None:
            tensor = tensor.index_select(min(output_dimension, tensor.ndim - 1), outputs.to(tensor.device))
        if inputs is not None and tensor.ndim > 1:
            tensor = tensor.index_select(1, inputs.to(tensor.device))
        tensors[tensor_name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"kept_channels.{name}: expected a layer of the model; there is none of that name. "
            "Use the kept channels with the network that they were drawn from."
        ) from None


def layer_sizes(layer: nn.Module) -> tuple[int, int] | None:
    """Its outputs and inputs; of a norm its channels, of an embedding its columns, and 0. None: it is not prunable."""
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels, 0
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return layer.normalized_shape[0], 0
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, 0
    return None


def _checked(name: str, side: str, indices: tuple[int, ...] | None, size: int) -> Tensor | None:
    if indices is None:
        return None
    if not indices or min(indices) < 0 or max(indices) >= size or any(a >= b for a, b in pairwise(indices)):
        raise ValueError(
            f"kept_channels.{name}.{side} = {_shortened(indices)}: expected ascending indices from 0 to {size - 1}, "
            "at least one. Use the kept channels with the network that they were drawn from."
        )
    return torch.tensor(indices)


def _shortened(indices: tuple[int, ...]) -> str:
    return str(list(indices)) if len(indices) <= 6 else f"[{indices[0]}, {indices[1]}, ... {indices[-1]}]"


def _set_layer_sizes(name: str, layer: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = weight.shape[1]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = weight.shape[0]
        if layer.num_channels % layer.num_groups:
            raise ValueError(
                f"kept_channels.{name}.outputs: expected a multiple of its {layer.num_groups} norm groups, "
                f"not {layer.num_channels} channels."
            )


def _set_block_sizes(module: nn.Module) -> None:
    """The sizes that diffusers' blocks remember, from the layers inside them."""
    if isinstance(module, Downsample2D | Upsample2D) and isinstance(module.conv, nn.Conv2d):
        module.channels, module.out_channels = module.conv.in_channels, module.conv.out_channels
    elif isinstance(module, ResnetBlock2D):
        module.in_channels, module.out_channels = module.conv1.in_channels, module.conv2.out_channels
        for sampler in (module.upsample, module.downsample):
            if isinstance(sampler, Downsample2D | Upsample2D):  # without a convolution of their own
                sampler.channels = sampler.out_channels = module.in_channels
    elif isinstance(module, Attention):
        _set_attention_sizes(module)
    elif isinstance(module, BasicTransformerBlock):
        _set_transformer_block_sizes(module)
    elif isinstance(module, Transformer2DModel):
        module.in_channels, module.inner_dim = _width(module.proj_in, 1), _width(module.proj_in, 0)
        module.out_channels = _width(module.proj_out, 0)


def _set_attention_sizes(attention: Attention) -> None:
    attention.query_dim, attention.inner_dim = attention.to_q.in_features, attention.to_q.out_features
    attention.cross_attention_dim, attention.inner_kv_dim = attention.to_k.in_features, attention.to_k.out_features
    attention.out_dim = attention.to_out[0].out_features
    assert attention.inner_dim % attention.heads == 0, f"{attention.inner_dim} channels for {attention.heads} heads"
    if attention.scale_qk:  # as scaled_dot_product_attention scales by itself
        attention.scale = (attention.inner_dim // attention.heads) ** -0.5


def _set_transformer_block_sizes(block: BasicTransformerBlock) -> None:
    block.dim = block.attn1.to_q.in_features
    block.attention_head_dim = block.attn1.to_q.out_features // block.num_attention_heads
    if block.attn2 is not None:
        block.cross_attention_dim = block.attn2.to_k.in_features


def _width(layer: nn.Module, dimension: int) -> int:
    return layer.get_parameter("weight").shape[dimension]
