"""Every bad plan, folder and command line ends with exit code 2 and a message, and leaves nothing behind."""

import shutil
import subprocess
import sys
from pathlib import Path

import command_lines
import data_folders
import networks
import plan_files
import plan_values
import pytest
from harness import Answer, Case, call, check, contents
from places import make_site

from ebdiff_orchestrator.cluster import connecting

CASES = (*plan_values.CASES, *plan_files.CASES, *data_folders.CASES, *networks.CASES, *command_lines.CASES)


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
    monkeypatch.setattr(connecting, "start_early", lambda *_: None)
    monkeypatch.setattr("ray.init", _no_ray)
    for name, value in case.environment:
        monkeypatch.setenv(name, value)
    if case.plan is not None:
        (site / "plan.yaml").write_bytes(case.plan if isinstance(case.plan, bytes) else case.plan.encode())
    before = contents(site)
    answer = call(case.argv, capfd, monkeypatch)
    after = contents(site)
    shutil.rmtree(site / "new", ignore_errors=True)  # one case's leavings are not the next one's
    check(case, answer)
    assert after == before


@pytest.mark.parametrize("name", ["set training.steps=0", "anchors that explode", "sample runs/done --out runs"])
def test_the_installed_command_refuses_it_too(name: str, site: Path) -> None:
    (case,) = [case for case in CASES if case.name == name]
    if case.plan is not None:
        (site / "plan.yaml").write_text(str(case.plan))
    before = contents(site)
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "ebdiff"), *case.argv],
        cwd=site,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    check(case, Answer(ended.returncode, ended.stdout, ended.stderr))
    assert contents(site) == before


def test_the_corpus_is_large_and_names_each_case_once() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len(names) >= 500
