"""The run that is killed: a plan of seconds, its commands, how far its files show it to be, and what it must leave."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kill_processes import Command
from local_inception import write_local_inception
from PIL import Image
from run_products import PRODUCTS, digests

PREPARE, DRAW, TRAIN, CHECKPOINT = "preparing data", "draw", "train", "checkpoint"
ASSEMBLE, SAMPLE, EVALUATE = "assemble", "sample", "evaluate"
STAGES = (PREPARE, DRAW, CHECKPOINT, TRAIN, ASSEMBLE, SAMPLE, EVALUATE)  # as they come in a run

_IMAGES, _SIDE = 500, 400
_PLAN: dict[str, Any] = {
    "name": "killed",
    "data": {"resolution": 8, "channels": 3, "random_flip": True},
    "model": {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 2, "dropout": 0.1},
    "regions": [
        {"name": "low", "train": [0, 520], "pruning_ratio": 0.5},
        {"name": "high", "train": [500, 1000], "pruning_ratio": 0.3},
    ],
    "draw": {"interval_steps": 10, "threshold": 0.0001, "max_intervals": 12, "on_timeout": "take_last"},
    "training": {"steps": 160, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.99},
    "sampling": {"steps": 25, "num_images": 32, "batch_size": 8},
    "checkpointing": {"interval_steps": 7},
    "workers": {"retries": 10},
}
_ONE_REGION = [{"name": "all", "train": [0, 1000], "pruning_ratio": 0.5}]
_MEASURED = ("run/evaluation/*/statistics.npz", "drawn/*.png")
_EVALUATED_IMAGES, _DRAWN_IMAGES = 24, 6


@dataclass(frozen=True)
class Materials:
    """What every run starts from: images, a plan, Inception weights and statistics to measure against."""

    folder: Path

    @classmethod
    def write(cls, folder: Path, times: int = 1, one_region: bool = False) -> Materials:
        """Write them into a folder: pictures large enough that decoding them takes a while.

        `times`: how many times the usual steps the trainings have. `one_region`: one expert for all timesteps, not two.
        """
        folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        (folder / "images").mkdir()
        for number in range(_IMAGES):
            coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(folder / "images" / f"{number:04}.jpg")
        plan = {
            **_PLAN,
            "data": {**_PLAN["data"], "path": str(folder / "images")},
            "draw": {**_PLAN["draw"], "max_intervals": times * _PLAN["draw"]["max_intervals"]},
            "training": {**_PLAN["training"], "steps": times * _PLAN["training"]["steps"]},
            "regions": _ONE_REGION if one_region else _PLAN["regions"],
        }
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
        write_local_inception(folder / "inception.safetensors")
        np.savez(folder / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048), images=np.int64(100))
        return cls(folder)


@dataclass
class Run:
    """One run of the plan in a folder of its own, with its own cache of images."""

    materials: Materials
    folder: Path
    commands: int = 0
    _known: dict[Path, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def begun(self) -> bool:
        """Whether there is a run to be resumed."""
        return (self.run_dir / "manifest.json").is_file()

    def finished(self) -> bool:
        """Whether every stage is done."""
        stages = self._read(self.run_dir / "manifest.json").get("stages", {})
        return bool(stages) and all(record["status"] == "done" for record in stages.values())

    def go_on(self) -> Command:
        """Launch the plan, or resume the run."""
        if self.begun():
            return self._start("ebdiff", "resume", self.run_dir)
        return self._start("ebdiff", "launch", self.materials.folder / "plan.yaml", "--run-dir", self.run_dir)

    def evaluate(self) -> Command:
        """Measure the run's images, without the distance: half a minute at the very end, after all is on disk."""
        here = self.materials.folder
        what = ("-n", _EVALUATED_IMAGES, "--inception-weights", here / "inception.safetensors")
        script = Path(__file__).parent / "evaluate_without_distance.py"
        return self._start(script, "evaluate", self.run_dir, *what, "--reference", here / "reference.npz")

    def sample(self) -> Command:
        """Draw images from the finished run."""
        return self._start("ebdiff", "sample", self.run_dir, "-n", _DRAWN_IMAGES, "--out", self.folder / "drawn")

    def under_way(self, command: Command) -> set[str]:
        """The stages that the command is seen at, by what it has written."""
        return {stage for stage in STAGES if self.is_at(stage, command)}

    def is_at(self, stage: str, command: Command) -> bool:
        """Whether the command is seen at the stage; quick, for some are over soon."""
        if stage == PREPARE:
            return any(not (path.parent / "store.json").exists() for path in self._glob("cache/images/*/samples.npy"))
        if stage in (DRAW, TRAIN):
            return self._at_work(command, stage)
        if stage == CHECKPOINT:
            return self._newer(command, "run/*/*/checkpoints/.partial-*")
        if stage == EVALUATE:
            return self.finished() and self._newer(command, "run/evaluation/*")
        stages = self._read(self.run_dir / "manifest.json", command.began_at).get("stages", {})
        name = {ASSEMBLE: "ensemble", SAMPLE: "samples"}[stage]
        return bool(stages.get(name, {}).get("status") == "running")

    def products(self) -> dict[str, str]:
        """The SHA-256 of everything that must be equal however the run came about, by path."""
        return digests(self.folder, [*(f"run/{pattern}" for pattern in PRODUCTS), *_MEASURED])

    def _start(self, *command: str | Path) -> Command:
        self.commands += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "EBDIFF_CACHE": str(self.folder / "cache"),
            "RAY_TMPDIR": str(self.materials.folder.parent),
            "RAY_gcs_rpc_server_reconnect_timeout_s": "3",  # a minute by default, in which a campaign only waits
            "RAY_health_check_period_ms": "500",  # and until Ray takes a silent node for lost
        }
        output = self.folder / f"output-{self.commands:02}.txt"
        return Command(command, output, environment)

    def _at_work(self, command: Command, kind: str) -> bool:
        """Whether a worker of this command has said that it is at such a stage."""
        for path in self._glob(f"run/{kind}/*/progress.json"):
            said = self._read(path, command.began_at)
            if said.get("state") == "running" and not (path.parent / "result.json").exists():
                return True
        return False

    def _newer(self, command: Command, pattern: str) -> bool:
        return any(_written_at(path) > command.began_at for path in self._glob(pattern))

    def _glob(self, pattern: str) -> list[Path]:
        try:
            return sorted(self.folder.glob(pattern))
        except FileNotFoundError:  # a folder that went while it was walked
            return []

    def _read(self, path: Path, since: float = 0.0) -> dict[str, Any]:
        """A JSON file, empty if it is not there or older."""
        try:
            status = path.stat()
            if status.st_mtime < since:
                return {}
            stamp, values = self._known.get(path, (0, {}))
            if stamp != status.st_mtime_ns:
                values = json.loads(path.read_text())
                self._known[path] = (status.st_mtime_ns, values)
            return values
        except (OSError, ValueError):
            return {}


def watch(run: Run, command: Command, limit_s: float) -> dict[str, float]:
    """Wait for the command; how many seconds each stage was seen. Raises AssertionError unless it ends with 0."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    while command.code is None:
        now = time.monotonic()
        assert now - command.began < limit_s, f"no end after {limit_s:.0f} s: {command.output}"
        for stage in run.under_way(command):
            first.setdefault(stage, now)
            last[stage] = now
        time.sleep(0.01)
    assert command.code == 0, command.output.read_text()
    return {stage: last[stage] - first[stage] for stage in first}


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
