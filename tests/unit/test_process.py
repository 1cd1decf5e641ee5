"""Imports leave out what no plan uses, and it is there for those who do; a Ctrl-C in the middle of one is a Ctrl-C."""

import subprocess
import sys

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
