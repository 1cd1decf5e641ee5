"""Images from a pipeline, and images on disk."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ebdiff_orchestrator.ensemble.folders import check_own_folder, write_own_folder
from ebdiff_orchestrator.ensemble.guidance import check_classes
from ebdiff_orchestrator.ensemble.pipeline import EnsemblePipeline
from schemas.digest import seed_from
from schemas.errors import RunFailed, user_error

GRID = "grid.png"
GRID_IMAGES = 256
CELL_PX = 48
SEPARATOR_PX = 2

_KIND = "images written before"

_OWN_NAME = re.compile(r"\d{5,}\.png|" + re.escape(GRID))


def sample_images(
    pipeline: EnsemblePipeline,
    count: int,
    seed: int,
    steps: int | None,
    batch_size: int,
    report: Callable[[int, int], None] | None = None,
    first: int = 0,
    classes: Sequence[int] | None = None,
    guidance_scale: float | None = None,
) -> np.ndarray:
    """All of `iter_images`, uint8 [N, H, W, C]."""
    batches = iter_images(
        pipeline,
        count,
        seed,
        steps,
        batch_size,
        first=first,
        classes=classes,
        guidance_scale=guidance_scale,
        report=report,
    )
    return np.concatenate(list(batches))


def iter_images(
    pipeline: EnsemblePipeline,
    count: int,
    seed: int,
    steps: int | None,
    batch_size: int,
    *,
    first: int = 0,
    classes: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Iterator[np.ndarray]:
    """`count` images in batches, uint8 [b, H, W, C]: the images `first`, `first` + 1, ... of that seed.

    Image i's noise comes from (seed, i) on the CPU and its class is `classes[i % len(classes)]`, by default each of
    the ensemble's classes in turn. So batch size, device and where a range begins change nothing but rounding: on a
    CPU about 1e-5 of the range after 20 steps, and no bit between batches of one size, so that pieces of whole batches
    can be drawn anywhere. `steps` and `guidance_scale` default to the ensemble's. `report(done, total)` counts the
    steps. Raises `UserError` at once for options that do not fit, `RunFailed` if the network gives a non-finite image.
    """
    if count < 1 or batch_size < 1:
        raise user_error("count, batch_size", (count, batch_size), "at least 1 each", "Raise them.")
    cycle = _classes(classes, pipeline.num_classes)
    on_step, images = _step_counter(pipeline, math.ceil(count / batch_size), report), range(first, first + count)

    def batch_of(indices: range) -> np.ndarray:
        (images_NHWC,) = pipeline(
            batch_size=len(indices),
            generator=[image_generator(seed, index) for index in indices],
            num_inference_steps=steps,
            output_type="np",
            return_dict=False,
            show_progress=False,
            on_step=on_step,
            class_labels=None if cycle is None else [cycle[index % len(cycle)] for index in indices],
            guidance_scale=guidance_scale,
        )
        return _levels(images_NHWC, indices, seed)

    return (batch_of(images[start : start + batch_size]) for start in range(0, count, batch_size))


def image_generator(seed: int, index: int) -> torch.Generator:
    """What image `index` of this seed draws its noise from; of 2^32 images each has its own."""
    return torch.Generator("cpu").manual_seed(seed_from(seed, "image", index=index))


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


def _levels(images_NHWC: np.ndarray, indices: range, seed: int) -> np.ndarray:
    """Images in [0, 1] as uint8; `RunFailed` if one is not finite."""
    if not np.isfinite(images_NHWC).all():
        raise RunFailed(
            f"Images {indices[0]} to {indices[-1]} of seed {seed} are not finite: an expert has diverged, "
            "or its precision is too low. Sample in float32, or look at the experts' losses."
        )
    return (images_NHWC * 255).round().astype(np.uint8)


def _step_counter(
    pipeline: EnsemblePipeline, batches: int, report: Callable[[int, int], None] | None
) -> Callable[[], None]:
    """To be called at each denoising step: reports them over `batches` batches of equally many."""
    done = itertools.count(1)
    return lambda: report(next(done), batches * len(pipeline.scheduler.timesteps)) if report else None


def check_images_folder(out: Path) -> None:
    """Raise `UserError` if `write_images` would refuse `out`; to be asked before the work is done."""
    check_own_folder(out, _holds_images_only, _KIND, "--out")


def write_images(images_NHWC: np.ndarray, out: Path) -> None:
    """Write uint8 images [N, H, W, C] (C of 1 or 3) as 00000.png, 00001.png, ... and the first 256 as grid.png.

    The folder appears whole or not at all; an older folder of images is replaced, any other refused (`UserError`).
    """

    def write(folder: Path) -> None:
        for index, image_HWC in enumerate(images_NHWC):
            to_pil(image_HWC).save(folder / f"{index:05d}.png")
        to_pil(image_grid(images_NHWC[:GRID_IMAGES])).save(folder / GRID)

    write_own_folder(out, write, _holds_images_only, _KIND)


def image_grid(images_NHWC: np.ndarray) -> np.ndarray:
    """The images, uint8, side by side in a near-square grid on white [height, width, C], row by row.

    Small ones are enlarged by a whole factor (nearest neighbour) to cells of at least 48 px.
    """
    count, height, width, channels = images_NHWC.shape
    factor = max(1, math.ceil(CELL_PX / min(height, width)))
    cells = images_NHWC.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pitch_y, pitch_x = height * factor + SEPARATOR_PX, width * factor + SEPARATOR_PX
    grid = np.full((rows * pitch_y - SEPARATOR_PX, columns * pitch_x - SEPARATOR_PX, channels), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * pitch_y, index % columns * pitch_x
        grid[top : top + height * factor, left : left + width * factor] = cell
    return grid


def to_pil(image_HWC: np.ndarray) -> Image.Image:
    """A uint8 image [H, W, C] (C of 1 or 3) as a greyscale or RGB picture."""
    return Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)


def _holds_images_only(folder: Path) -> bool:
    return all(_OWN_NAME.fullmatch(entry.name) for entry in folder.iterdir())
