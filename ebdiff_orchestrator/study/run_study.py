"""`run_study`: the runs of a study on one cluster, each an ordinary run in a folder of the study's."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread

from ebdiff_orchestrator.cluster.connecting import check_surroundings, connect
from ebdiff_orchestrator.cluster.executor import Executor
from ebdiff_orchestrator.evaluation.evaluate import evaluate
from ebdiff_orchestrator.run.interrupts import Interrupts
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.ownership import RunInUseError, claim_run
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.study.decide import Standing, StudyRun, donors, next_run, runs_of
from ebdiff_orchestrator.study.load import check_goes_on, write_study
from ebdiff_orchestrator.study.progress import Seen, board_of
from ebdiff_orchestrator.study.view import RunView, StudyView
from ebdiff_orchestrator.study.workers import LentWorkers, SharedWorkers
from region_workers.storage.durable import write_model
from region_workers.storage.run_files import RunFiles, local_folder
from schemas.errors import RunFailed, RunStopped, command, user_error, without_secrets
from schemas.manifest import RAY_LOG
from schemas.study import FAILURES_FILE, StudyFailures, StudyPlan

_LOOK_S, _TELL_S = 0.5, 2.0
_END_S = 5.0
_MORE_TO_STOP_S = 30.0  # than a run gives its own workers


def run_study(
    study: StudyPlan,
    study_dir: str | Path | None = None,
    *,
    address: str | None = None,
    view: View | None = None,
    executor: Executor | None = None,
) -> Path:
    """Run every row of a loaded study with every seed in `study_dir` (default: studies/<study.name>), and measure it.

    Each run is an ordinary one, in ROW-sSEED; what was begun goes on. `address`, `executor`: as `launch`. Raises
    UserError if the folder holds another study, or another command works on it; RunFailed, when all the others are
    done, if runs failed; RunStopped on Ctrl-C. Returns the folder.
    """
    if executor is None:
        check_surroundings(address)
    view, folder = view or View(), local_folder(Path("studies", study.name) if study_dir is None else study_dir)
    if folder is None:
        expected = "a folder that all workers share, since rows start from each other's runs"
        raise user_error("--study-dir", study_dir, expected, "Give one.")
    runs = runs_of(study, folder)
    with _held(study, folder, view), view:
        plans = [run.plan for run in runs]
        most_jobs = max(len(plan.regions) for plan in plans)
        connected = connect(plans[0].workers, most_jobs, address, folder / RAY_LOG, view.waiting, executor)
        with connected as workers, Interrupts() as interrupts:
            _Study(study, runs, folder, SharedWorkers(workers), view, interrupts).run()
    return folder


@contextmanager
def _held(study: StudyPlan, folder: Path, view: View) -> Iterator[None]:
    """The study is in its folder, and no second command works on it."""
    check_goes_on(study, folder)
    if RunDirectory(folder).exists():
        expected = "a folder for a study alone, but a run is there"
        raise user_error("--study-dir", folder, expected, "Give another.")
    files = RunFiles(folder)
    try:
        ownership = claim_run(files, say=view.line)
    except RunInUseError as error:
        expected = f"no other command at work on this study, but {error.holder} is"
        raise user_error("--study-dir", folder, expected, "Wait until it has ended, or give another.") from None
    except OSError as error:
        raise files.unusable(error) from None
    try:
        write_study(study, folder)
        yield
    finally:
        ownership.release()


@dataclass
class _AtWork:
    """A run under way, in a thread of its own. `is_made`: it is finished, and being measured."""

    workers: LentWorkers
    view: RunView
    is_made: bool = False
    ended: Future[None] = field(default_factory=Future)


class _Study:
    """The loop over runs: carries out what `decide` says, and notes how each ended."""

    def __init__(
        self,
        study: StudyPlan,
        runs: tuple[StudyRun, ...],
        folder: Path,
        workers: SharedWorkers,
        view: View,
        interrupts: Interrupts,
    ) -> None:
        self._study, self._folder, self._workers = study, folder, workers
        self._runs = {run.name: run for run in runs}
        self._view, self._interrupts = view, interrupts
        self._at_work: dict[str, _AtWork] = {}
        self._finished: set[str] = set()
        self._failed: dict[str, str] = {}
        self._measuring = Lock()
        self._seen = {name: _seen(folder / name) for name in self._runs}
        self._told_at = -_TELL_S

    def run(self) -> None:
        """Begin, watch and note until nothing is left to be done."""
        self._note_failures()
        is_over = False
        while not is_over:
            self._check_whether_to_go_on()
            self._collect()
            standing = self._standing()
            decision = next_run(tuple(self._runs.values()), standing)
            for name, reason in decision.give_up.items():
                self._fail(name, reason)
            if decision.begin is not None:
                self._begin(self._runs[decision.begin])
            is_over = decision.over and not decision.give_up
            self._tell(standing, at_once=is_over)
            if not is_over:
                time.sleep(_LOOK_S)
        if self._failed:
            lines = "\n".join(f"  - {name}: {reason}" for name, reason in self._failed.items())
            raise RunFailed(
                f"{len(self._failed)} of {len(self._runs)} runs failed; the others are finished:\n{lines}\n"
                f"When the cause is gone: {self._how_to_go_on()}"
            )

    def _check_whether_to_go_on(self) -> None:
        if self._interrupts.requested:
            self._stop()
        if self._workers.executor.has_ended():  # the runs at work see it too
            self._wait_for_runs(_MORE_TO_STOP_S)
            raise RunFailed(f"The Ray of this study has ended; what is saved stays. Go on with: {self._how_to_go_on()}")

    def _standing(self) -> Standing:
        """With nothing at work a run begins, room or not: it waits for workers itself, with a limit and a message."""
        made = {name for name, run in self._at_work.items() if run.is_made}
        preparing = any(not run.workers.is_in_use for run in self._at_work.values())
        return Standing(
            finished=frozenset(self._finished | made),
            failed=frozenset(self._failed),
            at_work=frozenset(self._at_work),
            done_stages={name: run.view.done_stages for name, run in self._at_work.items()},
            has_room=not preparing and (not self._at_work or self._workers.has_room(len(self._at_work))),
        )

    def _tell(self, standing: Standing, at_once: bool) -> None:
        is_early = time.monotonic() - self._told_at < _TELL_S and not at_once
        if is_early or not isinstance(self._view, StudyView):
            return
        self._told_at = time.monotonic()
        executor = self._workers.executor
        jobs = executor.workers_at_once() // executor.request.processes
        runs, measures = tuple(self._runs.values()), self._study.evaluate is not None
        self._view.board(board_of(self._study.name, runs, standing, self._seen, jobs, measures))

    def _begin(self, run: StudyRun) -> None:
        begun = _AtWork(LentWorkers(run.name, self._workers), RunView(run.name, self._view, self._seen[run.name]))
        self._at_work[run.name] = begun
        self._view.line(f"{run.name}: begins.")
        Thread(target=self._work, args=(run, begun), name=f"study {run.name}", daemon=True).start()

    def _work(self, run: StudyRun, begun: _AtWork) -> None:
        """The life of a run, in its thread."""
        try:
            self._launch(run, begun)
            begun.workers.is_in_use = begun.is_made = True
            self._measure(run, begun)
        except BaseException as error:  # noqa: BLE001 - handed to whoever reads the future
            begun.ended.set_exception(error)
        else:
            begun.ended.set_result(None)
        finally:
            begun.workers.note_waiting(False)

    def _launch(self, run: StudyRun, begun: _AtWork) -> None:
        others = [self._folder / other.name for other in donors(run, tuple(self._runs.values()))]
        launch(
            run.plan,
            self._folder / run.name,
            view=begun.view,
            reuse=[other for other in others if RunDirectory(other).exists()],
            executor=begun.workers,
            interrupts=self._interrupts,
        )

    def _measure(self, run: StudyRun, begun: _AtWork) -> None:
        """One run at a time: each takes all workers that are free."""
        how = self._study.evaluate
        for extractor in how.extractors if how is not None else ():
            with self._measuring:
                if self._interrupts.requested:
                    raise RunStopped("Stopped before it was measured.")
                assert how is not None
                is_wavelet = extractor == "wavelet"
                evaluate(
                    self._folder / run.name,
                    how.num_images,
                    measures=("wavelet",) if is_wavelet else how.measures,
                    extractor=None if is_wavelet else extractor,
                    inception_weights=how.inception_weights if extractor == "inception" else None,
                    view=begun.view,
                    executor=begun.workers,
                )

    def _collect(self) -> None:
        """Note the runs that have ended, and how."""
        for name in [name for name, run in self._at_work.items() if run.ended.done()]:
            error = self._at_work.pop(name).ended.exception()
            if error is None:
                self._finished.add(name)
                self._seen[name] = _seen(self._folder / name)  # with what was measured
                self._view.line(f"{name}: finished ({len(self._finished)} of {len(self._runs)}).")
            elif not isinstance(error, RunStopped):
                known = isinstance(error, RunFailed | ValueError)
                self._fail(name, str(error) if known else f"{type(error).__name__}: {error}")

    def _fail(self, name: str, reason: str) -> None:
        self._failed[name] = without_secrets(reason)
        self._note_failures()
        self._view.line(f"{name}: failed. {self._failed[name]}")

    def _note_failures(self) -> None:
        write_model(self._folder / FAILURES_FILE, StudyFailures(runs=self._failed))

    def _stop(self) -> None:
        """Wait for the runs, whose own loops see the interrupt; a second one does not wait."""
        limit_s = max((self._runs[name].plan.checkpointing.stop_limit_s for name in self._at_work), default=0.0)
        if not self._wait_for_runs(limit_s + _MORE_TO_STOP_S):
            self._view.line("Not waiting any longer; the last checkpoints stay.")
        self._workers.end_jobs(_END_S)
        wait([run.ended for run in self._at_work.values()], timeout=_END_S)
        raise RunStopped(f"Stopped. Go on with: {self._how_to_go_on()}")

    def _wait_for_runs(self, limit_s: float) -> bool:
        return self._interrupts.wait_for([run.ended for run in self._at_work.values()], limit_s, _LOOK_S)

    def _how_to_go_on(self) -> str:
        return command("study", RunDirectory(self._folder).short_location)


def _seen(folder: Path) -> Seen:
    run = RunDirectory(folder)
    return Seen(run.read() if run.exists() else None)
