"""How `ebdiff estimate` shows its prediction."""

from __future__ import annotations

from rich.console import Console

from ebdiff_orchestrator.reports.estimate import Estimate, Versus
from ebdiff_orchestrator.reports.formats import MISSING, TextTable, print_table
from ebdiff_orchestrator.reports.method import method_of


def show_estimate(found: Estimate, console: Console) -> None:
    """Print the measured steps, the predicted stages, and what the whole comes to."""
    console.print(f"{found.plan.name}: {method_of(found.plan)}, on {found.device}", markup=False, highlight=False)
    console.print()
    print_table(_networks(found), console)
    print_table(_stages(found), console)
    for line in (*_summary(found), *(f"Assumed: {line}" for line in found.assumptions)):
        console.print(line, markup=False, highlight=False)


def _networks(found: Estimate) -> TextTable:
    dense_s = found.times[0.0].seconds
    macs = {0.0: found.outlook.dense.macs}
    macs |= {region.region.pruning_ratio: region.costs.macs for region in found.outlook.regions}
    rows = []
    for ratio, step in found.times.items():
        memory = MISSING if step.peak_memory_bytes is None else f"{step.peak_memory_bytes / 2**30:.2f}"
        name = "dense" if ratio == 0 else f"{ratio:.0%} expert"
        faster, by_macs = dense_s / step.seconds, macs[0.0] / macs[ratio]
        rows.append((name, f"{step.seconds * 1000:.1f}", f"{faster:.2f}x", f"{by_macs:.2f}x", memory))
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
        lines.append(_versus("Against the dense steps given", found.given_steps, kind))
    else:
        lines.append(
            "Give --dense-steps for the dense training that you would do instead (the paper's CIFAR-10: 800000)."
        )
    return lines


def _versus(title: str, versus: Versus, kind: str) -> str:
    return (
        f"{title} ({versus.dense_steps}, {duration(versus.dense_s)}): speed-up {versus.speed_up:.2f}x by the paper's "
        f"definition (slowest region's training, draws left out); {versus.hours_saved:.0%} of the {kind} saved, draws "
        "and all regions included."
    )


def duration(seconds: float) -> str:
    """hours:minutes:seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
