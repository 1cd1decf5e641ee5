"""A sparse network's weights as its file holds them: of a masked tensor the kept values, and a bit for each place."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

_MASK = ".mask"  # behind the name of a tensor, in a file: which of its values are kept


def write_weights(file: Path, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Write the safetensors file of these weights; a tensor with a mask, bool of its shape, is packed if that is less.

    Packed, it is two tensors: under its own name the kept values [kept], in order, and under NAME.mask the mask as
    numpy.packbits gives it, uint8 [ceil(values / 8)]. The others are zero, or the tensor is written as it is.
    """
    stored = {}
    for name, tensor in weights.items():
        whole, mask = tensor.detach().cpu().contiguous(), masks.get(name)
        stored[name] = whole
        if mask is not None and not whole[gone := ~mask.cpu()].any():
            kept = whole[~gone]
            if stored_bytes(whole.numel(), kept.numel(), whole.element_size()) < whole.nbytes:
                stored[name], stored[f"{name}{_MASK}"] = kept, torch.from_numpy(np.packbits(~gone.numpy()))
    save_file(stored, file, metadata={"format": "pt"})


def unpack(stored: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The network's weights, whole, from the tensors of a file; ValueError if a mask does not fit.

    The masks stay with the network, for `masks_of`.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    masks = {name.removesuffix(_MASK): mask for name, mask in stored.items() if name.endswith(_MASK)}
    weights = {name: tensor for name, tensor in stored.items() if not name.endswith(_MASK)}
    for name, mask in masks.items():
        if name not in weights or name not in shapes:
            raise ValueError(f"{name}{_MASK}: expected a mask of one of the network's weights, which is there too.")
        weights[name] = _whole(name, weights[name], mask, shapes[name])
    if masks:
        cast(Any, network).packed_masks = masks
    return weights


def masks_of(network: nn.Module) -> dict[str, Tensor]:
    """The masks of a network whose weights were packed in its file, by name: bool, of the weights' shapes."""
    packed: Mapping[str, Tensor] = getattr(network, "packed_masks", {})
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return {name: _bits(mask, shapes[name]) for name, mask in packed.items()}


def whole_shapes(stored: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of a file's tensors, those of packed ones as `shapes`, the network's, has them if the masks fit."""
    found = {name: shape for name, shape in stored.items() if not name.endswith(_MASK)}
    for name in found.keys() & shapes.keys():
        if stored.get(f"{name}{_MASK}") == (_mask_bytes(shapes[name]),):
            found[name] = shapes[name]
    return list(found.values())


def stored_bytes(values: int, kept: int, value_bytes: int = 4) -> int:
    """What a masked tensor takes in a file: packed, or as it is where that is less."""
    return min(kept * value_bytes + -(-values // 8), values * value_bytes)


def _whole(name: str, kept: Tensor, mask: Tensor, shape: torch.Size) -> Tensor:
    expected = f"uint8 [{_mask_bytes(shape)}], with a bit for each of {shape.numel()} places and none behind them"
    if mask.dtype != torch.uint8 or mask.shape != (_mask_bytes(shape),):
        raise ValueError(f"{name}{_MASK} is {mask.dtype} {list(mask.shape)}: expected {expected}.")
    bits = _bits(mask, shape)
    count = int(bits.count_nonzero())
    if count != int(np.bitwise_count(mask.numpy()).sum()):
        raise ValueError(f"{name}{_MASK} keeps places that there are not: expected {expected}.")
    if kept.shape != (count,):
        raise ValueError(f"{name} is {list(kept.shape)}: expected the {count} values that {name}{_MASK} keeps.")
    whole = torch.zeros(shape, dtype=kept.dtype)
    whole[bits] = kept
    return whole


def _bits(mask: Tensor, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.unpackbits(mask.numpy(), count=shape.numel()).view(np.bool_)).view(shape)


def _mask_bytes(shape: Sequence[int]) -> int:
    return -(-int(np.prod(shape, dtype=object)) // 8)
