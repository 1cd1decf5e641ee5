"""Sampling with the ensemble against the dense network, in one run: time, memory, and waits for the device.

    python tests/benchmarks/sampling.py [--preset cifar10] [--batch-size 8] [--steps 100] [--rounds 2] [--compile]
                                        [--threads 2] [--short] [--json FILE]

A preset's networks, untrained: CIFAR-10's are the dense one and the experts of 30, 60 and 80%. The speed-up is held
against the ratio of multiply-accumulates, weighted by how many steps a spacing puts on each expert. Where it falls
short, the rows of the experts say by how much each is slower than its multiply-accumulates, and the next ones how much
of the time goes to what they do not count (norms, activations, copies). bf16 and, with `--compile` (minutes more),
compiled experts are timed on a fifth of the steps. `--short` takes the digits' networks. On a GPU, take a batch that
fills it.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench import SMALL, Report, arguments, benchmark, in_turn, parsed, ratio, this_device, timed
from torch import nn
from torch.profiler import ProfilerActivity, profile
from untrained import owners_of_steps, untrained_networks

from ebdiff_orchestrator.ensemble import EnsemblePipeline, TimestepRouter, ensemble_of, load_ensemble
from ebdiff_orchestrator.ensemble.loading import scheduler_of
from ebdiff_orchestrator.ensemble.routes import Routes
from ebdiff_orchestrator.plans.load import load_plan
from region_workers.networks.costs import cost_counter
from region_workers.training.device import keep_freed_memory

DEVICE = this_device()
COUNTED = ("conv", "mm", "dot_product", "attention")  # operators whose work multiply-accumulates stand for
WAITS = ("aten::item", "aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaEventSynchronize")
TARGET_SHARE = 0.9


class StepClock:
    """When each step ended, by the device's own clock."""

    def __init__(self) -> None:
        self._marks: list[float | torch.cuda.Event] = []

    def tick(self) -> None:
        """A step has ended; the host does not wait."""
        if DEVICE.type == "cpu":
            self._marks.append(time.perf_counter())
            return
        self._marks.append(torch.cuda.Event(enable_timing=True))
        self._marks[-1].record()

    def seconds(self) -> list[float]:
        """Of each step but a trajectory's first; the device must have been waited for."""
        if DEVICE.type == "cpu":
            return [after - before for before, after in pairwise(self._marks)]
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._marks)]


