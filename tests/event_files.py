"""A run's event files, as TensorBoard's own reader has them."""

from pathlib import Path
from typing import Any


def events_of(run: Path, region: str) -> Any:
    """All that is there of a region (`run`: of the run), every picture too; by `Scalars(tag)` and `Images(tag)`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # not while tests are collected

    return EventAccumulator(str(run / "tensorboard" / region), size_guidance={"images": 0}).Reload()
