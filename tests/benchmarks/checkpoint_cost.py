"""What a checkpoint costs the training step beside it, written to a folder and sent to an object store.

    python tests/benchmarks/checkpoint_cost.py [--preset cifar10] [--batch-size 8] [--steps N] [--rounds 3]
                                               [--set KEY=VALUE]... [--threads 2] [--short] [--json FILE]

Turns of `--steps` steps, without a checkpoint, with one begun after the first step and written while the others are
made, and with one that an uploader also sends to an S3 server (moto's, on this very machine, so that it takes from the
same cores). What a turn takes longer is what the checkpoint cost; at the plan's interval it is this share of training.
The turn's steps must outlast the writing: the time that is left of it at the end is waited for, and counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import SMALL, Report, arguments, benchmark, in_turn, parsed, this_device
from own_loop import OwnLoop, job_on_noise
from s3_server import BUCKET, s3_server

from region_workers.training.checkpoints import Checkpoints
from region_workers.worker.uploader import Uploader, working_folder
from schemas.job import CHECKPOINTS_FOLDER, WorkerJob

MOST_SHARE = 0.02


class Turn:
    """So many steps, and perhaps a checkpoint while they are made."""

    def __init__(self, loop: OwnLoop, steps: int, folder: Path | None, uploader: Uploader | None = None) -> None:
        self._loop, self._steps, self._uploader = loop, steps, uploader
        self._checkpoints = Checkpoints(folder, "key", 2, uploader.retire if uploader else None) if folder else None
        self.blocked_s: list[float] = []

    def __call__(self) -> None:
        for index in range(self._steps):
            self._loop.step()
            if index == 0 and self._checkpoints is not None:
                began = time.perf_counter()
                trainer = self._loop.trainer
                self._checkpoints.save(trainer.step, 0.0, trainer.state_tensors(), [])
                self.blocked_s.append(time.perf_counter() - began)
        if self._checkpoints is not None:
            self._checkpoints.wait()
        if self._uploader is not None:
            self._uploader.flush()


@contextmanager
def sent_to_a_store(job: WorkerJob, loop: OwnLoop, steps: int, scratch: Path) -> Iterator[Turn]:
    """The turn of a worker whose run is in an object store."""
    remote = job.model_copy(update={"run_dir": f"s3://{BUCKET}/run"})
    with s3_server(), working_folder(remote, scratch, sends_all=True) as (here, uploader):
        yield Turn(loop, steps, Path(here.run_dir, job.stages()[0], CHECKPOINTS_FOLDER), uploader)


def measure(options: argparse.Namespace, folder: Path, report: Report) -> None:
    """All three in turn."""
    job, store = job_on_noise(options, folder)
    loop = OwnLoop(job, store, log=False)
    with ExitStack() as stack:
        plain = Turn(loop, options.steps, None)
        written = Turn(loop, options.steps, folder / "checkpoints")
        sent = stack.enter_context(sent_to_a_store(job, loop, options.steps, folder / "work"))
        turns: dict[str, Callable[[], object]] = {"none": plain, "folder": written, "store": sent}
        seconds = in_turn(turns, options.rounds)
    step_s = statistics.median(seconds["none"]) / options.steps
    interval = job.checkpointing.interval_steps
    state = sum(tensor.nbytes for tensor in loop.trainer.state_tensors().values())
    report.add("state of a checkpoint", state / 2**20, "MiB")
    report.add("a step", step_s, "s")
    report.add("training waits for a checkpoint's copy", statistics.median(written.blocked_s), "s")
    for name, what in (("folder", "a checkpoint"), ("store", "a checkpoint sent to a store")):
        pairs = zip(seconds[name], seconds["none"], strict=True)
        cost_s = max(0.0, statistics.median(longer - plain_s for longer, plain_s in pairs))
        report.add(f"{what} costs", cost_s, "s")
        share = cost_s / (interval * step_s)
        report.add(f"{what}, of {interval} steps", 100 * share, "%", at_most=100 * MOST_SHARE)


def main() -> None:
    batch_size, steps = (128, 300) if this_device().type == "cuda" else (8, 8)
    parser = arguments(__doc__, preset="cifar10", batch_size=batch_size, rounds=3, steps=steps, changes=[])
    options = parsed(parser, preset="digits", batch_size=4, rounds=1, steps=2, changes=[SMALL])
    with benchmark("What a checkpoint costs", options) as (report, folder):
        measure(options, folder, report)


if __name__ == "__main__":
    main()
