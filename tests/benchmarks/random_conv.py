"""Whether measures that need no weights tell good images from bad: real ones, made worse step by step.

    python tests/benchmarks/random_conv.py [--data cifar10-train.parquet] [--images 850] [--side 16]
                                           [--short] [--json FILE]

Measures are the distances of `--extractor random-conv` (Frechet and kernel) and the Frechet wavelet distance. The
reference is as many other images of the data. Each kind of harm (blur, noise, another distribution mixed in, images
repeated) comes in steps; figures are values over that of images left as they are, which should be near 1, and must
rise with every step; those of the kernel distance are the values themselves, in thousandths. Without `--data` the
images are the digits that the tests use, whose distribution to mix in is their negatives. Seconds are of one process
and its threads.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench import Report, arguments, benchmark, parsed, timed
from PIL import Image, ImageFilter

from ebdiff_orchestrator.evaluation.extractors import Extractor
from ebdiff_orchestrator.evaluation.feature_measures import kernel_distance
from ebdiff_orchestrator.evaluation.random_conv import RandomConv
from ebdiff_orchestrator.evaluation.statistics import Statistics, frechet_distance
from ebdiff_orchestrator.evaluation.wavelet import quick_measure
from region_workers.data.store import ensure_store
from region_workers.storage.places import cache_dir_of
from schemas.plan import DataPlan

Images = np.ndarray
CPU = torch.device("cpu")

BLURS, NOISES, SHARES, REPEATS = (0.4, 0.8, 1.2), (8, 16, 32), (0.05, 0.1, 0.2, 0.4), (4, 16)


def images_of(data: Path | None, side: int, count: int) -> tuple[Images, Images, Images]:
    """Uint8 [count, H, W, C] each: the reference, other images of the data, and images of another distribution."""
    digits = DataPlan(resolution=side, channels=3 if data else 1)
    plan = DataPlan(path=str(data), resolution=side, channels=3) if data else digits
    store = ensure_store(plan, cache_dir_of())
    reference, real = np.split(
        np.asarray(store.array[np.random.default_rng(0).permutation(len(store))[: 2 * count]]), 2
    )
    other = np.asarray(ensure_store(digits, cache_dir_of()).array[:count])
    return reference, real, other if data else 255 - other


def blurred(images: Images, radius: float) -> Images:
    """By a Gaussian of `radius` pixels."""
    pictures = [Image.fromarray(image.squeeze()).filter(ImageFilter.GaussianBlur(radius)) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures]).reshape(images.shape)


def noisy(images: Images, deviation: float) -> Images:
    """With Gaussian noise, in grey levels."""
    noise = np.random.default_rng(1).normal(0, deviation, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def mixed(images: Images, other: Images, share: float) -> Images:
    """A share of the images replaced."""
    replaced = round(len(images) * share)
    return np.concatenate([other[:replaced], images[replaced:]])


def repeated(images: Images, times: int) -> Images:
    """Few of the images, each so many times."""
    return np.repeat(images[: -(-len(images) // times)], times, axis=0)[: len(images)]


def measures_against(reference: Images) -> dict[str, Callable[[Images], float]]:
    """By name: what gives the value of images against the reference."""
    extractor = Extractor(RandomConv(CPU), CPU)

    def statistics(images: Images) -> Statistics:
        features = extractor.features(images).astype(np.float64)
        return Statistics(features.mean(axis=0), np.cov(features, rowvar=False), len(features))

    theirs, their_features = statistics(reference), extractor.features(reference)
    return {
        "FD-random-conv": lambda images: frechet_distance(statistics(images), theirs),
        "KID-random-conv": lambda images: 1000 * kernel_distance(extractor.features(images), their_features)[0],
        "FWD": lambda images: quick_measure(images, reference),
    }


def measure(reference: Images, real: Images, other: Images, report: Report) -> None:
    """Values against the reference, of real images and of harmed ones."""
    extractor = Extractor(RandomConv(CPU), CPU)
    report.add("features of 1,000 images", timed(lambda: extractor.features(real)) * 1000 / len(real), "s", at_most=5)
    few = real[:64], reference[:64]
    report.add("FWD of 64 images", timed(lambda: quick_measure(*few)), "s", at_most=1)
    some = slice(1 if report.settings["short"] else None)
    harms = {
        "blur of {} px": [(by, blurred(real, by)) for by in BLURS[some]],
        "noise of {} levels": [(by, noisy(real, by)) for by in NOISES[some]],
        "{:.0%} of another distribution": [(by, mixed(real, other, by)) for by in SHARES[some]],
        "each image {} times": [(by, repeated(real, by)) for by in REPEATS[some]],
    }
    for measure_name, value_of in measures_against(reference).items():
        left = value_of(real)
        report.add(f"{measure_name} of real images", left)
        of_kernel = measure_name.startswith("KID")  # about 0 for real images, whose multiple would say nothing
        for name, steps in harms.items():
            before = left if of_kernel else 1.0
            for by, images in steps:
                over = value_of(images) / (1 if of_kernel else left)
                blind = of_kernel and "times" in name  # which does not grow with copies
                unit = "/1000" if of_kernel else "x"
                report.add(f"{measure_name}: {name.format(by)}", over, unit, at_least=None if blind else before)
                before = over


def main() -> None:
    parser = arguments(__doc__, images=850, side=16)
    parser.add_argument("--data", type=Path, metavar="FILE", help="images in Parquet; default: the digits")
    options = parsed(parser, data=None, images=40, side=8)
    with benchmark("random_conv", options) as (report, _):
        measure(*images_of(options.data, options.side, options.images), report)


if __name__ == "__main__":
    main()
