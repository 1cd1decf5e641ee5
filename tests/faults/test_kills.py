"""Kills of the real command line: a run hit in one stage after the other ends as one that nobody harmed.

A few kills, chosen so that every victim and both signals occur, of a run with one region: that one is killed while
others go on is in test_failing_regions.py. `python tests/faults/kills.py` carries out as many random ones as wanted.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_campaign import KILL, TERM, Aim, Campaign
from kill_job import CHECKPOINT, DRAW, PREPARE, SAMPLE, TRAIN, Run
from kill_processes import DRIVER, GCS, GROUP, RAYLET, VICTIMS, WORKER, adopt_orphans, end_orphans
from serial_cluster import SerialCluster

from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run import launch as driver

SEED = 20
_LIMIT_S = 600.0
_AIMS = (
    Aim(PREPARE, DRIVER, KILL),
    Aim(DRAW, WORKER, TERM),
    Aim(DRAW, WORKER, KILL),
    Aim(CHECKPOINT, GCS, KILL),
    Aim(TRAIN, RAYLET, KILL),
    Aim(SAMPLE, GROUP, TERM),
)
_SOON_S = {PREPARE: 1.0, DRAW: 1.0, CHECKPOINT: 0.02, TRAIN: 1.0, SAMPLE: 0.3}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: Ray puts sockets below it. No process of the test outlives it."""
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as name:
        yield Path(name)
        end_orphans()


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_in_the_same_bits(folder: Path, cache_dir: Path) -> None:
    campaign = Campaign(folder, SEED, _LIMIT_S, print, measures=False, one_region=True)
    undisturbed = Run(campaign.materials, folder / "undisturbed")
    driver.launch(
        load_plan(str(campaign.materials.folder / "plan.yaml"), ()), undisturbed.run_dir, executor=SerialCluster()
    )
    campaign.expect(undisturbed, _SOON_S)

    missed = campaign.attack(1, _AIMS)
    assert not missed
    assert {row.victim for row in campaign.rows} == set(VICTIMS)
    assert all(row.survived for row in campaign.rows), campaign.rows
    assert all(row.left_behind == 0 for row in campaign.rows), campaign.rows
