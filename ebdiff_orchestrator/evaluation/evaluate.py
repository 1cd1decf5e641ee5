"""`evaluate`: the Frechet distance of a finished run's images, recorded under a key of all that determines it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebdiff_orchestrator.cluster.connecting import check_surroundings, cluster_address
from ebdiff_orchestrator.cluster.executor import Executor, ThisProcess
from ebdiff_orchestrator.evaluation.extractors import load_extractor
from ebdiff_orchestrator.evaluation.feature_measures import MOST_FEATURES, measures_of_features
from ebdiff_orchestrator.evaluation.features import Workers, make_features
from ebdiff_orchestrator.evaluation.options import (
    Options,
    check_reference,
    chosen_extractor,
    held_by,
    holds_all,
    sampled_images,
)
from ebdiff_orchestrator.evaluation.records import (
    REPORT_FILE,
    STATISTICS_FILE,
    evaluation_folder,
    evaluation_key,
    report_of,
    whole_report,
)
from ebdiff_orchestrator.evaluation.reference import Reference, given_reference, own_reference
from ebdiff_orchestrator.evaluation.statistics import (
    evenly,
    frechet_distance,
    spread_features,
    statistics_of,
    write_statistics,
)
from ebdiff_orchestrator.evaluation.work import IMAGES_FOLDER, finished_record, image_file, remove_shards, shards_of
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE, ensemble_digest
from ebdiff_orchestrator.run.view import View
from region_workers.data.drawing_store import ensure_data
from region_workers.storage.durable import write_model
from region_workers.storage.integrity import file_digest
from region_workers.storage.places import cache_dir_of
from schemas.errors import UserError, command
from schemas.evaluation import ExtractorChoice, FeatureJob, Measure, SampledImages
from schemas.manifest import EVALUATE_JOB, Evaluation, ExtractorName, Manifest
from schemas.plan import Plan
from schemas.process import unix_time

_SHARED = "to be evaluated by a cluster. Copy the run to one, or evaluate on one machine with --here."


def evaluate(
    run_dir: str | Path,
    num_images: int = 50_000,
    *,
    measures: Sequence[str] = ("fid",),
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    extractor: ExtractorName | None = None,
    inception_weights: str | Path | None = None,
    reference: str | Path | None = None,
    reference_images: int | None = None,
    keep_images: bool = False,
    in_process: bool = False,
    address: str | None = None,
    view: View | None = None,
    executor: Executor | None = None,
) -> Evaluation:
    """FID of `num_images` images of the finished run in `run_dir`, over all workers of the Ray cluster.

    With `extractor="random-conv"` the distance of other features, which need no weights: it compares runs, and is no
    FID. `measures` asks for more of the same features ("kid", "precision-recall"); or for the Frechet wavelet distance
    alone ("wavelet"), which needs no network.

    What was interrupted goes on; what is recorded is returned. `in_process`, or an `executor`, does without Ray. The
    reference is the run's own data (or its first `reference_images`), a folder of images or an .npz of pytorch-fid's.
    UserError for an unfinished run or Inception weights that cannot be had, RunFailed if a worker fails at its part.
    """
    options = Options(
        num_images=num_images,
        measures=tuple(measures),
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        extractor=extractor,
        inception_weights=Path(inception_weights) if inception_weights is not None else None,
        reference=Path(reference) if reference is not None else None,
        reference_images=reference_images,
        keep_images=keep_images,
    )
    directory, view = RunDirectory(run_dir), view or View()
    plan = _finished(directory).plan
    executor = executor or _executor(directory, plan, in_process, address)
    images = sampled_images(directory, plan, options)
    with directory.held(view.line), view, ExitStack() as stack:
        return _evaluate(directory, options, images, Workers(plan.workers, address, executor, view, stack))


def _executor(directory: RunDirectory, plan: Plan, in_process: bool, address: str | None) -> Executor | None:
    """This process; or None for Ray, to be connected to when there is work. UserError where it could not do that."""
    if in_process:
        return ThisProcess(1.0 if torch.cuda.is_available() and plan.workers.gpus != 0 else 0.0)
    check_surroundings(address)
    if cluster_address(address):
        directory.check_in_folder(_SHARED)
    return None


def _evaluate(directory: RunDirectory, options: Options, images: SampledImages, workers: Workers) -> Evaluation:
    """The recorded number if there is one and it is whole, else a new one, recorded."""
    manifest = _finished(directory)
    plan, view = manifest.plan, workers.view
    extractor = chosen_extractor(options, plan)
    measure = Measure(extractor=extractor, raster=plan.data.raster)
    job = FeatureJob(
        folder="",
        num_images=options.num_images,
        images=images,
        measure=measure,
        training=plan.training,
    )
    reference = _reference(plan, options, measure, view)
    check_reference(options, reference.num_images, reference.images is not None)
    key = evaluation_key(manifest, job, reference.digest)
    folder = directory.fetch_folder(evaluation_folder(Path(), key).as_posix())
    known, recorded = manifest.evaluations.get(key), whole_report(folder)
    wanted = range(options.num_images if options.keep_images else 0)
    if (
        recorded is not None
        and recorded.evaluation == known
        and holds_all(recorded.evaluation, options.measures)
        and all(image_file(folder, index).is_file() for index in wanted)
    ):
        view.line("This was evaluated before; nothing to do.")
        remove_shards(folder)  # which are there if it was killed at its very end
        return recorded.evaluation
    load_extractor(extractor, torch.device("cpu"))  # a wrong file is refused here, not by every worker
    ledger = Ledger(directory)
    with _usage_recorded(ledger, workers):
        job = job.model_copy(update={"folder": str(folder)})
        measures = (*options.of_features, *held_by(known))
        evaluation = _measure(key, ensemble_digest(manifest), job, reference, measures, workers)
    _record(ledger, evaluation, reference.description)
    return evaluation


def _finished(directory: RunDirectory) -> Manifest:
    manifest = directory.read()
    if not manifest.finished():
        open_stages = [name for name, record in manifest.stages.items() if record.status != "done"]
        raise UserError(
            f"DIR = {directory.location}: expected a finished run, but open are {', '.join(open_stages)}. "
            f"Finish it first: {command('resume', directory.location)}"
        )
    damaged = directory.files.damaged(manifest.stage(ASSEMBLE).artifacts)
    if damaged:
        raise UserError(
            f"DIR = {directory.location}: {damaged[0]} is missing or damaged; expected the file as it was written. "
            f"Have it made again: {command('resume', directory.location)}"
        )
    return manifest


def _reference(plan: Plan, options: Options, measure: Measure, view: View) -> Reference:
    cache_dir = cache_dir_of(plan.workers.cache_dir).resolve()
    if options.reference is not None:
        if options.reference_images is not None:
            raise UserError("--reference and --reference-images: expected one of the two. Leave one out.")
        return given_reference(options.reference, cache_dir, measure, plan.data.max_pixels, _side(plan, measure))
    store = ensure_data(plan.data, cache_dir, view.images)
    return own_reference(plan, store, cache_dir, options.reference_images, measure)


def _side(plan: Plan, measure: Measure) -> int | None:
    """The side in pixels that reference images must have; None for any, since Inception resizes them all."""
    if measure.raster is not None:
        return measure.raster.canvas_px
    return None if measure.extractor.name == "inception" else plan.data.resolution


def _measure(
    key: str,
    ensemble: str,
    job: FeatureJob,
    reference: Reference,
    measures: tuple[str, ...],
    workers: Workers,
) -> Evaluation:
    """Make the features of both sides and compare them: their distance, and by `measures` of the features."""
    began, folder = time.monotonic(), Path(job.folder)
    assert isinstance(job.images, SampledImages)
    theirs, their_features = reference.measured(workers, job, bool(measures))
    make_features(workers, job, "evaluate")
    workers.view.line("Computing the Frechet distance ...")
    ours = statistics_of(folder, job.num_images, job.measure.extractor)
    write_statistics(folder / STATISTICS_FILE, ours, job.measure)
    records = [finished_record(job, shard) for shard in shards_of(job.num_images)]
    return Evaluation(
        key=key,
        ensemble_digest=ensemble,
        **_result(job.measure.extractor, frechet_distance(ours, theirs)),
        **({} if their_features is None else _of_features(measures, folder, job.num_images, their_features)),
        num_images=job.num_images,
        steps=job.images.steps,
        seed=job.images.seed,
        guidance_scale=job.images.guidance_scale,
        raster=job.measure.raster,
        reference_digest=reference.digest,
        reference_images=theirs.num_images,
        seconds_per_image=sum(record.making_s for record in records if record is not None) / job.num_images,
        wall_s=time.monotonic() - began,
        workers=max(1, workers.used.workers_at_once()) if workers.used is not None else 0,
        at=unix_time(),
    )


def _of_features(
    measures: tuple[str, ...], folder: Path, num_images: int, theirs_NF: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """The measures of features, equally many of each side."""
    count = min(num_images, len(theirs_NF), MOST_FEATURES)
    ours_NF = spread_features(folder, num_images, count)
    return measures_of_features(measures, ours_NF, theirs_NF[evenly(len(theirs_NF), count)])


def _result(extractor: ExtractorChoice, distance: float) -> dict[str, Any]:
    """The number, and what made the features, under their right names: an FID is Inception's alone."""
    if extractor.name == "inception":
        return {"fid": distance, "inception_sha256": extractor.digest}
    level = {} if extractor.packet_level is None else {"packet_level": extractor.packet_level}
    return {"extractor": extractor.name, "frechet_distance": distance, "extractor_sha256": extractor.digest, **level}


