"""Imports leave out what no plan uses, and it is there for those who do; a Ctrl-C in the middle of one is a Ctrl-C.

What a worker without Ray makes of the job that it is given.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MakeJobs, MakePlan

from region_workers.__main__ import main

_PROGRAM = """
import gc, sys
from schemas.process import quick_imports
with quick_imports():
    import region_workers.worker.run
assert gc.isenabled()
assert "scipy.stats.distributions" not in sys.modules
from diffusers import EulerDiscreteScheduler
betas = EulerDiscreteScheduler(use_beta_sigmas=True)
betas.set_timesteps(4)
import scipy.stats
print(scipy.stats.norm.cdf(0), len(betas.sigmas), hasattr(scipy.stats, "nothing"))
"""


def test_what_quick_imports_leave_out_is_loaded_where_it_is_used() -> None:
    said = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert said.stdout.split() == ["0.5", "5", "False"], said.stderr


_TORN = """
from ebdiff_orchestrator.cli.app import app, main

@app.command()
def torn():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error  # as compiled modules do

main()
"""


def test_a_ctrl_c_that_an_import_turns_into_its_own_error_is_told_as_a_ctrl_c() -> None:
    said = subprocess.run([sys.executable, "-c", _TORN, "torn"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr.split(";")[0]) == (130, "ebdiff: interrupted"), said.stderr


def test_workers_of_a_job_without_gpus_talk_by_gloo_though_there_are_gpus(
    tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, *_), file = make_jobs(tiny_plan(), tmp_path / "run"), tmp_path / "job.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: sys.exit(backend))
    monkeypatch.setattr(sys, "argv", ["region_workers", str(file)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for use_gpu, backend in ((True, "nccl"), (False, "gloo")):
        file.write_text(job.model_copy(update={"use_gpu": use_gpu}).model_dump_json())
        with pytest.raises(SystemExit, match=backend):
            main()


@pytest.mark.parametrize("text", [None, "{}", "no JSON"])
def test_a_file_that_is_no_job_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    file = tmp_path / "job.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["region_workers", str(file)])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"JOB.json = {file}: expected a worker's job as JSON, but: ")
