"""`ebdiff report`: what is on the page, of runs in every state, and that what people named stays text."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ONE_REGION, MakePlan
from finished_run import an_evaluation
from listener import Listener
from PIL import Image
from serial_cluster import SerialCluster

from ebdiff_orchestrator.cli import launch as commands
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.reports.page import REPORT_FILE, write_report
from ebdiff_orchestrator.reports.page.curves import Curve, curves_figure, timeline_of
from ebdiff_orchestrator.reports.page.pictures import samples_grid
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.ownership import RunTakenOverError
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE, SAMPLE, ensemble_digest
from schemas.errors import UserError
from schemas.manifest import DeviceUsage, Launch, Manifest

HOSTILE = "</svg><script>alert(1)</script>\"'&<b>\u202e" + "w" * 150


class Page(HTMLParser):
    """The page's tags in order, its visible text, and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.source, self.text, self.addresses, self._hidden = text, "", list[str](), False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag == "style"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


PageWith = Callable[..., Page]  # see `page_with`


@pytest.fixture(scope="module")
def run(tiny_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two regions."""
    low = "{train: [0, 500], pruning_ratio: 0.5, name: low}"
    high = "{train: [400, 1000], pruning_ratio: 0.25, name: high}"
    folder = tmp_path_factory.mktemp("report") / "run"
    launch(tiny_plan(f"regions=[{low}, {high}]", "draw.interval_steps=1"), folder, executor=SerialCluster())
    return folder


@pytest.fixture(scope="module")
def manifest(run: Path) -> Manifest:
    return RunDirectory(run).read()


def _written(runs: list[Path], out: Path) -> Page:
    text = write_report(runs, out).read_text()
    assert len(text) < 3_000_000
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', text)) <= set(ids)
    return page


@pytest.fixture
def page_with(run: Path, manifest: Manifest, tmp_path: Path) -> PageWith:
    """The page of the run, several times over, as another manifest tells of it."""

    def write(told: Manifest, times: int = 1) -> Page:
        RunDirectory(run).write(told)
        page = _written([run] * times, tmp_path / "page.html")
        RunDirectory(run).write(manifest)
        return page

    return write


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of the run as it was left."""
    return _written([run], tmp_path_factory.mktemp("page") / "page.html")


def test_a_finished_run_is_told_of_from_its_samples_to_its_plan(page: Page) -> None:
    of_the_run = ("TA-EB 50/25% (magnitude)", "finished", "low", "high", "draw/low", "block_out_channels")
    for said in (*of_the_run, "Losses", "Tickets", "Time"):
        assert said in page.text, said
    assert page.tags.count("svg") == 2 + 2 + 1  # losses, a heat map a region, the timeline
    assert page.tags.count("img") == 1
    assert "Quality" not in page.text


def test_an_equal_run_gives_an_equal_page_and_one_without_sizes_on_record_has_them_counted(
    page: Page, manifest: Manifest, page_with: PageWith
) -> None:
    assert manifest.sizes == preview_plan(manifest.plan).sizes
    pages = (page, page_with(manifest), page_with(manifest.model_copy(update={"sizes": None})))
    assert len({re.sub(r"written [0-9: -]+", "", each.source) for each in pages}) == 1


@pytest.mark.parametrize("command", ["report RUN RUN", "compare RUN", "tickets RUN"])
def test_telling_of_a_finished_run_builds_no_network(command: str, run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ebdiff_orchestrator.cli.app import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'diffusers', 'ray') if name in sys.modules], file=sys.stderr)"
    )
    typed = command.replace("RUN", str(run)).split()
    told = subprocess.run([sys.executable, "-c", code, *typed], cwd=tmp_path, capture_output=True, text=True)
    assert (told.returncode, told.stderr.splitlines()[-1]) == (0, "[]"), told.stderr


def test_a_run_that_was_launched_again_says_so(page: Page, manifest: Manifest, page_with: PageWith) -> None:
    assert "Launched" not in page.text
    began = manifest.launches[0].started_at
    again = manifest.with_stage(manifest.stage("train/low").model_copy(update={"attempts": 3}))
    again = again.with_stage(again.stage("draw/high").model_copy(update={"reused_from": "elsewhere"}))
    killed, whole = (Launch(started_at=began - ago, ended_at=began - ago + 90) for ago in (999, 99))
    samples = DeviceUsage(
        job=SAMPLE, attempt=1, started_at=whole.ended_at - 5, ended_at=whole.ended_at, workers=1, gpus=0
    )
    launches = (killed, whole, *manifest.launches)
    page = page_with(again.model_copy(update={"launches": launches, "usage": (samples, *manifest.usage)}))
    said = (
        "Launched 3 times: begun, ended early (stopped, killed or failed) after 0:01:30; gone on with, finished after "
        "0:01:30; trained further, finished after "
    )
    assert said in page.text
    open_stage = again.stage(SAMPLE).model_copy(update={"status": "pending"})
    at_work = page_with(again.with_stage(open_stage).model_copy(update={"launches": launches}))
    assert "; gone on with, not finished after 0:" in at_work.text
    assert "Started more than once: train/low (3 attempts)." in page.text
    assert "Taken over from other runs: draw/high." in page.text
    assert "where the run was launched again" in page.text


