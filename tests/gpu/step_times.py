"""How long a training step of the dense network and of each expert takes, beside a plain loop of the same network.

Each loop has a process of its own. As many as the device's memory holds are made ready at once, then take turns. The
plain loop is that of plain_loop.py, with the same precision, memory format and compilation as ours; its batches lie on
the device already, so that what is compared is what a GPU does.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from bench import Report, in_turn, this_device, timed
from own_loop import OwnLoop, first_job
from plain_loop import PlainLoop
from setting import CUDA, Setting
from train_step import own_loop, own_process
from untrained import untrained_networks

from ebdiff_orchestrator.doctor.needs import footprint
from region_workers.networks.costs import cost_counter
from schemas.plan import Plan

OVER_FP32 = 4.0  # of the fastest way of ours, on a GPU: the target of train_step.py
TURN_S, MOST_STEPS, MOST_AT_ONCE = 0.5, 10, 6
Loop = PlainLoop | OwnLoop
Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Mode:
    """A way of training. `plain`: options of the plain loop; None: it has nothing like it."""

    name: str
    training: Mapping[str, Any]
    plain: Mapping[str, bool] | None
    tf32: bool = True

    def title(self, network: str, whose: str) -> str:
        """One loop of it."""
        return f"{network}, {self.name}: {whose}"


_BF16 = {"determinism": "fast", "precision": "bf16"}
_LAST = {**_BF16, "channels_last": True}
FP32 = Mode("fp32 exact", {"determinism": "exact"}, {}, tf32=False)
TF32 = Mode("TF32 fast", {"determinism": "fast"}, {})
NARROW = Mode("bf16 fast", _BF16, {"bf16": True})
LAST = Mode("bf16 channels_last fast", _LAST, {"bf16": True, "channels_last": True})
LAST_EXACT = Mode("bf16 channels_last exact", {**_LAST, "determinism": "exact"}, None)
COMPILED = Mode(
    "bf16 channels_last compiled fast",
    {**_LAST, "compile": True},
    {"bf16": True, "channels_last": True, "compiled": True},
)


def step_times(setting: Setting) -> None:
    """Time them all, and compare: ours with the plain loop, experts with the dense network, every way with fp32."""
    plan, quick = setting.plan(), setting.options.quick
    first_job(plan, setting.folder)  # decodes the images before the processes ask for them
    networks = {"dense": 0.0, **{f"{region.pruning_ratio:.0%} expert": region.pruning_ratio for region in plan.regions}}
    ways = {name: modes_of(name, list(networks)[-1], quick) for name in networks}
    loops = {
        title: make
        for compiled in (False, True)  # last, since it takes minutes
        for network, modes in ways.items()
        for mode in modes
        if (mode is COMPILED) == compiled
        for title, make in loops_of(plan, setting.folder, network, networks[network], mode)
    }
    seconds = dict[str, list[float]]()
    for names in groups(list(loops), most_at_once(plan)):
        seconds |= step_seconds({name: loops[name] for name in names}, setting.options, setting.report)
    for name, spent in seconds.items():
        setting.report.add(name, statistics.median(spent), "s a step")
    report_plain(setting.report, seconds, ways)
    report_experts(setting.report, seconds, ways, plan, networks)
    if CUDA:
        setting.report.skip("CUDA graphs", "the project has none")
    else:
        setting.report.skip("TF32, channels_last, torch.compile", "they are for a GPU")


def modes_of(network: str, smallest: str, quick: bool) -> list[Mode]:
    """What a network is timed in. Compiling takes a minute each: the dense network and the smallest expert."""
    if not CUDA:
        of_dense = [FP32] if quick else [FP32, NARROW]
        return of_dense if network == "dense" else [FP32] if network == smallest else []
    if quick:
        return [FP32, TF32, LAST] if network == "dense" else [LAST]
    modes = [FP32, TF32, NARROW, LAST, LAST_EXACT] if network == "dense" else [TF32, LAST]
    return [*modes, COMPILED] if network in ("dense", smallest) else modes


def loops_of(
    plan: Plan, folder: Path, network: str, pruning_ratio: float, mode: Mode
) -> Iterator[tuple[str, Callable[[], Loop]]]:
    """The plain loop of a network, if it can be had in this mode, and ours; by title."""
    if mode.plain is not None:
        yield mode.title(network, "plain"), partial(plain_loop, plan, pruning_ratio, mode.tf32, mode.plain)
    yield mode.title(network, "ours"), partial(own_loop, plan, folder, dict(mode.training), pruning_ratio)


def plain_loop(plan: Plan, pruning_ratio: float, tf32: bool, options: Mapping[str, bool]) -> PlainLoop:
    """The plain loop on a batch that stays on the device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = tf32
    dense, experts = untrained_networks(plan)
    of_ratio = {0.0: dense} | {region.pruning_ratio: e for region, e in zip(plan.regions, experts, strict=True)}
    shape = (plan.training.batch_size, plan.data.channels, plan.data.resolution, plan.data.resolution)
    batch = torch.rand(shape, device=this_device()) * 2 - 1
    return PlainLoop(of_ratio[pruning_ratio], repeat(batch), this_device(), plan.regions[0].train, **options)


