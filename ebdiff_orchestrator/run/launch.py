"""The driver: `launch` and `resume`. Checks the plan, then images, jobs, ensemble and samples, in one direction."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ebdiff_orchestrator.cluster.connecting import check_surroundings, cluster_address, connect
from ebdiff_orchestrator.cluster.executor import Executor, request_of
from ebdiff_orchestrator.ensemble.loading import load_ensemble
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline
from ebdiff_orchestrator.plans.data_checks import check_data_fits
from ebdiff_orchestrator.plans.load import plan_from_values, step_notes
from ebdiff_orchestrator.plans.preview import width_notes
from ebdiff_orchestrator.run.finishing import finish, finish_or_reopen
from ebdiff_orchestrator.run.interrupts import Interrupts
from ebdiff_orchestrator.run.job_loop import JobLoop
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.metrics_feed import fed_trackers
from ebdiff_orchestrator.run.placing import place_jobs
from ebdiff_orchestrator.run.previews import Previews
from ebdiff_orchestrator.run.resolve import ResolvedPlan, resolve
from ebdiff_orchestrator.run.reuse import reuse_stages
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE, SAMPLE, JobOutline, draw_folder, inputs_of, outline_jobs
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.trackers.group import check_trackers
from region_workers.data.drawing_store import DrawingStore, ensure_data
from region_workers.data.labels import check_labels
from region_workers.data.latents import LatentStore, ensure_latents, find_latents
from region_workers.data.store import ImageStore, Store
from schemas.errors import RunFailed, shown, user_error
from schemas.job import TICKET_FILE, Ticket
from schemas.manifest import RAY_LOG, Manifest
from schemas.model import LatentModelPlan
from schemas.plan import Plan
from schemas.process import unix_time

_CLASSES_NAMED = 20


@dataclass(frozen=True)
class RunHandle:
    """A run in a folder or under a URL; what it holds is read when asked for."""

    run_dir: str | Path

    @property
    def manifest(self) -> Manifest:
        return RunDirectory(self.run_dir).read()

    @property
    def tickets(self) -> dict[str, Ticket]:
        """The ticket of each region that has one, by the region's name."""
        run = RunDirectory(self.run_dir)
        plan = run.read().plan
        files = {region.name: run.fetch(f"{draw_folder(plan, region)}/{TICKET_FILE}") for region in plan.regions}
        return {n: Ticket.model_validate_json(f.read_text()) for n, f in files.items() if f.is_file()}

    @property
    def ensemble(self) -> RoutedPipeline:
        """The finished ensemble as a diffusers pipeline, on the CPU."""
        return load_ensemble(RunDirectory(self.run_dir).ensemble())


def launch(
    plan: Plan,
    run_dir: str | Path | None = None,
    *,
    address: str | None = None,
    view: View | None = None,
    reuse: Sequence[str | Path] = (),
    take_over: bool = False,
    executor: Executor | None = None,
    interrupts: Interrupts | None = None,
) -> RunHandle:
    """Run the plan to a finished ensemble in `run_dir` (default: runs/<plan.name>), or go on with it there.

    `run_dir`: a folder or a URL (`s3://`, `gs://`). `reuse`: runs whose equal stages are taken over. The work is done
    on the Ray cluster at `address` or RAY_ADDRESS, else on an embedded one; or by the `executor`, without Ray.
    `take_over`: another driver at work on the run is stopped. PlanError or UserError before anything starts if the plan
    cannot run or the directory holds another experiment, RunFailed if a region failed for good, RunTakenOverError if
    another driver took the run over, RunStopped on Ctrl-C (outside the main thread: as `interrupts` says).
    """
    if not isinstance(plan, Plan):
        raise user_error("plan", shown(plan), "a Plan", "Make one of a preset or a file: launch(load_plan(...), ...).")
    if executor is None:
        check_surroundings(address)
    directory, view = RunDirectory(run_dir if run_dir is not None else Path("runs", plan.name)), view or View()
    with _opened(plan, directory, take_over, view) as (resolved, ledger):
        if ledger.manifest.finished():
            return RunHandle(directory.location)
        data = decode_data(resolved, view)
        samples = samples_at_hand(resolved, data)  # None: they are still to be encoded
        jobs = () if samples is None else _known_jobs(ledger, samples, reuse, view)
        if not (jobs and ledger.all_done(jobs) and _finish_alone(ledger, executor, view)):
            with _workers(ledger, address, executor, view) as workers, fed_trackers(ledger, view):
                check_data_fits(resolved.plan, len(data), workers.request.processes)
                jobs = jobs or _known_jobs(ledger, encode_images(resolved, data, ledger, workers, view), reuse, view)
                view.line(f"{len(jobs)} jobs, {workers.request} each; free: {workers.describe_free()}.")
                for finish_run in (finish_or_reopen, finish):
                    placement = place_jobs(jobs, resolved.preview, len(data), ledger, workers, view)
                    with Previews(resolved.plan.previews, directory, jobs, view):
                        JobLoop(jobs, placement, ledger, workers, view, interrupts).run()
                    if finish_run(ledger, view, workers):
                        break
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
    view = view or View()
    with directory.held(view.line):
        Ledger(directory).extend(plan)
    for note in step_notes(plan, changes):
        view.line(f"Note: {note}")
    return resume(directory.location, address=address, view=view, executor=executor)


