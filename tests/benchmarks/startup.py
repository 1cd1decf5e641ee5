"""From the command to the first training step of every region, beside bare Ray trainers started together.

python tests/benchmarks/startup.py [--rounds 3] [--json FILE]

In turns, each in a process of its own: three trainers of Ray Train that do nothing but one step (`bare_trainers.py`);
`ebdiff launch digits`; `ebdiff resume` of a run whose regions were all killed in training. What is timed: from the
start of the process until the last of the regions has made a step. Ours are plain actors on a Ray without what a run
does not use; the bare trainers, on Ray as it comes but for its dashboard, stay the yardstick: what anybody would start
with. Our step is seen in the progress file, which is rewritten once a second.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import arguments, benchmark, parsed, ratio

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.data.store import ensure_store
from schemas.job import PROGRESS_FILE, Progress

REGIONS = ("0-260", "240-460", "440-1000")
LIMIT_S = 300.0
LONG = ["training.steps=1000000", "checkpointing.interval_steps=20", "draw.threshold=1.0", "draw.interval_steps=2"]


def launch_command(run_dir: Path) -> list[str]:
    """A launch of the digits that draws soon and trains for ever."""
    changes = [part for change in LONG for part in ("--set", change)]
    return [sys.executable, "-m", "ebdiff_orchestrator", "launch", "digits", "--run-dir", str(run_dir), *changes]


@contextmanager
def running(command: list[str], cache: Path, **environment: str) -> Iterator[float]:
    """The command, until the block ends; then its whole process group is killed. Gives the time it was started."""
    environment = {**os.environ, "EBDIFF_CACHE": str(cache), **environment}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], bool], began: float) -> float:
    """Seconds from `began` until the condition holds."""
    while not condition():
        if time.perf_counter() - began > LIMIT_S:
            raise TimeoutError(f"not there after {LIMIT_S:.0f} s")
        time.sleep(0.05)
    return time.perf_counter() - began


def step_of(run_dir: Path, region: str) -> tuple[int, int]:
    """(attempt, step) of a region's training, or of its draw before that; (0, 0) without a sign of either."""
    for stage in (f"train/{region}", f"draw/{region}"):
        file = run_dir / stage / PROGRESS_FILE
        try:
            progress = Progress.model_validate_json(file.read_text())
        except (OSError, ValueError):
            continue
        return progress.attempt, progress.step
    return 0, 0


def bare(folder: Path) -> float:
    """Seconds until three bare trainers have made a step."""
    script = str(Path(__file__).with_name("bare_trainers.py"))
    (folder / "bare").mkdir()
    files = [folder / "bare" / f"first-step-{index}" for index in range(3)]
    with running([sys.executable, script, str(folder / "bare")], folder.parent / "cache") as began:
        return wait_for(lambda: all(file.exists() for file in files), began)


def launch_and_resume(folder: Path) -> tuple[float, float]:
    """Seconds until every region of a launch has made a step, and of the resume after it was killed in training."""
    run_dir, cache = folder / "run", folder.parent / "cache"
    with running(launch_command(run_dir), cache) as began:
        launched = wait_for(lambda: all(step_of(run_dir, region)[1] >= 1 for region in REGIONS), began)
        saved = [run_dir / "train" / region / "checkpoints" for region in REGIONS]
        wait_for(lambda: all(any(path.glob("step-*")) for path in saved), began)
    before = {region: step_of(run_dir, region) for region in REGIONS}

    def moves_on(region: str) -> bool:
        attempt, step = step_of(run_dir, region)
        return attempt > before[region][0] and step >= 1

    with running([sys.executable, "-m", "ebdiff_orchestrator", "resume", str(run_dir)], cache) as began:
        return launched, wait_for(lambda: all(map(moves_on, REGIONS)), began)


def main() -> None:
    options = parsed(arguments(__doc__, rounds=3), rounds=1)
    times: dict[str, list[float]] = {"bare": [], "launch": [], "resume": []}
    with benchmark("from the command to the first step", options) as (report, folder):
        ensure_store(load_plan("digits", ()).data, folder / "cache")
        for index in range(options.rounds):
            place = folder / str(index)
            place.mkdir()
            times["bare"].append(bare(place))
            launched, resumed = launch_and_resume(place)
            times["launch"].append(launched)
            times["resume"].append(resumed)
        for name, seconds in times.items():
            report.add(f"{name}: median", statistics.median(seconds), "s")
        report.add("launch / bare", ratio(times["launch"], times["bare"]), at_most=1.15)
        report.add("resume / bare", ratio(times["resume"], times["bare"]), at_most=1.25)


if __name__ == "__main__":
    main()
