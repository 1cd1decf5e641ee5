"""A real run on two CPU workers: what its makespan is made of, and what letting free workers join saves.

python tests/benchmarks/makespan.py [--steps 900] [--rounds 1] [--json FILE]

A skewed plan of two regions (0.3 pruned and many steps; 0.8 pruned and few) is run by `ebdiff launch` twice:
`workers.elastic` off, then on, when the worker that the short region leaves joins the long one at its next
checkpoint. Reported: the makespan beside the longest chain of stages; the time that no stage accounts for, and, while
jobs ran, the processor time of the driver and of Ray's own processes, each as a share of the makespan; the makespan
with elastic over that without; and how far the experts' weights are then apart (the batch and its randomness are the
same, the sums of two workers round differently).
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import Report, arguments, benchmark, parsed
from processes import processes
from safetensors.torch import load_file

from region_workers.storage.integrity import read_manifest
from schemas.manifest import Manifest

LONG, SHORT = "0-520", "500-1000"
PLAN = """
base: digits
name: skewed
regions:
  - {{train: [0, 520], pruning_ratio: 0.3, steps: {steps}}}
  - {{train: [500, 1000], pruning_ratio: 0.8, steps: {short_steps}}}
model: {{block_out_channels: [64, 128]}}
draw: {{interval_steps: 10, threshold: 0.5}}
sampling: {{steps: 10, num_images: 16, batch_size: 16}}
checkpointing: {{interval_steps: {interval}}}
"""


@dataclass(frozen=True)
class Run:
    """One launch: its manifest, seconds from start to end, and processor seconds of driver and Ray while jobs ran."""

    folder: Path
    manifest: Manifest
    wall_s: float
    beside_s: Mapping[str, float]

    def active_s(self, region: str) -> float:
        """A region's draw and training."""
        return sum(self.manifest.stage(f"{kind}/{region}").active_s for kind in ("draw", "train"))

    @property
    def chain_s(self) -> float:
        """The longest chain of stages: a region's draw and training, then the ensemble and its samples."""
        ends = sum(self.manifest.stage(name).active_s for name in ("ensemble", "samples"))
        return max(self.active_s(LONG), self.active_s(SHORT)) + ends

    @property
    def makespan_s(self) -> float:
        """From the first update of the first draw until the run is finished."""
        stages = self.manifest.stages.values()
        starts = [stage.started_at for stage in stages if stage.started_at is not None]
        ends = [stage.finished_at for stage in stages if stage.finished_at is not None]
        return max(ends) - min(starts)


def processor_seconds(session: int) -> dict[int, tuple[str, float]]:
    """Of every process of the session: what it is (driver, worker or Ray's own) and the processor time it has used."""
    found = {}
    for each in processes():
        if each.session == session:
            kind = "driver" if each.pid == session else "worker" if "Worker" in each.command else "ray"
            found[each.pid] = (kind, each.cpu_s)
    return found


def launch(plan: Path, folder: Path, elastic: bool) -> Run:
    """Run the plan to its end."""
    command = [sys.executable, "-m", "ebdiff_orchestrator", "launch", str(plan), "--run-dir", str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--set", f"workers.elastic={str(elastic).lower()}"], start_new_session=True, stdout=sys.stderr
    )
    used: dict[int, tuple[str, float]] = {}
    before, after = Counter[str](), Counter[str]()
    while process.poll() is None:
        used |= processor_seconds(process.pid)
        spent = Counter[str]()
        for kind, seconds in used.values():
            spent[kind] += seconds  # type: ignore[assignment]
        if not any(folder.glob("draw/*/progress.json")):
            before = spent
        if not (folder / "ensemble").exists():
            after = spent
        time.sleep(1)
    assert process.returncode == 0
    wall_s = time.perf_counter() - began
    beside = {kind: after[kind] - before[kind] for kind in ("driver", "ray")}
    return Run(folder, read_manifest(folder), wall_s, beside)


def largest_difference(one: Path, other: Path) -> float:
    """Between the experts' weights, relative to the largest weight."""
    worst = 0.0
    for region in (LONG, SHORT):
        file = f"train/{region}/expert/diffusion_pytorch_model.safetensors"
        a, b = load_file(one / file), load_file(other / file)
        largest = max(float(tensor.abs().max()) for tensor in a.values())
        worst = max(worst, *(float((a[name] - b[name]).abs().max()) / largest for name in a))
    return worst


def main() -> None:
    options = parsed(arguments(__doc__, steps=900, rounds=1), steps=40, rounds=1)
    steps, pairs = options.steps, []
    with benchmark("the makespan of a real run", options) as (report, folder):
        plan = folder / "skewed.yaml"
        plan.write_text(PLAN.format(steps=steps, short_steps=max(4, steps // 6), interval=max(2, steps // 20)))
        for index in range(options.rounds):
            pairs.append([launch(plan, folder / f"{index}-{elastic}", elastic) for elastic in (False, True)])
        report_runs(report, pairs)
        report.add("elastic: largest weight difference", largest_difference(*(run.folder for run in pairs[0])), "rel.")


def report_runs(report: Report, pairs: list[list[Run]]) -> None:
    """The figures of all rounds."""
    plain = [pair[0] for pair in pairs]
    report.add("makespan", median([run.makespan_s for run in plain]), "s")
    report.add("from the command to its end", median([run.wall_s for run in plain]), "s")
    report.add("longest chain of stages", median([run.chain_s for run in plain]), "s")
    report.add("makespan / longest chain", median([r.makespan_s / r.chain_s for r in plain]), at_most=1.05)
    lost = [(run.makespan_s - run.chain_s) / run.makespan_s for run in plain]
    report.add("time in no stage of the chain", median(lost), "of the makespan", at_most=0.05)
    for kind, target in (("driver", 0.02), ("ray", None)):
        cpu = [run.beside_s[kind] / run.makespan_s for run in plain]
        report.add(f"processor time of {kind}", median(cpu), "of the makespan", at_most=target)
    ratios = [pair[1].makespan_s / pair[0].makespan_s for pair in pairs]
    report.add("makespan elastic / not", median(ratios), at_most=1.0)


if __name__ == "__main__":
    main()
