"""The report in a real Chromium, which Debian has: `apt-get install chromium chromium-driver`."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakePlan
from serial_cluster import SerialCluster

from ebdiff_orchestrator.reports.page import write_report
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.load import write_study
from ebdiff_orchestrator.study.report import write_study_report
from schemas.study import StudyPlan, StudyRow

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no Chromium here: apt-get install chromium chromium-driver",
)
PHONE, DESK = (390, 844), (1400, 1000)
BOXES = """return [...document.querySelectorAll('svg[role=img], img')]
    .map(each => each.getBoundingClientRect()).map(box => [box.width, box.height])"""


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium that notes every request."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def test_a_browser_shows_every_figure_and_asks_nobody_for_anything(
    browser: Any, tiny_plan: MakePlan, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    run, plan = study / "row-s0", tiny_plan("draw.interval_steps=1")
    launch(plan, run, executor=SerialCluster())
    row = StudyRow(label="row", plan=plan.model_dump(mode="json", exclude={"name", "seed"}))
    write_study(StudyPlan(rows=(row, row.model_copy(update={"label": "w" * 99}))), study)
    directory = RunDirectory(run)
    manifest = directory.read()
    error = "<img src=x onerror=alert(1)><script>alert(2)</script> https://example.org/x.png"
    directory.write(manifest.with_stage(manifest.stage("train/0-260").model_copy(update={"error": error})))
    page = write_report([run, run], tmp_path / "report.html").as_uri()
    of_study = write_study_report(study, tmp_path / "study.html").as_uri()
    for address, size in itertools.product((of_study, page), (PHONE, DESK)):
        browser.set_window_size(*size)
        browser.get(address)
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{wide} pixels too wide at {size}"
        boxes = browser.execute_script(BOXES)
        assert len(boxes) > (8 if address == page else 0)
        assert all(width > 60 and height > 40 for width, height in boxes), boxes
    for media, least in (("print", 300), ("screen", -1)):  # the plan is folded on a screen, and printed whole
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        plans = [plan.size["height"] for plan in browser.find_elements("tag name", "pre")]
        assert len(plans) == 2
        assert min(plans) > least
    assert error in browser.find_element("tag name", "body").text
    assert not browser.find_elements("tag name", "script")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requested = [
        entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert requested
    assert not [each for each in requested if '"url":"http' in each]
