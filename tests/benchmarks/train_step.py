"""A training step of ours beside the plain loop's, and an expert's beside the dense network's.

    python tests/benchmarks/train_step.py [--preset cifar10] [--batch-size N] [--rounds 5] [--steps N] [--threads 2]
                                          [--set KEY=VALUE]... [--short] [--json FILE]

The plain loop is plain_loop.py; ours is the trainer and the record that it keeps. Each has a process of its own, and
they take turns of `--steps` steps, on the same network and image files. Batch and
steps of a turn: 8 and 1 on a CPU, 128 and 20 on a GPU.

On a CPU ours is timed in fp32 and in bf16; on a GPU also with channels_last and torch.compile, under `determinism`
exact and fast. An update counts as 3 x 2 x MACs operations an image (a backward is two forwards; the MACs are those
with attention's products), and its share of the peak is against large matrix products in the same precision, which
take turns with the rest. Experts are timed as they are trained: their steps would take the dense network's time over
the ratio of MACs if nothing but MACs took time.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench import SMALL, Report, arguments, benchmark, in_turn, parsed, ratio, this_device, training_changes
from diffusers import UNet2DModel
from own_loop import IMAGES, OwnLoop, first_job, plan_on_noise
from plain_loop import PlainLoop, decoded_batches

from region_workers.networks.costs import cost_counter
from region_workers.networks.dense import dense_config
from schemas.plan import Plan

PLAIN = "plain loop, fp32"
DENSE = 0.0

Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Variant:
    """One way of training: its options, the speed-up over the plain loop that is aimed at, the networks timed in it."""

    name: str
    training: dict[str, Any]
    at_least: float | None
    pruning_ratios: tuple[float, ...]

    @property
    def dtype(self) -> torch.dtype:
        """What its products are computed in."""
        return torch.bfloat16 if self.training.get("precision") == "bf16" else torch.float32

    def label(self, pruning_ratio: float = DENSE) -> str:
        """One of its networks."""
        return f"{self.name}, {'dense' if pruning_ratio == DENSE else f'{pruning_ratio:.0%} expert'}"


def variants(cuda: bool, pruning_ratios: tuple[float, ...], compiled: bool) -> list[Variant]:
    """The ways that are worth their time on the device. On a GPU the experts train in the fastest only."""
    bf16 = {"precision": "bf16"}
    if not cuda:
        return [Variant("ours, fp32", {}, 1.05, pruning_ratios), Variant("ours, bf16", bf16, 1.7, pruning_ratios)]
    best = {**bf16, "channels_last": True, "compile": compiled}
    return [
        Variant("ours, fp32 exact", {}, None, (DENSE,)),
        Variant("ours, bf16 exact", best, None, (DENSE,)),
        Variant("ours, bf16 fast", {**best, "determinism": "fast"}, 4.0, pruning_ratios),
    ]


class MatrixProducts:
    """Products of two large square matrices, whose speed is the peak that can be had; a call makes `count` of them."""

    def __init__(self, dtype: torch.dtype, side: int, count: int) -> None:
        self._a, self._b = torch.randn(2, side, side, device=this_device()).to(dtype)
        self._count = count
        self.operations = 2 * count * side**3

    def __call__(self) -> None:
        for _ in range(self._count):
            torch.mm(self._a, self._b)


def plain_loop(plan: Plan, folder: Path) -> PlainLoop:
    """The plain loop, on the plan's network and images and its first region's timesteps."""
    network = dense_config(plan.model, plan.data)
    batches = decoded_batches(folder / IMAGES, network, plan.training.batch_size, this_device())
    return PlainLoop(UNet2DModel(**network), batches, this_device(), plan.regions[0].train)


def own_loop(plan: Plan, folder: Path, training: dict[str, Any], pruning_ratio: float) -> OwnLoop:
    """Ours, in one way and with one network."""
    job, store = first_job(plan, folder)
    job = job.model_copy(update={"training": plan.training.model_copy(update=training)})
    return OwnLoop(job, store, pruning_ratio)


def serve(connection: Connection, threads: int, make: Callable[[], PlainLoop | OwnLoop]) -> None:
    """Train a loop by as many steps as it is told to, until it is told 0; each time answer None, or why it failed."""
    torch.set_num_threads(threads)
    try:
        loop = make()
        while steps := connection.recv():
            for _ in range(steps):
                loop.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            connection.send(None)
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        raise


@contextmanager
def own_process(make: Callable[[], PlainLoop | OwnLoop], options: argparse.Namespace) -> Iterator[Callable[[], object]]:
    """Turns of a loop that has a process to itself; a turn raises RuntimeError if the loop fails.

    What one asks of its process (determinism, say) must not reach another, nor one's memory push out another's.
    """
    # diffusers asks for a GPU when it is imported, and a process forked from one that asked cannot use it.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(["own_loop", "plain_loop"])  # imported once for all; nothing of torch has run there
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, options.threads, make))
    process.start()
    there.close()  # only the process holds it now, so that `recv` ends if it dies

    def turn() -> None:
        with suppress(BrokenPipeError):  # it has ended, and perhaps said why
            here.send(options.steps)
        if (why := here.recv()) is not None:
            raise RuntimeError(why)

    try:
        yield turn
        with suppress(BrokenPipeError):
            here.send(0)
    finally:
        here.close()
        process.join()


def measure(plan: Plan, folder: Path, options: argparse.Namespace, report: Report) -> None:
    """Time all of them in turn."""
    cuda = this_device().type == "cuda"
    pruning_ratios = [region.pruning_ratio for region in plan.regions]
    ways = variants(cuda, (DENSE, *pruning_ratios[-1 if options.short else 0 :]), compiled=not options.short)
    side, count = (8192, 20) if cuda else (2048, 1)
    products = {way.dtype: MatrixProducts(way.dtype, 256 if options.short else side, count) for way in ways}
    loops: dict[str, Callable[[], PlainLoop | OwnLoop]] = {PLAIN: partial(plain_loop, plan, folder)}
    for way in ways:
        for each in way.pruning_ratios:
            loops[way.label(each)] = partial(own_loop, plan, folder, way.training, each)
    first_job(plan, folder)  # decodes the images before the processes ask for them
    with ExitStack() as processes:
        turns = {name: processes.enter_context(own_process(make, options)) for name, make in loops.items()}
        turns |= {str(dtype): product for dtype, product in products.items()}
        seconds = in_turn(turns, options.rounds, untimed=0 if options.short else 1)
    report_steps(report, seconds, ways, options.steps)
    for dtype, product in products.items():
        speed = product.operations / statistics.median(seconds[str(dtype)])
        report.add(f"peak: {dtype} matrix products", speed / 1e12, "TFLOP/s")
    for way in ways:
        report_peak(report, seconds, way, plan, products[way.dtype], options.steps)
        report_experts(report, seconds, way, plan)


def report_steps(report: Report, seconds: Seconds, ways: Sequence[Variant], steps: int) -> None:
    """Seconds a step, and how many times the plain loop's speed that is."""
    for name in (PLAIN, *(way.label(pruning_ratio) for way in ways for pruning_ratio in way.pruning_ratios)):
        report.add(name, statistics.median(seconds[name]) / steps, "s a step")
    for way in ways:
        times = ratio(seconds[PLAIN], seconds[way.label()])
        report.add(f"{way.name}: speed over {PLAIN}", times, "x", at_least=way.at_least)


