"""Import this first: where the modules of acceptance.py are, installed or not, and how its processes wait."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLACES = [str(place) for place in (HERE, HERE.parent / "benchmarks", HERE.parent, ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

from schemas.process import wait_passively  # noqa: E402 - it is found now

wait_passively()  # heeded only if it is said before torch is imported
