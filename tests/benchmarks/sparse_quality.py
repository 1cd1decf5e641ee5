"""Dense, Static-DM, RigL-DM and MagRan-DM at several sparsities and seeds, and sparsity by region, at equal steps.

    python tests/benchmarks/sparse_quality.py [--runs FOLDER] [--preset digits|cifar16|kanji] [--data PATH] [--steps N]
                                              [--seeds 3] [--sparsities 0.25 0.5 0.75 0.9] [--num-images 1000]
                                              [--set KEY=VALUE]... [--short] [--json FILE]

Each is a run in FOLDER, by this process alone; finished runs and evaluations are kept, so what was stopped goes on.
Seeds are the outer loop: stopped early, it leaves tables of fewer seeds. `ebdiff compare FOLDER/*` shows every run.

Reported for each kind: mean and deviation over seeds of the Fréchet distance by random-conv features, which compares
these runs with each other and nothing else; theoretical multiply-accumulates of a training step beside the dense
network's; the experts' size on disk beside its. TA-sparse has three experts, each with a third of the steps.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench import SMALL, Report, arguments, parsed, settings_of

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.evaluation.evaluate import evaluate
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.stages import ASSEMBLE
from schemas.plan import Plan

METHODS = ("static", "rigl", "magran")
CIFAR16 = (
    "data.resolution=16",
    "model.block_out_channels=[16, 32]",
    "model.layers_per_block=1",
    "model.down_block_types=[DownBlock2D, AttnDownBlock2D]",
    "model.up_block_types=[AttnUpBlock2D, UpBlock2D]",
    "model.norm_num_groups=8",
    "training.batch_size=32",
    "training.learning_rate=0.001",
    "training.ema_decay=0.995",
    "training.ema_warmup=true",
    "sampling.steps=25",
    "sampling.batch_size=250",
)
PRESETS = {"digits": ("digits", ()), "cifar16": ("cifar10", CIFAR16), "kanji": ("kanji", ())}
SHORT = (SMALL, "training.batch_size=8", "sampling.steps=2", "sparsity.interval_steps=1")


class Kind(NamedTuple):
    """One row of the table: a method of the preset, and the plan's sparsity if it is not by region."""

    method: str
    sparsity: float | None

    @property
    def name(self) -> str:
        return self.method if self.sparsity is None else f"{self.method}-{self.sparsity:.0%}".rstrip("%")


class Outcome(NamedTuple):
    """Of one run."""

    distance: float
    step_macs: float
    stored_bytes: int


def main() -> None:
    """Run what is missing and report."""
    parser = arguments(__doc__, steps=500, seeds=3, num_images=1000, changes=[])
    parser.add_argument("--runs", type=Path, help="where the runs are kept; default: nowhere")
    parser.add_argument("--preset", choices=PRESETS, default="digits")
    parser.add_argument("--data", help="data.path")
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.25, 0.5, 0.75, 0.9])
    options = parsed(parser, steps=3, seeds=1, sparsities=[0.5], num_images=4, threads=1)
    report = Report(f"quality of sparse training, {options.preset}", settings_of(options))
    with ExitStack() as stack:
        folder = options.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        outcomes: dict[Kind, list[Outcome]] = {}
        for seed in range(options.seeds):
            for kind in kinds(options.sparsities):
                outcome = outcome_of(plan_of(kind, seed, options), folder, options)
                outcomes.setdefault(kind, []).append(outcome)
                print(f"{kind.name} seed {seed}: {outcome.distance:.4g}", flush=True)
    dense = outcomes[Kind("dense", None)][0]
    for kind, of_seeds in outcomes.items():
        distances = [outcome.distance for outcome in of_seeds]
        report.add(f"{kind.name}: FD-random-conv, mean of {len(distances)}", statistics.mean(distances))
        if len(distances) > 1:
            report.add(f"{kind.name}: deviation", statistics.stdev(distances))
        report.add(f"{kind.name}: theoretical MACs of a step", of_seeds[0].step_macs / dense.step_macs, "x dense")
        report.add(f"{kind.name}: stored", of_seeds[0].stored_bytes / dense.stored_bytes, "x dense")
    report.show(options.json)


def kinds(sparsities: list[float]) -> Iterator[Kind]:
    """The rows, those that most depends on first."""
    yield Kind("dense", None)
    for sparsity in sparsities:
        for method in METHODS:
            yield Kind(method, sparsity)
    yield Kind("ta-sparse", None)


def plan_of(kind: Kind, seed: int, options: argparse.Namespace) -> Plan:
    """The plan of one run."""
    preset, changes = PRESETS[options.preset]
    by_region = kind.method == "ta-sparse"
    steps = math.ceil(options.steps / 3) if by_region else options.steps
    plan = load_plan(
        f"{preset}-{kind.method}",
        [
            *changes,
            f"training.steps={steps}",
            f"training.cpu_threads={options.threads}",
            f"seed={seed}",
            f"sampling.num_images={min(64, options.num_images)}",
            "workers.gpus=0",
            *([] if options.data is None else [f"data.path={options.data}"]),
            *([] if kind.sparsity is None else [f"sparsity.sparsity={kind.sparsity}"]),
            *(_short_changes(kind) if options.short else ()),
            *options.changes,
        ],
    )
    regions = tuple(region.model_copy(update={"steps": None}) for region in plan.regions)
    return plan.model_copy(update={"regions": regions, "name": f"{kind.name}-s{seed}"})


def _short_changes(kind: Kind) -> tuple[str, ...]:
    return SHORT if kind.method != "dense" else tuple(change for change in SHORT if "sparsity" not in change)


def outcome_of(plan: Plan, folder: Path, options: argparse.Namespace) -> Outcome:
    """The run and its evaluation, or what was found by them before."""
    run = launch(plan, folder / plan.name, executor=ThisProcess())
    evaluation = evaluate(run.run_dir, options.num_images, extractor="random-conv", in_process=True)
    preview = preview_plan(plan)
    sparse = preview.weighted_sparse
    return Outcome(
        distance=evaluation.distance,
        step_macs=3 * preview.weighted.macs_with_attention if sparse is None else sparse.step_macs,
        stored_bytes=sum(item.size_bytes for item in run.manifest.stage(ASSEMBLE).artifacts),
    )


if __name__ == "__main__":
    main()
