"""The stages of a plan: their names, their keys, and the jobs that workers complete them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.digest import digest
from schemas.job import TICKETS_FOLDER, DrawStage, DrawTarget, TrainStage, WorkerJob
from schemas.plan import Plan
from schemas.regions import RegionPlan

ASSEMBLE, SAMPLE = "ensemble", "samples"
_SHARED = "draw/shared"


@dataclass(frozen=True)
class JobOutline:
    """What one worker will do, before paths are known: a draw, a training, or both."""

    name: str
    draw: DrawStage | None
    train: TrainStage | None
    after: tuple[str, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages this job completes."""
        return tuple(stage.name for stage in (self.draw, self.train) if stage is not None)


def outline_jobs(plan: Plan, store_digest: str) -> tuple[JobOutline, ...]:
    """The jobs of a plan: one a region; with a shared draw, that draw first and then one training a region."""
    if plan.draw.scope == "per-region":
        return tuple(_region_job(plan, region, store_digest) for region in plan.regions)
    targets = tuple(_target(region) for region in plan.regions)
    draw = _draw_stage(plan, _SHARED, (0, plan.diffusion.num_train_timesteps), targets, store_digest)
    trainings = tuple(
        JobOutline(f"region {region.name}", None, _train_stage(plan, region, draw), after=(draw.name,))
        for region in plan.regions
    )
    return (JobOutline("shared draw", draw, None, after=()), *trainings)


def stage_names(plan: Plan) -> tuple[str, ...]:
    """Every stage of the run, in the order of the data."""
    draws = [_SHARED] if plan.draw.scope == "shared" else [f"draw/{region.name}" for region in plan.regions]
    return (*draws, *(f"train/{region.name}" for region in plan.regions), ASSEMBLE, SAMPLE)


def train_stage_name(region: RegionPlan) -> str:
    """The name of a region's train stage, also its folder in the run directory."""
    return f"train/{region.name}"


def draw_folder(plan: Plan, region: RegionPlan) -> str:
    """Where a region's ticket lies in the run directory."""
    stage = _SHARED if plan.draw.scope == "shared" else f"draw/{region.name}"
    return f"{stage}/{TICKETS_FOLDER}/{region.name}"


def worker_job(
    plan: Plan, outline: JobOutline, run_dir: Path, store_digest: str, attempt: int = 1, use_gpu: bool = True
) -> WorkerJob:
    """The outline with everything a worker needs."""
    return WorkerJob(
        name=outline.name,
        attempt=attempt,
        run_dir=str(run_dir),
        cache_dir=plan.workers.cache_dir,
        use_gpu=use_gpu,
        store_digest=store_digest,
        seed=plan.seed,
        data=plan.data,
        model=plan.model,
        diffusion=plan.diffusion,
        draw_plan=plan.draw,
        training=plan.training,
        checkpointing=plan.checkpointing,
        logging=plan.logging,
        draw=outline.draw,
        train=outline.train,
    )


def assemble_key(plan: Plan, train_results: dict[str, str]) -> str:
    """The key of the ensemble: the experts' digests (by region) and how it samples by default."""
    sampling = plan.sampling.model_dump(mode="json", include={"steps", "spacing", "eta", "clip_sample"})
    return digest({"stage": "assemble", "experts": train_results, "routes": plan.routes(), "sampling": sampling})


def sample_key(plan: Plan, ensemble_key: str) -> str:
    """The key of the images made at the end of the run."""
    return digest({"stage": "sample", "ensemble": ensemble_key, "images": plan.sampling.num_images, "seed": plan.seed})


def _region_job(plan: Plan, region: RegionPlan, store_digest: str) -> JobOutline:
    draw = _draw_stage(plan, f"draw/{region.name}", region.train, (_target(region),), store_digest)
    return JobOutline(f"region {region.name}", draw, _train_stage(plan, region, draw), after=())


def _target(region: RegionPlan) -> DrawTarget:
    return DrawTarget(region=region.name, pruning_ratio=region.pruning_ratio)


def _draw_stage(
    plan: Plan, name: str, timesteps: tuple[int, int], targets: tuple[DrawTarget, ...], store_digest: str
) -> DrawStage:
    ratios = sorted(target.pruning_ratio for target in targets)
    key = digest({"stage": "draw", **_inputs(plan, store_digest), "timesteps": timesteps, "ratios": ratios})
    return DrawStage(name=name, key=key, timesteps=timesteps, targets=targets)


def _train_stage(plan: Plan, region: RegionPlan, draw: DrawStage) -> TrainStage:
    """Its key leaves the number of steps out, so that more steps extend a finished expert."""
    key = digest({"stage": "train", "draw": draw.key, "timesteps": region.train, "ratio": region.pruning_ratio})
    return TrainStage(
        name=train_stage_name(region),
        key=key,
        region=region.name,
        timesteps=region.train,
        steps=plan.steps_of(region),
        draw=draw.name,
    )


def _inputs(plan: Plan, store_digest: str) -> dict[str, Any]:
    """What determines a draw, and with it the training that follows."""
    experiment = plan.experiment()
    training = {name: value for name, value in experiment["training"].items() if name != "steps"}
    return {
        "seed": plan.seed,
        "images": store_digest,
        "random_flip": plan.data.random_flip,
        "model": experiment["model"],
        "diffusion": experiment["diffusion"],
        "draw": {name: value for name, value in experiment["draw"].items() if name != "scope"},
        "training": training,
    }
