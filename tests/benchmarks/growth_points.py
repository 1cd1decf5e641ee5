"""One point of `growth.py`, in a process of its own so that its peak memory is its own: prints JSON.

python tests/benchmarks/growth_points.py regions|size|images VALUE FOLDER
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from bench import timed
from image_files import encoded_images, write_table
from own_loop import OwnLoop, first_job, plan_on_noise
from process_cluster import ProcessCluster

from ebdiff_orchestrator import load_ensemble
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.batches import BatchSource
from region_workers.data.store import ensure_store
from region_workers.networks.dense import load_verified
from region_workers.storage.integrity import file_digests
from region_workers.training.checkpoints import Checkpoints
from region_workers.training.device import World
from schemas.plan import DataPlan

Point = dict[str, float]
BATCH = 2  # of the sizes
_CPU = torch.device("cpu")


def main() -> None:
    axis, value, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the curves are a CPU's
    measure = {"regions": of_regions, "size": of_size, "images": of_images}[axis]
    print(json.dumps({axis: value, **measure(value, folder)}))


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
    shape = f"model.block_out_channels={[base_channels, *[2 * base_channels] * 3]}"
    changes = [shape, f"training.batch_size={BATCH}", "training.cpu_threads=2"]
    trainer = OwnLoop(*first_job(plan_on_noise("cifar10", folder, changes), folder), log=False).trainer
    network = trainer.network
    trainer.train_step()
    step_s = fastest(trainer.train_step, rounds=2)
    peak_mb = World(_CPU, 0, 1).peak_memory_bytes() / 1e6
    checkpoints = Checkpoints(folder / "checkpoints", "key", 1)
    copied_s = timed(lambda: checkpoints.save(trainer.step, 0.0, trainer.state_tensors(), []))
    written_s = copied_s + timed(checkpoints.wait)

    def resume() -> None:
        found = checkpoints.newest_good(World(_CPU, 0, 1))
        assert found is not None
        trainer.load_state_tensors(found.tensors, found.info.step)

    resume_s = timed(resume)
    network.save_pretrained(folder / "network")
    return {
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "steps_per_s": 1 / step_s,
        "peak_mb": peak_mb,
        "checkpoint_waited_s": copied_s,
        "checkpoint_written_s": written_s,
        "resume_s": resume_s,
        "load_s": timed(lambda: load_verified(folder / "network", file_digests(folder / "network"))),
    }


def of_images(count: int, folder: Path) -> Point:
    """A data set of so many small images in Parquet: building, opening, and a batch of 128."""
    file = folder / "images.parquet"
    write_table(file, encoded_images("PNG", (8, 8), min(256, count)), count)
    plan = DataPlan(path=str(file), resolution=8, channels=1)
    build_s = timed(lambda: ensure_store(plan, folder / "cache"))
    after_build_mb = rss_peak_mb()
    open_s = timed(lambda: ensure_store(plan, folder / "cache"))
    store = ensure_store(plan, folder / "cache")
    source = BatchSource(store.samples(), _CPU, 128, True, 0)
    first_batch_s = timed(lambda: source.batch(0))
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


def fastest(function: Callable[[], object], rounds: int = 5) -> float:
    """Of the fastest call."""
    return min(timed(function) for _ in range(rounds))


def rss_peak_mb() -> float:
    """The most memory this process has held, its children not counted."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
