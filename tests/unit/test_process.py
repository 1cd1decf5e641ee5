"""Imports of torch and diffusers leave out what no plan uses, and it is there for those who do."""

from __future__ import annotations

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
