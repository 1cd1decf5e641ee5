"""The trackers of a run, each in a thread of its own: one that fails or hangs costs a warning and never the run."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import NamedTuple, Protocol

from schemas.errors import plan_error
from schemas.execution import TrackerName
from schemas.plan import Plan

TENSORBOARD_FOLDER = "tensorboard"  # of a run's; its event files
WANDB_FOLDER = "wandb"  # of a run's; W&B has links in it, some to its cache
_MOST_WAITING = 200_000  # calls; a tracker that is so far behind is given up
_CLOSE_LIMIT_S = 30.0
_FLUSH_EVERY_S = 5.0


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


Call = Callable[[Tracker], None]


def check_trackers(names: tuple[TrackerName, ...]) -> None:
    """Raise PlanError for a tracker whose library, which has its name, is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            expected = f"trackers that are installed; {name} is not"
            remedy = f"pip install 'ebdiff-orchestrator[{name}]', or leave it out."
            raise plan_error("logging.trackers", list(names), expected, remedy)


class Trackers:
    """The plan's trackers. Nothing here waits for them but `close`, for a while; `warnings` tells which were given up.

    A step that a tracker has of a series already is not told to it again.
    """

    def __init__(self, plan: Plan, run_dir: Path, run_id: str, run_name: str) -> None:
        """`run_id`: letters and digits by which the run is found again when it goes on; `run_name`: for people."""
        self._threads = [
            _Thread(name, partial(_make, name, plan, run_dir, run_id, run_name)) for name in plan.logging.trackers
        ]

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        """Numbers of one step."""
        self._tell(series, step, lambda tracker: tracker.scalars(series, values, step, unix_s))

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None:
        """A picture; the file must stay."""
        self._tell(series, step, lambda tracker: tracker.image(series, step, png, unix_s))

    def warnings(self) -> list[str]:
        """What is to be said of trackers that were given up since the last call."""
        found = [thread.take_warning() for thread in self._threads]
        return [warning for warning in found if warning]

    def close(self) -> None:
        """Wait until all is written, `_CLOSE_LIMIT_S` at most for all of them together."""
        deadline = time.monotonic() + _CLOSE_LIMIT_S
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.wait(deadline - time.monotonic())

    def _tell(self, series: Series, step: int, call: Call) -> None:
        for thread in self._threads:
            thread.tell(series, step, call)


def _make(name: TrackerName, plan: Plan, run_dir: Path, run_id: str, run_name: str) -> Tracker:
    from ebdiff_orchestrator.trackers.libraries import MLflow, TensorBoard, WandB

    if name == "tensorboard":
        return TensorBoard(run_dir)
    if name == "mlflow":
        return MLflow(run_dir, run_id, run_name, plan.name, {"plan": plan.name, "seed": str(plan.seed)})
    return WandB(run_dir, run_id, run_name, plan.name, plan.model_dump(mode="json"))


class _Thread:
    """One tracker and the calls that wait for it."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._make = name, make
        self._calls: Queue[tuple[Series, int, Call] | None] = Queue(_MOST_WAITING)
        self._last: dict[Series, int] = {}
        self._warning, self._given_up = "", False
        self._thread = Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def tell(self, series: Series, step: int, call: Call) -> None:
        self._put((series, step, call))

    def take_warning(self) -> str:
        warning, self._warning = self._warning, ""
        return warning

    def end(self) -> None:
        self._put(None)

    def wait(self, limit_s: float) -> None:
        if not self._given_up:
            self._thread.join(max(0.0, limit_s))
            if self._thread.is_alive():
                self._give_up(f"it was not done {_CLOSE_LIMIT_S:.0f} s after the run")

    def _put(self, told: tuple[Series, int, Call] | None) -> None:
        try:
            if not self._given_up:
                self._calls.put_nowait(told)
        except Full:
            self._give_up("it does not answer")

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._warning = f"{self._name}: given up ({reason}); the run goes on, its numbers are in its Parquet files."

    def _run(self) -> None:
        try:
            tracker = self._make()
            flushed_at = time.monotonic()
            while (told := self._calls.get()) is not None:
                self._hand_over(tracker, *told)
                if self._calls.empty() or time.monotonic() - flushed_at > _FLUSH_EVERY_S:
                    tracker.flush()
                    flushed_at = time.monotonic()
            tracker.close()
        except Exception as error:  # noqa: BLE001 - whatever a library of somebody else raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self._give_up(reason)

    def _hand_over(self, tracker: Tracker, series: Series, step: int, call: Call) -> None:
        if series not in self._last:
            self._last[series] = tracker.last_step(series)
        if step > self._last[series]:
            call(tracker)
            self._last[series] = step
