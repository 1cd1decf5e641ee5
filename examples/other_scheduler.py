"""Load a finished ensemble and sample it with another of diffusers' schedulers.

python examples/other_scheduler.py runs/digits [--steps 20] [--out dpm.png]
"""

import argparse
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.utils import make_image_grid

from ebdiff_orchestrator import load_ensemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run, or an ensemble's folder")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--out", type=Path, default=Path("dpm.png"))
    options = parser.parse_args()

    pipeline = load_ensemble(options.run, device="cuda" if torch.cuda.is_available() else "cpu")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    of_classes = {"class_labels": [i % pipeline.num_classes for i in range(16)]} if pipeline.num_classes else {}
    images = pipeline(batch_size=16, num_inference_steps=options.steps, generator=generator, **of_classes).images
    make_image_grid(images, rows=4, cols=4).save(options.out)
    print(f"16 images in {options.steps} steps: {options.out}")


if __name__ == "__main__":
    main()
