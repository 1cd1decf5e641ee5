"""An evaluation killed by SIGKILL goes on where it was, to the same statistics bit for bit."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from conftest import MakePlan
from finished_run import finished_run
from forked import ForkedProcess
from local_inception import write_local_inception
from processes import wait_until

from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.integrity import file_digest

# Shards of 2 images for speed; and the distance, half a minute on two cores, is left out: it is made at the very end.
_SCRIPT = """
import sys
from unittest.mock import patch
from ebdiff_orchestrator import evaluate
from ebdiff_orchestrator.evaluation import work

work.SHARD_IMAGES = 2
with patch("ebdiff_orchestrator.evaluation.evaluate.frechet_distance", lambda ours, theirs: float(ours.mean[0])):
    evaluate(sys.argv[1], 8, reference_images=4, inception_weights=sys.argv[2], in_process=True)
"""


def _start(run_dir: Path, weights: Path) -> ForkedProcess:
    return ForkedProcess("-c", _SCRIPT, run_dir, weights)


def _finish(process: ForkedProcess) -> None:
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def _kill_when(run_dir: Path, weights: Path, ready: Callable[[], bool]) -> None:
    process = _start(run_dir, weights)
    wait_until(ready, "the point of the evaluation where it should be killed", process, look_s=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _statistics(run_dir: Path) -> str:
    (key,) = RunDirectory(run_dir).read().evaluations
    return file_digest(run_dir / "evaluation" / key[:16] / "statistics.npz")


def test_an_evaluation_killed_twice_ends_in_the_same_bits_without_repeating_what_was_done(
    tiny_plan: MakePlan, cache_dir: Path, tmp_path: Path
) -> None:
    weights = write_local_inception(tmp_path / "weights.safetensors")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run_dir in (whole, broken):
        finished_run(run_dir, tiny_plan(f"workers.cache_dir={run_dir}-cache"))
    _finish(_start(whole, weights))

    _kill_when(broken, weights, lambda: any(broken.glob("evaluation/reference-*/features-00000.json")))
    assert not any(Path(f"{broken}-cache").glob("fid/*.npz")), "killed too late"
    _kill_when(broken, weights, lambda: any(broken.glob("evaluation/[0-9a-f]*/features-00002.json")))
    assert not RunDirectory(broken).read().evaluations
    first = next(broken.glob("evaluation/[0-9a-f]*/features-00000.npy"))
    torn = next(broken.glob("evaluation/[0-9a-f]*/features-00001.npy"))
    torn.write_bytes(torn.read_bytes()[:-100])  # as a failing disk would leave it
    made = first.stat().st_mtime_ns
    process = _start(broken, weights)
    while first.exists():
        assert first.stat().st_mtime_ns == made, "a finished shard was made again"
        if process.poll() is not None:
            break
        time.sleep(0.01)
    _finish(process)

    assert _statistics(broken) == _statistics(whole)
    (one,), (other,) = (RunDirectory(run_dir).read().evaluations.values() for run_dir in (whole, broken))
    assert (one.fid, one.key) == (other.fid, other.key)
