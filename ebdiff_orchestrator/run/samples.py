"""What a run denoises: its images, decoded once, or the latents that its VAE makes of them."""

from __future__ import annotations

import torch

from ebdiff_orchestrator.cluster import Executor, request_of
from ebdiff_orchestrator.plans.data_checks import check_data_fits
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.resolve import ResolvedPlan
from ebdiff_orchestrator.run.view import View
from region_workers.data.labels import check_labels
from region_workers.data.latents import ensure_latents, find_latents
from region_workers.data.store import ImageStore, Store, ensure_store
from schemas.errors import RunFailed
from schemas.model import LatentModelPlan
from schemas.process import unix_time


def decode_images(resolved: ResolvedPlan, view: View) -> ImageStore:
    """The images of the plan. PlanError or UserError if it cannot be trained on them, RunFailed if decoding broke."""
    plan = resolved.plan
    try:
        images = ensure_store(plan.data, resolved.cache_dir, view.images)
    except ChildProcessError as error:
        raise RunFailed(f"data.path = {plan.data.path}: {error}.") from error
    if images.unreadable:
        names = ", ".join(images.info.unreadable_names[:5])
        view.line(f"{images.unreadable} unreadable images were left out: {names}.")
    check_labels(images.labels, plan.model.num_classes)
    check_data_fits(plan, len(images), request_of(plan.workers, 0.0).processes)
    return images


def samples_at_hand(resolved: ResolvedPlan, images: ImageStore) -> Store | None:
    """What is denoised: the images, or their latents; None if those are still to be encoded."""
    plan = resolved.plan
    if not isinstance(plan.model, LatentModelPlan):
        return images
    return find_latents(plan.model, plan.data, images, resolved.cache_dir)


def encode_images(resolved: ResolvedPlan, images: ImageStore, ledger: Ledger, executor: Executor, view: View) -> Store:
    """The latents of the images, by as many workers as there are."""
    plan = resolved.plan
    assert isinstance(plan.model, LatentModelPlan)
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
