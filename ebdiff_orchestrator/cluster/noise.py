"""Where Ray's own words go: into a file, so that people read ours."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler
from pathlib import Path

_KEPT = 1000


class _Kept(MemoryHandler):
    """Keeps what is said until there is a place for it."""

    def __init__(self) -> None:
        super().__init__(_KEPT, flushOnClose=False)

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - logging's name
        return self.target is not None


_kept = _Kept()


def keep_noise() -> None:
    """From now on nothing of Ray's loggers is printed; errors alone are kept."""
    ray = logging.getLogger("ray")
    ray.propagate = False
    ray.handlers = [_kept]
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def write_noise(file: Path | None) -> None:
    """Have what was kept, and what is still to come, in `file`; without one, on standard error as it comes."""
    keep_noise()
    _kept.setTarget(logging.FileHandler(file, delay=True) if file else logging.StreamHandler())
    _kept.flush()
