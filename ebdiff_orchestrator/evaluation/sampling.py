"""`ebdiff sample`: what an ensemble draws, in this process or shared out over the workers of a Ray cluster."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.cluster.executor import Executor
from ebdiff_orchestrator.ensemble.loading import load_ensemble
from ebdiff_orchestrator.ensemble.network_files import DTYPES
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline
from ebdiff_orchestrator.ensemble.samples import Samples, joined, samples_of
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.view import View
from region_workers.training.device import current_world, prepare_process
from schemas.errors import RunFailed, UserError, user_error
from schemas.job import Progress
from schemas.plan import Plan, TrainingPlan
from schemas.process import unix_time


@dataclass(frozen=True)
class SampleJob:
    """Which samples of which ensemble, and how its networks run; None stands for the ensemble's own.

    `ensemble` is its folder, its run's directory or URL, or its name on the hub (with `revision`), `dtype` a name in
    `DTYPES`.
    """

    ensemble: str
    count: int
    batch_size: int
    seed: int = 0
    revision: str | None = None
    steps: int | None = None
    classes: tuple[int, ...] | None = None
    guidance_scale: float | None = None
    dtype: str = "fp32"
    compile: bool = False
    offload: bool = False

    @property
    def batches(self) -> tuple[range, ...]:
        starts = range(0, self.count, self.batch_size)
        return tuple(range(start, min(start + self.batch_size, self.count)) for start in starts)


@dataclass(frozen=True)
class Drawn:
    """The samples, what they are called, and the most memory that the process held so far, as `World` counts it."""

    samples: Samples
    noun: str
    peak_memory_bytes: int


def sample_here(job: SampleJob, report: Callable[[int, int], None]) -> Drawn:
    """The job's samples, on the GPU where there is one. `report(done, total)` counts denoising steps."""
    world = current_world(use_gpu=True)
    pipeline = load(job, world.device)
    samples = _draw(pipeline, job, range(job.count), report)
    return Drawn(samples, pipeline.noun, world.peak_memory_bytes())


def sample_on_workers(
    job: SampleJob, workers: int, address: str | None, view: View, executor: Executor | None = None
) -> Drawn:
    """The job's samples, its batches shared out over `workers` workers of the Ray cluster, or of an embedded Ray.

    On equal devices how many there are changes no bit: what a worker is given, threads included, is what the run's plan
    says (a plan's defaults, where `job.ensemble` is no run directory). UserError for options that do not fit, also more
    workers than batches; RunFailed if a worker could not do its part.
    """
    batches = job.batches
    if workers > len(batches):
        expected = f"at most {len(batches)}: {job.count} images are {len(batches)} batches of {job.batch_size}"
        raise user_error("--workers", workers, expected, "Lower it, or lower --batch-size.")
    run = RunDirectory(job.ensemble)
    if run.path.exists():  # else it is the hub's: each node downloads it
        job = replace(job, ensemble=run.location)
    load(replace(job, dtype="fp32", compile=False, offload=True), torch.device("cpu"))  # keeps no weights in memory
    plan = run.read().plan if run.exists() else Plan()
    view.line("Connecting to Ray ...")
    with connect(plan.workers, workers, address, executor=executor) as found:
        view.line(f"{workers} workers of {found.request}; free: {found.describe_free()}.")
        shares = [batches[worker::workers] for worker in range(workers)]
        parts: dict[int, Drawn] = {}
        done = 0
        calls = [(job, share, plan.training.cpu_threads, found.request.gpus > 0) for share in shares]
        for worker, part in found.run_many(_share, calls):
            if isinstance(part, Exception):
                raise part
            parts[worker] = part
            done += sum(map(len, shares[worker]))
            state = "done" if done == job.count else "running"
            progress = {"state": state, "step": done, "total_steps": job.count, "updated_at": unix_time()}
            view.job("sampling", Progress.model_validate({"stage": "samples", **progress}))
    in_order = []
    for number, batch in enumerate(batches):
        start = number // workers * job.batch_size
        in_order.append(parts[number % workers].samples[start : start + len(batch)])
    return Drawn(joined(in_order), parts[0].noun, max(part.peak_memory_bytes for part in parts.values()))


def load(job: SampleJob, device: torch.device) -> RoutedPipeline:
    """The job's ensemble, ready to draw. UserError if it is none, or has no such classes."""
    folder = RunDirectory(job.ensemble).ensemble()
    named = job.ensemble if Path(job.ensemble).resolve() == folder else folder  # messages have the user's word for it
    dtype = DTYPES[job.dtype]
    pipeline = load_ensemble(named, dtype, device, compile=job.compile, offload=job.offload, revision=job.revision)
    _check_options(job, pipeline.num_classes, len(pipeline.scheduler))
    return pipeline


def _check_options(job: SampleJob, num_classes: int | None, timesteps: int) -> None:
    """Raise UserError, naming the option, for what this ensemble cannot do."""
    if job.steps is not None and job.steps > timesteps:
        raise user_error("--steps", job.steps, f"at most {timesteps}, the ensemble's timesteps", "Lower it.")
    if num_classes is None and job.classes:
        raise user_error("--class", job.classes[0], "none, since the ensemble has no classes", "Leave it out.")
    if num_classes is None and job.guidance_scale not in (None, 1.0):
        expected = "1, since the ensemble has no classes"
        raise user_error("--guidance", f"{job.guidance_scale:g}", expected, "Leave it out.")
    if num_classes is not None and job.classes and max(job.classes) >= num_classes:
        raise user_error("--class", max(job.classes), f"0 to {num_classes - 1}", "Change it.")


def _draw(
    pipeline: RoutedPipeline, job: SampleJob, indices: range, report: Callable[[int, int], None] | None = None
) -> Samples:
    return samples_of(
        pipeline,
        len(indices),
        job.seed,
        job.steps,
        job.batch_size,
        report,
        first=indices.start,
        classes=job.classes,
        guidance_scale=job.guidance_scale,
    )


def _share(job: SampleJob, batches: tuple[range, ...], threads: int, use_gpu: bool) -> Drawn | RunFailed | UserError:
    """What one worker does: the samples of its batches, or why it could not; with exact arithmetic, as evaluation."""
    prepare_process(TrainingPlan(cpu_threads=threads))
    world = current_world(use_gpu)
    try:
        pipeline = load(job, world.device)
        samples = joined([_draw(pipeline, job, batch) for batch in batches])
    except torch.OutOfMemoryError:
        return RunFailed("The device ran out of memory. Lower --batch-size, or use --offload.")
    except (RunFailed, UserError) as error:
        return error
    return Drawn(samples, pipeline.noun, world.peak_memory_bytes())