def report_peak(
    report: Report, seconds: Seconds, way: Variant, plan: Plan, products: MatrixProducts, steps: int
) -> None:
    """The dense network's operations a second over those of the matrix products."""
    macs = cost_counter(plan.model, plan.data).at(DENSE).macs_with_attention
    operations = 3 * 2 * macs * plan.training.batch_size * steps
    share = ratio(seconds[str(way.dtype)], seconds[way.label()]) * operations / products.operations
    report.add(f"{way.name}: share of the peak", 100 * share, "%")


def report_experts(report: Report, seconds: Seconds, way: Variant, plan: Plan) -> None:
    """How much faster than the dense network's an expert's step is, beside the ratio of their MACs."""
    dense_macs = cost_counter(plan.model, plan.data).at(DENSE).macs_with_attention
    for pruning_ratio in way.pruning_ratios[1:]:
        times = ratio(seconds[way.label()], seconds[way.label(pruning_ratio)])
        macs = cost_counter(plan.model, plan.data).at(pruning_ratio).macs_with_attention
        report.add(f"{way.label(pruning_ratio)}: speed over dense", times, f"x, MACs {dense_macs / macs:.2f}x")


def main() -> None:
    batch_size, steps = (128, 20) if this_device().type == "cuda" else (8, 1)
    parser = arguments(__doc__, preset="cifar10", batch_size=batch_size, rounds=5, steps=steps, changes=[])
    options = parsed(parser, preset="digits", batch_size=4, rounds=1, steps=1, changes=[SMALL])
    with benchmark("A training step", options) as (report, folder):
        measure(plan_on_noise(options.preset, folder, training_changes(options)), folder, options, report)


if __name__ == "__main__":
    main()