def _record(ledger: Ledger, evaluation: Evaluation, reference: str) -> None:
    """Write the report, which says that what is beside it is whole, then the manifest; delete the shards last."""
    directory, folder = ledger.directory, evaluation_folder(ledger.directory.path, evaluation.key)
    kept = [name for name in (STATISTICS_FILE, IMAGES_FOLDER) if (folder / name).exists()]
    report = report_of(ledger.manifest, evaluation, reference, file_digest(folder / STATISTICS_FILE))
    with directory.fenced():
        write_model(folder / REPORT_FILE, report)
        for name in (*kept, REPORT_FILE):
            directory.publish((folder / name).relative_to(directory.path).as_posix())
        ledger.record_evaluation(evaluation)
        remove_shards(folder)


@contextmanager
def _usage_recorded(ledger: Ledger, workers: Workers) -> Iterator[None]:
    """Record what the evaluation held, also if it breaks off; under a job name of its own."""
    began = unix_time()
    try:
        yield
    finally:
        used = workers.used
        if used is not None:
            attempt = 1 + sum(held.job == EVALUATE_JOB for held in ledger.manifest.usage)
            at_once = max(1, used.workers_at_once())
            ledger.record_usage(EVALUATE_JOB, attempt, began, at_once, min(used.request.gpus, 1.0))
