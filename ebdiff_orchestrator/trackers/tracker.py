"""What every tracker does, behind which nothing knows of its library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

TENSORBOARD_FOLDER = "tensorboard"  # of a run's; its event files
WANDB_FOLDER = "wandb"  # of a run's; W&B has links in it, some to its cache


class Series(NamedTuple):
    """Numbers or pictures that go on step by step: of one region (`shared`: of a draw for all, `run`: of the run).

    `kind`: `train` and `draw` (losses and so on of a stage's updates), `resources/train` and `resources/draw` (what its
    worker took), `masks` (a draw's distances); `previews` and their `measures`, by number; `samples`.
    """

    region: str
    kind: str

    @property
    def name(self) -> str:
        """Such as `0-260/train`."""
        return f"{self.region}/{self.kind}"


class Tracker(Protocol):
    """One library's run. It is called from one thread alone; what it raises ends it, and nothing else."""

    def last_step(self, series: Series) -> int:
        """The last step that it has of a series, from an earlier launch too; -1 for none."""

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        """Numbers of one step, by name."""

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None:
        """A picture."""

    def flush(self) -> None:
        """Nothing more comes for a while."""

    def close(self) -> None:
        """Nothing more comes in this launch."""
