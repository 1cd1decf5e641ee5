"""`ebdiff estimate`: what a run would take, from a few measured steps and stated assumptions."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich.console import Console

from ebdiff_orchestrator.placement.schedule import place
from ebdiff_orchestrator.placement.works import DRAW_INTERVALS, draw_steps_of, drawn_after, interval_steps, works_of
from ebdiff_orchestrator.plans.preview import PlanPreview, preview_plan
from ebdiff_orchestrator.reports.formats import TextTable, gib, print_table, say
from ebdiff_orchestrator.reports.measures import method_of
from ebdiff_orchestrator.run.resolve import adopt_dense
from ebdiff_orchestrator.run.time_left import duration
from region_workers.training.device import current_world, prepare_process
from region_workers.training.timing import StepTime, StepTimer, ratios_of
from schemas.errors import user_error
from schemas.manifest import POINTS_COUNTED
from schemas.plan import Plan
from schemas.stage_names import train_stage_name

_BUSY = 1.2
Say = Callable[[str], None]


@dataclass(frozen=True)
class Assumptions:
    """What an estimate takes for granted.

    `draw_intervals`: the masks after which a draw converges (the paper's CIFAR-10 tickets: epochs 4 to 12).
    `images`: the size of the data set, for the length of an epoch; None: known, or not needed.
    `dense_steps`: the dense training to compare with; None: as many steps as the slowest region's.
    `devices`: how many there are; None: one a region.
    """

    draw_intervals: int = DRAW_INTERVALS
    images: int | None = None
    dense_steps: int | None = None
    devices: int | None = None


@dataclass(frozen=True)
class StageEstimate:
    """One stage: updates (of a draw: of the dense network, a mask's gradient passes counted as such) and seconds."""

    name: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class Versus:
    """Against a dense training of `dense_steps`: the paper's speed-up, and the share of device-hours saved."""

    dense_steps: int
    dense_s: float
    speed_up: float
    hours_saved: float


@dataclass(frozen=True)
class Estimate:
    """The prediction; `times` by pruning ratio, 0 for the dense network; seconds, hours of one device."""

    plan: Plan
    device: str
    times: Mapping[float, StepTime]
    preview: PlanPreview
    draws: tuple[StageEstimate, ...]
    trainings: tuple[StageEstimate, ...]
    makespan_s: float
    device_hours: float
    draw_share: float
    equal_steps: Versus
    given_steps: Versus | None
    assumptions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.plan.name,
            "method": method_of(self.plan),
            "device": self.device,
            "networks": [{"pruning_ratio": ratio, **asdict(step)} for ratio, step in self.times.items()],
            "stages": [asdict(stage) for stage in (*self.draws, *self.trainings)],
            "makespan_s": self.makespan_s,
            "device_hours": self.device_hours,
            "draw_share": self.draw_share,
            "equal_steps": asdict(self.equal_steps),
            "given_dense_steps": self.given_steps and asdict(self.given_steps),
            "assumptions": list(self.assumptions),
        }


def estimate(plan: Plan, steps: int, assume: Assumptions, tell: Say) -> Estimate:
    """Time `steps` updates of every network of the plan on the device at hand, and predict the run.

    Raises PlanError as `preview_plan` does, UserError where an epoch's length is needed and unknown.
    """
    if plan.model.pretrained is not None:
        plan, _ = adopt_dense(plan)
    interval = interval_steps(plan, assume.images)
    if interval is None:
        expected = f"the number of images in {plan.data.path}, since the draw takes a mask each epoch"
        remedy = "Give it, for example --images 50000, or set draw.interval_steps."
        raise user_error("--images", None, expected, remedy)
    preview = preview_plan(plan)
    times, device = measure_steps(plan, steps, tell)
    return predict(plan, preview, times, interval, assume, device)


def measure_steps(plan: Plan, steps: int, tell: Say) -> tuple[dict[float, StepTime], str]:
    """The time of an update of every network of the plan, by pruning ratio, and the device that it was taken on."""
    prepare_process(plan.training)
    world = current_world(use_gpu=plan.workers.gpus != 0)
    if world.device.type == "cpu":
        why = "workers.gpus = 0" if plan.workers.gpus == 0 else "No GPU here"
        tell(f"{why}: these are times of a CPU, from fewer steps and smaller batches where it is slow.")
    timer = StepTimer(plan, world)
    ratios = ratios_of(plan)
    times = {}
    for index, ratio in enumerate(ratios):
        network = "the dense network" if ratio == 0 else f"the {ratio:.0%} expert"
        tell(f"timing {network} ({index + 1} of {len(ratios)})")
        times[ratio] = timer.measure(ratio, steps)
    return times, world.describe(plan.training).device


def predict(
    plan: Plan, preview: PlanPreview, times: Mapping[float, StepTime], interval: int, assume: Assumptions, device: str
) -> Estimate:
    """The estimate from step times at hand; `interval` is the steps between two masks."""
    seconds = {ratio: step.seconds for ratio, step in times.items()}
    dense_s = seconds[0.0]
    draw_steps = draw_steps_of(plan, interval, assume.draw_intervals)
    draws = tuple(StageEstimate(name, steps, steps * dense_s) for name, steps in draw_steps.items())
    trainings = tuple(
        StageEstimate(train_stage_name(r), plan.steps_of(r), plan.steps_of(r) * seconds[r.pruning_ratio])
        for r in plan.regions
    )
    slowest = max(trainings, key=lambda stage: stage.seconds)
    work_s, draw_s = (sum(stage.seconds for stage in part) for part in ((*draws, *trainings), draws))
    works, first = works_of(plan, seconds, draw_steps)
    devices = assume.devices or len(plan.regions)
    schedule = place(works, devices, plan.placement, plan.workers.parallel_efficiency, first)

    def versus(dense_steps: int) -> Versus:
        """A plan that starts from a dense training is charged for it, as in the paper."""
        all_s = dense_steps * dense_s
        charged_s = all_s if _starts_dense(plan) else 0.0
        saved = 1 - (charged_s + schedule.held_s) / all_s
        return Versus(dense_steps, all_s, speed_up=all_s / (charged_s + slowest.seconds), hours_saved=saved)

    return Estimate(
        plan=plan,
        device=device,
        times=times,
        preview=preview,
        draws=draws,
        trainings=trainings,
        makespan_s=schedule.makespan_s,
        device_hours=schedule.held_s / 3600,
        draw_share=draw_s / work_s,
        equal_steps=versus(slowest.steps),
        given_steps=None if assume.dense_steps is None else versus(assume.dense_steps),
        assumptions=_assumptions(plan, times, interval, assume),
    )


def _starts_dense(plan: Plan) -> bool:
    return plan.model.pretrained is not None or plan.draw.method == "one-shot"


def _assumptions(plan: Plan, times: Mapping[float, StepTime], interval: int, assume: Assumptions) -> tuple[str, ...]:
    lines = []
    if interval:
        lines.append(
            f"Draws converge at interval {drawn_after(plan, assume.draw_intervals)}, {interval} steps each "
            "(--draw-intervals)."
        )
    if plan.draw.importance in ("taylor", "diff-pruning"):
        lines.append(f"A {plan.draw.importance} mask costs a dense step for each of its timesteps, at most.")
    devices = assume.devices or len(plan.regions)
    lines.append(f"{devices} device(s) like this one; {_placed(plan)}; no waiting, loading or checkpoints.")
    if _starts_dense(plan):
        lines.append("Speed-ups charge this plan the dense training that it starts from, as the paper does.")
    if plan.data.drawings is not None:
        lines.append(f"Drawings have {POINTS_COUNTED} points; steps take longer or shorter in proportion.")
    sizes = {step.batch_size for step in times.values()} - {plan.training.batch_size}
    if sizes:
        lines.append(f"Timed with a batch of {min(sizes)}; {plan.training.batch_size} take in proportion more.")
    seconds = [step.seconds for _, step in sorted(times.items())]
    if any(smaller > larger * _BUSY for larger, smaller in pairwise(seconds)):
        lines.append("CAUTION: a smaller network came out slower than a larger one; this machine is busy. Run again.")
    return tuple(lines)


def _placed(plan: Plan) -> str:
    if plan.placement == "one-per-region":
        return "each region on one"
    if plan.placement == "packed":
        return "the regions packed on as few as end as early"
    return f"balanced, where each doubling keeps {plan.workers.parallel_efficiency:.0%} of the speed"


def show_estimate(found: Estimate, console: Console) -> None:
    """Print the measured steps, the predicted stages, and what the whole comes to."""
    say(console, f"{found.plan.name}: {method_of(found.plan)}, on {found.device}", "")
    print_table(_networks(found), console)
    print_table(_stages(found), console)
    say(console, *_summary(found), *(f"Assumed: {line}" for line in found.assumptions))


def _networks(found: Estimate) -> TextTable:
    dense_s = found.times[0.0].seconds
    macs = {0.0: found.preview.dense.macs}
    macs |= {region.region.pruning_ratio: region.costs.macs for region in found.preview.regions}
    rows = []
    for ratio, step in found.times.items():
        name = "dense" if ratio == 0 else f"{ratio:.0%} expert"
        faster, by_macs = f"{dense_s / step.seconds:.2f}x", f"{macs[0.0] / macs[ratio]:.2f}x"
        rows.append((name, f"{step.seconds * 1000:.1f}", faster, by_macs, gib(step.peak_memory_bytes)))
    return TextTable(("network", "step ms", "faster", "by MACs alone", "memory GiB"), tuple(rows))


def _stages(found: Estimate) -> TextTable:
    rows = [(stage.name, str(stage.steps), duration(stage.seconds)) for stage in (*found.draws, *found.trainings)]
    return TextTable(("stage", "steps", "time"), tuple(rows))


def _summary(found: Estimate) -> list[str]:
    kind = "worker-hours" if found.device == "cpu" else "GPU-hours"
    lines = [
        f"From start to finish {duration(found.makespan_s)}; {found.device_hours:.3g} {kind}, "
        f"{found.draw_share:.1%} of them for the draws.",
        _versus("At equal steps", found.equal_steps, kind),
    ]
    if found.given_steps is not None:
        return [*lines, _versus("Against the dense steps given", found.given_steps, kind)]
    return [
        *lines,
        "Give --dense-steps for the dense training that you would do instead (the paper's CIFAR-10: 800000).",
    ]


def _versus(title: str, versus: Versus, kind: str) -> str:
    return (
        f"{title} ({versus.dense_steps}, {duration(versus.dense_s)}): speed-up {versus.speed_up:.2f}x by the paper's "
        f"definition (slowest region's training, draws left out); {versus.hours_saved:.0%} of the {kind} saved, draws "
        "and all regions included."
    )
