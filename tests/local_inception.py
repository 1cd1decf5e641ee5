"""A stand-in for pytorch-fid's Inception weights, made here: the right shapes, random values, no published FID."""

import math
from pathlib import Path
from unittest.mock import patch

import pytorch_fid.inception
import torch
from safetensors.torch import save_file


def write_local_inception(path: Path, seed: int = 0) -> Path:
    """Write random weights, of a size that keeps signals alive, to `path`, a .safetensors file; returns `path`."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: _values(name, tensor, generator) for name, tensor in _architecture().state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def _architecture() -> torch.nn.Module:
    """The network that `pytorch_fid.inception.fid_inception_v3` builds, before it reads its weights."""
    built: list[torch.nn.Module] = []
    with (
        patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: {}),
        patch("torchvision.models.Inception3.load_state_dict", lambda self, _: built.append(self)),
    ):
        pytorch_fid.inception.fid_inception_v3()
    return built[0]


def _values(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.ndim != 4:  # batch norms: the identity
        return tensor.clone()
    fan_in = math.prod(tensor.shape[1:])
    return torch.randn(tensor.shape, generator=generator) * math.sqrt(2 / fan_in)
