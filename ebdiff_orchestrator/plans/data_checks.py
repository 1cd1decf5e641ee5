"""Whether a plan and its data fit: what is refused, and what `ebdiff plan` only notes, since the cluster may differ."""

from pathlib import Path

from region_workers.data.files import names_hub_data
from region_workers.storage.places import cache_dir_of, nothing_at
from schemas.errors import PlanError, plan_error
from schemas.model import VectorModelPlan
from schemas.plan import DIGITS, DataPlan, Plan

DIGITS_IMAGES = 1797


def check_resolution(plan: Plan) -> None:
    """Raise PlanError if the network cannot halve the images as often as it does."""
    if isinstance(plan.model, VectorModelPlan):
        return
    halvings = len(plan.model.block_out_channels) - 1
    smallest = 2**halvings * (plan.model.latent_downscale if plan.model.family == "latent" else 1)
    if plan.data.resolution % smallest:
        raise plan_error(
            "data.resolution",
            plan.data.resolution,
            f"a multiple of {smallest}, since the network halves it {halvings} times",
            "Change the resolution or the number of model.block_out_channels.",
        )


def check_data_fits(plan: Plan, images: int, world_size: int) -> None:
    """Raise PlanError if a batch cannot be made from so many images or drawings, or not be shared out evenly."""
    batch = plan.training.batch_size
    if batch > images:
        raise plan_error(
            "training.batch_size",
            batch,
            f"at most the data set's {images} {plan.data.kind}",
            f"Lower it, for example --set training.batch_size={images}.",
        )
    share = world_size * plan.training.gradient_accumulation
    if batch % share:
        raise plan_error(
            "training.batch_size",
            batch,
            f"a multiple of {share} (workers a region times training.gradient_accumulation)",
            "Change the batch size or the number of GPUs a region.",
        )


def data_notes(plan: Plan) -> list[str]:
    """For people: what of the plan's data would stop a run on this machine. Names and headers are read, no image."""
    data = plan.data
    is_name = data.drawings is None and (data.path == DIGITS or names_hub_data(data.path))
    try:
        if not is_name and not Path(data.path).expanduser().exists():
            remedy = nothing_at(data.path, " on this machine; a cluster's may have it.")
            raise plan_error("data.path", data.path, f"{data.kind} that the run's machines can read", remedy)
        images = count_here(data)
        if images is not None:
            check_data_fits(plan, images, world_size=1)
    except (PlanError, OSError) as error:
        return [str(error)]
    return []


def count_here(data: DataPlan) -> int | None:
    """How many images or drawings there are; None if they are not here, or only reading them all tells. PlanError."""
    if data.drawings is None and data.path == DIGITS:
        return DIGITS_IMAGES
    if not Path(data.path).expanduser().exists():
        return None
    from region_workers.data.drawing_sources import count_data

    return count_data(data, cache_dir_of())
