"""One point of `growth.py`, in a process of its own so that its peak memory is its own: prints JSON.

python tests/benchmarks/growth_points.py regions|size|images VALUE FOLDER
"""

import io
import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from process_cluster import ProcessCluster

from ebdiff_orchestrator import load_ensemble
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data.batches import BatchSource
from region_workers.data.store import ensure_store
from region_workers.networks.dense import load_verified
from region_workers.storage.integrity import file_digests
from region_workers.training.checkpoints import Checkpoints
from region_workers.training.device import World, prepare_process
from region_workers.training.diffusion import TimestepSampler
from region_workers.training.family import UNetFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.timing import random_samples
from region_workers.training.trainer import Trainer
from schemas.job import WorkerJob
from schemas.plan import DataPlan, Plan

Point = dict[str, float]
BATCH = 2  # of the sizes
_CPU = torch.device("cpu")


def main() -> None:
    """Measure the point that the command line names."""
    axis, value, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(2)
    print(
        json.dumps({axis: value, **{"regions": of_regions, "size": of_size, "images": of_images}[axis](value, folder)})
    )


def of_regions(count: int, folder: Path) -> Point:
    """A whole run of so many regions of the digits, a process each, then what its files cost."""
    edges = [round(1000 * index / count) for index in range(count + 1)]
    regions = [{"train": [a, b], "pruning_ratio": 0.5} for a, b in pairwise(edges)]
    changes = ["training.steps=60", "draw.interval_steps=2", "draw.threshold=1.0", "logging.interval_steps=20"]
    plan = load_plan(
        "digits", [f"regions={json.dumps(regions)}", *changes, "sampling.num_images=1", "sampling.steps=4"]
    )
    run_dir = folder / "run"
    driver.launch(plan, run_dir, executor=ProcessCluster(count))
    directory = RunDirectory(run_dir)
    manifest = directory.read()
    records, trained = manifest.stages.values(), manifest.trainings()
    return {
        "steps_per_s": sum(stage.steps / stage.active_s for stage in trained),
        "worker_peak_mb": max(stage.peak_memory_bytes or 0 for stage in trained) / 1e6,
        "manifest_kb": directory.manifest_file.stat().st_size / 1e3,
        "manifest_write_ms": 1e3 * fastest(lambda: directory.write(manifest)),
        "resume_check_ms": 1e3 * fastest(lambda: [directory.files.damaged(each.artifacts) for each in records]),
        "load_ms": 1e3 * fastest(lambda: load_ensemble(run_dir)),
    }


def of_size(base_channels: int, folder: Path) -> Point:
    """A UNet of the CIFAR-10 shape with so many base channels: steps, memory, checkpoint, resume and load."""
    shape = json.dumps([base_channels, *[2 * base_channels] * 3])
    plan = load_plan(
        "cifar10", [f"model.block_out_channels={shape}", f"training.batch_size={BATCH}", "training.cpu_threads=2"]
    )
    prepare_process(plan.training)
    job = job_of(plan, folder)
    randomness = StepRandomness(0, "train", (0, 1000), _CPU)
    family = UNetFamily(job, random_samples(plan, BATCH), _CPU, 0)
    network = family.build_dense()
    sampler = TimestepSampler((0, 1000), plan.training.timesteps, plan.diffusion, _CPU)
    trainer = Trainer(network, family, randomness, sampler, plan.training, World(_CPU, 0, 1))
    trainer.train_step()
    step_s = min(seconds(trainer.train_step) for _ in range(2))
    peak_mb = World(_CPU, 0, 1).peak_memory_bytes() / 1e6
    checkpoints = Checkpoints(folder / "checkpoints", "key", 1)
    copied_s = seconds(lambda: checkpoints.save(trainer.step, 0.0, trainer.state_tensors(), []))
    written_s = copied_s + seconds(checkpoints.wait)

    def resume() -> None:
        found = checkpoints.newest_good(World(_CPU, 0, 1))
        assert found is not None
        trainer.load_state_tensors(found.tensors, found.info.step)

    resume_s = seconds(resume)
    network.save_pretrained(folder / "network")
    return {
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "steps_per_s": 1 / step_s,
        "peak_mb": peak_mb,
        "checkpoint_waited_s": copied_s,
        "checkpoint_written_s": written_s,
        "resume_s": resume_s,
        "load_s": seconds(lambda: load_verified(folder / "network", file_digests(folder / "network"))),
    }


def of_images(count: int, folder: Path) -> Point:
    """A data set of so many small images in Parquet: building, opening, and a batch of 128."""
    file = folder / "images.parquet"
    write_images(file, count)
    plan = DataPlan(path=str(file), resolution=8, channels=1)
    build_s = seconds(lambda: ensure_store(plan, folder / "cache"))
    after_build_mb = rss_peak_mb()
    open_s = seconds(lambda: ensure_store(plan, folder / "cache"))
    store = ensure_store(plan, folder / "cache")
    source = BatchSource(store.samples(), _CPU, 128, True, 0)
    first_batch_s = seconds(lambda: source.batch(0))
    steps = iter(range(1, 10_000))
    batch_s = fastest(lambda: source.batch(next(steps)), rounds=50)
    return {
        "images_per_s": count / build_s,
        "build_peak_mb": after_build_mb,
        "open_s": open_s,
        "first_batch_ms": 1e3 * first_batch_s,
        "batch_ms": 1e3 * batch_s,
        "peak_mb": rss_peak_mb(),
    }


def write_images(file: Path, count: int) -> None:
    """PNGs of noise in a Parquet file, 256 different ones in turn."""
    pictures = []
    for index in range(min(256, count)):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "png")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    rows_a_group = 10_000
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with pq.ParquetWriter(file, pa.schema([("image", kind)])) as writer:
        for first in range(0, count, rows_a_group):
            rows = [pictures[index % len(pictures)] for index in range(first, min(first + rows_a_group, count))]
            writer.write_table(pa.table({"image": pa.array(rows, kind)}))


def job_of(plan: Plan, folder: Path) -> WorkerJob:
    """A job of the plan's first region."""
    outline = outline_jobs(plan, Inputs("random"))[0]
    return worker_job(plan, outline, folder, Inputs("random"), use_gpu=False)


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def fastest(function: Callable[[], object], rounds: int = 5) -> float:
    """Of the fastest call."""
    return min(seconds(function) for _ in range(rounds))


def rss_peak_mb() -> float:
    """The most memory this process has held, its children not counted."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
