"""What kind of layer a step of sampling spends its time on, dense and experts, and how near it comes to the machine.

    python tests/benchmarks/sampling_layers.py [--batch-size 32] [--steps 100] [--rounds 2] [--threads 1] [--short]
                                               [--json FILE]

CIFAR-10's networks, untrained, on the CPU, in turn in every round, each also with `channels_last`; seconds are the
processor's, the least of the rounds, so that other work on the machine counts little. Beside multiply-accumulates a
second stand what a large matrix product reaches, and beside bytes a second (read and written once) what a copy does.
The speed-up is that of a trajectory whose steps a spacing puts on the experts. `--short` takes the digits' networks.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from bench import SMALL, Report, arguments, benchmark, parsed
from torch import nn
from untrained import owners_of_steps, untrained_networks

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.networks.costs import cost_counter
from region_workers.training.device import keep_freed_memory

PRODUCTS, ATTENTION, PASSES, REST = "1x1 and linear", "attention", "norms and activations", "sums, copies and the like"
WHOLE, CHANNELS_LAST = "step", ", channels_last"


class LayerClock:
    """Processor seconds, multiply-accumulates and bytes of a network's kinds of layers, in one step."""

    def __init__(self, network: nn.Module) -> None:
        self.seconds: Counter[str] = Counter()
        self.macs: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._open: list[list[float]] = []  # of each layer at work: when it began, what the layers in it took
        for module in network.modules():
            if not list(module.children()) or type(module).__name__ == "Attention":
                module.register_forward_pre_hook(self._begin)
                module.register_forward_hook(self._end)

    def step(self, network: nn.Module, sample_BCHW: torch.Tensor, timesteps_B: torch.Tensor) -> float:
        """Processor seconds of one step; what the layers took is noted."""
        for counts in (self.seconds, self.macs, self.bytes):
            counts.clear()
        spent = processor_s(lambda: network(sample_BCHW, timesteps_B))
        self.seconds[REST] += spent - self.seconds.total()
        self.seconds[WHOLE] = spent
        return spent

    def _begin(self, *_: object) -> None:
        self._open.append([time.process_time(), 0.0])

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        began, inner = self._open.pop()
        spent = time.process_time() - began
        if self._open:
            self._open[-1][1] += spent
        kind = kind_of(module, output)
        self.seconds[kind] += spent - inner
        if isinstance(module, nn.Conv2d | nn.Linear):
            self.macs[kind] += output.numel() * module.weight[0].numel()
        elif kind == PASSES:
            self.bytes[kind] += inputs[0].nbytes + output.nbytes


def kind_of(module: nn.Module, output: Any) -> str:
    """Where a layer's time is counted."""
    if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        return f"3x3 on {output.shape[-1]}x{output.shape[-1]}"
    if isinstance(module, nn.Conv2d | nn.Linear):
        return PRODUCTS
    if isinstance(module, nn.GroupNorm | nn.SiLU):
        return PASSES
    return ATTENTION if type(module).__name__ == "Attention" else REST


def processor_s(function: Callable[[], object]) -> float:
    """Processor seconds of a call, in all threads."""
    began = time.process_time()
    function()
    return time.process_time() - began


def peaks(side: int, numbers: int) -> tuple[float, float]:
    """Multiply-accumulates a second of a large matrix product, and bytes a second of a large copy."""
    matrix, vector, other = torch.randn(side, side), torch.randn(numbers), torch.empty(numbers)
    product_s = min(processor_s(lambda: matrix @ matrix) for _ in range(5))
    copy_s = min(processor_s(lambda: other.copy_(vector)) for _ in range(5))
    return side**3 / product_s, 2 * vector.nbytes / copy_s


def main() -> None:
    parser = arguments(__doc__, threads=1, batch_size=32, steps=100, rounds=2)
    options = parsed(parser, batch_size=2, steps=5, rounds=1)
    keep_freed_memory()
    plan = load_plan("digits", [SMALL]) if options.short else load_plan("cifar10", [])
    costs, (dense, experts) = cost_counter(plan.model, plan.data), untrained_networks(plan)
    networks = {"dense": dense, **{region.name: expert for region, expert in zip(plan.regions, experts, strict=True)}}
    macs = {"dense": costs.dense().macs, **{each.name: costs.at(each.pruning_ratio).macs for each in plan.regions}}
    with benchmark("layers of sampling", options) as (report, _):
        best = measured(networks, options.batch_size, options.rounds)
        for form in ("", CHANNELS_LAST):
            for spacing in ("quadratic", "uniform"):
                owners = [plan.regions[owner].name for owner in owners_of_steps(plan, spacing, options.steps)]
                promised = macs["dense"] / (sum(macs[name] for name in owners) / len(owners))
                steps_s = {name: best[name + form].seconds[WHOLE] for name in networks}
                speed_up = steps_s["dense"] / (sum(steps_s[name] for name in owners) / len(owners))
                target = None if form else 0.9
                report.add(f"{spacing}{form}: speed-up over MACs' ratio", speed_up / promised, at_least=target)
        add_layers(report, best, 64 if options.short else 1024, 2**12 if options.short else 2**26)


def measured(networks: dict[str, nn.Module], batch: int, rounds: int) -> dict[str, LayerClock]:
    """Each network's fastest step, plain and with `channels_last`."""
    config = next(iter(networks.values())).config
    sample_BCHW = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
    forms = {name: (network, sample_BCHW) for name, network in networks.items()}
    for name, network in networks.items():
        other = copy.deepcopy(network).to(memory_format=torch.channels_last)
        forms[name + CHANNELS_LAST] = (other, sample_BCHW.to(memory_format=torch.channels_last))
    clocks = {name: LayerClock(network) for name, (network, _) in forms.items()}
    best: dict[str, LayerClock] = {}
    with torch.no_grad():
        for index in range(rounds + 1):  # the first one finds no memory warm
            for name, (network, sample) in forms.items():
                spent = clocks[name].step(network, sample, torch.full((batch,), 500))
                if index and (name not in best or spent < best[name].seconds[WHOLE]):
                    best[name] = copy.deepcopy(clocks[name])
    return best


def add_layers(report: Report, best: dict[str, LayerClock], side: int, numbers: int) -> None:
    """Where the time of a step goes, and at what rate the work is done."""
    peak_macs, peak_bytes = peaks(side, numbers)
    report.add("a large matrix product", peak_macs / 1e9, "GMAC/s")
    report.add("a large copy", peak_bytes / 1e9, "GB/s")
    for name, clock in best.items():
        whole = clock.seconds[WHOLE]
        report.add(f"{name}: a step", whole, "s")
        report.add(f"{name}: the same", clock.macs.total() / whole / 1e9, "GMAC/s")
        if name.endswith(CHANNELS_LAST):
            continue
        for kind, spent in sorted(clock.seconds.items()):
            if kind != WHOLE:
                report.add(f"{name}: {kind}, of the time", spent / whole, "")
            for counted, unit in ((clock.macs, "GMAC/s"), (clock.bytes, "GB/s")):
                if counted[kind]:
                    report.add(f"{name}: {kind}", counted[kind] / spent / 1e9, unit)


if __name__ == "__main__":
    main()