class Sampler:
    """One pipeline, and the batch and steps that it is timed with."""

    def __init__(self, pipeline: EnsemblePipeline, batch: int, steps: int) -> None:
        self.pipeline, self._batch, self._steps = pipeline, batch, steps
        self.step_s: dict[str, list[float]] = {}
        self.processor_s: list[float] = []

    def draw(self, timesteps: Sequence[int] | None = None, on_step: Callable[[], None] | None = None) -> None:
        """A batch of images."""
        noise = [torch.Generator().manual_seed(index) for index in range(self._batch)]
        self.pipeline(
            self._batch,
            generator=noise,
            num_inference_steps=self._steps,
            timesteps=timesteps,
            output_type="pt",
            show_progress=False,
            on_step=on_step,
        )

    def draw_and_note(self) -> None:
        """A batch of images, each expert's steps timed."""
        clock, processor_began = StepClock(), time.process_time()
        self.draw(on_step=clock.tick)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        self.processor_s.append(time.process_time() - processor_began)
        config = self.pipeline.unet.config
        owners = Routes(config.routes, config.names)
        for timestep, seconds in zip(self.pipeline.scheduler.timesteps.tolist()[1:], clock.seconds(), strict=True):
            self.step_s.setdefault(config.names[owners.owner(timestep)], []).append(seconds)

    def profiled(self, timesteps: Sequence[int]) -> profile:
        """What happened in all steps but the first."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
        profiler, done = profile(activities=activities), 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if done == 1:
                profiler.start()
            elif done == len(timesteps):
                profiler.stop()

        self.draw(timesteps, on_step)
        return profiler


class Benchmark:
    """The networks of a plan, sampled in several ways."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.plan = load_plan("digits", [SMALL]) if options.short else load_plan(options.preset, [])
        self.costs = cost_counter(self.plan.model, self.plan.data)
        self.names = [region.name for region in self.plan.regions]
        self.dense_network, self.experts = untrained_networks(self.plan)
        whole = [(0, self.plan.diffusion.num_train_timesteps)]
        self.dense = self._sampler([self.dense_network], whole, ["dense"], "uniform")
        self.ensembles = {
            spacing: self._sampler(self.experts, self.plan.routes(), self.names, spacing)
            for spacing in ("quadratic", "uniform")
        }
        self.one_of_each = [start for start, _ in self.plan.routes()][::-1]
        ensemble_of(
            self.experts, self.plan.routes(), self.names, self.plan.diffusion, self.plan.sampling
        ).save_pretrained(folder)

    def _sampler(
        self, networks: list[nn.Module], routes: Sequence[tuple[int, int]], names: list[str], spacing: str
    ) -> Sampler:
        router = TimestepRouter(networks, routes, names).eval().to(DEVICE)
        sampling = self.plan.sampling.model_copy(update={"spacing": spacing})
        pipeline = EnsemblePipeline(router, scheduler_of(self.plan.diffusion, sampling))
        return Sampler(pipeline, self.options.batch_size, self.options.steps)

    def loaded(self, **how: Any) -> Sampler:
        """The ensemble, read from its folder as by its users, for a fifth of the steps."""
        pipeline = load_ensemble(self.folder, device=DEVICE, **how)
        return Sampler(pipeline, self.options.batch_size, math.ceil(self.options.steps / 5))

    def macs_ratio(self, spacing: str) -> float:
        """The dense network's multiply-accumulates over the ensemble's, for the steps that really are taken."""
        owners = owners_of_steps(self.plan, spacing, self.options.steps)
        spent = sum(self.costs.at(self.plan.regions[owner].pruning_ratio).macs for owner in owners)
        return len(owners) * self.costs.dense().macs / spent

    def speed(self, report: Report) -> None:
        """Whole trajectories, dense and ensemble in turn."""
        draws = {"dense": self.dense} | self.ensembles
        for sampler in draws.values():
            sampler.draw(self.one_of_each)
        seconds = in_turn({name: each.draw_and_note for name, each in draws.items()}, self.options.rounds, warm_up=0)
        for name, spent in seconds.items():
            report.add(f"{name}: an image", statistics.median(spent) / self.options.batch_size, "s")
        for spacing in self.ensembles:
            macs, speed_up = self.macs_ratio(spacing), ratio(seconds["dense"], seconds[spacing])
            report.add(f"{spacing}: ratio of multiply-accumulates", macs, "x")
            report.add(f"{spacing}: speed-up over dense", speed_up, "x")
            report.add(f"{spacing}: speed-up / ratio", speed_up / macs, at_least=TARGET_SHARE)
            if DEVICE.type == "cpu":
                of_processor = ratio(self.dense.processor_s, self.ensembles[spacing].processor_s)
                report.add(f"{spacing}: the same, by processor time", of_processor / macs)

    def efficiency(self, report: Report) -> None:
        """Each expert's multiply-accumulates a second, of the dense network's; and where the rest of the time goes."""
        dense_s = statistics.median(self.dense.step_s["dense"]) / self.costs.dense().macs
        for region in self.plan.regions:
            steps = [seconds for each in self.ensembles.values() for seconds in each.step_s.get(region.name, [])]
            each_s = statistics.median(steps) / self.costs.at(region.pruning_ratio).macs
            report.add(f"expert {region.name}: MACs a second, of dense's", dense_s / each_s, "")
        for name, sampler in {"dense": self.dense, "uniform": self.ensembles["uniform"]}.items():
            events = sampler.profiled([self.one_of_each[0], *self.one_of_each]).key_averages()
            spent = {event.key: _self_time(event) for event in events}
            counted = sum(us for key, us in spent.items() if any(part in key for part in COUNTED))
            report.add(f"{name}: time in no convolution or product", 1 - counted / sum(spent.values()), "")

    def waits(self, report: Report) -> None:
        """Between steps nothing is read from the device."""
        timesteps = [step for start in self.one_of_each for step in (start + 2, start + 1, start)]
        events = self.ensembles["uniform"].profiled(timesteps).events()
        waits = sum(event.name in WAITS for event in events)
        report.add("waits for the device in the loop", waits, at_most=0)

    def precisions(self, report: Report) -> None:
        """bf16 and, where asked for, compiled experts, against fp32, all in turn."""
        samplers = {"fp32": self.loaded(), "bf16": self.loaded(torch_dtype=torch.bfloat16)}
        if self.options.compile:
            samplers["compiled"] = self.loaded(compile=True)
            compiled_s = timed(lambda: samplers["compiled"].draw(self.one_of_each))
            report.add("compiling, the experts together", compiled_s, "s")
        seconds = in_turn({name: each.draw for name, each in samplers.items()}, self.options.rounds)
        for name in [each for each in samplers if each != "fp32"]:
            report.add(f"{name}: speed-up over fp32", ratio(seconds["fp32"], seconds[name]), "x")

    def memory(self, report: Report) -> None:
        """The most that is held on a GPU while a step of each expert is made; on a CPU, of weights."""
        plain, offloaded = (self._peak_bytes(offload) for offload in (False, True))
        name = "peak memory" if DEVICE.type == "cuda" else "weights in memory at most"
        report.add(name, plain / 2**20, "MiB")
        report.add(f"{name}, offload", offloaded / 2**20, "MiB")

    def _peak_bytes(self, offload: bool) -> int:
        if DEVICE.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.loaded(offload=offload).draw(self.one_of_each)
            return torch.cuda.max_memory_allocated() - before
        sampler, held = self.loaded(offload=offload), []
        weights = sampler.pipeline.unet.parameters
        sampler.draw(self.one_of_each, lambda: held.append(sum(each.nbytes for each in weights() if not each.is_meta)))
        return max(held)


def _self_time(event: object) -> float:
    return event.self_cpu_time_total if DEVICE.type == "cpu" else event.self_device_time_total


def main() -> None:
    parser = arguments(__doc__, preset="cifar10", batch_size=8, steps=100, rounds=2)
    parser.add_argument("--compile", action="store_true", help="compile the experts too: minutes on a CPU")
    options = parsed(parser, batch_size=2, steps=5, rounds=1)
    keep_freed_memory()  # as the commands do
    with benchmark("sampling", options) as (report, folder):
        if options.compile:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # what compiling costs anew
        networks = Benchmark(options, folder / "ensemble")
        for part in (networks.speed, networks.efficiency, networks.waits, networks.memory, networks.precisions):
            part(report)


if __name__ == "__main__":
    main()
