"""Channel groups: the channels of coupled layers that can only be pruned together."""

import copy
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from diffusers.models.activations import GEGLU, SwiGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from region_workers.pruning.slim import PRUNABLE_LAYERS, layer_sizes

Kind = Literal["out", "embedding", "norm", "in"]
_KIND_ORDER: dict[Kind, int] = {"out": 0, "embedding": 1, "norm": 2, "in": 3}
_ROOT_TYPES = (nn.Conv2d, nn.Linear)
_HEADED = {"to_q", "to_k", "to_v"}
_TracedItem = tuple[nn.Module, bool, list[int], list[int]]  # module, is an output, its indices, the group's


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one layer that a group runs through: channel c of the group is at `indices[c]`.

    `kind`: "out" and "in" (a convolution's or linear layer's outputs and inputs), "norm" (a GroupNorm's or LayerNorm's
    channels) or "embedding" (an embedding table's columns).
    `layer_size` is the dense layer's size in that dimension; a concatenation gives it several groups, and a gated
    feed-forward layer's projection shows its group twice.
    """

    layer: str
    kind: Kind
    indices: slice | Tensor
    layer_size: int


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Coupled channels: channel c is pruned in every member or in none.

    `root` names the first layer whose outputs they are, `size` is their number. `norm_groups` is the number of equal,
    contiguous chunks that must stay equally wide: those of the GroupNorms that see the channels, or the heads of an
    attention; 0 where there is neither. `order` is the group's place in torch-pruning's own walk, which begins at the
    network's output.
    """

    root: str
    size: int
    norm_groups: int
    members: tuple[Member, ...]
    order: int = 0


_FOUND: dict[str, tuple[ChannelGroup, ...]] = {}  # by what the network is


def find_groups(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> tuple[ChannelGroup, ...]:
    """The groups of `model` by torch-pruning's dependency graph, ordered as the model names its modules.

    The graph is traced on a meta copy: no weights are copied, computed with or changed, and the shapes of
    `example_inputs` (forward's keyword arguments, on any device) are all that matters. The group that would hold the
    outputs of `conv_out` is left out. ValueError if a layer cannot be pruned.

    A UNet is traced once in a process: one of the same config, layers and inputs has the same groups. A network with a
    method `channel_groups`, of which no graph can be traced, is asked.
    """
    own: Callable[[], tuple[ChannelGroup, ...]] | None = getattr(model, "channel_groups", None)
    if own is not None:
        return own()
    shapes = {name: tuple(tensor.shape) for name, tensor in example_inputs.items()}
    structure = repr((type(model), dict(cast(Any, model).config), model, shapes))
    if structure not in _FOUND:
        _FOUND[structure] = _find_groups(model, example_inputs)
    return _FOUND[structure]


def _find_groups(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> tuple[ChannelGroup, ...]:
    twin = meta_copy(model)
    names = {module: name for name, module in twin.named_modules()}
    order = {name: position for position, name in enumerate(names.values())}
    groups = _gated_groups(twin)
    ignored = [twin.get_submodule(name) for name in ("conv_out", *(group.root for group in groups))]
    traced = _traced_groups(twin, example_inputs, ignored)
    groups += [_group(items, place, names, order, twin) for items, place in traced]
    return tuple(sorted(groups, key=lambda group: order[group.root]))


def meta_copy(model: nn.Module) -> nn.Module:
    """A float32 copy of `model` on the meta device, in evaluation mode: its shapes without its weights."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta", dtype=torch.float32))
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def _traced_groups(
    twin: nn.Module, example_inputs: Mapping[str, Tensor], ignored: list[nn.Module]
) -> list[tuple[list[_TracedItem], int]]:
    """Each group's items, and its place in the walk: that of the first of its layers with outputs."""
    import torch_pruning  # here, so that an expert can be rebuilt and loaded without it

    inputs = {name: tensor.to("meta") for name, tensor in example_inputs.items()}
    with torch.enable_grad():
        # Fresh containers: torch-pruning fills its default arguments.
        graph = torch_pruning.DependencyGraph().build_dependency(
            twin, example_inputs=inputs, unwrapped_parameters=[], customized_pruners={}, verbose=False
        )
    places = {module: place for place, module in enumerate(graph.module2node)}
    groups, seen = [], set(ignored)
    for root in _roots(twin, graph.module2node):
        if root in seen:
            continue
        outputs = list(range(len(root.get_parameter("weight"))))
        traced = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, outputs)
        items = [
            (item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler), item.idxs, item.root_idxs)
            for item in traced.items
        ]
        layers = {module for module, is_output, _, _ in items if is_output}
        if not layers & set(ignored):
            groups.append((items, min(places[module] for module in layers if isinstance(module, _ROOT_TYPES))))
        seen |= layers
    return groups


def _roots(twin: nn.Module, traced: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers to begin groups at. A projection to scale and shift is last: each channel has two of its outputs."""
    last = {module.time_emb_proj for module in twin.modules() if isinstance(module, ResnetBlock2D)}
    roots = [module for module in traced if isinstance(module, _ROOT_TYPES)]
    return sorted(roots, key=lambda module: module in last)


def _gated_groups(twin: nn.Module) -> list[ChannelGroup]:
    """The inner widths of gated feed-forward layers (GEGLU, arXiv 2002.05202), which torch-pruning leaves dense.

    A projection's 2 I outputs are chunked into I channels and I gates, which are multiplied: channel c of the group
    is output c, output I + c and input c of the next layer.
    """
    groups = []
    for name, module in twin.named_modules():
        if not isinstance(module, FeedForward) or not isinstance(module.net[0], GEGLU | SwiGLU):
            continue
        root, after = f"{name}.net.0.proj", f"{name}.net.2"
        inner = module.net[2].in_features
        halves = (Member(root, "out", slice(start, start + inner), 2 * inner) for start in (0, inner))
        members = (*halves, Member(after, "in", slice(0, inner), inner))
        groups.append(ChannelGroup(root, inner, 0, members, order=sys.maxsize))
    return groups


def _group(
    items: list[_TracedItem],
    place: int,
    names: Mapping[nn.Module, str],
    order: Mapping[str, int],
    twin: nn.Module,
) -> ChannelGroup:
    size = len(items[0][2])
    members: dict[tuple[int, int, tuple[int, ...]], Member] = {}
    for module, is_output, indices, root_indices in items:
        if isinstance(module, nn.Parameter):
            raise ValueError("A parameter outside a layer takes part in pruning: expected layers only.")
        layer = names.get(module)
        if layer is None or not any(True for _ in module.parameters(recurse=False)):
            continue  # torch-pruning's own nodes for additions, reshapes and concatenations
        kind, layer_size = _dimension(layer, module, is_output)
        for positions in _occurrences(layer, size, indices, root_indices):
            key = (order[layer], _KIND_ORDER[kind], positions)
            members[key] = Member(layer, kind, _compact(positions), layer_size)
    ordered = tuple(members[key] for key in sorted(members))
    root = next(member.layer for member in ordered if member.kind == "out")
    return ChannelGroup(root, size, _chunks(root, size, ordered, twin), ordered, place)


def _dimension(layer: str, module: nn.Module, is_output: bool) -> tuple[Kind, int]:
    sizes = layer_sizes(module)
    if sizes is None:
        raise ValueError(
            f"{layer} = {module}: expected {PRUNABLE_LAYERS} where channels are pruned. "
            "Start from a network without it."
        )
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        return "norm", sizes[0]
    if isinstance(module, nn.Embedding):
        return "embedding", sizes[0]
    return ("out", sizes[0]) if is_output else ("in", sizes[1])


def _occurrences(layer: str, size: int, indices: list[int], root_indices: list[int]) -> list[tuple[int, ...]]:
    """Positions of the group's channels in the layer, once for each time that the layer sees the group."""
    seen: defaultdict[int, list[int]] = defaultdict(list)
    for index, root_index in zip(indices, root_indices, strict=True):
        seen[root_index].append(index)
    times = {len(seen[channel]) for channel in range(size)}
    if len(seen) != size or len(times) != 1 or times == {0}:
        raise ValueError(f"{layer}: its channels do not map one to one onto a group of {size}; it cannot be pruned.")
    return [tuple(seen[channel][time] for channel in range(size)) for time in range(times.pop())]


def _compact(positions: tuple[int, ...]) -> slice | Tensor:
    start, stop = positions[0], positions[-1] + 1
    return slice(start, stop) if positions == tuple(range(start, stop)) else torch.tensor(positions)


def _chunks(root: str, size: int, members: Iterable[Member], twin: nn.Module) -> int:
    counts = {_chunks_of(member, twin) for member in members} - {0}
    if not counts:
        return 0
    chunks = math.lcm(*counts)
    if size % chunks:
        raise ValueError(f"{root}: {size} channels cannot be split evenly into {chunks} norm groups; widen the layer.")
    return chunks


def _chunks_of(member: Member, twin: nn.Module) -> int:
    layer = twin.get_submodule(member.layer)
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    parent, _, own_name = member.layer.rpartition(".")
    attention = twin.get_submodule(parent)
    if isinstance(attention, Attention) and member.kind == "out" and own_name in _HEADED:
        return int(attention.heads) if attention.heads > 1 else 0
    return 0
