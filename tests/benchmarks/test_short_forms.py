"""Every benchmark runs in its short form and reports; what it measures there means nothing."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
# A minute each; the CLI's own tests start it too.
_STARTS_RAY = {"startup.py", "launch_footprint.py", "makespan.py", "sampling_fan_out.py"}
_SCRIPTS = sorted(
    path.name for path in _HERE.glob("*.py") if "arguments(__doc__" in path.read_text() and "test_" not in path.name
)


def test_the_benchmarks_are_found() -> None:
    assert len(_SCRIPTS) > len(_STARTS_RAY) + 5
    assert set(_SCRIPTS) > _STARTS_RAY


@pytest.mark.parametrize("script", [name for name in _SCRIPTS if name not in _STARTS_RAY])
def test_the_short_form_runs(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(_HERE))
    monkeypatch.setattr(sys, "argv", [script, "--short", "--json", str(tmp_path / "figures.json")])
    runpy.run_path(str(_HERE / script), run_name="__main__")
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["settings"]["short"]
    assert report["figures"]
    assert all(math.isfinite(figure["value"]) for figure in report["figures"])
    assert report["benchmark"] in capsys.readouterr().out
