"""A million images of 64x64: the store is built, killed half-way, resumed and opened, and a small network trains on it.

    python tests/benchmarks/million_images.py [--images 1000000] [--steps 300] [--batch-size 32]
                                              [--folder DIR] [--short] [--json FILE]

The images are JPEG files in Parquet shards, made first; with the store of the decoded pixels they take 14 GB of the
folder (default: the system's temporary folder) and are removed at the end. Every phase is a process of its own whose
peak memory is watched, and is done before with a tenth of the images: memory is flat if it does not tell the two apart.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import Report, arguments, benchmark, parsed
from image_files import encoded_images, write_table
from memory import Peak, watch

from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data.store import SAMPLES, ensure_store
from schemas.job import RESULT_FILE, StageResult
from schemas.plan import DataPlan

BUILD_ONE = Path(__file__).parent / "build_one.py"
SIDE, DISTINCT, SHARD_IMAGES = 64, 512, 50_000
NPY_HEADER_BYTES = 128
NETWORK = {
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownBlock2D"] * 4,
    "up_block_types": ["UpBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Phase:
    """What a process printed or left behind, how long it lived, and its peak memory."""

    seconds: float
    peak: Peak
    output: dict[str, Any]


def main() -> None:
    parser = arguments(__doc__, images=1_000_000, steps=300, batch_size=32)
    parser.add_argument("--folder", type=Path, help="where files and store are made")
    options = parsed(parser, images=12_000, steps=2)
    with benchmark("a million images", options) as (report, folder):
        tenth = measure_tenth(folder / "tenth", options)
        measure_all(report, folder / "all", options, tenth)


def measure_tenth(folder: Path, options: argparse.Namespace) -> dict[str, Phase]:
    """The phases with a tenth of the images, not interrupted; in the short form the build alone. Leaves nothing."""
    plan, _ = make_images(folder, options.images // 10)
    phases = {"build": build(plan, folder / "cache")}
    if not options.short:
        phases |= {"opening": build(plan, folder / "cache"), "training": train(plan, folder, options)}
    shutil.rmtree(folder)
    return phases


def measure_all(report: Report, folder: Path, options: argparse.Namespace, tenth: dict[str, Phase]) -> None:
    """All the images: make, build and kill, resume, open, train."""
    count, cache = options.images, folder / "cache"
    plan, made_s = make_images(folder, count)
    report.add("making the files", made_s, "s")

    killed = build(plan, cache, until=lambda: safe_images(cache) >= 0.4 * count)
    assert not list(cache.glob("images/*/store.json")), "the build had ended before it could be killed"
    safe, decoded = safe_images(cache), decoded_images(cache)
    resumed = build(plan, cache, safe=safe)
    report.add("killed: images decoded", decoded, "images")
    report.add("killed: of these to decode again", (decoded - safe) / decoded, "share", at_most=0.05)
    report.add("resumed: to the first new image", resumed.output["first_s"], "s")
    report.add("resumed: to the end", resumed.output["seconds"], "s")
    report.add("resumed: speed", (count - safe) / (resumed.output["seconds"] - resumed.output["first_s"]), "images/s")
    report.add("not interrupted, a tenth: speed", count // 10 / tenth["build"].output["seconds"], "images/s")

    opened = build(plan, cache)
    report.add("opening the store", opened.output["seconds"], "s")
    trained = train(plan, folder, options)
    report.add("training: to the end, start included", trained.seconds, "s")
    trained_images = options.steps * options.batch_size
    report.add("training: speed", trained_images / trained.output["active_s"], "images/s")
    compare_memory(report, "killed build", killed.peak, tenth["build"].peak, count - count // 10)
    compare_memory(report, "resumed build", resumed.peak, tenth["build"].peak, count - count // 10)
    if not options.short:
        report.add("training, a tenth: speed", trained_images / tenth["training"].output["active_s"], "images/s")
        compare_memory(report, "opening", opened.peak, tenth["opening"].peak, count - count // 10)
        compare_memory(report, "training", trained.peak, tenth["training"].peak, count - count // 10)


def compare_memory(report: Report, name: str, peak: Peak, tenth: Peak, extra: int) -> None:
    """Peak memory beside that with a tenth of the images, and its growth over the `extra` images."""
    report.add(f"{name}: peak memory", peak.own / 2**20, "MiB")
    report.add(f"{name}: over that of a tenth", peak.own / tenth.own, "x", at_most=1.2)
    report.add(f"{name}: growth", (peak.own - tenth.own) / extra, "bytes/image")
    anonymous = (peak.own_anonymous - tenth.own_anonymous) / extra
    report.add(f"{name}: growth but for mapped files", anonymous, "bytes/image")
    if peak.child and tenth.child:  # few images are decoded before another process is started, or seen
        report.add(f"{name}: largest decoding process", peak.child / 2**20, "MiB")
        report.add(f"{name}: largest decoding process, over a tenth's", peak.child / tenth.child, "x", at_most=1.2)


def make_images(folder: Path, count: int) -> tuple[DataPlan, float]:
    """Parquet shards of `count` JPEG files, each with a number of its own in a comment; seconds."""
    began = time.perf_counter()
    (folder / "shards").mkdir(parents=True)
    files = encoded_images("JPEG", (SIDE, SIDE), DISTINCT)
    for start in range(0, count, SHARD_IMAGES):
        rows = range(start, min(start + SHARD_IMAGES, count))
        numbered = [with_comment(files[row % DISTINCT], row) for row in rows]
        write_table(folder / "shards" / f"{start:08}.parquet", numbered, len(numbered))
    return DataPlan(path=str(folder / "shards"), resolution=SIDE, channels=3), time.perf_counter() - began


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The file with a comment segment behind its start marker, so that no two files are equal."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + jpeg[2:]


def build(plan: DataPlan, cache: Path, safe: int = 0, until: Callable[[], bool] = lambda: False) -> Phase:
    """Build, resume or open the store in a process of its own; killed as soon as `until` says so."""
    command = [sys.executable, str(BUILD_ONE), plan.model_dump_json(), str(cache), str(safe)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = watch(process, until)
    process.kill()  # no effect on one that has ended
    output, _ = process.communicate()
    return Phase(time.perf_counter() - began, peak, json.loads(output) if output else {})


def safe_images(cache: Path) -> int:
    """How many images a build that is killed now need not decode again."""
    parts = sorted(cache.glob("images/*/parts/[0-9]*.json"))
    return int(json.loads(parts[-1].read_bytes())["images"]) if parts else 0


def decoded_images(cache: Path) -> int:
    """How many images a killed build had decoded."""
    (pixels,) = cache.glob(f"images/*/{SAMPLES}")
    return (pixels.stat().st_size - NPY_HEADER_BYTES) // (SIDE * SIDE * 3)


def train(data: DataPlan, folder: Path, options: argparse.Namespace) -> Phase:
    """Train a small network on the store, as a worker does, in a process of its own."""
    values = {
        "data": data.model_dump(mode="json"),
        "model": NETWORK,
        "regions": [{"train": [0, 1000], "pruning_ratio": 0, "name": "all"}],
        "training": {"steps": options.steps, "batch_size": options.batch_size, "cpu_threads": 1},
        "workers": {"cache_dir": str(folder / "cache")},
    }
    plan = plan_from_values(values)
    inputs = Inputs(ensure_store(plan.data, folder / "cache").digest)
    job = worker_job(plan, outline_jobs(plan, inputs)[0], folder / "run", inputs, use_gpu=False)
    (folder / "job.json").write_text(job.model_dump_json())
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "region_workers", str(folder / "job.json")], text=True)
    peak = replace(watch(process), child=0)
    assert process.returncode == 0
    result = StageResult.model_validate_json((folder / "run" / "train" / "all" / RESULT_FILE).read_bytes())
    return Phase(time.perf_counter() - began, peak, {"active_s": result.active_s})


if __name__ == "__main__":
    main()