def test_what_differs_from_the_preset_stands_field_by_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan("digits", ["regions.2.pruning_ratio=0.6", "seed=7"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / plan.name).write_text("a file of the preset's name is no plan of its own")
    Ledger.begin(RunDirectory(tmp_path / "run"), plan)
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    table = page.partition("What differs from the preset")[2].partition("</table>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == ["seed", "7", "0", "regions.2.pruning_ratio", "0.6", "0.8"]


def test_pictures_keep_to_their_share_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "samples/grid.png")
    for most_bytes in (200_000, 20_000):
        picture = samples_grid(RunDirectory(tmp_path), most_bytes)
        assert picture is not None
        assert 32 < picture.width < 512
        assert len(picture.url) <= most_bytes
        assert picture.scaled


def test_runs_side_by_side_have_a_table_and_quality_against_hours(manifest: Manifest, page_with: PageWith) -> None:
    evaluation = an_evaluation(fid=12.5, ensemble_digest=ensemble_digest(manifest), num_images=1000)
    page = page_with(manifest.model_copy(update={"evaluations": {"k": evaluation}}), times=2)
    for said in ("Side by side", "Quality and what it took", "FID-1k (lower is better)"):
        assert said in page.text
    assert page.text.count("12.5") >= 3


def test_a_run_that_failed_says_why_and_shows_what_there_is(manifest: Manifest, page_with: PageWith) -> None:
    failed = manifest.stage("train/low").model_copy(update={"status": "failed", "error": "the loss is not finite"})
    page = page_with(manifest.with_stage(failed))
    assert f"failed: {len(manifest.stages) - 1} of {len(manifest.stages)} stages are done" in page.text
    assert "train/low: the loss is not finite" in page.text


def test_what_people_named_stays_text(manifest: Manifest, page_with: PageWith) -> None:
    hostile = manifest.stage("train/low").model_copy(update={"error": HOSTILE, "reused_from": HOSTILE})
    plan = manifest.plan.model_copy(update={"data": manifest.plan.data.model_copy(update={"path": HOSTILE})})
    software = {**manifest.software, HOSTILE: HOSTILE}
    usage = (*manifest.usage, DeviceUsage(job=HOSTILE, attempt=1, started_at=0, ended_at=9, workers=1, gpus=0))
    changed = {"plan": plan, "software": software, "usage": usage}
    page = page_with(manifest.with_stage(hostile).model_copy(update=changed))
    assert page.text.count("<script>alert(1)</script>") >= 3
    assert page.tags.count("svg") == 5


def _figure(*labels: str, points: int = 3) -> str:
    curves = [Curve(label, np.arange(points) + 25.0, np.ones(points)) for label in labels]
    return curves_figure(curves, "loss", itertools.count(1))


def test_a_label_in_a_figure_is_no_markup_and_no_mathematics() -> None:
    assert "&lt;b&gt;$x$" in _figure("<b>$x$")


def test_a_long_name_in_a_figure_leaves_room_for_the_figure() -> None:
    figure = _figure(*(f"{'w' * 150}{end}" for end in "ab"))
    assert "w" * 32 not in figure
    assert [f"www{end}<" in figure for end in "abc"] == [True, True, False]


def test_a_curve_of_one_point_is_seen() -> None:
    assert _figure("alone", points=1).count("<use") > _figure("more", points=2).count("<use")


def test_the_time_between_launches_is_left_out(manifest: Manifest) -> None:
    day = 24 * 3600.0
    launches = tuple(Launch(started_at=start, ended_at=start + 100) for start in (day, 3 * day))
    usage = tuple(
        DeviceUsage(job="region low", attempt=n, started_at=start + 10, ended_at=start + 90, workers=1, gpus=0)
        for n, start in enumerate((day, 3 * day))
    )
    draw = manifest.stage("draw/low").model_copy(update={"started_at": day + 20, "finished_at": 3 * day + 50})
    timeline = timeline_of(manifest.with_stage(draw).model_copy(update={"launches": launches, "usage": usage}))
    assert timeline is not None
    assert (timeline.jobs, timeline.unit) == (("region low",), "minutes since the start")
    held = [(bar.start * 60, bar.stop * 60) for bar in timeline.bars if bar.kind == "held"]
    drew = [(bar.start * 60, bar.stop * 60) for bar in timeline.bars if bar.kind == "draw"]
    assert held == [pytest.approx((10, 90)), pytest.approx((112, 192))]
    assert drew == [pytest.approx((20, 90)), pytest.approx((112, 152))]
    assert len(timeline.gaps) == 1


def test_a_page_is_refused_where_it_cannot_be_written(run: Path, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(UserError, match="--out"):
            write_report([run], out)


def test_a_launch_ends_with_the_page_and_a_page_that_fails_is_a_line(
    tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, folder = Listener(), tmp_path / "run"
    with commands._reported(folder, view):
        launch(tiny_plan(ONE_REGION, "training.steps=1"), folder, executor=SerialCluster())
    assert view.said == [f"Report: {folder}/{REPORT_FILE}"]
    assert "finished" in Page((folder / REPORT_FILE).read_text()).text
    (folder / REPORT_FILE).unlink()
    with commands._reported(folder, view):  # it was finished before
        pass
    with pytest.raises(RunTakenOverError), commands._reported(folder, view, goes_further=True):
        raise RunTakenOverError("another has it")
    assert not (folder / REPORT_FILE).exists()
    monkeypatch.setattr("ebdiff_orchestrator.reports.page._render", lambda values: 1 / 0)
    with commands._reported(folder, view, goes_further=True):
        pass
    assert view.said[-1].startswith("No report: division by zero")
    assert (folder / ASSEMBLE).is_dir()
