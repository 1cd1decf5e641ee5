"""How sampling speeds up with workers: `ebdiff sample --workers` with one worker of one thread and with several.

    python tests/benchmarks/sampling_fan_out.py [--workers 2] [--images 32] [--batch-size 8] [--steps 20] [--rounds 2]
                                                [--short] [--json FILE]

CIFAR-10's experts, untrained, on CPU workers of an embedded Ray: the same images by one worker and by all, in turn, and
checked to be the same bits. Efficiency is how many times as fast, over how many times as many workers; reading the
ensemble counts, starting Ray and its workers does not. What the machine itself can give is shown beside it: as many
plain processes, which know nothing of each other or of Ray, drawing as many images each as a worker does. `--short`
takes the digits' experts.
"""

import multiprocessing
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench import Report, arguments, benchmark, in_turn, parsed, ratio, timed
from untrained import untrained_networks

from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.ensemble import ensemble_of
from ebdiff_orchestrator.evaluation.sampling import SampleJob, sample_here, sample_on_workers
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run.view import View
from schemas.plan import Plan, WorkersPlan

TARGET = 0.9


def save_untrained(plan: Plan, folder: Path) -> None:
    """An ensemble of the plan's experts as they are initialised."""
    _, experts = untrained_networks(plan)
    names = [region.name for region in plan.regions]
    ensemble_of(experts, plan.routes(), names, plan.diffusion, plan.sampling).save_pretrained(folder)


def measure(job: SampleJob, workers: int, rounds: int, report: Report) -> None:
    """Seconds for the job by one worker and by all of them, on workers that have started."""
    drawn: dict[int, np.ndarray] = {}

    def draw(count: int) -> None:
        drawn[count] = sample_on_workers(job, count, None, View()).samples

    alone = replace(job, count=job.count // workers)
    context = multiprocessing.get_context("spawn")
    with connect(WorkersPlan(), workers), context.Pool(workers, torch.set_num_threads, (1,)) as processes:
        draw_apart = partial(processes.map, draw_here, [alone] * workers)
        draw_apart()
        report.add(f"first images by {workers} workers, their start included", timed(lambda: draw(workers)), "s")
        turns = {"one": lambda: draw(1), "all": lambda: draw(workers), "plain processes": draw_apart}
        seconds = in_turn(turns, rounds, warm_up=0)
    assert np.array_equal(drawn[1], drawn[workers]), "the number of workers changed an image"
    for name, spent in seconds.items():
        report.add(f"{name}: images a second", job.count / min(spent), "")
    speed_up = ratio(seconds["one"], seconds["all"])
    report.add(f"speed-up by {workers} workers", speed_up, "x")
    report.add("efficiency", speed_up / workers, at_least=TARGET)
    report.add("efficiency of plain processes", ratio(seconds["one"], seconds["plain processes"]) / workers)
    report.add("of the plain processes' speed", ratio(seconds["plain processes"], seconds["all"]), at_least=TARGET)


def draw_here(job: SampleJob) -> None:
    """Read the ensemble and draw, in this process."""
    sample_here(job, lambda done, total: None)


def main() -> None:
    parser = arguments(__doc__, workers=2, images=32, batch_size=8, steps=20, rounds=2)
    options = parsed(parser, images=4, batch_size=2, steps=3, rounds=1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # workers of one thread each
    with benchmark("sampling_fan_out", options) as (report, folder):
        save_untrained(load_plan("digits" if options.short else "cifar10", []), folder / "ensemble")
        job = SampleJob(str(folder / "ensemble"), options.images, options.batch_size, steps=options.steps)
        measure(job, options.workers, options.rounds, report)


if __name__ == "__main__":
    main()
