"""A campaign of kills: which victim when, what came of it, and whether the runs end as one that nobody harmed."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kill_job import ASSEMBLE, CHECKPOINT, DRAW, EVALUATE, PREPARE, SAMPLE, STAGES, TRAIN, Materials, Run, watch
from kill_processes import DRIVER, GCS, GROUP, RAYLET, WORKER, Command, end_orphans, is_worker, orphans
from processes import Process, descendants

KILL, TERM = signal.SIGKILL, signal.SIGTERM
_ALL = (DRIVER, WORKER, RAYLET, GCS, GROUP)
_VICTIMS = {  # the driver assembles and samples by itself
    PREPARE: _ALL,
    DRAW: _ALL,
    CHECKPOINT: _ALL,
    TRAIN: _ALL,
    ASSEMBLE: (DRIVER, RAYLET, GCS, GROUP),
    SAMPLE: (DRIVER, RAYLET, GCS, GROUP),
    EVALUATE: _ALL,
}
_TRAINED = (DRAW, CHECKPOINT, TRAIN)
_POLL_S, _QUICK_POLL_S = 0.03, 0.004  # a checkpoint is soon written; each look costs a millisecond of a core
_END_LIMIT_S = 240.0  # for a command to end by itself after a kill; a driver may wait for its workers to save
_ORPHANED_S = 20.0  # for workers to notice that their driver is gone, and to end; the next command waits no longer
_BRIEF_S = 0.03  # of a stage that was over too soon to be timed


@dataclass(frozen=True)
class Aim:
    """What is to be killed by what, in which stage."""

    stage: str
    victim: str
    signal: signal.Signals


@dataclass
class Row:
    """One kill that was carried out."""

    number: int
    run: int
    stage: str
    victim: str
    signal: str
    under_way: str
    process: str
    delay_s: float
    exit_code: int | None = None
    ended_after_s: float = 0.0
    left_behind: int = 0
    left_behind_s: float = 0.0
    outcome: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        """Whether the run ended in the same bits, and no process had to be ended for it."""
        return self.outcome == "equal"

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "survived": self.survived}


class Decks:
    """The kills of each stage, in random order: every victim and signal comes once before any comes again.

    A run takes `each` kills in every stage that workers train in, one in the others.
    """

    def __init__(self, stages: Sequence[str], chosen: random.Random, each: int = 1) -> None:
        self._decks: dict[str, list[Aim]] = {stage: [] for stage in stages}
        self._chosen, self._each = chosen, each

    def draw(self) -> list[Aim]:
        """The kills of one run, in the order of the stages."""
        return [self._next(stage) for stage in self._decks for _ in range(_kills_in(stage, self._each))]

    def put_back(self, aim: Aim) -> None:
        """It was not carried out: it comes again, after the others."""
        self._decks[aim.stage].insert(0, aim)

    def _next(self, stage: str) -> Aim:
        deck = self._decks[stage]
        if not deck:
            deck += [Aim(stage, victim, number) for victim in _VICTIMS[stage] for number in (KILL, TERM)]
            self._chosen.shuffle(deck)
        return deck.pop()


class Campaign:
    """Kills runs of one plan in `folder`; `say` hears of every step.

    `measures`: whether each run is also evaluated, and images drawn from it, before it is compared. `each`: how many
    kills a stage of training is to take; it is so many times as long. `one_region`: as in Materials.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        limit_s: float,
        say: Callable[[str], None],
        measures: bool = True,
        each: int = 1,
        one_region: bool = False,
    ) -> None:
        self._folder, self._limit_s, self._say, self._measures = folder, limit_s, say, measures
        self._each = each
        self._chosen = random.Random(seed)
        self.materials = Materials.write(folder / "materials", each, one_region)
        self._expected: dict[str, str] = {}
        self._lasts: Mapping[str, float] = {}
        self.rows: list[Row] = []

    def take_the_undisturbed_run(self) -> None:
        """Run the plan once to the end, unharmed: how long its stages last, and what it leaves."""
        run = Run(self.materials, self._folder / "undisturbed")
        lasts = watch(run, run.go_on(), self._limit_s)
        if self._measures:
            lasts |= watch(run, run.evaluate(), self._limit_s)
            watch(run, run.sample(), self._limit_s)
        self.expect(run, {stage: max(seconds, _BRIEF_S) for stage, seconds in lasts.items()})
        seconds = ", ".join(f"{stage} {self._lasts.get(stage, 0.0):.1f} s" for stage in STAGES)
        self._say(f"the undisturbed run: {len(self._expected)} files; {seconds}")

    def expect(self, run: Run, lasts: Mapping[str, float]) -> None:
        """Take this run for the one that the others must equal; its stages last so many seconds."""
        self._expected, self._lasts = run.products(), {**lasts, CHECKPOINT: _BRIEF_S}  # one, not all that are written

    def attack(self, number: int, run_aims: Sequence[Aim]) -> list[Aim]:
        """One run from its beginning to its end under these kills, then compared; the kills that came to nothing."""
        run, rows, missed = Run(self.materials, self._folder / f"run-{number:02}"), [], []
        command: Command | None = None
        for aim in run_aims:
            if aim.stage != EVALUATE and run.finished():
                self._miss(aim, "the run was finished")
                missed.append(aim)
                continue
            command = self._at_stage(run, command, aim.stage)
            row = self._kill(run, number, command, aim)
            if row is not None:
                rows.append(row)
            else:
                missed.append(aim)
        self._finish(run, command, rows)
        outcome = self._compare(run, number)
        for row in rows:
            row.outcome = row.outcome or outcome
        if outcome == "equal":
            shutil.rmtree(run.folder)
        return missed

    def _at_stage(self, run: Run, command: Command | None, stage: str) -> Command:
        """A command at work on the run that is seen at the stage, or else one that has ended without."""
        for _ in range(2):  # the first may be one that an earlier kill brings down
            command = self._started(run, command, stage)
            if self._comes_to(run, command, stage):
                break
        assert command is not None
        return command

    def _started(self, run: Run, command: Command | None, stage: str) -> Command:
        """A command that is at work on the run and will come to the stage."""
        if command is not None and command.code is None and (stage == EVALUATE) == run.finished():
            return command
        if stage != EVALUATE:
            return run.go_on()
        self._go_on_until(run, command, run.finished, [])
        return run.evaluate()

    def _kill(self, run: Run, number: int, command: Command, aim: Aim) -> Row | None:
        """Wait for the moment and kill; None if it has gone by, or if there was no such process at it."""
        if command.code is not None:
            self._miss(aim, f"the stage was not seen (exit code {command.code})")
            return None
        within = 0.9 / _kills_in(aim.stage, self._each)
        delay_s = self._chosen.uniform(0, within) * self._lasts.get(aim.stage, _BRIEF_S)
        time.sleep(delay_s)
        under_way = ", ".join(sorted(run.under_way(command))) or "between stages"
        process = command.kill(aim.victim, aim.signal, self._chosen.randrange(99)) if command.code is None else None
        if process is None:
            self._miss(aim, f"there was no {aim.victim} at that moment ({under_way})")
            return None
        row = Row(
            number=len(self.rows) + 1,
            run=number,
            stage=aim.stage,
            victim=aim.victim,
            signal=aim.signal.name,
            under_way=under_way,
            process=f"{process.name}: {process.command[:60]}",
            delay_s=round(delay_s, 3),
        )
        self.rows.append(row)
        if aim.victim != WORKER:
            self._see_it_end(command, row)
        self._say(
            f"{row.number:3} run {number}: {row.victim} {row.signal} at {row.stage} ({row.under_way}); exit code "
            f"{row.exit_code} after {row.ended_after_s:.1f} s, {row.left_behind} workers left after "
            f"{row.left_behind_s:.1f} s {' '.join(row.notes)}"
        )
        return row

    def _comes_to(self, run: Run, command: Command, stage: str) -> bool:
        until = time.monotonic() + self._limit_s
        while command.code is None and time.monotonic() < until:
            if run.is_at(stage, command):
                return True
            time.sleep(_QUICK_POLL_S if stage == CHECKPOINT else _POLL_S)
        return False

    def _see_it_end(self, command: Command, row: Row) -> None:
        """Wait for the command's end, and for that of what it left; what does not end by itself is ended and noted."""
        began = time.monotonic()
        row.exit_code = command.wait(_END_LIMIT_S)
        row.ended_after_s = round(time.monotonic() - began, 2)
        if row.exit_code == 2:
            row.notes.append(f"taken for bad input: {command.output.read_text().strip().splitlines()[-1]}")
        if row.exit_code is None:
            row.outcome = "hung"
            row.notes.append(f"still there: {[process.command[:40] for process in descendants(command.pid)][:4]}")
            command.kill(GROUP, KILL, 0)
            command.wait(10)
        began = time.monotonic()
        while _workers_left() and time.monotonic() - began < _ORPHANED_S:
            time.sleep(0.05)
        row.left_behind_s = round(time.monotonic() - began, 2)
        row.left_behind = len(_workers_left())

    def _finish(self, run: Run, command: Command | None, rows: list[Row]) -> None:
        """To the end: the run, its evaluation, and images drawn from it."""
        self._go_on_until(run, command, run.finished, rows)
        for start in (run.evaluate, run.sample) if self._measures else ():
            last = start()
            if last.wait(self._limit_s) != 0:
                self._note(rows, last)
        end_orphans()

    def _go_on_until(self, run: Run, command: Command | None, done: Callable[[], bool], rows: list[Row]) -> None:
        """Resume until the run is done; a resume that does not end well is noted."""
        if command is not None and command.code is None and command.wait(self._limit_s) != 0:
            self._note(rows, command)
        for _ in range(4):
            if done():
                return
            command = run.go_on()
            if command.wait(self._limit_s) != 0:
                self._note(rows, command)

    def _note(self, rows: list[Row], command: Command) -> None:
        last_words = command.output.read_text().strip().splitlines()[-2:]
        self._say(f"  {command.output}: exit code {command.code}: {last_words}")
        if command.code is None:
            command.kill(GROUP, KILL, 0)
            command.wait(10)
        if rows:
            rows[-1].notes.append(f"a later command ended with {command.code}: {' '.join(last_words)[:200]}")

    def _compare(self, run: Run, number: int) -> str:
        found = run.products()
        others = [name for name in self._expected if found.get(name) != self._expected[name]]
        others += [f"{name} (unexpected)" for name in found if name not in self._expected]
        self._say(f"run {number}: {'equal' if not others else f'NOT EQUAL: {others}'}")
        return "equal" if not others else f"not equal: {others[:5]}"

    def _miss(self, aim: Aim, why: str) -> None:
        self._say(f"  missed: {aim.victim} {aim.signal.name} at {aim.stage}: {why}")


def _kills_in(stage: str, each: int) -> int:
    """How many kills a run takes in a stage."""
    return each if stage in _TRAINED else 1


def _workers_left() -> list[Process]:
    """Workers of commands that have ended. Ray's own helpers may stay for a minute; they do nothing."""
    return [process for process in orphans() if is_worker(process)]
