"""TensorBoard's event files, a folder a region, so that the curves of all regions and runs lie in one chart."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebdiff_orchestrator.trackers.group import TENSORBOARD_FOLDER, Series


class TensorBoard:
    """Written anew by each launch, from what the run has on record: so no step is there twice, and none is missing."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / TENSORBOARD_FOLDER
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writers: dict[str, Any] = {}

    def last_step(self, series: Series) -> int:
        return -1

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        for name, value in values.items():
            self._writer(series).add_scalar(f"{series.kind}/{name}", value, step, walltime=unix_s)

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None:
        with Image.open(png) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        self._writer(series).add_image(series.kind, pixels_HWC, step, walltime=unix_s, dataformats="HWC")

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, series: Series) -> Any:
        if series.region not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[series.region] = SummaryWriter(str(self._folder / series.region))
        return self._writers[series.region]
