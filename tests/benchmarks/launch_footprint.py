"""What a launch of three regions takes of the machine once all of them train, and how soon they do.

python tests/benchmarks/launch_footprint.py [--tree FOLDER ...] [--rounds 2] [--json FILE]

`--tree`: checkouts to compare, in turns; this one if none is given. What is counted is the driver and all that came of
it: their memory (PSS: shared pages are divided among those who share them), their number, and the processor time over
15 s of those that are neither driver nor worker, which is Ray's own.
"""

import os
import statistics
import time
from pathlib import Path

from bench import arguments, benchmark, parsed
from processes import Process, descendants
from startup import REGIONS, launch_command, running, step_of, wait_for

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.data.store import ensure_store

_SPAN_S = 15.0
_WORKER_MARKS = ("RegionWorker", "RayTrainWorker")
_DRIVER_MARK = "ebdiff_orchestrator launch"


def pss_bytes(pid: int) -> int:
    """The process's share of the memory in use."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # the process has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def ray_seconds(family: list[Process]) -> dict[int, float]:
    """The processor time of each process that is Ray's own."""
    others = (_DRIVER_MARK, *_WORKER_MARKS)
    return {each.pid: each.cpu_s for each in family if not any(mark in each.command for mark in others)}


def measure(tree: Path, folder: Path, span_s: float) -> dict[str, float]:
    """One launch from this checkout."""
    run_dir = folder / "run"
    with running(launch_command(run_dir), folder.parent / "cache", PYTHONPATH=str(tree)) as began:
        first_step_s = wait_for(lambda: all(step_of(run_dir, name)[1] >= 1 for name in REGIONS), began)
        family, began_at = descendants(os.getpid())[1:], time.perf_counter()
        before = ray_seconds(family)
        memory = sum(pss_bytes(each.pid) for each in family)
        time.sleep(span_s)
        after, passed_s = ray_seconds(descendants(os.getpid())[1:]), time.perf_counter() - began_at
    used_s = sum(after[pid] - before[pid] for pid in after.keys() & before.keys())
    return {
        "memory": memory / 1e6,
        "processes": len(family),
        "first step of all": first_step_s,
        "Ray's own": used_s / passed_s,
    }


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--tree", type=Path, action="append", default=[])
    options = parsed(parser, rounds=1)
    trees = [tree.resolve() for tree in options.tree] or [Path(__file__).resolve().parents[2]]
    measured: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    with benchmark("what a launch of three regions takes", options) as (report, folder):
        ensure_store(load_plan("digits", ()).data, folder / "cache")
        for index in range(options.rounds):
            for number, tree in enumerate(trees):
                place = folder / f"{index}-{number}"
                place.mkdir()
                measured[tree].append(measure(tree, place, 1.0 if options.short else _SPAN_S))
        units = {"memory": "MB", "first step of all": "s", "Ray's own": "cores"}
        for tree, rounds in measured.items():
            for name in rounds[0]:
                report.add(f"{tree.name}: {name}", statistics.median(one[name] for one in rounds), units.get(name, ""))


if __name__ == "__main__":
    main()
