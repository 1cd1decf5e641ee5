"""Previews beside a launch: when the next is due, and the process of its own that draws it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import IO, NamedTuple, Self

from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import JobOutline
from ebdiff_orchestrator.run.view import View
from region_workers.data.parallel import import_path
from schemas.errors import RunFailed
from schemas.execution import PREVIEWS_FOLDER, PreviewRecord, PreviewSource, PreviewsPlan, picture_key, record_key
from schemas.job import RESULT_FILE

MOST_SHARE = 0.005  # of the processor time; training, which shares caches with them, may lose a little more
_LOOK_EVERY_S, _POLL_S, _END_LIMIT_S = 10.0, 0.2, 10.0
_MOST_FAILURES = 3  # in a row
_PROGRAM = "ebdiff_orchestrator.previews"
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Spent(NamedTuple):
    """Processor seconds: of all previews of this launch, and of the newest, of whichever launch."""

    all_s: float = 0.0
    last_s: float = 0.0


def seconds_to_wait(plan: PreviewsPlan, elapsed_s: float, since_last_s: float, spent: Spent, cores: float) -> float:
    """How long until the next preview: `interval_s` at least, and until it fits into its share of the processor time.

    `elapsed_s` since the launch, `since_last_s` since the newest preview of this launch, or since the launch.
    """
    affordable_at_s = (spent.all_s + spent.last_s) / (MOST_SHARE * cores)
    return max(0.0, plan.interval_s - since_last_s, affordable_at_s - elapsed_s)


def usable_cores() -> float:
    """The cores that this process may use: by its affinity and, in a container, by its quota."""
    cores = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):  # no such file, or a quota of "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def last_preview(run: RunDirectory) -> int:
    """The number of the run's newest whole preview; 0 without one."""
    names = (Path(key) for key in run.files.list_keys(PREVIEWS_FOLDER))
    return max((int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdigit()), default=0)


class Previews:
    """Within it, previews of the run appear while its jobs work; without a plan for them, none do.

    Another process draws them, one at a time, started by a thread of this one. It ends with this process, and with the
    context. What goes wrong with a preview is a line on the view, and no more.
    """

    def __init__(self, plan: PreviewsPlan | None, run: RunDirectory, jobs: Sequence[JobOutline], view: View) -> None:
        self._plan, self._view = plan, view
        self._run = RunDirectory(run.location, run.owner)  # the thread's own
        self._trainings = [job.train for job in jobs if job.train is not None]
        self._began_at = self._last_at = time.monotonic()
        self._last: PreviewRecord | None = None
        self._spent = Spent()
        self._over = Event()
        self._thread = Thread(target=self._work, args=(plan,), name="previews", daemon=True)

    def __enter__(self) -> Self:
        if self._plan is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._plan is not None:
            self._thread.join(_END_LIMIT_S)

    def _work(self, plan: PreviewsPlan) -> None:
        """What the thread does: a preview whenever one is due and a network is newer, until three in a row fail."""
        self._last = _newest_record(self._run)
        self._spent = Spent(0.0, self._last.processor_s if self._last else 0.0)
        failures = 0
        while failures < _MOST_FAILURES and not self._over.wait(self._pause_s(plan)):
            try:
                if self._draw_if_newer():
                    failures = 0
            except Exception as error:  # noqa: BLE001 - a preview's failure is none of the run's
                failures += 1
                self._last_at = time.monotonic()
                self._view.line(f"No preview: {str(error).rstrip('.')}. The run goes on.")
        if failures == _MOST_FAILURES:
            self._view.line(f"No more previews in this launch, after {failures} failures in a row.")

    def _pause_s(self, plan: PreviewsPlan) -> float:
        now, cores = time.monotonic(), usable_cores()
        due_in_s = seconds_to_wait(plan, now - self._began_at, now - self._last_at, self._spent, cores)
        return max(due_in_s, min(_LOOK_EVERY_S, plan.interval_s))

    def _draw_if_newer(self) -> bool:
        """Whether there was something new to be seen."""
        newest = self._newest()
        last = self._last
        if newest is None or (last and newest == {name: (last.source[name], last.steps[name]) for name in last.steps}):
            return False
        record = self._draw()
        self._last_at = time.monotonic()
        if record is None:
            return False
        self._last, picture = record, picture_key(record.number)
        self._view.line(f"Preview {record.number}: {self._run.location}/{picture}")
        self._view.previews(self._run.previews())
        return True

    def _newest(self) -> dict[str, tuple[PreviewSource, int]] | None:
        """Of each region which network is there, and its steps; None before each has one."""
        found: dict[str, tuple[PreviewSource, int]] = {}
        for train in self._trainings:
            is_drawn = self._run.fetch(f"{train.draw}/{RESULT_FILE}").is_file()
            steps = self._run.saved_steps(train.name if is_drawn else train.draw)
            if not is_drawn and not steps:
                return None
            found[train.region] = ("expert" if is_drawn else "dense", steps)
        return found

    def _draw(self) -> PreviewRecord | None:
        """The preview that the process has drawn; None for none at the moment. RunFailed if it failed."""
        command = [sys.executable, "-P", "-m", _PROGRAM, self._run.location, self._run.owner]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": import_path()},
                start_new_session=True,  # a Ctrl-C is for the program; this process ends with its input
            )
            with process:
                used_s = _wait_for(process, self._over)
            self._spent = Spent(self._spent.all_s + used_s, used_s)
            if process.returncode and not self._over.is_set():
                raise RunFailed(_reason(process.returncode, _last_line(errors)))
            said = _last_line(output)
        return PreviewRecord.model_validate_json(said) if said else None


def _wait_for(process: subprocess.Popen[bytes], over: Event) -> float:
    """The process's processor seconds, once it has ended; it is killed when all is over."""
    ended = os.wait4(process.pid, os.WNOHANG)
    while not ended[0]:
        is_over = over.wait(_POLL_S)
        if is_over:
            process.kill()
        ended = os.wait4(process.pid, 0 if is_over else os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    return ended[2].ru_utime + ended[2].ru_stime


def _reason(returncode: int, last_line: str) -> str:
    if returncode > 0:
        return last_line or f"its process ended with exit status {returncode}"
    return f"its process was ended by signal {-returncode}" + (" (is memory short?)" if returncode == -9 else "")


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return (file.read().decode(errors="replace").strip().splitlines() or [""])[-1]


def _newest_record(run: RunDirectory) -> PreviewRecord | None:
    """The record of the newest preview; None if there is none or it cannot be read."""
    try:
        return PreviewRecord.model_validate_json(run.fetch(record_key(last_preview(run))).read_text())
    except (OSError, ValueError):
        return None
