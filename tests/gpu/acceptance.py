"""What this project promises of a GPU, measured on yours: one command, meant to take under ten minutes.

    python tests/gpu/acceptance.py [--json FILE] [--preset cifar10] [--only NAME ...] [--quick]

| NAME | what is measured | target on a GPU |
| --- | --- | --- |
| sync | waits for the device within a step: CUDA raises at the first | 0 |
| memory | peak of a training over the estimate of `ebdiff doctor`; the estimate over the peak | <= 1.1, <= 1.5 |
| resume | files that a kill and a resume make different, `determinism: exact` | 0 |
| two | weights of two workers beside one's: NCCL with two devices, else gloo on the CPU | <= 1e-3 |
| regions | three regions at once on one device: the sum of their speeds, each over its speed alone | >= 0.9 |
| sampling | speed-up of the ensemble over the dense network, over the ratio of MACs | >= 0.9 |
| steps | speed of a step over a plain loop's, same network and mode; the fastest over plain fp32 | >= 1, >= 4 |

Each has a process of its own. Exit code 1 if a target is missed or a check breaks; what does not apply is skipped, with
the reason. `--json` has what benchmarks write (docs/benchmarks.md); it is written after each check, so that little is
lost if time runs out. `--quick` leaves out torch.compile and most modes. Without CUDA everything runs on small
networks, on the CPU, and has no target but for what holds at any size.

It needs no Ray, and no install of this project: docs/gpu.md has the few wheels that a machine with torch alone lacks.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import import_paths

# isort: split
import torch
from bench import Report, arguments, settings_of
from one_device import memory, no_synchronisation, regions, sampling
from setting import CUDA, Setting
from step_times import step_times
from whole_workers import resume, two_workers

CHECKS: dict[str, Callable[[Setting], None]] = {
    "sync": no_synchronisation,
    "memory": memory,
    "resume": resume,
    "two": two_workers,
    "regions": regions,
    "sampling": sampling,
    "steps": step_times,
}
LIMIT_S = 360.0  # for one check


def run_here(name: str, options: argparse.Namespace, report: Report) -> None:
    """One check, in this process; if it breaks, the others go on."""
    part, began = Report(name, settings_of(options)), time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            CHECKS[name](Setting(options, Path(folder), part))
    except Exception as error:  # noqa: BLE001 - whatever breaks is what was to be found
        traceback.print_exc()
        part.fail("the check", f"{type(error).__name__}: {error}")
    part.add("took", time.perf_counter() - began, "s")
    report.take_over(part.as_json(), f"{name}: ")


def run_apart(name: str, options: argparse.Namespace, report: Report) -> None:
    """One check, in a process of its own: what an error leaves of CUDA, or a hang, ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--only", name, "--json", str(file), "--preset", options.preset]
        command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            report.fail(name, f"not done after {LIMIT_S:.0f} s")
        else:
            if file.exists():
                report.take_over(json.loads(file.read_text()))
            else:
                report.fail(name, f"its process ended with {process.returncode} and told nothing")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--quick", action="store_true", help="no torch.compile, fewer modes")
    options = parser.parse_args()
    if not CUDA:
        options.short, options.threads = True, 1
    return options


def main() -> None:
    options = parse_arguments()
    where = torch.cuda.get_device_name() if CUDA else "cpu, small networks: no target of a GPU is claimed"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(import_paths.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    report = Report(f"Acceptance on {where}", settings_of(options))
    names = list(CHECKS) if options.only is None else options.only
    for name in names:
        (run_apart if CUDA and len(names) > 1 else run_here)(name, options, report)
        report.write(options.json)
    report.show(options.json)
    if not report.holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
