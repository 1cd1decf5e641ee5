"""The driver: `launch` and `resume`. Checks the plan, then images, jobs, ensemble and samples, in one direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ebdiff_orchestrator.cluster import (
    Executor,
    ThisProcess,
    check_surroundings,
    cluster_address,
    connect,
    request_of,
)
from ebdiff_orchestrator.plans.data_checks import check_data_fits
from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.finishing import finish, finish_or_reopen
from ebdiff_orchestrator.run.handle import RunHandle
from ebdiff_orchestrator.run.interrupts import Interrupts
from ebdiff_orchestrator.run.job_loop import JobLoop
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.placing import place_jobs
from ebdiff_orchestrator.run.resolve import ResolvedPlan, resolve
from ebdiff_orchestrator.run.reuse import reuse_stages
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.samples import decode_images, encode_images, samples_at_hand
from ebdiff_orchestrator.run.stages import ASSEMBLE, SAMPLE, JobOutline, outline_jobs
from ebdiff_orchestrator.run.view import Silent, View
from region_workers.data.latents.store import LatentStore
from region_workers.data.samples import SampleStore
from schemas.manifest import RAY_LOG
from schemas.plan import Plan


def launch(
    plan: Plan,
    run_dir: str | Path | None = None,
    *,
    address: str | None = None,
    view: View | None = None,
    reuse: Sequence[str | Path] = (),
    take_over: bool = False,
    executor: Executor | None = None,
) -> RunHandle:
    """Run the plan to a finished ensemble in `run_dir` (default: runs/<plan.name>), or go on with it there.

    `run_dir` is a folder or a URL (`s3://`, `gs://`). A finished run is returned as it is. Equal stages of the runs in
    `reuse` are taken over instead of computed. Uses the Ray cluster at `address` or RAY_ADDRESS, else one embedded in
    this process; or, without Ray, the `executor` that is given. Another driver at work on the run is a UserError,
    unless `take_over`: then that one stops before it writes again. Raises PlanError or UserError before anything
    starts if the plan cannot run or the directory holds a different experiment, RunFailed if a region failed for good
    (the others' work is saved), RunTakenOverError if another driver took the run over, RunStopped on Ctrl-C.
    """
    if executor is None:
        check_surroundings(address)
    directory = RunDirectory(run_dir if run_dir is not None else Path("runs") / plan.name)
    view = view or Silent()
    resolved = resolve(plan, directory)
    if not directory.exists():
        resolved.check_networks()  # a plan that cannot run leaves no directory
    with directory.held(take_over, view.line):
        ledger = Ledger.begin(directory, resolved.plan, view.line)
        ledger.record_dense(resolved.dense)
        ledger.reopen_damaged_and_failed()
        if ledger.manifest.finished():
            view.line(f"The run in {directory.location} is finished; nothing to do.")
        else:
            resolved.check_networks()
            ledger.begin_launch()
            with view, directory.discarded_if_refused():
                _carry_out(ledger, resolved, view, address, reuse, executor)
                view.line(f"Done: {directory.location}/{ASSEMBLE} (grid: {directory.location}/{SAMPLE}/grid.png)")
    return RunHandle(directory.location)


def resume(
    run_dir: str | Path,
    *,
    address: str | None = None,
    view: View | None = None,
    reuse: Sequence[str | Path] = (),
    take_over: bool = False,
    executor: Executor | None = None,
) -> RunHandle:
    """Go on with the run in `run_dir` by its own plan; as `launch` otherwise."""
    directory = RunDirectory(run_dir)
    plan = directory.read().plan
    location = directory.location
    return launch(plan, location, address=address, view=view, reuse=reuse, take_over=take_over, executor=executor)


def extend(
    run_dir: str | Path,
    changes: Sequence[str],
    *,
    address: str | None = None,
    view: View | None = None,
    executor: Executor | None = None,
) -> RunHandle:
    """Train the run's experts further: `changes` raise training.steps or a region's steps (`key=value`).

    The experts go on from where they ended, to the same bits as one long run; ensemble and samples are made anew.
    Raises PlanError for a change of anything else, and for fewer steps than a training has made.
    """
    directory = RunDirectory(run_dir)
    plan = plan_from_values(directory.read().plan.model_dump(mode="json"), changes, title=str(run_dir))
    with directory.held(say=(view or Silent()).line):
        Ledger(directory).extend(plan)
    return resume(directory.location, address=address, view=view, executor=executor)


def _carry_out(
    ledger: Ledger,
    resolved: ResolvedPlan,
    view: View,
    address: str | None,
    reuse: Sequence[str | Path],
    executor: Executor | None,
) -> None:
    plan, cache_dir = resolved.plan, resolved.cache_dir
    images = decode_images(plan, cache_dir, view)
    samples = samples_at_hand(plan, images, cache_dir)
    jobs = _known_jobs(ledger, samples, reuse, view) if samples else ()
    here = ThisProcess(request_of(plan.workers, float(torch.cuda.is_available())).gpus)
    if jobs and ledger.all_done(jobs) and finish_or_reopen(ledger, view, here):
        return
    if executor is None:
        view.line(f"{'Joining' if cluster_address(address) else 'Starting'} Ray ...")
    log = ledger.directory.path / RAY_LOG
    with connect(plan.workers, len(plan.regions), address, log, view.waiting, executor) as workers:
        check_data_fits(plan, len(images), workers.request.processes)
        if samples is None:
            samples = encode_images(ledger, images, cache_dir, workers, view)
        jobs = jobs or _known_jobs(ledger, samples, reuse, view)
        view.line(f"{len(jobs)} jobs, {workers.request} each; free: {workers.describe_free()}.")
        finisher = here if workers.on_this_machine else workers
        for finish_run in (finish_or_reopen, finish):
            with Interrupts() as interrupts:
                workers_of, limit = place_jobs(jobs, resolved.preview, len(images), ledger, workers, view)
                JobLoop(jobs, workers_of, limit, ledger, workers, view).run(interrupts)
            if finish_run(ledger, view, finisher):
                return


def _known_jobs(
    ledger: Ledger, samples: SampleStore, reuse: Sequence[str | Path], view: View
) -> tuple[JobOutline, ...]:
    """The run's jobs, with what is finished here or in other runs entered."""
    ledger.record_samples(samples.digest, samples.info.vae.digest if isinstance(samples, LatentStore) else None)
    jobs = outline_jobs(ledger.plan, ledger.inputs)
    ledger.record_borrowed_starts(reuse_stages(ledger.directory, jobs, reuse, view.line))
    ledger.collect_results(jobs)
    return jobs
