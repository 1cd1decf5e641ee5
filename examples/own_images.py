"""Train on your own folder of images.

python examples/own_images.py photos/ [--resolution 32] [--steps 20000] [--run-dir runs/photos]
"""

import argparse
from pathlib import Path

from ebdiff_orchestrator import Plan, launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of PNG, JPEG, WebP ... files")
    parser.add_argument("--resolution", type=int, default=32, help="side in pixels (32)")
    parser.add_argument("--steps", type=int, default=20_000, help="updates a region (20000)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/photos"))
    options = parser.parse_args()

    plan = Plan.model_validate(
        {
            "name": "photos",
            "data": {"path": str(options.images), "resolution": options.resolution, "channels": 3, "random_flip": True},
            "model": {"block_out_channels": [64, 128], "layers_per_block": 1, "dropout": 0.1},
            "regions": [
                {"train": [0, 520], "pruning_ratio": 0.3},
                {"train": [480, 1000], "pruning_ratio": 0.6},
            ],
            "draw": {"interval_steps": max(1, options.steps // 100), "on_timeout": "take_last", "max_intervals": 20},
            "training": {"steps": options.steps, "batch_size": options.batch_size, "ema_warmup": True},
            "sampling": {"steps": 50, "num_images": 16},
        }
    )
    run = launch(plan, options.run_dir)  # killed or stopped? start it again: it goes on
    for name, stage in run.manifest.stages.items():
        print(f"{name}: {stage.status}, {stage.active_s or 0:.0f} s")
    print(f"images in {options.run_dir / 'samples' / 'grid.png'}")


if __name__ == "__main__":
    main()
