"""Small studies from their start to their table and page: interrupted, gone on with, and changed."""

import copy
import json
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from rich.console import Console
from serial_cluster import SerialCluster
from test_report_page import Page
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.reports.formats import as_markdown, print_table
from ebdiff_orchestrator.run.ownership import claim_run
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.load import load_study
from ebdiff_orchestrator.study.progress import Board
from ebdiff_orchestrator.study.report import leave_study_report, plot_results
from ebdiff_orchestrator.study.results import results_table, study_results
from ebdiff_orchestrator.study.run_study import run_study
from ebdiff_orchestrator.study.view import StudyView
from region_workers.storage.run_files import RunFiles
from schemas.errors import RunFailed, RunStopped, UserError
from schemas.job import WorkerJob

QUICK = ["training.steps=4", "draw.threshold=1.0", "sampling.num_images=2", "sampling.steps=2"]
DENSE = {"train": [0, 1000], "pruning_ratio": 0.0, "name": "all"}
HALF = {**DENSE, "pruning_ratio": 0.5}

WriteStudy = Callable[..., Path]


def _tiny(**sections: Any) -> dict[str, Any]:
    plan = {name: value for name, value in copy.deepcopy(TINY).items() if name != "name"}
    return {**plan, **sections}


@pytest.fixture
def write_study(tmp_path: Path) -> WriteStudy:
    """Writes a study's file."""

    def write(rows: list[dict[str, Any]], **values: Any) -> Path:
        file = tmp_path / "trial.yaml"
        study = {"name": "trial", "seeds": 2, "set": QUICK, "rows": rows, "evaluate": None, **values}
        file.write_text(yaml.safe_dump(study))
        return file

    return write


