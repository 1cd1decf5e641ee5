"""The driver: `launch` and `resume`. Checks the plan, then images, jobs, ensemble and samples, in one direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ebdiff_orchestrator.cluster import (
    Cluster,
    Request,
    check_surroundings,
    cluster_address,
    connect,
    request_of,
)
from ebdiff_orchestrator.plans.data_checks import check_data_fits
from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.plans.preview import Outlook, look_ahead
from ebdiff_orchestrator.run.dense_start import adopt_dense
from ebdiff_orchestrator.run.finishing import assemble, sample
from ebdiff_orchestrator.run.handle import RunHandle
from ebdiff_orchestrator.run.interrupts import Interrupts
from ebdiff_orchestrator.run.job_loop import JobLoop
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.placing import place_jobs
from ebdiff_orchestrator.run.reuse import take_over
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import (
    ASSEMBLE,
    SAMPLE,
    JobOutline,
    assemble_key,
    outline_jobs,
    sample_key,
    train_stage_name,
)
from ebdiff_orchestrator.run.view import Silent, View, sampling_report
from region_workers.data.labels import check_labels
from region_workers.data.latents.store import LatentStore, ensure_latents, find_latents
from region_workers.data.samples import SampleStore
from region_workers.data.store import ImageStore, ensure_store
from region_workers.storage.places import cache_dir_of
from schemas.clock import unix_time
from schemas.digest import digest
from schemas.errors import RunFailed
from schemas.job import EXPERT_FOLDER, Artifact
from schemas.manifest import RAY_LOG, DenseSource
from schemas.model import LatentModelPlan
from schemas.plan import Plan

RunOnce = Callable[..., tuple[Artifact, ...]]


def launch(
    plan: Plan,
    run_dir: str | Path | None = None,
    *,
    address: str | None = None,
    view: View | None = None,
    reuse: Sequence[str | Path] = (),
    take_over: bool = False,
) -> RunHandle:
    """Run the plan to a finished ensemble in `run_dir` (default: runs/<plan.name>), or go on with it there.

    `run_dir` is a folder or a URL (`s3://`, `gs://`). A finished run is returned as it is. Equal stages of the runs in
    `reuse` are taken over instead of computed. Uses the Ray cluster at `address` or RAY_ADDRESS, else one embedded in
    this process. Another driver at work on the run is a UserError, unless `take_over`: then that one stops before it
    writes again. Raises PlanError or UserError before anything starts if the plan cannot run or the directory holds a
    different experiment, RunFailed if a region failed for good (the others' work is saved), RunTakenOverError if
    another driver took the run over, RunStopped on Ctrl-C.
    """
    check_surroundings(address)
    directory = RunDirectory(run_dir if run_dir is not None else Path("runs") / plan.name)
    view = view or Silent()
    plan, dense = _with_dense_start(_with_absolute_paths(plan), directory)
    outlook = None if directory.exists() else look_ahead(plan, dense)  # a plan that cannot run leaves no directory
    with directory.held(take_over, view.line):
        ledger = Ledger.begin(directory, plan, view.line)
        ledger.record_dense(dense)
        ledger.reopen_damaged_and_failed()
        if ledger.manifest.finished():
            view.line(f"The run in {directory.location} is finished; nothing to do.")
        else:
            outlook = outlook or look_ahead(plan, dense)
            ledger.begin_launch()
            with view, directory.discarded_if_refused():
                _carry_out(ledger, outlook, view, address, reuse)
                view.line(f"Done: {directory.location}/{ASSEMBLE} (grid: {directory.location}/{SAMPLE}/grid.png)")
    return RunHandle(directory.location)


def resume(
    run_dir: str | Path,
    *,
    address: str | None = None,
    view: View | None = None,
    reuse: Sequence[str | Path] = (),
    take_over: bool = False,
) -> RunHandle:
    """Go on with the run in `run_dir` by its own plan; as `launch` otherwise."""
    directory = RunDirectory(run_dir)
    plan = directory.read().plan
    return launch(plan, directory.location, address=address, view=view, reuse=reuse, take_over=take_over)


def extend(
    run_dir: str | Path, changes: Sequence[str], *, address: str | None = None, view: View | None = None
) -> RunHandle:
    """Train the run's experts further: `changes` raise training.steps or a region's steps (`key=value`).

    The experts go on from where they ended, to the same bits as one long run; ensemble and samples are made anew.
    Raises PlanError for a change of anything else, and for fewer steps than a training has made.
    """
    directory = RunDirectory(run_dir)
    plan = plan_from_values(directory.read().plan.model_dump(mode="json"), changes, title=str(run_dir))
    with directory.held(say=(view or Silent()).line):
        Ledger(directory).extend(plan)
    return resume(directory.location, address=address, view=view)


def _carry_out(ledger: Ledger, outlook: Outlook, view: View, address: str | None, reuse: Sequence[str | Path]) -> None:
    plan = ledger.plan
    cache_dir = cache_dir_of(plan.workers.cache_dir)
    images = _decode(plan, cache_dir, view)
    samples = _samples_at_hand(plan, images, cache_dir)
    jobs = _known_jobs(ledger, samples, reuse, view) if samples else ()
    here = _in_this_process(view)
    request = request_of(plan.workers, float(torch.cuda.is_available()))
    if jobs and ledger.all_done(jobs) and _finish_or_reopen(ledger, view, here, request):
        return
    view.line(f"{'Joining' if cluster_address(address) else 'Starting'} Ray ...")
    log = ledger.directory.path / RAY_LOG
    with connect(plan.workers, len(plan.regions), address, log, view.waiting) as cluster:
        check_data_fits(plan, len(images), cluster.request.processes)
        if samples is None:
            samples = _encode(ledger, images, cache_dir, cluster, view)
        jobs = jobs or _known_jobs(ledger, samples, reuse, view)
        view.line(f"{len(jobs)} jobs, {cluster.request} each; free: {cluster.describe_free()}.")
        run_once = here if cluster.embedded else cluster.run_once
        for finish in (_finish_or_reopen, _finish):
            with Interrupts() as interrupts:
                workers, limit = place_jobs(jobs, outlook, len(images), ledger, cluster, view)
                JobLoop(jobs, workers, limit, ledger, cluster, view).run(interrupts)
            if finish(ledger, view, run_once, cluster.request):
                return


def _decode(plan: Plan, cache_dir: Path, view: View) -> ImageStore:
    try:
        images = ensure_store(plan.data, cache_dir, view.images)
    except ChildProcessError as error:
        raise RunFailed(f"data.path = {plan.data.path}: {error}.") from error
    if images.unreadable:
        names = ", ".join(images.info.unreadable_names[:5])
        view.line(f"{images.unreadable} unreadable images were left out: {names}.")
    check_labels(images, plan.model.num_classes)
    check_data_fits(plan, len(images), request_of(plan.workers, 0.0).processes)
    return images


def _samples_at_hand(plan: Plan, images: ImageStore, cache_dir: Path) -> SampleStore | None:
    """What is denoised: the images, or their latents; None if those are still to be encoded."""
    if not isinstance(plan.model, LatentModelPlan):
        return images
    return find_latents(plan.model, plan.data, images, cache_dir)


def _encode(ledger: Ledger, images: ImageStore, cache_dir: Path, cluster: Cluster, view: View) -> SampleStore:
    """The latents of the images, by as many workers as the cluster holds."""
    plan = ledger.plan
    assert isinstance(plan.model, LatentModelPlan)
    started = unix_time()
    view.line(f"Encoding {len(images)} images with the VAE {plan.model.vae} ...")
    try:
        return ensure_latents(
            plan.model,
            plan.data,
            images,
            cache_dir,
            cluster.run_many,
            view.images,
            cpu_threads=plan.training.cpu_threads,
            device=torch.device("cuda" if cluster.request.gpus else "cpu"),
        )
    finally:
        workers = max(1, cluster.workers_at_once())
        ledger.record_usage("encode", 1, started, workers, min(cluster.request.gpus, 1.0))


def _known_jobs(
    ledger: Ledger, samples: SampleStore, reuse: Sequence[str | Path], view: View
) -> tuple[JobOutline, ...]:
    """The run's jobs, with what is finished here or in other runs entered."""
    ledger.record_samples(samples.digest, samples.info.vae.digest if isinstance(samples, LatentStore) else None)
    jobs = outline_jobs(ledger.plan, ledger.inputs)
    ledger.record_borrowed_starts(take_over(ledger.directory, jobs, reuse, view.line))
    ledger.collect_results(jobs)
    return jobs


def _finish_or_reopen(ledger: Ledger, view: View, run_once: RunOnce, request: Request) -> bool:
    """`_finish`; False where files that it goes on from turn out to be damaged: their stages are open again."""
    try:
        return _finish(ledger, view, run_once, request)
    except Exception:
        if ledger.reopen_damaged():
            return False
        raise


def _finish(ledger: Ledger, view: View, run_once: RunOnce, request: Request) -> bool:
    """Assemble, then sample, unless that is done for these very experts. True."""
    plan, location, owner = ledger.plan, ledger.directory.location, ledger.directory.owner
    files = {region.name: ledger.artifacts(train_stage_name(region), EXPERT_FOLDER) for region in plan.regions}
    experts = {name: digest([file.sha256 for file in found]) for name, found in files.items()}
    vae = ledger.inputs.vae
    ensemble_key = assemble_key(plan, experts, vae)
    ledger.finish_here(
        ASSEMBLE, ensemble_key, lambda: run_once(assemble, plan, location, files, vae, owner), request.gpus
    )
    view.line(f"Sampling {plan.sampling.num_images} images in {plan.sampling.steps} steps ...")
    ledger.finish_here(
        SAMPLE, sample_key(plan, ensemble_key), lambda: run_once(sample, plan, location, owner), request.gpus
    )
    return True


def _in_this_process(view: View) -> RunOnce:
    def run(function: RunOnce, *arguments: object) -> tuple[Artifact, ...]:
        return function(*arguments, sampling_report(view)) if function is sample else function(*arguments)

    return run


def _with_dense_start(plan: Plan, directory: RunDirectory) -> tuple[Plan, DenseSource | None]:
    """The plan as its dense start has it. Once every ticket is drawn, what the run recorded of that start will do."""
    known = directory.read() if directory.exists() else None
    if known is None or known.dense is None or known.plan.model.pretrained != plan.model.pretrained:
        return adopt_dense(plan)
    drawn = all(record.status == "done" for name, record in known.stages.items() if name.startswith("draw/"))
    if not drawn or plan.model != known.plan.model:
        return adopt_dense(plan)
    return plan, known.dense


def _with_absolute_paths(plan: Plan) -> Plan:
    """Local paths of the plan made absolute, since workers have another current directory."""
    data = plan.data.model_copy(update={"path": _absolute(plan.data.path)})
    changed = {name: _absolute(getattr(plan.model, name, None)) for name in ("pretrained", "vae")}
    model = plan.model.model_copy(update={name: path for name, path in changed.items() if path is not None})
    return plan.model_copy(update={"data": data, "model": model})


def _absolute(path: str | None) -> str | None:
    if path is None or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().resolve())
