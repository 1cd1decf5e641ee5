"""What the training loop adds to its step: its share of the time, its waiting for the device, its share of the memory.

    python tests/benchmarks/step_share.py [--preset cifar10] [--batch-size N] [--steps 12] [--threads 2]
                                          [--set KEY=VALUE]... [--short] [--json FILE]

The trainer and its record, on images of noise (batch: 8 on a CPU, 128 on a GPU):

- the loop's own time is what is neither forward, backward, clipping nor the optimizer, by clocks around these. On a
  GPU each clock waits for the device, so nothing of it hides behind the device's work;
- synchronisations are reads of a device's value by the host (`aten::item` and its kin) and, on a GPU, CUDA's calls
  that wait, in steps without a log interval. On a CPU fused Adam's kernel reads its step counts, which are the host's
  own there: these are no waiting and are not counted;
- the peak of the tensors' memory within a step is held against what the step needs: weights, gradients, two moments,
  EMA, and the activations that autograd keeps for the backward pass. Activations go as gradients come, so less is
  possible; no less than weights, moments and EMA with the larger of the two.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from bench import SMALL, Report, arguments, benchmark, parsed, this_device
from own_loop import OwnLoop, job_on_noise
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from region_workers.training.trainer import Trainer

WAITS = {
    *("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"),
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}
FUSED_ADAM = {"aten::_fused_adam_", "aten::_fused_adamw_"}
WARM_UP_STEPS = 2  # the first steps allocate


class Clock:
    """Seconds spent inside the timed calls; on a GPU these wait for the device before and after."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = now()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += now() - began

        return timed


def now() -> float:
    """Seconds, once the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def timed_essentials(trainer: Trainer, clock: Clock) -> Iterator[None]:
    """Time forward, backward, clipping and the optimizer's step for a while."""
    before = torch.Tensor.backward, nn.utils.clip_grad_norm_
    torch.Tensor.backward = clock.around(before[0])
    nn.utils.clip_grad_norm_ = clock.around(before[1])
    trainer.network.forward = clock.around(trainer.network.forward)
    trainer.optimizer.step = clock.around(trainer.optimizer.step)
    try:
        yield
    finally:
        torch.Tensor.backward, nn.utils.clip_grad_norm_ = before
        del trainer.network.forward, trainer.optimizer.step


def own_share(loop: OwnLoop, steps: int) -> tuple[float, float]:
    """Median seconds a step, and the share of it that is the loop's own."""
    whole, own = [], []
    with timed_essentials(loop.trainer, clock := Clock()):
        for _ in range(steps):
            clock.seconds, began = 0.0, now()
            loop.step()
            seconds = now() - began
            whole.append(seconds)
            own.append((seconds - clock.seconds) / seconds)
    return statistics.median(whole), statistics.median(own)


def synchronisations(loop: OwnLoop, steps: int) -> list[str]:
    """The names of the events in which the host waited for the device, in steps without a log interval."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler, record_function("steps"):
        for _ in range(steps):
            loop.step()
    events: Sequence[FunctionEvent] = profiler.events()
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    span = next(event.time_range for event in on_host if event.name == "steps")
    return [
        event.name
        for event in on_host
        if event.name in WAITS and span.start <= event.time_range.start <= span.end and not in_fused_adam(event)
    ]


def in_fused_adam(event: FunctionEvent) -> bool:
    """Whether it is within the optimizer's CPU kernel."""
    parent = event.cpu_parent
    return parent is not None and (parent.name in FUSED_ADAM or in_fused_adam(parent))


def peak_bytes(loop: OwnLoop) -> int:
    """The most memory that tensors hold within a step, what stays from step to step included."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        loop.step()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loop.step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return state_bytes(loop.trainer) + max(accumulate(change for _, change in changes))


def state_bytes(trainer: Trainer) -> int:
    """Weights, moments and EMA."""
    return sum(tensor.nbytes for tensor in trainer.state_tensors().values())


def activation_bytes(loop: OwnLoop) -> int:
    """What autograd keeps of a step's forward pass: each storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in loop.trainer.parameters.values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loop.step()
    return sum(kept.values())


def report_time(report: Report, loop: OwnLoop, steps: int) -> None:
    """The loop's own share of a step."""
    step_s, share = own_share(loop, steps)
    report.add("a step", step_s, "s")
    report.add("the loop's own share of it", 100 * share, "%", at_most=2.0)


def report_waits(report: Report, loop: OwnLoop, steps: int) -> None:
    """How often the host waited."""
    waits = Counter(synchronisations(loop, steps))
    report.add(f"synchronisations in {steps} steps", waits.total(), " ".join(waits), at_most=0)


def report_memory(report: Report, loop: OwnLoop) -> None:
    """The peak over the need."""
    state, activations = state_bytes(loop.trainer), activation_bytes(loop)
    gradients = sum(parameter.nbytes for parameter in loop.trainer.parameters.values())
    peak = peak_bytes(loop)
    report.add("weights, moments, EMA", state / 2**20, "MiB")
    report.add("gradients", gradients / 2**20, "MiB")
    report.add("activations", activations / 2**20, "MiB")
    report.add("peak", peak / 2**20, "MiB")
    report.add("peak over all of these", peak / (state + gradients + activations), "x", at_most=1.10)
    report.add("peak over the least possible", peak / (state + max(gradients, activations)), "x")


def main() -> None:
    batch_size = 128 if this_device().type == "cuda" else 8
    parser = arguments(__doc__, preset="cifar10", batch_size=batch_size, steps=12, changes=[])
    options = parsed(parser, preset="digits", batch_size=4, steps=2, changes=[SMALL])
    with benchmark("The loop's share of a training step", options) as (report, folder):
        loop = OwnLoop(*job_on_noise(options, folder), log=False)
        for _ in range(WARM_UP_STEPS):
            loop.step()
        report_time(report, loop, options.steps)
        report_waits(report, loop, min(options.steps, 4))
        report_memory(report, loop)


if __name__ == "__main__":
    main()
