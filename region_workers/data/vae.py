"""The VAE of a plan: found, loaded, checked, and used the same way wherever images become latents or latents images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from region_workers.storage.integrity import bytes_digest, read_object
from region_workers.storage.places import find_model
from schemas.data import Posterior, VaeInfo
from schemas.digest import digest
from schemas.errors import RunFailed, plan_error
from schemas.job import CONFIG_FILE
from schemas.model import LatentModelPlan

_FIELD = "model.vae"
_CLASSES = ("AutoencoderKL", "VQModel")
_SUBFOLDERS = ("", "vae", "vqvae", "vqmodel")  # in a folder of its own, or as diffusers' pipelines call it
_WEIGHTS = "diffusion_pytorch_model"
_WEIGHT_FILES = (f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.safetensors.index.json", f"{_WEIGHTS}-*.safetensors")
_NAMES_SHOWN = 3
_EXPECTED = "a folder or a hub name of a diffusers AutoencoderKL or VQModel, or of a pipeline that has one"


def load_vae(model: LatentModelPlan, channels: int | None = None) -> tuple[Any, VaeInfo]:
    """The plan's VAE in float32 on the CPU, for use and not for training, and what it is.

    Its `config.scaling_factor` is then the one in force, so that a pipeline saved with it scales as training did.
    Raises PlanError if there is none, if its weights are not safetensors, and if it does not fit `model` or images of
    `channels` channels.
    """
    folder = _find(model)
    try:
        config = read_object(folder / CONFIG_FILE)
    except ValueError as error:
        raise plan_error(_FIELD, model.vae, _EXPECTED, f"{folder}: {error}: replace the file.") from None
    name = str(config.get("_class_name"))
    if name not in _CLASSES:
        remedy = f"{folder} holds a {name}: choose another."
        raise plan_error(_FIELD, model.vae, f"one of {', '.join(_CLASSES)}", remedy)
    if not any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)):
        remedy = (
            f"{folder} holds none. Save the weights anew, once: "
            f"diffusers.{name}.from_pretrained(..., use_safetensors=False).save_pretrained(FOLDER)."
        )
        raise plan_error(_FIELD, model.vae, f"weights as {_WEIGHTS}.safetensors; no pickle is read", remedy)
    vae = _load(folder, name, model)
    _check(vae, model, channels)
    vae.register_to_config(scaling_factor=_scaling_factor(model, name, config))
    return vae, _info(vae, name, _posterior(model, name))


def load_known_vae(model: LatentModelPlan, channels: int, known_digest: str | None) -> Any:
    """The VAE of `load_vae`. RunFailed if it is not the one of that digest."""
    vae, info = load_vae(model, channels)
    if info.digest != known_digest:
        raise RunFailed(f"model.vae = {model.vae}: not the VAE that the latents are of. Restore it, then resume.")
    return vae


def encode(vae: Any, images_BCHW: torch.Tensor, generators: Sequence[torch.Generator] | None = None) -> torch.Tensor:
    """Scaled latents float32 [B, C, h, w] of images in [-1, 1].

    AutoencoderKL: the mode of the posterior, or a sample of it with `generators`, one an image. VQModel: as before
    quantisation, which LDM leaves to the decoder (arXiv 2112.10752, section 3.1).
    """
    encoded = vae.encode(images_BCHW)
    if hasattr(encoded, "latents"):
        latents_BChw = encoded.latents
    elif generators is None:
        latents_BChw = encoded.latent_dist.mode()
    else:
        latents_BChw = encoded.latent_dist.sample(list(generators))
    shifted: torch.Tensor = latents_BChw - (vae.config.get("shift_factor") or 0.0)
    return shifted * float(vae.config.scaling_factor)


def decode(vae: Any, latents_BChw: torch.Tensor) -> torch.Tensor:
    """Images [B, C, H, W] in about [-1, 1] of scaled latents: `encode` the other way; a VQModel quantises first."""
    unscaled = latents_BChw / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    images_BCHW: torch.Tensor = vae.decode(unscaled.to(vae.dtype)).sample
    return images_BCHW


def _scaling_factor(model: LatentModelPlan, name: str, config: dict[str, Any]) -> float:
    """The plan's, else what the VAE's own file says.

    diffusers fills in Stable Diffusion's 0.18215 for any file that says nothing: right for an AutoencoderKL of that
    age, wrong for LDM's VQModels, which are not scaled.
    """
    default = 0.18215 if name == "AutoencoderKL" else 1.0
    return model.scaling_factor or float(config.get("scaling_factor") or default)


def _posterior(model: LatentModelPlan, name: str) -> Posterior | None:
    """What of the posterior a latent is; by default what LDM's `get_first_stage_encoding` takes."""
    if name == "AutoencoderKL":
        return model.posterior or "sample"
    if model.posterior is not None:
        expected = f"null, since {model.vae} is a {name}, which has no posterior"
        raise plan_error("model.posterior", model.posterior, expected, "Leave it out.")
    return None


def _info(vae: Any, name: str, posterior: Posterior | None) -> VaeInfo:
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    pieces = []
    for key, tensor in sorted(vae.state_dict().items()):
        pieces += [f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.contiguous().numpy().data]
    return VaeInfo(
        class_name=name,
        posterior=posterior,
        digest=digest({"class": name, "config": config, "weights": bytes_digest(pieces)}),
        scaling_factor=config["scaling_factor"],
        shift_factor=config.get("shift_factor"),
    )


def _load(folder: Path, name: str, model: LatentModelPlan) -> Any:
    import diffusers

    how: dict[str, Any] = {"torch_dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        vae, report = getattr(diffusers, name).from_pretrained(
            folder, **how, low_cpu_mem_usage=False, output_loading_info=True
        )
        if report["missing_keys"]:  # diffusers would make them up
            raise ValueError(f"there are no weights {', '.join(sorted(report['missing_keys'])[:_NAMES_SHOWN])}")
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = f"{folder} does not load as {name} ({reason}): replace the files."
        raise plan_error(_FIELD, model.vae, _EXPECTED, remedy) from error
    return vae.eval().requires_grad_(False)


def _check(vae: Any, model: LatentModelPlan, channels: int | None) -> None:
    depth = vae.config.get("vq_embed_dim") or vae.config.latent_channels
    name, downscale = model.vae, 2 ** (len(vae.config.block_out_channels) - 1)
    for field, found, wanted, what in (
        ("model.latent_channels", model.latent_channels, depth, f"the channels of the latents of {name}"),
        ("model.latent_downscale", model.latent_downscale, downscale, f"by which {name} divides an image's sides"),
        ("data.channels", channels, vae.config.in_channels, f"which {name} takes"),
    ):
        if found not in (None, wanted):
            raise plan_error(field, found, f"{wanted}, {what}", f"Set {field} to {wanted}, or choose another VAE.")


def _find(model: LatentModelPlan) -> Path:
    """The folder with the VAE's own config."""
    places = _SUBFOLDERS if model.vae_subfolder is None else (model.vae_subfolder,)
    wanted = [f"{place}/{file}".lstrip("/") for place in places for file in (CONFIG_FILE, *_WEIGHT_FILES)]
    path = find_model(_FIELD, model.vae, _EXPECTED, wanted)
    for place in places:
        if (path / place / CONFIG_FILE).is_file():
            return path / place
    where = f"no {CONFIG_FILE} in {' or in '.join(place or 'the folder itself' for place in places)}"
    raise plan_error(_FIELD, model.vae, _EXPECTED, f"There is {where}: set model.vae_subfolder.")
