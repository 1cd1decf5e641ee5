"""What masks cost: a sparse step beside the dense step of the same network, and an update of every mask.

    python tests/benchmarks/sparse_step.py [--preset cifar10] [--batch-size 128] [--rounds 3] [--threads 2]
                                           [--set KEY=VALUE]... [--short] [--json FILE]

A dense and a static trainer make their steps in turn. An update is `SparseWeights.update`, by the gradient at hand, and
at random, with no other trainer in memory.
"""

import argparse
import statistics
from pathlib import Path

from bench import SMALL, arguments, benchmark, in_turn, parsed, ratio, this_device, timed, training_changes
from own_loop import OwnLoop, first_job, plan_on_noise

from region_workers.training.trainer import Trainer


def main() -> None:
    parser = arguments(__doc__, preset="cifar10", batch_size=128, rounds=3, changes=[])
    options = parsed(parser, preset="digits", batch_size=4, rounds=1, threads=1, changes=[SMALL])
    with benchmark("sparse training", options, device=this_device().type) as (report, folder):

        def trainer(method: str) -> Trainer:
            return trainer_of(f"{options.preset}-{method}", folder / method, options)

        updates = {name: update_s(trainer(name), options.rounds) for name in ("rigl", "magran")}
        dense, static = trainer("dense"), trainer("static")
        steps = in_turn({"dense": dense.train_step, "static": static.train_step}, options.rounds)
        weights = sum(parameter.numel() for parameter in static.parameters.values())
        report.add("parameters", weights / 1e6, "M")
        for name, seconds in steps.items():
            report.add(f"a {name} step", statistics.median(seconds), "s")
        report.add("a static step over a dense one", ratio(steps["static"], steps["dense"]), "x", at_most=1.02)
        for name, seconds_of_update in updates.items():
            report.add(f"an update: {name}", seconds_of_update, "s", at_most=0.3)
        mask_bytes = sum(mask._bits.nbytes for mask in static.sparse._masks.values())
        report.add("masks and the record of their moves, for each parameter", mask_bytes / weights, "bytes", at_most=1)


def trainer_of(plan: str, folder: Path, options: argparse.Namespace) -> Trainer:
    """The trainer of the plan's only region, on images of noise."""
    folder.mkdir()
    return OwnLoop(*first_job(plan_on_noise(plan, folder, training_changes(options)), folder), log=False).trainer


def update_s(trainer: Trainer, rounds: int) -> float:
    """Median seconds of an update, each after a step and by a gradient of its own."""
    seconds = []
    for index in range(rounds + 1):
        trainer.train_step()
        trainer._accumulate_gradients()
        at = 100 * (index + 1)
        seconds.append(timed(lambda at=at: trainer.sparse.update(at, trainer.optimizer, trainer.ema)))
        trainer.optimizer.zero_grad(set_to_none=True)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
