"""Short runs of every kind end in the bits on record: whatever is moved or rewritten, a seed gives the same networks.

Bits are those of one kind of machine and one version of torch: `same_bits.json` has an entry for each that was
recorded; elsewhere only what must be equal between the runs is compared. EBDIFF_RECORD_BITS=1 records this machine's.
"""

import json
import os
import platform
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing_files import scribbles, write_lines
from latent_fixtures import tiny_vae
from pictures import save_images
from process_cluster import ProcessCluster
from processes import RunningProcess
from run_products import products
from s3_server import BUCKET, s3_server

from ebdiff_orchestrator.plans.load import load_plan, plan_from_values
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.run_directory import RunDirectory
from schemas.digest import digest
from schemas.job import WorkerJob

RECORD = Path(__file__).with_name("same_bits.json")
Digests = dict[str, str]

_SHORT: dict[str, Any] = {
    "draw": {"interval_steps": 2, "max_intervals": 6, "on_timeout": "take_last"},
    "training": {"steps": 8, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9, "gradient_clip": 1.0},
    "sampling": {"steps": 2, "num_images": 2},
    "checkpointing": {"interval_steps": 3},
    "logging": {"interval_steps": 2},
}
_SMALL = {"block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 4, "dropout": 0.1}
_CLASSES = 3


@dataclass(frozen=True)
class Kind:
    """One kind of run: its plan, and how it is run. `killed`: its worker is, in the midst of the training."""

    values: dict[str, Any]
    workers: int = 1
    killed: bool = False
    in_bucket: bool = False


def _tiny(**values: Any) -> dict[str, Any]:
    region = {"train": [0, 1000], "pruning_ratio": 0.5, "name": "all"}
    return {**_SHORT, "name": "tiny", "model": _SMALL, "data": {"random_flip": True}, "regions": [region], **values}


def _digits() -> dict[str, Any]:
    """The preset, in the size that is on record."""
    values = load_plan("digits").model_dump(mode="json")
    model = {**values["model"], "block_out_channels": [48, 96], "layers_per_block": 2, "norm_num_groups": 8}
    regions = [{**region, "steps": None} for region in values["regions"]]
    sampling = {**values["sampling"], **_SHORT["sampling"], "eta": 0.0}
    return {**values, **_SHORT, "model": model, "regions": regions, "sampling": sampling}


def _pixels(images: Path) -> dict[str, Any]:
    """CIFAR-10's network in small, on 16x16 RGB, by gradients and with what else a step may do."""
    model = {**_SMALL, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
    model["up_block_types"] = ["AttnUpBlock2D", "UpBlock2D"]
    return {
        **_tiny(
            name="pixels", model=model, data={"path": str(images), "resolution": 16, "channels": 3, "random_flip": True}
        ),
        "draw": {**_SHORT["draw"], "importance": "taylor", "importance_timesteps": 4, "scoring": "sequential"},
        "training": {**_SHORT["training"], "gradient_accumulation": 2, "channels_last": True},
    }


def _latents(images: Path, vae: Path) -> dict[str, Any]:
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    latent = {"family": "latent", "vae": str(vae), "latent_channels": 3, "latent_downscale": 2}
    return _tiny(
        name="latents",
        model={**_SMALL, **blocks, **latent, "num_classes": _CLASSES, "label_dropout": 0.2},
        data={"path": str(images), "resolution": 16, "channels": 3, "random_flip": True, "label_column": "label"},
        draw={**_SHORT["draw"], "scope": "shared"},
        sampling={**_SHORT["sampling"], "guidance_scale": 2.0},
    )


def _drawings(file: Path) -> dict[str, Any]:
    """Strokes, by an expert narrowed and one that is sparse as well, sampled with less noise than DDPM's."""
    return {
        **_SHORT,
        "name": "drawings",
        "model": {"family": "vector", "hidden_size": 8, "num_layers": 2},
        "data": {"path": str(file), "drawings": {}},
        "diffusion": {"num_train_timesteps": 35, "beta_start": 0.002857, "beta_end": 0.5714},
        "regions": [
            {"train": [0, 20], "pruning_ratio": 0.5, "name": "late", "sparsity": 0.0},
            {"train": [18, 35], "pruning_ratio": 0.25, "name": "early"},
        ],
        "sparsity": {"method": "magran", "sparsity": 0.5, "interval_steps": 2},
        "sampling": {"steps": 7, "spacing": "uniform", "eta": 1.0, "variance_strength": 0.75, "num_images": 3},
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """Every kind of run, by name."""
    folder = tmp_path_factory.mktemp("materials")
    images = save_images(folder / "images", [(18, 20)] * 24, classes=_CLASSES)
    vae = tiny_vae(folder / "vae")
    drawings = write_lines(folder / "drawings.ndjson", scribbles(24))
    return {
        "digits": Kind(_digits()),
        "pixels": Kind(_pixels(images)),
        "latents": Kind(_latents(images, vae)),
        "drawings": Kind(_drawings(drawings)),
        "alone": Kind(_tiny()),
        "sparse": Kind(_tiny(sparsity={"method": "rigl", "sparsity": 0.6, "interval_steps": 2})),
        "two workers": Kind(_tiny(placement="balanced"), workers=2),
        "bucket": Kind(_tiny(), in_bucket=True),
        "killed": Kind(_tiny(), killed=True),
    }


@pytest.fixture(scope="module")
def bits(
    kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[dict[str, Digests]]:
    """What a run of each kind leaves, by path."""
    found = {}
    with s3_server():
        for name, kind in kinds.items():
            folder = tmp_path_factory.mktemp("runs")
            cluster = ProcessCluster(kind.workers, _kill_in_training if kind.killed else None)
            url = f"s3://{BUCKET}/runs/bits"
            directory = RunDirectory(url if kind.in_bucket else folder / "run")
            driver.launch(plan_from_values(kind.values), directory.location, executor=cluster)
            if kind.in_bucket:
                directory.fetch_folder("")
            found[name] = products(directory.path)
            assert max(cluster.attempts.values()) == (2 if kind.killed else 1)
            assert kind.workers in {width for widths in cluster.widths.values() for width in widths}
        yield found


def test_every_kind_of_run_ends_in_the_bits_on_record(bits: dict[str, Digests]) -> None:
    recorded = json.loads(RECORD.read_text())
    if os.environ.get("EBDIFF_RECORD_BITS"):
        recorded[_machine()] = {name: _summary(digests) for name, digests in bits.items()}
        RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    if _machine() not in recorded:
        pytest.skip(f"no bits are on record for {_machine()}")
    assert {name: _summary(digests) for name, digests in bits.items()} == recorded[_machine()]


@pytest.mark.parametrize("kind", ["bucket", "killed"])
def test_where_a_run_lies_and_whether_its_worker_was_killed_changes_no_bit(kind: str, bits: dict[str, Digests]) -> None:
    assert bits[kind] == bits["alone"]


def test_two_workers_draw_the_ticket_that_one_draws(bits: dict[str, Digests]) -> None:
    ticket = "draw/all/tickets/all/ticket.json"
    assert bits["two workers"][ticket] == bits["alone"][ticket]


def _summary(digests: Digests) -> Digests:
    """One digest for each kind of product."""
    kinds = ("masks.arrow", "ticket.json", "draw/", "train/", "ensemble/", "samples/")
    named: dict[str, Digests] = {kind: {} for kind in kinds}
    for path, sha256 in digests.items():
        named[next(kind for kind in kinds if path.endswith(kind) or path.startswith(kind))][path] = sha256
    return {kind: digest(files) for kind, files in named.items()}


def _machine() -> str:
    """What the bits of a run on a CPU depend on beside its plan."""
    cpu_info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.*?)\s*$", cpu_info.read_text(), re.M) if cpu_info.exists() else []
    cpu = names[0] if names else platform.processor()
    return f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, numpy {np.__version__}"


def _kill_in_training(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
    """By SIGKILL, once a checkpoint of the training is there."""
    while attempt == 1 and process.poll() is None:
        if any(Path(job.run_dir).glob("train/*/checkpoints/step-*")):
            process.send_signal(signal.SIGKILL)
            return
        time.sleep(0.002)
