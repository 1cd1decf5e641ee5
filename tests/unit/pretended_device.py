"""A device where there is none: its tensors know shape, dtype and device alone, and refuse those of another device.

Tensors of the host stay real, so that what is computed there (pruning groups, lengths of drawings, timesteps) runs as
ever. What is read off the device is made up: see `Pretending`. Without a driver torch gives no backward pass to a
pretended CUDA tensor, so what trains does so on an accelerator that torch lets a Python program declare (ACCELERATOR);
what only infers is on CUDA, where it takes the branches that ask for that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ACCELERATOR, CUDA = torch.device("privateuseone", 0), torch.device("cuda", 0)
_ON_THE_HOST = (None, "cpu", "meta")
_IN_BF16 = ("conv2d", "linear", "matmul", "bmm", "baddbmm", "scaled_dot_product_attention")
_IN_FP32 = ("group_norm", "layer_norm")
_libraries: list[torch.library.Library] = []


class Pretending(TorchDispatchMode):
    """Computes on the host, and pretends to on a device.

    Read off the device, a count is that of all there are, a number that came from the host is itself, any other is -1
    or 1.0, what says "no step failed" and "the loss is 1"; whole tensors come to the host full of ones.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        target = _type(kwargs.get("device"))
        if not any(issubclass(kind, FakeTensor) for kind in types):
            if target in _ON_THE_HOST:
                return _in_earnest(func, *args, **kwargs)
            is_sent = any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(args))
            return _sent(func, args, kwargs) if is_sent else func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return getattr(args[0], "reads_as", 1.0 if args[0].is_floating_point() else -1)
        if func is aten._to_copy.default and target == "cpu":
            return _in_earnest(torch.ones, args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and not isinstance(args[0], FakeTensor):
            return _in_earnest(args[0].fill_, 1)
        found = func(*args, **kwargs)
        if func is aten.count_nonzero.default:
            found.reads_as = args[0].numel()
        return found


def _in_earnest(func: Any, *args: Any, **kwargs: Any) -> Any:
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _sent(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """What becomes of a tensor of the host on the device; a single number is remembered."""
    with unset_fake_temporarily():
        shapes = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args)
        shape = func(*shapes, **{**kwargs, "device": "meta"})
    sent = torch.empty_strided(shape.size(), shape.stride(), dtype=shape.dtype, device=kwargs["device"])
    if func is torch.ops.aten._to_copy.default and args[0].numel() == 1:
        sent.reads_as = _in_earnest(args[0].item)  # type: ignore[attr-defined]
    return sent


_RealGenerator, _real_random_ = torch.Generator, torch.Tensor.random_


class _Generator:
    """Of a device that makes no numbers; the host's is real."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _RealGenerator() if _type(device) == "cpu" else super().__new__(cls)

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> _Generator:
        return self


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both devices are there; a random draw must be on its generator's device."""
    _declare_accelerator()
    for name in ("randn", "rand", "randint", "randperm"):
        monkeypatch.setattr(torch, name, partial(_draw, getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "random_", _random_)
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.nn.Module, "to", _to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    torch._C._ensureCUDADeviceGuardSet()  # as torch does itself where nothing but CUDA might be there
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Pretending():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _declare_accelerator() -> None:
    """ACCELERATOR with torch's autocast, of which a device must bring its own: to bf16 and back for these operators."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if hasattr(torch, "pretended_device"):
        return
    _setup_privateuseone_for_python_backend("pretended_device")
    torch.pretended_device.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
    others, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, dtype in ((_IN_BF16, torch.bfloat16), (_IN_FP32, torch.float32)):
        for name in names:
            library.impl(name, partial(_cast, getattr(torch.ops.aten, name).default, dtype), "AutocastPrivateUse1")
    _libraries.extend((others, library))


def _cast(operator: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return operator(*tree_map_only(torch.Tensor, cast, args), **tree_map_only(torch.Tensor, cast, kwargs))


def _draw(real: Any, *args: Any, generator: Any = None, **options: Any) -> torch.Tensor:
    device = torch.device(options.get("device") or "cpu")
    assert generator is None or generator.device == device
    real_generator = {} if generator is None or isinstance(generator, _Generator) else {"generator": generator}
    return real(*args, **options, **real_generator)  # type: ignore[no-any-return]


def _to(module: torch.nn.Module, *args: Any, **options: Any) -> torch.nn.Module:
    """As torch's, which gives no pretended weight another layout, nor moves it a second time."""
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **options)  # type: ignore[attr-defined]
    for layer in module.modules():
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if tensor is None:
                continue
            to_dtype = dtype if dtype and tensor.is_floating_point() else tensor.dtype
            moved = tensor.detach().to(device or tensor.device, to_dtype)
            moved = moved.contiguous(memory_format=layout) if layout is not None and moved.ndim == 4 else moved
            is_weight = isinstance(tensor, torch.nn.Parameter)
            setattr(layer, name, torch.nn.Parameter(moved, tensor.requires_grad) if is_weight else moved)
    return module


def _random_(tensor: torch.Tensor, *args: Any, generator: Any = None) -> torch.Tensor:
    assert generator is None or generator.device == tensor.device
    return _real_random_(tensor, *args)


def _type(device: Any) -> str | None:
    return None if device is None else torch.device(device).type
