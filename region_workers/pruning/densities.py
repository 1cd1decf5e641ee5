"""How many weights of each layer a sparse network keeps: uniform, Erdős-Rényi (ER), or ER with kernels (ERK)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from torch import nn

from schemas.sparsity import Distribution

Shapes = Mapping[str, Sequence[int]]


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


def _raw_density(shape: Sequence[int], distribution: Distribution) -> Fraction:
    """ER: (outputs + inputs) / (outputs · inputs); ERK: the same of all sides. Exact, so that equal layers tie."""
    sides = shape if distribution == "erk" else shape[:2]
    return Fraction(sum(sides), math.prod(sides))
