"""acceptance.py in its form for the CPU: every check runs, reports what it found, and needs no Ray."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("acceptance.py")


def test_the_form_for_the_cpu_runs_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("takes minutes on a GPU: run acceptance.py itself")
    monkeypatch.setitem(sys.modules, "ray", None)  # to import it is an error
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.syspath_prepend(str(_SCRIPT.parent))
    monkeypatch.setenv("PYTHONPATH", "")  # the script sets both, and they must not outlive it
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [str(_SCRIPT), "--quick", "--json", str(file)])
    runpy.run_path(str(_SCRIPT), run_name="__main__")
    report = json.loads(file.read_text())
    assert report["settings"]["short"]
    assert all(math.isfinite(figure["value"]) for figure in report["figures"])
    checks = {figure["name"].split(":")[0] for figure in report["figures"]}
    assert checks == {"sync", "memory", "resume", "two", "regions", "sampling", "steps"}
    held = [figure["name"].split(":")[0] for figure in report["figures"] if figure["holds"]]
    assert sorted(held) == ["resume", "sync", "sync", "two"]  # what holds at any size; nothing is claimed of a GPU
    assert {each["name"] for each in report["not_measured"]} == {
        "two: NCCL",
        "steps: TF32, channels_last, torch.compile",
    }
    assert "Acceptance on cpu" in capsys.readouterr().out
