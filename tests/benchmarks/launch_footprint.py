"""What a launch of three regions takes of the machine once all of them train, and how soon they do.

python tests/benchmarks/launch_footprint.py [--tree FOLDER ...] [--rounds 2] [--json FILE]

`--tree`: checkouts to compare, in turns; this one if none is given. What is counted is the driver and all that came of
it: their memory (PSS: shared pages are divided among those who share them), their number, and the processor time over
15 s of those that are neither driver nor worker, which is Ray's own.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import Report, arguments, settings_of
from startup import LONG, REGIONS, running, step_of, wait_for

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.data.store import ensure_store

_SPAN_S = 15.0
_WORKER_MARKS = ("RegionWorker", "RayTrainWorker")
_DRIVER_MARK = "ebdiff_orchestrator launch"


def family() -> list[int]:
    """All that came of this process, itself left out."""
    found = [os.getpid()]
    for pid in found:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in _text(file).split()]
    return found[1:]


def pss_bytes(pid: int) -> int:
    """The process's share of the memory in use."""
    lines = _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def ray_seconds(pids: list[int]) -> dict[int, float]:
    """The processor time of each process that is Ray's own."""
    used = {}
    for pid in pids:
        command = _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
        fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        if fields and _DRIVER_MARK not in command and not any(mark in command for mark in _WORKER_MARKS):
            used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def measure(tree: Path, folder: Path, span_s: float) -> dict[str, float]:
    """One launch from this checkout."""
    run_dir = folder / "run"
    changes = [part for change in LONG for part in ("--set", change)]
    command = [sys.executable, "-m", "ebdiff_orchestrator", "launch", "digits", "--run-dir", str(run_dir), *changes]
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tree)
    try:
        with running(command, folder.parent / "cache") as began:
            first_step_s = wait_for(lambda: all(step_of(run_dir, name)[1] >= 1 for name in REGIONS), began)
            pids = family()
            before, began_at = ray_seconds(pids), time.perf_counter()
            memory = sum(map(pss_bytes, pids))
            time.sleep(span_s)
            after, passed_s = ray_seconds(pids), time.perf_counter() - began_at
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    used_s = sum(after[pid] - before[pid] for pid in after.keys() & before.keys())
    return {
        "memory": memory / 1e6,
        "processes": len(pids),
        "first step of all": first_step_s,
        "Ray's own": used_s / passed_s,
    }


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # the process has just ended
        return ""


def main() -> None:
    """Measure in turns, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--tree", type=Path, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.tree] or [Path(__file__).resolve().parents[2]]
    measured: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ensure_store(load_plan("digits", ()).data, Path(folder) / "cache")
        for index in range(1 if options.short else options.rounds):
            for number, tree in enumerate(trees):
                place = Path(folder) / f"{index}-{number}"
                place.mkdir()
                measured[tree].append(measure(tree, place, 1.0 if options.short else _SPAN_S))
    report = Report("what a launch of three regions takes", settings_of(options))
    units = {"memory": "MB", "first step of all": "s", "Ray's own": "cores"}
    for tree, rounds in measured.items():
        for name in rounds[0]:
            report.add(f"{tree.name}: {name}", statistics.median(one[name] for one in rounds), units.get(name, ""))
    report.show(options.json)


if __name__ == "__main__":
    main()
