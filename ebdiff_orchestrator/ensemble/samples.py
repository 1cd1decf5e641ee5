"""Samples of an ensemble, images or drawings: batch after batch, whoever draws them, and as a folder of files."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ebdiff_orchestrator.ensemble.folders import check_own_folder, write_own_folder
from ebdiff_orchestrator.ensemble.pictures import Drawing, write_drawings, write_images
from ebdiff_orchestrator.ensemble.pipeline import check_classes, scale_of
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline
from schemas.digest import seed_from
from schemas.errors import RunFailed, user_error

Samples = np.ndarray | list[Drawing]  # images, uint8 [N, H, W, C], or strokes

_KIND = "samples written before"
_OWN_NAME = re.compile(r"(\d{5,}|grid)\.(png|svg)")


def samples_of(
    pipeline: RoutedPipeline,
    count: int,
    seed: int,
    steps: int | None,
    batch_size: int,
    report: Callable[[int, int], None] | None = None,
    first: int = 0,
    classes: Sequence[int] | None = None,
    guidance_scale: float | None = None,
) -> Samples:
    """All of `iter_samples`."""
    how = (pipeline, count, seed, steps, batch_size)
    batches = iter_samples(*how, first=first, classes=classes, guidance_scale=guidance_scale, report=report)
    return joined(list(batches))


def iter_samples(
    pipeline: RoutedPipeline,
    count: int,
    seed: int,
    steps: int | None,
    batch_size: int,
    *,
    first: int = 0,
    classes: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Iterator[Samples]:
    """`count` samples in batches: the samples `first`, `first` + 1, ... of that seed.

    Sample i's noise comes from (seed, i) on the CPU and its class is `classes[i % len(classes)]`, by default each of
    the ensemble's classes in turn. So batch size, device and where a range begins change nothing but rounding: on a
    CPU about 1e-5 of the range after 20 steps, and no bit between batches of one size, so that pieces of whole batches
    can be drawn anywhere. `steps` and `guidance_scale` default to the ensemble's. `report(done, total)` counts the
    steps. Raises `UserError` at once for options that do not fit, `RunFailed` if one of them is not finite.
    """
    if count < 1 or batch_size < 1:
        raise user_error("count, batch_size", (count, batch_size), "at least 1 each", "Raise them.")
    cycle = _classes(classes, pipeline.num_classes)
    scale_of(guidance_scale, None, pipeline.num_classes)
    indices, batches, done = range(first, first + count), math.ceil(count / batch_size), itertools.count(1)

    def on_step() -> None:
        if report is not None:
            report(next(done), batches * len(pipeline.scheduler.timesteps))

    def by_class(batch: range) -> dict[str, Any]:
        if cycle is None:
            return {}
        return {"class_labels": [cycle[index % len(cycle)] for index in batch], "guidance_scale": guidance_scale}

    def batch_of(batch: range) -> Samples:
        samples, *_ = pipeline(
            batch_size=len(batch),
            generator=[sample_generator(seed, index) for index in batch],
            num_inference_steps=steps,
            output_type=pipeline.sample_type,
            return_dict=False,
            show_progress=False,
            on_step=on_step,
            **by_class(batch),
        )
        _check_finite(samples, f"{pipeline.noun.capitalize()} {batch[0]} to {batch[-1]} of seed {seed}")
        return cast(Samples, pipeline.finished(samples))

    return (batch_of(indices[start : start + batch_size]) for start in range(0, count, batch_size))


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of all parts, in their order."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [drawing for part in parts for drawing in part]


def sample_generator(seed: int, index: int) -> torch.Generator:
    """What sample `index` of this seed draws its noise from; of 2^32 samples each has its own."""
    return torch.Generator("cpu").manual_seed(seed_from(seed, "image", index=index))


def check_samples_folder(out: Path) -> None:
    """Raise `UserError` if `write_samples` would refuse `out`; to be asked before the work is done."""
    check_own_folder(out, _holds_samples_only, _KIND, "--out")


def write_samples(samples: Samples, out: Path) -> None:
    """Write images as PNG files and drawings as SVG files, each with a grid of the first 256.

    The folder appears whole or not at all; an older folder of samples is replaced, any other refused (`UserError`).
    """

    def write(folder: Path) -> None:
        if isinstance(samples, np.ndarray):
            write_images(samples, folder)
        else:
            write_drawings(samples, folder)

    write_own_folder(out, write, _holds_samples_only, _KIND)


def _classes(classes: Sequence[int] | None, num_classes: int | None) -> Sequence[int] | None:
    """The classes that images take in turn; None for an ensemble without any."""
    if classes is None:
        return None if num_classes is None else range(num_classes)
    if num_classes is None:
        raise user_error("classes", list(classes), "None, since the ensemble has no classes", "Leave it out.")
    if not len(classes):
        raise user_error("classes", [], "at least one class", "Leave it out for each class in turn.")
    check_classes(classes, num_classes)
    return classes


def _check_finite(samples: Any, which: str) -> None:
    if not all(np.isfinite(sample).all() for sample in samples):
        raise RunFailed(
            f"{which} are not finite: an expert has diverged, or its precision is too low. "
            "Sample in float32, or look at the experts' losses."
        )


def _holds_samples_only(folder: Path) -> bool:
    return all(_OWN_NAME.fullmatch(entry.name) for entry in folder.iterdir())
