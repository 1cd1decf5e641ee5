"""What a plan's jobs cost, for the planner: seconds on one device, or steps of the dense network as the unit."""

from collections.abc import Mapping

from ebdiff_orchestrator.placement.schedule import Work, allowed_widths
from ebdiff_orchestrator.plans.data_checks import DIGITS_IMAGES
from ebdiff_orchestrator.plans.preview import PlanPreview
from schemas.plan import DIGITS, Plan
from schemas.stage_names import SHARED_DRAW, draw_stage_name

DRAW_INTERVALS = 7  # assumed: the paper's CIFAR-10 tickets were drawn at epochs 4 to 12
_IMAGES = {DIGITS: DIGITS_IMAGES, "uoft-cs/cifar10": 50_000}


def works_of(
    plan: Plan,
    step_seconds: Mapping[float, float],
    draw_steps: Mapping[str, int] | None = None,
    memory_bytes: int | None = None,
) -> tuple[list[Work], Work | None]:
    """The jobs of the regions, and the shared draw before them, if there is one; named as the run's jobs are.

    `step_seconds`: of one update on one device, by pruning ratio, 0 for the dense network. `draw_steps`: dense updates
    of each draw stage, as `draw_steps_of` gives them; None leaves the draws out, a shared one altogether.
    `memory_bytes`: what the largest network needs on one device.
    """
    widths = allowed_widths(plan.training, plan.training.batch_size)
    draw_s = {name: steps * step_seconds[0.0] for name, steps in (draw_steps or {}).items()}
    shared_s = draw_s.pop(SHARED_DRAW, None)
    works = []
    for region in plan.regions:
        train_s = plan.steps_of(region) * step_seconds[region.pruning_ratio]
        seconds = draw_s.get(draw_stage_name(plan, region), 0.0) + train_s
        works.append(Work(f"region {region.name}", seconds, widths, memory_bytes))
    return works, None if shared_s is None else Work("shared draw", shared_s, widths, memory_bytes)


def dense_steps_by_macs(preview: PlanPreview) -> dict[float, float]:
    """What one update costs in updates of the dense network, by multiply-accumulates alone, by pruning ratio."""
    ratios = {region.region.pruning_ratio: region.costs.macs / preview.dense.macs for region in preview.regions}
    return {0.0: 1.0, **ratios}


def interval_steps(plan: Plan, images: int | None = None) -> int | None:
    """The steps between two masks: the plan's, else an epoch of so many images; 0 where nothing is drawn by training.

    None if it is an epoch and neither `images` nor the data set's size is known.
    """
    if not plan.draw.trains_dense or not any(region.pruning_ratio for region in plan.regions):
        return 0
    if plan.draw.interval_steps is not None:
        return plan.draw.interval_steps
    images = images or _IMAGES.get(plan.data.path)
    return None if images is None else max(1, images // plan.training.batch_size)


def drawn_after(plan: Plan, intervals: int) -> int:
    """The masks that a draw takes if it converges after `intervals`, its queue being full, and is not cut short."""
    fullest = (plan.draw.queue_length - 1) * plan.draw.queue_stride + 1
    return min(max(intervals, fullest), plan.draw.max_intervals)


def draw_steps_of(plan: Plan, interval: int, intervals: int) -> dict[str, int]:
    """Updates of the dense network in each draw stage; a mask's gradient passes count as one for each timestep.

    `interval`: steps between two masks; `intervals`: the masks after which a draw converges.
    """
    masks = {"early-bird": drawn_after(plan, intervals), "one-shot": 1, "slim": 0}[plan.draw.method]
    spans = {draw_stage_name(plan, region): (region.train, region.pruning_ratio > 0) for region in plan.regions}
    if plan.draw.scope == "shared":
        pruned = any(region.pruning_ratio for region in plan.regions)
        spans = {SHARED_DRAW: ((0, plan.diffusion.num_train_timesteps), pruned)}
    return {
        name: masks * (interval + _passes_of_a_mask(plan, timesteps)) if is_drawn else 0
        for name, (timesteps, is_drawn) in spans.items()
    }


def _passes_of_a_mask(plan: Plan, timesteps: tuple[int, int]) -> int:
    if plan.draw.importance not in ("taylor", "diff-pruning"):
        return 0
    span = timesteps[1] - timesteps[0]
    return min(plan.draw.importance_timesteps or span, span)
