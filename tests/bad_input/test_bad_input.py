"""Every bad plan, folder and command line ends with exit code 2 and a message, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import command_lines
import data_folders
import networks
import plan_files
import plan_values
import pytest
import ray
from harness import Case, call, check, contents
from places import make_site

from ebdiff_orchestrator import cluster

CASES = (
    *plan_values.CASES,
    *plan_files.CASES,
    *data_folders.CASES,
    *networks.CASES,
    *command_lines.CASES,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Made once: no case changes it."""
    folder = tmp_path_factory.mktemp("site")
    make_site(folder)
    return folder


def _no_ray(*_: object, **__: object) -> None:
    raise AssertionError("a bad input came as far as Ray")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_in_words_and_nothing_is_written(
    case: Case, site: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site)
    monkeypatch.setattr(cluster, "start_early", lambda *_: None)
    monkeypatch.setattr(ray, "init", _no_ray)
    if case.plan is not None:
        (site / "plan.yaml").write_bytes(case.plan if isinstance(case.plan, bytes) else case.plan.encode())
    before = contents(site)
    answer = call(case.argv, capfd, monkeypatch)
    after = contents(site)
    shutil.rmtree(site / "new", ignore_errors=True)  # one case's leavings are not the next one's
    check(case, answer)
    assert after == before
