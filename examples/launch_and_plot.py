"""Launch a plan from Python, then plot each expert's loss.

python examples/launch_and_plot.py [PLAN] [--set KEY=VALUE]... [--run-dir DIR] [--plot losses.png]

The plot needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.parquet as pq

from ebdiff_orchestrator import launch, load_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?", default="digits", help="a preset or a YAML file (digits)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/example"))
    parser.add_argument("--plot", type=Path, default=Path("losses.png"))
    options = parser.parse_args()

    run = launch(load_plan(options.plan, options.changes), options.run_dir)  # returns at once if the run is finished
    for region, ticket in run.tickets.items():
        print(f"{region}: ticket drawn at step {ticket.step}, {ticket.realised_ratio:.0%} of the channels removed")

    for region in run.tickets:
        metrics = pq.read_table(options.run_dir / "train" / region / "metrics.parquet").to_pydict()
        plt.plot(metrics["step"], metrics["loss"], label=region)
    plt.xlabel("step")
    plt.ylabel("squared error of the noise, summed over pixels")
    plt.yscale("log")
    plt.legend(title="timesteps")
    plt.savefig(options.plot, dpi=150, bbox_inches="tight")
    print(f"losses in {options.plot}; images in {options.run_dir / 'samples' / 'grid.png'}")


if __name__ == "__main__":
    main()
