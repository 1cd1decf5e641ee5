"""Experts put together as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ebdiff_orchestrator.ensemble.loading import pipeline_of
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.scheduler import ListDDIMScheduler
from schemas.errors import user_error
from schemas.plan import DiffusionPlan, SamplingPlan

_OF_SAMPLING = (
    "spacing",
    "eta",
    "clip_sample",
    "guidance_scale",
    "steps_offset",
    "set_alpha_to_one",
    "variance_strength",
)


def ensemble_of(
    experts: Sequence[nn.Module],
    routes: Sequence[tuple[int, int]],
    names: Sequence[str],
    diffusion: DiffusionPlan,
    sampling: SamplingPlan,
    vae: nn.Module | None = None,
) -> RoutedPipeline:
    """The pipeline of `experts`, which own `routes` and are called `names`; `save_pretrained` writes its folder.

    `sampling` becomes what a call of the pipeline that names no steps, eta or guidance scale uses. With `vae` (a
    diffusers AutoencoderKL or VQModel) the experts' images are its latents, scaled as its config says. Raises
    `UserError` if the experts, routes, timesteps and VAE do not fit together.
    """
    router = TimestepRouter(experts, routes, names)
    covered = routes[-1][1]
    if covered != diffusion.num_train_timesteps:
        raise user_error(
            "routes", list(routes), f"a last stop of T = {diffusion.num_train_timesteps}", "Cover all of [0, T)."
        )
    return pipeline_of(router, scheduler_of(diffusion, sampling), vae)


def scheduler_of(diffusion: DiffusionPlan, sampling: SamplingPlan) -> ListDDIMScheduler:
    """The scheduler that samples as the plan says."""
    how = sampling.model_dump(include=set(_OF_SAMPLING))
    scheduler: ListDDIMScheduler = ListDDIMScheduler(
        **diffusion.model_dump(), **how, num_inference_steps=sampling.steps
    )
    return scheduler
