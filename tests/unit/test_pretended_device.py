"""Runs on_pretended_device.py in a process of its own: torch must know of the device before its first backward pass."""

import re
from pathlib import Path

import pytest
from forked import run_forked


@pytest.mark.slow
def test_nothing_is_left_on_the_host() -> None:
    done = run_forked(Path(__file__).with_name("on_pretended_device.py"), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[0-9]+ passed", done.stdout, re.MULTILINE), done.stdout
