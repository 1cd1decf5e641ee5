"""The masks of a sparse network's weights: how many each layer keeps, and which, drawn at random and moved by updates.

Densities are uniform, Erdős-Rényi (ER), or ER with kernels (ERK).
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from schemas.experiment import Distribution

Shapes = Mapping[str, Sequence[int]]
_SAMPLE = 1 << 14  # keys
_LARGEST = 0x7FFFFFFF  # all bits but the sign: the bits of |x|, which as integers are in the order of the floats


def maskable_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that a sparse network masks, by parameter name: of every convolution and linear layer.

    Biases, norms and tables of embeddings stay whole.
    """
    return {
        f"{layer}.{name}" if layer else name: tuple(weight.shape)
        for layer, module in network.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1
    }


def kept_counts(shapes: Shapes, sparsity: float, distribution: Distribution) -> dict[str, int]:
    """How many weights each layer keeps: its density's share of them, rounded."""
    found = densities(shapes, sparsity, distribution)
    return {name: round(found[name] * math.prod(shape)) for name, shape in shapes.items()}


def densities(shapes: Shapes, sparsity: float, distribution: Distribution) -> dict[str, float]:
    """The share of each layer's weights that stays, which makes 1 - sparsity of all of them together.

    ER (arXiv 1707.04780) and ERK (arXiv 1911.11134) make a layer's density proportional to its `_raw_density`. Where
    that would exceed 1 the layer is dense, and the others share what is left.
    """
    if distribution == "uniform":
        return dict.fromkeys(shapes, 1.0 - sparsity)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: _raw_density(shape, distribution) for name, shape in shapes.items()}
    free = set(shapes)
    while free:
        dense = sum(size for name, size in sizes.items() if name not in free)
        scale = ((1 - sparsity) * sum(sizes.values()) - dense) / sum(float(raw[name]) * sizes[name] for name in free)
        largest = max(raw[name] for name in free)
        if scale * largest <= 1:
            return {name: scale * float(raw[name]) if name in free else 1.0 for name in shapes}
        free -= {name for name in free if raw[name] == largest}
    return dict.fromkeys(shapes, 1.0)


def random_mask(shape: torch.Size, kept: int, generator: torch.Generator) -> Tensor:
    """bool of that shape, with `kept` places at random, on the generator's device."""
    keys = _random_keys(math.prod(shape), generator)
    return _largest(keys, torch.ones_like(keys, dtype=torch.bool), kept).view(shape)


def moved_mask(mask: Tensor, weights: Tensor, exchanged: int, growth: Tensor | torch.Generator) -> Tensor:
    """The mask after an update: the `exchanged` smallest of the kept weights leave, and as many places are taken.

    Taken are those of the largest |growth|, the dense gradient (RigL), or random ones (MagRan). What has just left may
    come back. Of equals the first, in the weight's own order, stays or comes. Weights and gradient are float32.
    """
    was_kept = mask.reshape(-1)
    kept = int(was_kept.count_nonzero())
    stays = _largest(_magnitude_keys(weights), was_kept, kept - exchanged)
    if isinstance(growth, Tensor):
        comes = _largest(_magnitude_keys(growth), ~stays, exchanged)
    else:
        comes = _random_places(~stays, exchanged, growth)
    return (stays | comes).view(mask.shape)


def _raw_density(shape: Sequence[int], distribution: Distribution) -> Fraction:
    """ER: (outputs + inputs) / (outputs · inputs); ERK: the same of all sides. Exact, so that equal layers tie."""
    sides = shape if distribution == "erk" else shape[:2]
    return Fraction(sum(sides), math.prod(sides))


def _largest(keys: Tensor, among: Tensor, count: int) -> Tensor:
    """bool [n]: the `count` largest of the keys, int32 [n] and not negative, that are `among`; of equals the first.

    On a CPU a sample tells between which two keys the smallest of them lies, so that few are sorted; if it misleads,
    all are.
    """
    if count == 0:
        return torch.zeros_like(among)
    if keys.device.type != "cpu":  # sorts all in no time, and the host does not wait for it
        places = torch.where(among, keys, -1).sort(descending=True, stable=True).indices[:count]
        return torch.zeros_like(among).index_fill_(0, places, True)
    for low, high in (_bracket(keys, among, count), (0, _LARGEST)):
        chosen = (keys > high).logical_and_(among)
        near = (keys >= low).logical_and_(among).logical_xor_(chosen).nonzero().view(-1)
        missing = count - int(chosen.count_nonzero())
        if 0 <= missing <= near.numel():
            break
    in_order = (keys[near].long() << 32) - near  # no two are equal
    chosen[near[in_order.topk(missing, sorted=False).indices]] = True
    return chosen


def _bracket(keys: Tensor, among: Tensor, count: int) -> tuple[int, int]:
    """Two keys between which, most likely, the smallest of the `count` largest lies."""
    stride = keys.numel() // _SAMPLE + 1
    sample = np.sort(keys[::stride][among[::stride]].cpu().numpy())[::-1]
    if not sample.size:  # of so few that none of them is in it
        return 0, _LARGEST
    place, margin = count * sample.size // int(among.count_nonzero()), 2 * math.isqrt(sample.size)
    first, last = place - margin, place + margin
    return int(sample[last]) if last < sample.size else 0, int(sample[first]) if first >= 0 else _LARGEST


def _magnitude_keys(values: Tensor) -> Tensor:
    return values.detach().reshape(-1).view(torch.int32) & _LARGEST


def _random_places(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """bool [n]: `count` of the places that are `among`, any so many as likely as any others.

    They have the largest of random keys. On a CPU, which makes few random bits at a time, a key's other bits are drawn
    only where its first 8 do not decide.
    """
    if generator.device.type != "cpu":
        return _largest(_random_keys(among.numel(), generator), among, count)
    first, among_N = _random_bits(among.numel(), torch.uint8, generator).numpy(), among.numpy()
    limit = 255 - 256 * count // max(int(np.count_nonzero(among_N)), 1)
    while True:
        chosen, level = (first > limit) & among_N, (first == limit) & among_N
        missing, undecided = count - int(np.count_nonzero(chosen)), int(np.count_nonzero(level))
        if 0 <= missing <= undecided:
            break
        limit += 1 if missing < 0 else -1
    rest = _random_bits(undecided, torch.int64, generator).numpy()
    chosen[np.flatnonzero(level)[rest.argsort()[:missing]]] = True
    return torch.from_numpy(chosen)


def _random_keys(count: int, generator: torch.Generator) -> Tensor:
    return _random_bits(count, torch.int32, generator).bitwise_and_(_LARGEST)


def _random_bits(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """So many numbers, from 64 random bits at a time."""
    draws = torch.empty(count // (8 // dtype.itemsize) + 1, dtype=torch.int64, device=generator.device)
    return draws.random_(-(2**63), None, generator=generator).view(dtype)[:count]