class _Interrupting(SerialCluster):
    """Ctrl-C as job number `at` begins."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self._at = at

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        if len(self.jobs) + 1 == self._at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().run_job(job, workers)


class _Boards(StudyView):
    """A view that remembers how the study stood."""

    def __init__(self) -> None:
        self.boards: list[Board] = []

    def board(self, board: Board) -> None:
        self.boards.append(board)


ROWS = [
    {"label": "finetune", "plan": _tiny(regions=[HALF]), "set": ["draw.method=one-shot"], "start": "Dense"},
    {"label": "Dense", "plan": _tiny(regions=[DENSE])},
    {"label": "<i>longer</i>", "plan": _tiny(regions=[DENSE]), "set": ["training.steps=6"]},
    {"label": "broken", "plan": _tiny(regions=[HALF]), "set": ["data.path=<i>nothing.parquet"]},
]


def test_a_study_is_interrupted_goes_on_and_ends_in_a_table(
    write_study: WriteStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"num_images": 4, "extractors": ["random-conv", "wavelet"]}
    study, folder = load_study(write_study(ROWS, evaluate=measured)), tmp_path / "runs"
    first, view = _Interrupting(at=3), _Boards()
    with pytest.raises(RunStopped, match="Go on with: ebdiff study"):
        run_study(study, folder, executor=first)
    assert len(first.jobs) == 3
    second = _Interrupting()
    with pytest.raises(RunFailed, match=r"2 of 8 runs failed(.|\n)*broken-s0: .*nothing.parquet"):
        run_study(study, folder, executor=second, view=view)
    assert view.boards[-1].counts == {"done": 6, "at work": 0, "waiting": 0, "failed": 2}
    assert len(first.jobs) + len(second.jobs) <= 7  # six trainings, one of them in two parts
    finetune = RunDirectory(folder / "finetune-s1").read()
    assert finetune.dense is not None
    assert Path(finetune.dense.path).name == "dense-s1"
    longer = RunDirectory(folder / "i-longer-i-s0").read().stage("train/all")
    assert Path(longer.reused_from or "").name == "dense-s0"

    results = study_results(folder)
    assert [row.label for row in results.rows] == ["finetune", "Dense", "<i>longer</i>", "broken"]
    assert [row.finished for row in results.rows] == [2, 2, 2, 0]
    _, dense, more, _ = results.rows
    assert [row.dense_steps.mean for row in (dense, more) if row.dense_steps] == [4.0, 6.0]
    hours = [row.device_hours.mean for row in (dense, more) if row.device_hours]
    assert min(hours) > 0  # no more can be said: the last save of the one lent from is not in the other's
    assert len(results.measures) == 2
    for measure in results.measures:
        assert dense.values[measure].n == 2
        assert dense.values[measure].deviation is not None

    capsys.readouterr()
    print_table(results_table(results), Console(width=80))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "broken, seed 0, 1: data.path" in " ".join(text.split())
    assert "| Dense | 2/2 |" in as_markdown(results_table(results))
    json.dumps(results.as_json())
    for name in ("plot.svg", "plot.png"):
        plot_results(results, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    _check_the_page(folder, tmp_path / "page.html")
    with pytest.raises(RunFailed, match="2 of 8"):
        run_study(study, folder, executor=(third := _Interrupting()))
    assert third.jobs == []
    _check_what_a_changed_study_may_differ_in(write_study, folder)


class _Ending(SerialCluster):
    """A Ray that ends with its first job."""

    def has_ended(self) -> bool:
        return len(self.jobs) > 0


def test_the_example_of_the_docs_goes_on_where_ray_has_ended_with_one_more_seed(
    write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(ROWS[1:2]).rename(tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFailed, match=r"Ray of this study has ended.*Go on with: ebdiff study studies/mine"):
        run_study(load_study("mine.yaml", seeds=1), "studies/mine", executor=_Ending())
    experts = Path("studies/mine/dense-s0").glob("train/**/*.safetensors")
    before = {file: file.stat().st_mtime_ns for file in experts}
    assert before
    page = Path(__file__).resolve().parents[2] / "docs" / "studies.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.startswith("Dense 2 Spread(mean=4.0, deviation=0.0, n=2) {}")
    assert {file: file.stat().st_mtime_ns for file in before} == before


def _check_the_page(folder: Path, out: Path) -> None:
    held = [claim_run(RunFiles(place), say=print) for place in (folder, folder / "dense-s0")]  # as while it runs
    there = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file() and "owner" not in str(file)}
    found = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)], catch_exceptions=False)
    assert found.output.startswith(f"written: {out}")
    assert "Dense" in CliRunner().invoke(app, ["study", str(folder), "--table"], catch_exceptions=False).output
    assert {file: file.stat().st_mtime_ns for file in there} == there
    for each in held:
        each.release()
    page = Page(out.read_text())
    said = ["6 of 8 runs are finished, 2 failed", "broken, seed 0, 1 failed: data.path = <i>nothing.parquet", "Dense"]
    said += ["FD-random-conv-4 and what it took", "<i>longer</i>, seed 0", "Dense [dense-s0]", "equal cost"]
    for text in said:
        assert text in page.text, text
    assert page.tags.count("svg") == 2 * 2  # of each measure against both costs
    assert page.tags.count("img") == 3
    assert "i" not in page.tags
    lines: list[str] = []
    leave_study_report(folder / "nowhere", lines.append)
    assert lines[0].startswith("No report: ")


def _check_what_a_changed_study_may_differ_in(write_study: WriteStudy, folder: Path) -> None:
    before = (folder / "study.yaml").read_bytes()
    changed = [{**row, "set": ["training.steps=5"]} if row["label"] == "Dense" else row for row in ROWS]
    for rows, said in ((changed, "Dense: training.steps: 4 -> 5"), (ROWS[1:], "rows: without finetune")):
        with pytest.raises(UserError, match=said):
            run_study(load_study(write_study(rows)), folder, executor=SerialCluster())
    with pytest.raises(UserError, match="seeds: without 1"):
        run_study(load_study(write_study(ROWS), seeds=1), folder, executor=SerialCluster())
    assert (folder / "study.yaml").read_bytes() == before
