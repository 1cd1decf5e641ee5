"""What a run is for, by digest, so what must be equal after any accident: not what says when something was done."""

from collections.abc import Iterable
from pathlib import Path

from region_workers.storage.integrity import file_digest
from region_workers.storage.tables import read_metrics
from schemas.digest import digest

_METRICS = ("step", "loss", "gradient_norm", "learning_rate")
PRODUCTS = ("draw/*/masks.arrow", "draw/*/tickets/**/*", "train/*/expert/*", "ensemble/**/*", "samples/*")


def products(run_dir: Path) -> dict[str, str]:
    """The SHA-256 of every product of a run, by path, and of the numbers in each stage's metrics."""
    metrics = sorted(run_dir.glob("*/*/metrics.parquet"))
    numbers = {path.relative_to(run_dir).as_posix(): digest(_numbers(path)) for path in metrics}
    return digests(run_dir, PRODUCTS) | numbers


def digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the files below a folder that fit one of the patterns, by path."""
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _numbers(metrics: Path) -> list[list[object]]:
    """Row by row what is the same whenever and wherever it is measured."""
    return [[row[name] for name in _METRICS] for row in read_metrics(metrics)]
