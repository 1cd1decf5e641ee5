"""What every check of acceptance.py is given, and the ways of training that a GPU has."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import Report
from own_loop import IMAGES, plan_on_noise

from ebdiff_orchestrator.plans.load import load_plan
from schemas.plan import Plan

CUDA = torch.cuda.is_available()
EXACT, FAST = "training.determinism=exact", "training.determinism=fast"
BF16, CHANNELS_LAST = "training.precision=bf16", "training.channels_last=true"
LIMIT_S = 300.0  # for what takes seconds


@dataclass(frozen=True)
class Setting:
    """The options, a folder of the check's own, and where its figures go."""

    options: argparse.Namespace
    folder: Path
    report: Report

    @property
    def batch_size(self) -> int:
        """Of the steps that are timed."""
        return 128 if CUDA else 4

    def plan(self, *changes: str, small: bool = not CUDA) -> Plan:
        """The preset with these changes, on images of noise; small networks without a GPU, whatever the preset."""
        preset, given = self.options.preset, [f"training.cpu_threads={self.options.threads}"]
        given.append(f"training.batch_size={self.batch_size}")
        if small:
            preset = "digits"
            given.append("model.block_out_channels=[16, 32]")
        if not (self.folder / IMAGES).exists():
            return plan_on_noise(preset, self.folder, [*given, *changes])
        return load_plan(preset, [f"data.path={self.folder / IMAGES}", *given, *changes])
