"""What a run denoises: its images or drawings, decoded once, or the latents that its VAE makes of images."""

from collections.abc import Sequence
from functools import partial

import torch

from ebdiff_orchestrator.cluster.executor import Executor, request_of
from ebdiff_orchestrator.plans.data_checks import check_data_fits
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.resolve import ResolvedPlan
from ebdiff_orchestrator.run.view import View
from region_workers.data.drawing_store import DrawingStore, ensure_data
from region_workers.data.labels import check_labels
from region_workers.data.latents import ensure_latents, find_latents
from region_workers.data.store import ImageStore, Store
from schemas.errors import RunFailed
from schemas.model import LatentModelPlan
from schemas.process import unix_time


def decode_data(resolved: ResolvedPlan, view: View) -> ImageStore | DrawingStore:
    """The plan's images or drawings. PlanError or UserError if it cannot train on them, RunFailed if decoding broke."""
    plan = resolved.plan
    try:
        store = ensure_data(plan.data, resolved.cache_dir, partial(view.images, what=plan.data.kind))
    except ChildProcessError as error:
        raise RunFailed(f"data.path = {plan.data.path}: {error}.") from error
    _say_left_out(store.info.unreadable_names, f"unreadable {plan.data.kind}", view)
    if isinstance(store, DrawingStore) and plan.data.drawings is not None:
        _say_left_out(store.info.too_long_names, f"drawings of {plan.data.drawings.max_points} points or more", view)
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
            view.images,
            cpu_threads=plan.training.cpu_threads,
            device=torch.device("cuda" if executor.request.gpus else "cpu"),
        )
    finally:
        workers = max(1, executor.workers_at_once())
        ledger.record_usage("encode", 1, started, workers, min(executor.request.gpus, 1.0))


def _say_left_out(names: Sequence[str], what: str, view: View) -> None:
    if names:
        view.line(f"{len(names)} {what} were left out: {', '.join(names[:5])}.")
