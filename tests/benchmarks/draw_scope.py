"""One dense warm-up that draws every region's ticket (`draw.scope: shared`) beside one draw for each region.

    python tests/benchmarks/draw_scope.py [--preset digits] [--set KEY=VALUE]... [--threads 2] [--short] [--json FILE]

The draw stages of the preset, three regions at 30, 60 and 80%, as workers run them, one after another in this process.
The cost: updates of the dense network and seconds. Regions draw side by side on a GPU each, so what a run waits for is
the longest of its own draws, or the shared one, and what it pays for is their sum.

The tickets: how far the masks lie from each other (share of bits that differ), and which share of the smaller one's
kept channels the larger one keeps too, beside the share to expect of masks that have nothing to do with each other.
All draws start from the same weights.
"""

from itertools import combinations
from pathlib import Path

from bench import SMALL, Report, arguments, benchmark, parsed

from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.reports.masks import NamedMask, kept_bits, recorded_masks
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data.store import ensure_store
from region_workers.storage.integrity import finished_result
from region_workers.worker.run import run_job
from schemas.job import StageResult
from schemas.plan import Plan

SCOPES = ("per-region", "shared")
SHORT = (SMALL, "training.batch_size=8", "draw.interval_steps=2", "draw.threshold=0.5")


def main() -> None:
    options = parsed(arguments(__doc__, preset="digits", changes=[]), threads=1, changes=SHORT)
    masks: dict[str, list[NamedMask]] = {}
    updates: dict[str, list[int]] = {}
    with benchmark("draw scope", options) as (report, folder):
        for scope in SCOPES:
            changes = [f"draw.scope={scope}", f"training.cpu_threads={options.threads}", *options.changes]
            plan = load_plan(options.preset, changes)
            results = draw(plan, folder / scope)
            report_cost(report, scope, results)
            updates[scope] = [result.steps for result in results]
            masks[scope] = report_tickets(report, scope, plan, folder / scope)
        for word, total in (("pay", sum), ("wait", max)):
            shared_over = total(updates["shared"]) / total(updates["per-region"])
            report.add(f"updates to {word} for: shared over per-region", shared_over, "x")
        for scope in SCOPES:
            for a, b in combinations(masks[scope], 2):
                compare(report, a, b)
        for a, b in zip(masks["per-region"], masks["shared"], strict=True):
            compare(report, a, b)


def draw(plan: Plan, run_dir: Path) -> list[StageResult]:
    """The results of the plan's draws, done one after another."""
    run_dir.mkdir()
    inputs = Inputs(ensure_store(plan.data, run_dir.parent / "cache").digest)
    results = []
    for outline in outline_jobs(plan, inputs):
        if outline.draw is None:
            continue
        job = worker_job(plan, outline, run_dir, inputs)
        run_job(job.model_copy(update={"train": None, "cache_dir": str(run_dir.parent / "cache")}))
        result = finished_result(run_dir, outline.draw)
        assert result is not None
        results.append(result)
    return results


def report_cost(report: Report, scope: str, results: list[StageResult]) -> None:
    """Updates and seconds of all draws, and of the longest."""
    report.add(f"{scope}: updates", sum(result.steps for result in results))
    report.add(f"{scope}: updates of the longest draw", max(result.steps for result in results))
    report.add(f"{scope}: all draws", sum(result.active_s for result in results), "s")
    report.add(f"{scope}: the longest draw", max(result.active_s for result in results), "s")


def report_tickets(report: Report, scope: str, plan: Plan, run_dir: Path) -> list[NamedMask]:
    """When each region's ticket appeared, and what it keeps; its mask."""
    chosen = []
    for masks in recorded_masks(RunDirectory(run_dir), plan):
        assert masks.ticket is not None
        mask = masks.chosen(f"{scope} ")
        report.add(f"{mask.name}: ticket", masks.ticket.step, "updates")
        report.add(f"{mask.name}: channels kept", kept_bits(mask.words) / mask.bits)
        chosen.append(mask)
    return chosen


def compare(report: Report, a: NamedMask, b: NamedMask) -> None:
    """How far two masks lie from each other."""
    smaller, larger = sorted((kept_bits(a.words), kept_bits(b.words)))
    name = f"{a.name} and {b.name}"
    report.add(f"{name}: distance", kept_bits(a.words ^ b.words) / a.bits)
    report.add(f"{name}: kept by both", kept_bits(a.words & b.words) / smaller)
    report.add(f"{name}: kept by both, by chance", larger / a.bits)


if __name__ == "__main__":
    main()
