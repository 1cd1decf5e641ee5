"""Building the store beside the bare decode speed of the image library, its memory, and batches beside the step.

    python tests/benchmarks/data_store.py [--images 60000] [--rounds 3] [--batch-size 8] [--threads 2]
                                          [--folder DIR] [--short] [--json FILE]

Bare: as many processes as this one may use cores, one on each, open, convert and resize the same files with Pillow and
turn them into numpy arrays; nothing is read, hashed or written meanwhile. The build is the whole of `ensure_store`,
from the source to the finished, synced store. Both in images a second, in turn in every round. Targets: a build at 0.8
of the bare speed, memory that grows by no more than the names of the images, batches 10 times faster than the step.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import Report, arguments, in_turn, ratio, settings_of
from image_files import encoded_images, write_folder, write_table
from memory import Peak, watch

from ebdiff_orchestrator.plans import load_plan
from region_workers.data.batches import BatchSource
from region_workers.data.store import ensure_store
from region_workers.device import World, prepare_process
from region_workers.timing import RandomStore, StepTimer
from schemas.plan import DataPlan

BARE = Path(__file__).parent / "bare_decode.py"
BUILD_ONE = Path(__file__).parent / "build_one.py"
DISTINCT = 256


@dataclass(frozen=True)
class Case:
    """A kind of data set; `share` of --images, for images that take longer."""

    name: str
    kind: str
    size: tuple[int, int]
    resolution: int
    in_table: bool
    share: float


CASES = (
    Case("PNG 32x32 in Parquet", "PNG", (32, 32), 32, True, 1.0),
    Case("JPEG 64x64 in Parquet", "JPEG", (64, 64), 64, True, 1.0),
    Case("JPEG 64x64 in a folder", "JPEG", (64, 64), 64, False, 1.0),
    Case("JPEG 178x218 in a folder, to 64", "JPEG", (178, 218), 64, False, 0.1),
)


def main() -> None:
    """Measure and report."""
    options = parse_arguments()
    if options.short:
        options.images, options.rounds, options.preset, options.threads = 400, 1, "digits", 1
    report = Report("data store", {**settings_of(options), "cores": len(usable_cores())})
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare_builds(report, Path(folder), options.images, options.rounds, CASES[:2] if options.short else CASES)
        compare_memory(report, Path(folder), options.images, CASES[1:2] if options.short else CASES[1:3])
    compare_batches(report, options)
    report.show(options.json)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=60_000, help="images of each data set (a tenth of large ones)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="cifar10", help="whose training step consumes the batches")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    return parser.parse_args()


def compare_builds(report: Report, folder: Path, images: int, rounds: int, cases: tuple[Case, ...]) -> None:
    """Images a second of the build over those of bare decoding, for each kind of data set."""
    for case in cases:
        count = int(images * case.share)
        plan = make_case(case, folder / "source", count)
        bare, build = [], []
        for _ in range(rounds):
            bare.append(bare_seconds(plan, count))
            build.append(build_seconds(plan, folder / "cache"))
        cores = len(usable_cores())
        report.add(f"{case.name}: bare, a core", count / cores / statistics.median(bare), "images/s")
        report.add(f"{case.name}: build, a core", count / cores / statistics.median(build), "images/s")
        report.add(f"{case.name}: build over bare", ratio(bare, build), "x", at_least=0.8)
        remove(Path(plan.path))


def make_case(case: Case, path: Path, count: int) -> DataPlan:
    """The case's data set, and the plan that reads it."""
    files = encoded_images(case.kind, case.size, DISTINCT)
    if case.in_table:
        path = path.with_suffix(".parquet")
        write_table(path, files, count)
    else:
        write_folder(path, files, count, f".{case.kind.lower()}")
    return DataPlan(path=str(path), resolution=case.resolution, channels=3)


def bare_seconds(plan: DataPlan, count: int) -> float:
    """Mean seconds in which each core decodes its share of the files, all at once."""
    cores = usable_cores()
    bounds = [count * number // len(cores) for number in range(len(cores) + 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(BARE), plan.path, *map(str, (plan.resolution, start, stop, core))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for core, start, stop in zip(cores, bounds, bounds[1:], strict=False)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in processes)


def build_seconds(plan: DataPlan, cache: Path) -> float:
    """Seconds of `ensure_store` from nothing; the store is removed again."""
    began = time.perf_counter()
    ensure_store(plan, cache)
    seconds = time.perf_counter() - began
    remove(cache)
    return seconds


def compare_memory(report: Report, folder: Path, images: int, cases: tuple[Case, ...]) -> None:
    """Peak memory of a build, and how much more four times the images need."""
    few, many = images // 4, images
    for case in cases:
        peaks = []
        for count in (few, many):
            plan = make_case(case, folder / "source", count)
            peaks.append(build_peak(plan, folder / "cache"))
            remove(Path(plan.path))
        for name, first, last in (
            ("builder", peaks[0].own, peaks[1].own),
            ("a decoding process", peaks[0].child, peaks[1].child),
        ):
            report.add(f"{case.name}: {name}, peak", last / 2**20, "MiB")
            report.add(f"{case.name}: {name}, growth", (last - first) / (many - few), "bytes/image", at_most=256)


def build_peak(plan: DataPlan, cache: Path) -> Peak:
    """The peak memory of a process of its own that builds the store."""
    command = [sys.executable, str(BUILD_ONE), plan.model_dump_json(), str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    peak = watch(process)
    assert process.returncode == 0
    remove(cache)
    return peak


def compare_batches(report: Report, options: argparse.Namespace) -> None:
    """Seconds of a batch, and of the training step that consumes it."""
    changes = [f"training.batch_size={options.batch_size}", f"training.cpu_threads={options.threads}"]
    plan = load_plan(options.preset, changes)
    prepare_process(plan.training)
    world = World(torch.device("cpu"), 0, 1)
    source = BatchSource(RandomStore(plan, 50_000), world.device, options.batch_size, plan.data.random_flip, seed=0)
    timer = StepTimer(plan, world)
    batches = iter(range(1_000_000_000))
    seconds: dict[str, list[float]] = {"batch": [], "dense": [], "expert": []}
    for _ in range(options.rounds):
        seconds["batch"].append(statistics.median(in_turn({"": lambda: source.batch(next(batches))}, 50)[""]))
        seconds["dense"].append(timer.measure(0.0, 2).seconds)
        seconds["expert"].append(timer.measure(0.8, 2).seconds)
    for name, values in seconds.items():
        report.add(f"{options.preset}: {name}", options.batch_size / statistics.median(values), "images/s")
    report.add("batches over the dense step", ratio(seconds["dense"], seconds["batch"]), "x", at_least=10)
    report.add("batches over the step at 80%", ratio(seconds["expert"], seconds["batch"]), "x", at_least=10)


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def remove(path: Path) -> None:
    """Delete a file or folder, whichever of its forms is there."""
    shutil.rmtree(path, ignore_errors=True)
    path.with_suffix(".parquet").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