def most_at_once(plan: Plan) -> int:
    """How many trainings of the dense network the device's free memory holds."""
    if not CUDA:
        return MOST_AT_ONCE
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(MOST_AT_ONCE, int(0.8 * free / footprint(plan, processes=1).on_device_bytes())))


def groups(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """So many at a time."""
    left = iter(names)
    while group := list(islice(left, size)):
        yield group


def step_seconds(
    loops: Mapping[str, Callable[[], Loop]], options: argparse.Namespace, report: Report
) -> dict[str, list[float]]:
    """Seconds of a step of each loop, in each round; a loop that fails is reported and left out."""
    rounds = 3 if CUDA else 1
    settings = {name: argparse.Namespace(threads=options.threads, steps=2 if CUDA else 1) for name in loops}
    with ExitStack() as processes, ThreadPoolExecutor(len(loops)) as threads:
        turns = {name: processes.enter_context(own_process(make, settings[name])) for name, make in loops.items()}
        for name, warm in {name: threads.submit(turn) for name, turn in turns.items()}.items():
            try:
                warm.result()
            except (RuntimeError, EOFError) as error:
                report.fail(name, f"{error}" or "its process died")
                del turns[name]
        for name, turn in turns.items() if CUDA else ():
            step_s = timed(turn) / settings[name].steps
            settings[name].steps = max(2, min(MOST_STEPS, int(TURN_S / step_s)))
        seconds = in_turn(turns, rounds, warm_up=0, untimed=int(CUDA))
    return {name: [each / settings[name].steps for each in spent] for name, spent in seconds.items()}


def faster(report: Report, name: str, over: Sequence[float] | None, under: Sequence[float] | None, **how: Any) -> None:
    """How many times as fast: nothing where one of the two failed."""
    if over and under:
        report.add(name, statistics.median(over) / statistics.median(under), **{"unit": "x", **how})


def report_plain(report: Report, seconds: Seconds, ways: Mapping[str, Sequence[Mode]]) -> None:
    """Ours over the plain loop in the same mode; the fastest mode over the plain loop in fp32; what exactness costs."""
    get = seconds.get
    for network, modes in ways.items():
        for mode in modes:
            plain, ours = get(mode.title(network, "plain")), get(mode.title(network, "ours"))
            faster(report, f"{network}, {mode.name}: speed over plain", plain, ours, at_least=1.0)
    of_dense = {mode.name: get(mode.title("dense", "ours")) for mode in ways["dense"]}
    fastest = min((spent for spent in of_dense.values() if spent), key=statistics.median, default=None)
    plain = get(FP32.title("dense", "plain"))
    faster(report, "dense: the fastest of ours over plain fp32", plain, fastest, at_least=OVER_FP32)
    exact, fast = of_dense.get(LAST_EXACT.name), of_dense.get(LAST.name)
    faster(report, "dense, bf16 channels_last: fast over exact", exact, fast)


def report_experts(
    report: Report,
    seconds: Seconds,
    ways: Mapping[str, Sequence[Mode]],
    plan: Plan,
    networks: Mapping[str, float],
) -> None:
    """An expert's step over the dense network's in the same mode, beside the ratio of MACs."""
    costs = cost_counter(plan.model, plan.data)
    for network, pruning_ratio in list(networks.items())[1:]:
        macs = costs.dense().macs_with_attention / costs.at(pruning_ratio).macs_with_attention
        for mode in ways[network]:
            dense, expert = (seconds.get(mode.title(which, "ours")) for which in ("dense", network))
            faster(report, f"{network}, {mode.name}: speed over dense", dense, expert, unit=f"x, MACs {macs:.2f}x")
