"""Building the store beside the bare decode speed of the image library, its memory, and batches beside the step.

    python tests/benchmarks/data_store.py [--images 60000] [--rounds 3] [--batch-size 8] [--threads 2]
                                          [--case 0..3] [--folder DIR] [--set KEY=VALUE]... [--short] [--json FILE]

Bare: as many processes as this one may use cores, one on each, open, convert and resize the same files with Pillow and
turn them into numpy arrays; nothing is read, hashed or written meanwhile. The build is the whole of `ensure_store`,
from the source to the finished, synced store. Both in images a second, in turn in every round; by processor time, too,
which is what remains true on a machine that others use, and by it also against bare decoding followed by hashing,
writing and syncing as many bytes, which no builder can leave out. Targets: a build at 0.8
of the bare speed, memory that grows by no more than the names of the images, batches 10 times faster than the step.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import Report, arguments, benchmark, median_s, parsed, ratio, training_changes
from image_files import encoded_images, write_folder, write_table
from memory import Peak, watch

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.data.batches import BatchSource
from region_workers.data.store import ensure_store
from region_workers.training.device import World, prepare_process
from region_workers.training.timing import StepTimer
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
    parser = arguments(__doc__, images=60_000, rounds=3, preset="cifar10", batch_size=8, changes=[])
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="only the build of this kind of data set")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    options = parsed(parser, images=400, rounds=1, preset="digits", threads=1)
    with benchmark("data store", options, cores=len(usable_cores())) as (report, folder):
        cases = CASES[:2] if options.short else CASES
        cases = cases if options.case is None else CASES[options.case :][:1]
        compare_builds(report, folder, options.images, options.rounds, cases)
        if options.case is None:
            compare_memory(report, folder, options.images, CASES[1:2] if options.short else CASES[1:3])
            compare_batches(report, folder, options)


def compare_builds(report: Report, folder: Path, images: int, rounds: int, cases: tuple[Case, ...]) -> None:
    """Images a second of the build over those of bare decoding, for each kind of data set."""
    for case in cases:
        count = int(images * case.share)
        plan = make_case(case, folder / "source", count)
        bare, build, keep = [], [], []
        for _ in range(rounds):
            bare.append(bare_time(plan, count))
            build.append(build_time(plan, folder / "cache"))
            keep.append(keeping_processor_s(plan, count, folder / "pixels"))
        (bare_s, bare_processor_s), (build_s, build_processor_s) = zip(*bare, strict=True), zip(*build, strict=True)
        a_core = count / len(usable_cores())
        report.add(f"{case.name}: bare, a core", a_core / statistics.median(bare_s), "images/s")
        report.add(f"{case.name}: build, a core", a_core / statistics.median(build_s), "images/s")
        report.add(f"{case.name}: build over bare", ratio(bare_s, build_s), "x", at_least=0.8)
        of_processor = ratio(bare_processor_s, build_processor_s)
        report.add(f"{case.name}: the same, by processor time", of_processor, "x", at_least=0.8)
        needed_s = [decoding + keeping for decoding, keeping in zip(bare_processor_s, keep, strict=True)]
        report.add(f"{case.name}: and with its bytes kept", ratio(needed_s, build_processor_s), "x")
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


def bare_time(plan: DataPlan, count: int) -> tuple[float, float]:
    """Mean seconds in which each core decodes its share of the files, all at once; processor seconds of all."""
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
    outputs = [process.communicate()[0].split() for process in processes]
    return statistics.mean(float(seconds) for seconds, _ in outputs), sum(float(seconds) for _, seconds in outputs)


def build_time(plan: DataPlan, cache: Path) -> tuple[float, float]:
    """Seconds of `ensure_store` from nothing, and processor seconds of all its processes; the store is removed."""
    began, processor_began = time.perf_counter(), processor_seconds()
    ensure_store(plan, cache)
    spent = time.perf_counter() - began, processor_seconds() - processor_began
    remove(cache)
    return spent


def keeping_processor_s(plan: DataPlan, count: int, path: Path) -> float:
    """Processor seconds of hashing, writing and syncing as many bytes as the store has, and nothing else."""
    image_bytes = plan.resolution**2 * plan.channels
    at_once = max(1, (1 << 20) // image_bytes)
    pixels = os.urandom(at_once * image_bytes)
    sha, began = hashlib.sha256(), processor_seconds()
    with path.open("wb") as file:
        for _ in range(0, count, at_once):
            sha.update(pixels)
            file.write(pixels)
        os.fsync(file.fileno())
    spent = processor_seconds() - began
    path.unlink()
    return spent


def processor_seconds() -> float:
    """What this process and those that it started, and that have ended, have spent."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compare_memory(report: Report, folder: Path, images: int, cases: tuple[Case, ...]) -> None:
    """Peak memory of a build, libraries included, and how much more of its own four times the images need."""
    few, many = images // 4, images
    for case in cases:
        peaks = []
        for count in (few, many):
            plan = make_case(case, folder / "source", count)
            peaks.append(build_peak(plan, folder / "cache"))
            remove(Path(plan.path))
        builder = (peaks[1].own_anonymous - peaks[0].own_anonymous) / (many - few)
        decoder = (peaks[1].child - peaks[0].child) / (many - few)
        report.add(f"{case.name}: builder, peak", peaks[1].own / 2**20, "MiB")
        report.add(f"{case.name}: builder, growth", builder, "bytes/image", at_most=512)
        report.add(f"{case.name}: a decoding process, peak", peaks[1].child / 2**20, "MiB")
        report.add(f"{case.name}: a decoding process, growth", decoder, "bytes/image", at_most=512)


def build_peak(plan: DataPlan, cache: Path) -> Peak:
    """The peak memory of a process of its own that builds the store."""
    command = [sys.executable, str(BUILD_ONE), plan.model_dump_json(), str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    peak = watch(process)
    assert process.returncode == 0
    remove(cache)
    return peak


def compare_batches(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Seconds of a batch out of a store's file, and of the training step that consumes it."""
    plan = load_plan(options.preset, training_changes(options))
    prepare_process(plan.training)
    world = World(torch.device("cpu"), 0, 1)
    side = plan.data.resolution
    write_table(folder / "batches.parquet", encoded_images("PNG", (side, side), DISTINCT), options.images)
    data = plan.data.model_copy(update={"path": str(folder / "batches.parquet")})
    store = ensure_store(data, folder / "cache")
    source = BatchSource(store.samples(), world.device, options.batch_size, plan.data.random_flip, seed=0)
    timer = StepTimer(plan, world)
    batches = iter(range(1_000_000_000))
    seconds: dict[str, list[float]] = {"batch": [], "dense": [], "expert": []}
    for _ in range(options.rounds):
        seconds["batch"].append(median_s(lambda: source.batch(next(batches)), 50))
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
