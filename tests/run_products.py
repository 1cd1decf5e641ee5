"""What a run is for, by digest, so what must be equal after any accident: not what says when something was done."""

from __future__ import annotations

from pathlib import Path

from region_workers.storage.integrity import file_digest
from region_workers.storage.tables import read_metrics
from schemas.digest import digest

_METRICS = ("step", "loss", "gradient_norm", "learning_rate")
_PRODUCTS = ("draw/*/masks.arrow", "draw/*/tickets/**/*", "train/*/expert/*", "ensemble/**/*", "samples/*")


def products(run_dir: Path) -> dict[str, str]:
    """The SHA-256 of every product of a run, by path, and of the numbers in each stage's metrics."""
    files = [path for pattern in _PRODUCTS for path in sorted(run_dir.glob(pattern)) if path.is_file()]
    digests = {path: file_digest(path) for path in files}
    digests |= {path: digest(_numbers(path)) for path in sorted(run_dir.glob("*/*/metrics.parquet"))}
    return {path.relative_to(run_dir).as_posix(): sha256 for path, sha256 in digests.items()}


def _numbers(metrics: Path) -> list[list[object]]:
    """Row by row what is the same whenever and wherever it is measured."""
    return [[row[name] for name in _METRICS] for row in read_metrics(metrics)]
