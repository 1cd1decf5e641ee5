"""One network, expert or VAE, as a folder of config.json and safetensors, no pickle; and the precisions it runs in."""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ebdiff_orchestrator.ensemble.folders import read_sealed
from region_workers.networks.packed_weights import masks_of, unpack, write_weights
from region_workers.networks.pruned_network import NoFreshWeights
from schemas.errors import UserError, user_error

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

_TRUSTED = ("diffusers", "region_workers")  # packages whose modules a config file may name
# Modules as saved files name them, whose names stay when our files move, and where their classes are found.
STABLE_NAMES = {
    "region_workers.pruned_unet": "region_workers.networks.pruned_unet",
    "region_workers.conditional_unet": "region_workers.networks.conditional_unet",
    "region_workers.drawing_gru": "region_workers.networks.drawing_gru",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def class_path(network: nn.Module) -> str:
    """What `network`'s class is called in a router's config: `diffusers.UNet2DModel`, or its module and name."""
    kind = type(network)
    named = {place: name for name, place in STABLE_NAMES.items()}
    module = named.get(kind.__module__, kind.__module__)
    return f"diffusers.{kind.__name__}" if module.split(".")[0] == "diffusers" else f"{module}.{kind.__qualname__}"


def write_network(network: nn.Module, folder: Path) -> None:
    """Write config and weights into `folder` (not durable by itself). Raises `UserError` for a plain nn.Module."""
    if not hasattr(network, "save_pretrained"):
        raise user_error(
            "network", class_path(network), "a diffusers ModelMixin, which can be saved", "Derive it from ModelMixin."
        )
    if masks := masks_of(network):
        cast(Any, network).save_config(folder)
        write_weights(folder / WEIGHTS, network.state_dict(), masks)
    else:
        cast(Any, network).save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    config = json.loads((folder / CONFIG).read_text())
    config.pop("_name_or_path", None)  # where diffusers found the weights: a path of this machine
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_network(folder: Path, path: str) -> nn.Module:
    """Rebuild the network in `folder` from its config, on the CPU in float32, and load its weights strictly.

    `path` is its `class_path`. Raises `UserError` when a file is missing or does not fit.
    """
    with NoFreshWeights():
        network = _network(folder, path)
    weights = read_sealed(folder / WEIGHTS)
    with _weights_that_fit(folder):
        network.load_state_dict(unpack(load(weights), network), strict=True)
    return network


def empty_network(folder: Path, path: str, dtype: torch.dtype | None) -> nn.Module:
    """`read_network` without the weights: its parameters, of `dtype` if one is given, are on the meta device."""
    with torch.device("meta"), NoFreshWeights():
        network = _network(folder, path)
    return cast_to(network, dtype)


def fill_network(network: nn.Module, folder: Path, device: torch.device) -> None:
    """Give an `empty_network` the weights in `folder`, strictly: on `device`, in memory of their own."""
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    data = read_sealed(folder / WEIGHTS)
    with _weights_that_fit(folder):
        read = unpack(load(data), network)
    weights = {name: tensor.to(device, dtypes.get(name), copy=True) for name, tensor in read.items()}
    with _weights_that_fit(folder):
        network.load_state_dict(weights, strict=True, assign=True)


def empty(network: nn.Module) -> None:
    """Let go of the weights: the parameters go to the meta device."""
    nothing = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    network.load_state_dict(nothing, strict=True, assign=True)


def cast_to(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """`module` in `dtype`, or as it is for None."""
    # Not by diffusers' own `to`, which warns of modules to keep in float32 where there are none.
    return module if dtype is None else nn.Module.to(module, dtype)


def _network(folder: Path, path: str) -> nn.Module:
    """The network of that config, as it is built, in eval mode. Raises `UserError` when a file is missing."""
    kind = class_at(path)
    config = read_sealed(folder / CONFIG)
    try:
        return cast(nn.Module, kind.from_config(json.loads(config)).eval())
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        remedy = f"Save the ensemble again ({error})."
        raise user_error("network", folder, f"a {CONFIG} of a {path}", remedy) from None


@contextmanager
def _weights_that_fit(folder: Path) -> Iterator[None]:
    """Weights that are damaged, missing or misshapen are a `UserError`."""
    try:
        yield
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise user_error(
            "network", folder, f"weights that fit its {CONFIG}", f"Save the ensemble again ({error})."
        ) from error


def class_at(path: str) -> Any:
    """The class of that path. A module outside diffusers and this project must have been imported by the caller:
    a config file must not decide which code runs."""
    module_name, _, class_name = path.rpartition(".")
    if module_name.split(".")[0] in _TRUSTED:
        module = importlib.import_module(STABLE_NAMES.get(module_name, module_name))
    elif module_name in sys.modules:
        module = sys.modules[module_name]
    else:
        raise user_error(
            "expert_classes", path, "a class of an imported module", f"import {module_name} before loading."
        )
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise user_error("expert_classes", path, f"a network's class in {module_name}", "Update the package.")
    return found


def check_dtype(dtype: torch.dtype | None, device: str | torch.device | None) -> None:
    """Raise `UserError` for a precision that no network samples in, or that `device`, if one is named, is not for."""
    if dtype is None:
        return
    if dtype not in DTYPES.values():
        names = ", ".join(str(each) for each in DTYPES.values())
        raise user_error("torch_dtype", dtype, f"None or one of {names}", "Change it.")
    if dtype == torch.float16 and device is not None and torch.device(device).type == "cpu":
        raise user_error(
            "dtype",
            "fp16 (float16)",
            "fp32 or bf16 on a CPU, which takes 20 to 40 times as long in float16",
            "Use bf16 (bfloat16), or a GPU.",
        )


def check_vae(vae: Any, channels: int) -> None:
    """Raise `UserError` unless `vae` decodes latents of `channels` channels and says how they are scaled."""
    config = vae.config
    factor = config.get("scaling_factor")
    if not factor or factor < 0:
        raise user_error(
            "vae.scaling_factor", factor, "a number above 0 in the VAE's config", "Set model.scaling_factor."
        )
    latent_channels = config.get("vq_embed_dim") or config.get("latent_channels")
    if latent_channels != channels:
        raise user_error(
            "vae.latent_channels",
            latent_channels,
            f"{channels}, the experts' in_channels",
            "Use the VAE that the experts were trained with.",
        )
