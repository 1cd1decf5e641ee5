"""Every row of the paper's CIFAR-10 tables at a size that two CPU cores train, through the command line.

    python tests/paper/small_table.py --data cifar10-train.parquet --out small [--inception-weights FILE]

Images of 16x16, a network of 1.5 M parameters, the paper's iterations divided by 800. It shows that every row runs
and how the table comes out; it says nothing of the paper's quality. Started again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SMALL = (
    "data.resolution=16",
    "model.block_out_channels=[32,64,64,64]",
    "model.layers_per_block=1",
    "model.norm_num_groups=8",
    "model.dropout=0",
    "training.batch_size=32",
    "training.learning_rate=0.0005",
    "training.ema_decay=0.999",
    "training.ema_warmup=true",
    "draw.interval_steps=25",
    "checkpointing.interval_steps=1000",
    "sampling.num_images=64",
)
TAYLOR = ("draw.importance=taylor", "draw.importance_timesteps=20")
DIFF_PRUNING = ("draw.importance=diff-pruning", "draw.importance_timesteps=100")
ITERWISE = ("draw.interval_steps=1", "draw.queue_stride=25", "draw.max_intervals=2500")
DENSE, START = "dense", "model.pretrained={out}/dense"
# name: preset, iterations, changes; paper's iterations / 800
ROWS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    DENSE: ("cifar10-dense", 1000, ()),
    "scratch": ("cifar10-scratch", 1125, (START,)),
    "finetune-random": ("cifar10-finetune", 125, (START, "draw.importance=random")),
    "finetune-magnitude": ("cifar10-finetune", 125, (START,)),
    "finetune-taylor": ("cifar10-finetune", 125, (START, *TAYLOR)),
    "finetune-diff-pruning": ("cifar10-finetune", 125, (START, *DIFF_PRUNING)),
    "eb": ("cifar10-eb", 1125, ()),
    "eb-iterwise": ("cifar10-eb-iterwise", 1125, ITERWISE),
    "eb-speed": ("cifar10-eb-speed", 375, ()),
    "ta-eb": ("cifar10", 250, ()),
    "ta-eb-speed": ("cifar10-speed", 125, ()),
    "released": ("cifar10-released", 250, ()),
}


def main() -> None:
    """Run every row, evaluate it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10's training images as Parquet")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--inception-weights", type=Path, help="evaluate too, with these weights")
    options = parser.parse_args()
    for name in options.only:
        preset, steps, changes = ROWS[name]
        changes = (*SMALL, *changes, f"data.path={options.data}", f"training.steps={steps}")
        sets = [part for change in changes for part in ("--set", change.format(out=options.out))]
        ebdiff("launch", preset, "--run-dir", str(options.out / name), *sets)
        if options.inception_weights:
            weights = ("--inception-weights", str(options.inception_weights))
            ebdiff("evaluate", str(options.out / name), "-n", str(options.num_images), *weights)
    runs = [str(options.out / name) for name in options.only]
    ebdiff("compare", *runs, "--against", str(options.out / DENSE))
    ebdiff("compare", *runs, "--against", str(options.out / DENSE), "--format", "markdown")


def ebdiff(*arguments: str) -> None:
    """One command, as a user gives it."""
    print("$ ebdiff", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ebdiff_orchestrator", *arguments], check=True)


if __name__ == "__main__":
    main()
