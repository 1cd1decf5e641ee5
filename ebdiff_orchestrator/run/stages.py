"""The stages of a plan: their names, their keys, and the jobs that workers complete them in."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.digest import digest
from schemas.job import TICKETS_FOLDER, DrawStage, DrawTarget, TrainStage, WorkerJob, from_plan
from schemas.manifest import Manifest
from schemas.plan import Plan
from schemas.regions import RegionPlan
from schemas.stage_names import SHARED_DRAW, draw_stage_name, train_stage_name

ASSEMBLE, SAMPLE = "ensemble", "samples"
_RANDOMNESS = 2  # raise it whenever equal seeds give other numbers: what was begun with the old ones is begun anew


@dataclass(frozen=True)
class JobOutline:
    """What one worker will do, before paths are known: a draw, a training, or both."""

    name: str
    draw: DrawStage | None
    train: TrainStage | None
    after: tuple[str, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in (self.draw, self.train) if stage is not None)


@dataclass(frozen=True)
class Inputs:
    """What a plan's stages start from, known by digests: what is denoised, the VAE and the dense start, if any."""

    store: str
    dense: str | None = None
    vae: str | None = None


def inputs_of(manifest: Manifest) -> Inputs:
    """What a run's stages start from; recorded before any job."""
    store, dense = manifest.store_digest, manifest.dense
    assert store is not None
    return Inputs(store, dense.digest if dense else None, manifest.vae_digest)


def outline_jobs(plan: Plan, inputs: Inputs) -> tuple[JobOutline, ...]:
    """The jobs of a plan: one a region; with a shared draw, that draw first and then one training a region."""
    if plan.draw.scope == "per-region":
        return tuple(_region_job(plan, region, inputs) for region in plan.regions)
    draw = _draw_stage(plan, SHARED_DRAW, (0, plan.diffusion.num_train_timesteps), plan.regions, inputs)
    trainings = tuple(
        JobOutline(f"region {region.name}", None, _train_stage(plan, region, draw, inputs), after=(draw.name,))
        for region in plan.regions
    )
    return (JobOutline("shared draw", draw, None, after=()), *trainings)


def stage_names(plan: Plan) -> tuple[str, ...]:
    """Every stage of the run, in the order of the data."""
    draws = dict.fromkeys(draw_stage_name(plan, region) for region in plan.regions)
    return (*draws, *(train_stage_name(region) for region in plan.regions), ASSEMBLE, SAMPLE)


def made_from(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The stages that a stage is made from, by its name; draws are made from none."""
    trainings = {train_stage_name(region): (draw_stage_name(plan, region),) for region in plan.regions}
    return {**trainings, ASSEMBLE: tuple(trainings), SAMPLE: (ASSEMBLE,)}


def with_what_follows(plan: Plan, stages: Collection[str]) -> frozenset[str]:
    """These stages, and all that is made from them."""
    sources, found = made_from(plan), set(stages)
    for name in stage_names(plan):  # each comes after what it is made from
        if not found.isdisjoint(sources.get(name, ())):
            found.add(name)
    return frozenset(found)


def draw_folder(plan: Plan, region: RegionPlan) -> str:
    """Where a region's ticket lies in the run directory."""
    return f"{draw_stage_name(plan, region)}/{TICKETS_FOLDER}/{region.name}"


def worker_job(
    plan: Plan,
    outline: JobOutline,
    run_dir: str | Path,
    inputs: Inputs,
    attempt: int = 1,
    use_gpu: bool = True,
    owner: str = "",
) -> WorkerJob:
    return WorkerJob(
        name=outline.name,
        attempt=attempt,
        run_dir=str(run_dir),
        owner=owner,
        cache_dir=plan.workers.cache_dir,
        use_gpu=use_gpu,
        store_digest=inputs.store,
        dense_digest=inputs.dense,
        hang_limit_s=plan.workers.hang_limit_s,
        store_limit_s=plan.workers.store_limit_s,
        draw=outline.draw,
        train=outline.train,
        **from_plan(plan),
    )


def assemble_key(plan: Plan, train_results: dict[str, str], vae: str | None) -> str:
    """The key of the ensemble: the experts' digests (by region), the VAE's, and how it samples by default."""
    sampling = plan.sampling.model_dump(mode="json", exclude={"num_images", "batch_size"})
    experts = {"experts": train_results, "routes": plan.routes(), "vae": vae}
    return digest({"stage": "assemble", **experts, "sampling": sampling})


def ensemble_digest(manifest: Manifest) -> str:
    """By which evaluations know the ensemble: SHA-256 of its files as they are recorded."""
    return digest([[item.path, item.sha256] for item in manifest.stage(ASSEMBLE).artifacts])


def sample_key(plan: Plan, ensemble_key: str) -> str:
    """The key of the images made at the end of the run."""
    drawn = {"images": plan.sampling.num_images, "seed": plan.seed, "randomness": _RANDOMNESS}
    return digest({"stage": "sample", "ensemble": ensemble_key, **drawn})


def _region_job(plan: Plan, region: RegionPlan, inputs: Inputs) -> JobOutline:
    draw = _draw_stage(plan, draw_stage_name(plan, region), region.train, (region,), inputs)
    return JobOutline(f"region {region.name}", draw, _train_stage(plan, region, draw, inputs), after=())


def _draw_stage(
    plan: Plan, name: str, timesteps: tuple[int, int], regions: tuple[RegionPlan, ...], inputs: Inputs
) -> DrawStage:
    # Whose each ticket is belongs to the key: its files bear the region's name.
    tickets = {region.name: _ticket_key(plan, timesteps, region.pruning_ratio, inputs) for region in regions}
    key = digest({"stage": "draw", "tickets": tickets})
    targets = tuple(DrawTarget(region=region.name, pruning_ratio=region.pruning_ratio) for region in regions)
    return DrawStage(name=name, key=key, timesteps=timesteps, targets=targets)


def _ticket_key(plan: Plan, timesteps: tuple[int, int], ratio: float, inputs: Inputs) -> str:
    return digest({"stage": "ticket", **_determinants(plan, inputs), "timesteps": timesteps, "ratio": ratio})


def _train_stage(plan: Plan, region: RegionPlan, draw: DrawStage, inputs: Inputs) -> TrainStage:
    """Its key leaves the number of steps out, so that more steps extend a finished expert, unless its mask moves.

    Which other tickets a shared draw gives does not matter.
    """
    ticket = _ticket_key(plan, draw.timesteps, region.pruning_ratio, inputs)
    steps, sparsity = plan.steps_of(region), plan.sparsity_of(region)
    sparse = {} if sparsity is None else {"sparsity": sparsity.determinants(steps)}
    key = digest({"stage": "train", "ticket": ticket, "timesteps": region.train, **sparse})
    return TrainStage(
        name=train_stage_name(region),
        key=key,
        region=region.name,
        timesteps=region.train,
        steps=steps,
        draw=draw.name,
        sparsity=sparsity,
    )


def _determinants(plan: Plan, inputs: Inputs) -> dict[str, Any]:
    """What determines a draw, and with it the training that follows."""
    experiment = plan.experiment()
    training = {name: value for name, value in experiment["training"].items() if name != "steps"}
    return {
        "seed": plan.seed,
        "randomness": _RANDOMNESS,
        "images": inputs.store,
        "dense": inputs.dense,
        "random_flip": plan.data.random_flip,
        "model": experiment["model"],
        "diffusion": experiment["diffusion"],
        "draw": {name: value for name, value in experiment["draw"].items() if name != "scope"},
        "training": training,
    }
