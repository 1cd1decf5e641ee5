"""Classes at sampling: labels for a batch, and classifier-free guidance towards them (arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from diffusers import ModelMixin

from ebdiff_orchestrator.ensemble.routes import to_device
from schemas.errors import user_error

ClassLabels = int | Sequence[int] | torch.Tensor | None


def labels_of_batch(
    class_labels: ClassLabels, batch: int, num_classes: int | None, device: torch.device
) -> torch.Tensor | None:
    """One class an image, int64 [B] on `device`; None for an ensemble without classes.

    `class_labels` is one class for all images or one an image, from 0 to `num_classes` - 1, or `num_classes` for
    "no class". Raises `UserError` for a missing label, one that is no class, or the wrong number of them.
    """
    if num_classes is None:
        if class_labels is not None:
            raise user_error("class_labels", class_labels, "None, since the ensemble has no classes", "Leave it out.")
        return None
    expected = f"a class from 0 to {num_classes - 1}, or {num_classes} for `no class`"
    if class_labels is None:
        raise user_error(
            "class_labels", None, f"{expected}, since the ensemble has classes", "Give one, or one an image."
        )
    labels = torch.as_tensor(class_labels).reshape(-1).tolist()
    labels = labels * batch if len(labels) == 1 else labels
    if len(labels) != batch:
        raise user_error("class_labels", f"{len(labels)} of them", f"{batch}, one an image", "Or give a single number.")
    check_classes(labels, num_classes)
    return to_device(torch.tensor(labels, dtype=torch.int64), device)


def check_classes(classes: Sequence[int], num_classes: int) -> None:
    """Raise `UserError` unless every entry is a class, or `num_classes` for "no class"."""
    unknown = sorted({label for label in classes if label not in range(num_classes + 1)})
    if unknown:
        expected = f"classes from 0 to {num_classes - 1}, or {num_classes} for `no class`"
        raise user_error("class_labels", unknown, expected, "Change them.")


def scale_of(guidance_scale: float | None, default: float | None, num_classes: int | None) -> float:
    """The guidance scale of a call: its own, else the ensemble's, else 1. Raises `UserError`."""
    if num_classes is None and guidance_scale not in (None, 1):
        raise user_error("guidance_scale", guidance_scale, "1, since the ensemble has no classes", "Leave it out.")
    scale = default if guidance_scale is None else guidance_scale
    scale = 1.0 if scale is None else float(scale)
    if not 0 <= scale < float("inf"):
        raise user_error("guidance_scale", scale, "0 (no class) or more; 1 is the class as trained", "Change it.")
    return scale


def predicted_noise(
    unet: ModelMixin, sample_BCHW: torch.Tensor, timestep: int | float, labels_B: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """eps_null + scale (eps_class - eps_null), float32 [B, C, H, W], from one pass.

    The pass runs a doubled batch, first "no class" and then the classes, unless a scale of 1 (the class alone) or 0
    ("no class" alone) needs just one of them. Without labels it is the ensemble's own prediction.
    """
    sample_BCHW = sample_BCHW.to(unet.dtype)
    if labels_B is None:
        return _run(unet, sample_BCHW, timestep)
    assert unet.num_classes is not None, "labels are checked against the classes"
    no_class_B = torch.full_like(labels_B, unet.num_classes)
    if scale == 1:
        return _run(unet, sample_BCHW, timestep, class_labels=labels_B)
    if scale == 0:
        return _run(unet, sample_BCHW, timestep, class_labels=no_class_B)
    twice = torch.cat([sample_BCHW, sample_BCHW])
    both = _run(unet, twice, timestep, class_labels=torch.cat([no_class_B, labels_B]))
    eps_null, eps_class = both.chunk(2)
    return eps_null + scale * (eps_class - eps_null)


def _run(unet: ModelMixin, sample: torch.Tensor, timestep: int | float, **labels: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, unet(sample, timestep, **labels).sample.float())
