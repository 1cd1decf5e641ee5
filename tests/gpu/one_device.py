"""What is asked of one device: steps without a wait, memory as estimated, three regions at once, sampling."""

import argparse
import gc
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from own_loop import OwnLoop, first_job
from sampling import Benchmark
from setting import BF16, CHANNELS_LAST, CUDA, EXACT, FAST, Setting
from step_share import WARM_UP_STEPS, peak_bytes, synchronisations
from train_step import own_loop, own_process

from ebdiff_orchestrator.doctor.needs import footprint
from schemas.plan import Plan

ROOT = Path(__file__).parents[2]
WAYS = {
    "fp32 exact": (EXACT,),
    "bf16 channels_last fast": (FAST, BF16, CHANNELS_LAST),
    "accumulation, SpeeD, Min-SNR, weight decay": (
        FAST,
        "training.gradient_accumulation=2",
        "training.weight_decay=0.01",
        "training.timesteps={sampling: speed, weighting: min-snr}",
    ),
    "sparse": (FAST, "sparsity={method: static, sparsity: 0.5}"),
}
Turns = Mapping[str, Callable[[], object]]


def no_synchronisation(setting: Setting) -> None:
    """A step, its record included, never waits for the device: CUDA itself raises if it does."""
    steps = 8 if CUDA else 1
    for name, changes in list(WAYS.items())[: 2 if setting.options.quick else None]:
        loop = warm_loop(setting.plan(*changes), setting.folder)
        found = first_wait(loop.step, steps) if CUDA else ", ".join(sorted(set(synchronisations(loop, steps))))
        title = f"{name}: waits in {steps} steps"
        setting.report.add(title, float(bool(found)), at_most=0, at_any_size=True)
        if found:
            setting.report.fail(name, found)


def warm_loop(plan: Plan, folder: Path) -> OwnLoop:
    """The plan's dense network in training, after its first steps, which allocate."""
    loop = OwnLoop(*first_job(plan, folder), log=False)
    for _ in range(WARM_UP_STEPS):
        loop.step()
    return loop


def first_wait(step: Callable[[], None], steps: int) -> str:
    """Where the first wait for the device is, within some steps; empty: nowhere."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(steps):
            step()
    except RuntimeError as error:
        return place_of(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def place_of(error: Exception) -> str:
    """The last line of ours that an error came through, and what it says."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}: {error}"


def memory(setting: Setting) -> None:
    """The peak of a training against the estimate of `ebdiff doctor`: less than that must not be promised."""
    for name, changes in list(WAYS.items())[:2]:
        before = torch.cuda.memory_allocated()
        plan = setting.plan(*changes)
        need = footprint(plan, processes=1)
        estimate = need.state_bytes + need.activation_bytes
        loop = warm_loop(plan, setting.folder)
        peak = peak_bytes(loop) - before
        del loop
        gc.collect()  # before the next is measured
        setting.report.add(f"{name}: estimate", estimate / 2**20, "MiB")
        setting.report.add(f"{name}: peak", peak / 2**20, "MiB")
        setting.report.add(f"{name}: peak over estimate", peak / estimate, "x", at_most=1.1)
        setting.report.add(f"{name}: estimate over peak", estimate / peak, "x", at_most=1.5)
    if CUDA:
        free, total = torch.cuda.mem_get_info()
        besides = total - free - torch.cuda.memory_reserved()
        setting.report.add("on the device besides tensors, others' included", besides / 2**20, "MiB")


def regions(setting: Setting) -> None:
    """An expert of each region in a process of its own, alone and then all at once, on the same device."""
    plan = setting.plan()
    first_job(plan, setting.folder)  # decodes the images before the processes ask for them
    how = {"determinism": "fast", "precision": "bf16", "channels_last": True} if CUDA else {}
    options = argparse.Namespace(threads=setting.options.threads, steps=2 if CUDA else 1)
    lasting_s = 3.0 if CUDA else 0.2
    with ExitStack() as processes:
        turns = {
            region.name: processes.enter_context(
                own_process(partial(own_loop, plan, setting.folder, how, region.pruning_ratio), options)
            )
            for region in plan.regions
        }
        for turn in turns.values():
            turn()
        alone = {name: rates({name: turn}, options.steps, lasting_s)[name] for name, turn in turns.items()}
        together = rates(turns, options.steps, lasting_s)
    for name in turns:
        setting.report.add(f"{name} alone", alone[name], "steps/s")
        setting.report.add(f"{name} beside the others", together[name], "steps/s")
        setting.report.add(f"{name}: of its speed alone", together[name] / alone[name], "")
    work = sum(together[name] / alone[name] for name in turns)
    setting.report.add("work done at once over one after another", work, "x", at_least=0.9)


def rates(turns: Turns, steps: int, lasting_s: float) -> dict[str, float]:
    """Steps a second of each, in turns of so many steps, all at the same time."""
    began = time.perf_counter()

    def keep_on(turn: Callable[[], object]) -> float:
        done, spent = 0, 0.0
        while spent < lasting_s:
            turn()
            done, spent = done + steps, time.perf_counter() - began
        return done / spent

    with ThreadPoolExecutor(len(turns)) as threads:
        return dict(zip(turns, threads.map(keep_on, turns.values()), strict=True))


def sampling(setting: Setting) -> None:
    """The ensemble against the dense network, in images a second and against the ratio of MACs."""
    options = argparse.Namespace(
        short=not CUDA,
        preset=setting.options.preset,
        batch_size=128 if CUDA else 2,
        steps=(20 if setting.options.quick else 100) if CUDA else 5,
        rounds=3 if CUDA else 1,
        compile=False,
    )
    benchmark = Benchmark(options, setting.folder / "ensemble")
    benchmark.speed(setting.report)
    for figure in [each for each in setting.report.figures if each.name.endswith(": an image")]:
        setting.report.add(figure.name.replace("an image", "images a second"), 1 / figure.value)
    if not CUDA:
        benchmark.waits(setting.report)
        return
    benchmark.precisions(setting.report)
    found = wait_between_steps(benchmark)
    setting.report.add("waits for the device in the loop", float(bool(found)), at_most=0)
    if found:
        setting.report.fail("the loop", found)


def wait_between_steps(benchmark: Benchmark) -> str:
    """Where the ensemble's loop waits for the device, after its first step; empty: nowhere."""
    ensemble = benchmark.ensembles["uniform"]
    timesteps = [step for start in benchmark.one_of_each for step in (start + 2, start + 1, start)]
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        torch.cuda.set_sync_debug_mode("error" if done < len(timesteps) else "default")

    try:
        ensemble.draw(timesteps, on_step)
    except RuntimeError as error:
        return place_of(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""