@contextmanager
def _opened(plan: Plan, directory: RunDirectory, take_over: bool, view: View) -> Iterator[tuple[ResolvedPlan, Ledger]]:
    """The plan with what is looked up about it, and the run's ledger; the run is held, and what is damaged is open.

    A plan that cannot run leaves no directory.
    """
    resolved = resolve(plan, directory)
    if not directory.exists():
        _ = resolved.preview  # PlanError for networks that cannot be built
        check_trackers(plan.logging.trackers)
    with directory.held(view.line, take_over):
        ledger = Ledger.begin(directory, resolved.plan, view)
        ledger.record_dense(resolved.dense)
        ledger.reopen_damaged_and_failed()
        if ledger.manifest.finished():
            view.line(f"The run in {directory.location} is finished; nothing to do.")
            yield resolved, ledger
            return
        if ledger.manifest.begun():
            view.line(_going_on(ledger))
        ledger.record_sizes(resolved.preview.sizes)
        for note in width_notes(resolved.plan):
            view.line(f"Note: {note}")
        check_trackers(ledger.plan.logging.trackers)
        ledger.begin_launch()
        view.previews(directory.previews())
        with view, directory.discarded_if_refused():
            yield resolved, ledger


def _going_on(ledger: Ledger) -> str:
    """What a run that goes on has already."""
    done, stages = ledger.done_stages(), ledger.manifest.stages
    told = f"Going on: {len(done)} of {len(stages)} stages are done"
    saved = {name: ledger.directory.saved_steps(name) for name in stages if name not in done}
    steps = ", ".join(f"{name} up to step {step}" for name, step in saved.items() if step)
    return f"{told}; saved: {steps}." if steps else f"{told}."


def decode_data(resolved: ResolvedPlan, view: View) -> ImageStore | DrawingStore:
    """The plan's images or drawings. PlanError or UserError if it cannot train on them, RunFailed if decoding broke."""
    plan = resolved.plan
    try:
        store = ensure_data(plan.data, resolved.cache_dir, partial(view.images, what=f"decoding {plan.data.kind}"))
    except ChildProcessError as error:
        raise RunFailed(f"data.path = {plan.data.path}: {error}.") from error
    _say_left_out(store.info.unreadable_names, f"unreadable {plan.data.kind}", view)
    if isinstance(store, DrawingStore) and plan.data.drawings is not None:
        _say_left_out(store.info.too_long_names, f"drawings of {plan.data.drawings.max_points} points or more", view)
    if isinstance(store, ImageStore) and store.info.class_names:
        classes = [f"{number} {name}" for number, name in enumerate(store.info.class_names)]
        view.line(f"Classes: {', '.join(classes[:_CLASSES_NAMED])}{', ...' * (len(classes) > _CLASSES_NAMED)}.")
    check_labels(store.labels, plan.model.num_classes)
    check_data_fits(plan, len(store), request_of(plan.workers, 0.0).processes)
    return store


def samples_at_hand(resolved: ResolvedPlan, data: ImageStore | DrawingStore) -> Store | None:
    """What is denoised: the images or drawings, or the images' latents; None if those are still to be encoded."""
    plan = resolved.plan
    if not isinstance(plan.model, LatentModelPlan):
        return data
    assert isinstance(data, ImageStore)
    return find_latents(plan.model, plan.data, data, resolved.cache_dir)


def _workers(
    ledger: Ledger, address: str | None, executor: Executor | None, view: View
) -> AbstractContextManager[Executor]:
    plan, log = ledger.plan, ledger.directory.path / RAY_LOG
    if executor is None:
        view.line(f"{'Joining' if cluster_address(address) else 'Starting'} Ray ...")
    return connect(plan.workers, len(plan.regions), address, log, view.waiting, executor)


def _finish_alone(ledger: Ledger, executor: Executor | None, view: View) -> bool:
    """`finish_or_reopen` where no job is left; the trackers are told what a killed driver has not told them."""
    with fed_trackers(ledger, view):
        return finish_or_reopen(ledger, view, executor)


def _known_jobs(ledger: Ledger, samples: Store, reuse: Sequence[str | Path], view: View) -> tuple[JobOutline, ...]:
    """The run's jobs, with what is finished here or in other runs entered."""
    ledger.record_samples(samples.digest, samples.info.vae.digest if isinstance(samples, LatentStore) else None)
    jobs = outline_jobs(ledger.plan, inputs_of(ledger.manifest))
    ledger.record_borrowed_starts(reuse_stages(ledger.directory, jobs, reuse, view.line))
    ledger.collect_results(jobs)
    return jobs


def encode_images(resolved: ResolvedPlan, images: Store, ledger: Ledger, executor: Executor, view: View) -> Store:
    """The latents of the images, by as many workers as there are."""
    plan = resolved.plan
    assert isinstance(plan.model, LatentModelPlan)
    assert isinstance(images, ImageStore)
    started = unix_time()
    view.line(f"Encoding {len(images)} images with the VAE {plan.model.vae} ...")
    try:
        return ensure_latents(
            plan.model,
            plan.data,
            images,
            resolved.cache_dir,
            executor.run_many,
            partial(view.images, what="encoding images"),
            cpu_threads=plan.training.cpu_threads,
            device=torch.device("cuda" if executor.request.gpus else "cpu"),
        )
    finally:
        workers = max(1, executor.workers_at_once())
        ledger.record_usage("encode", 1, started, workers, min(executor.request.gpus, 1.0))


def _say_left_out(names: Sequence[str], what: str, view: View) -> None:
    if names:
        view.line(f"{len(names)} {what} were left out: {', '.join(names[:5])}.")
