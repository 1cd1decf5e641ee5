"""A place that is no run yet must be empty: what a run writes and deletes there could be somebody's own files."""

from __future__ import annotations

from collections.abc import Iterable

from region_workers.storage.durable import is_temporary
from schemas.errors import UserError
from schemas.manifest import RAY_LOG
from schemas.owner import OWNERS_FOLDER, is_claim

_SHOWN = 5


def check_nothing_foreign(where: str, names: Iterable[str]) -> None:
    """UserError if any of these names, down to the second level, is not of a launch that was killed at its start.

    Where a claim is among them there was a run before, which has lost its manifest: the rest is its own.
    """
    names = list(names)
    if any(is_claim(name.removeprefix(f"{OWNERS_FOLDER}/")) for name in names if name.startswith(OWNERS_FOLDER)):
        return
    foreign = sorted({_top(name) for name in names if not _is_ours(name)})
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise UserError(
            f"DIR = {where}: expected a run, or an empty folder for a new one, but it holds "
            f"{', '.join(foreign[:_SHOWN])}{more}, and no run. Give another --run-dir, or move these away."
        )


def _top(name: str) -> str:
    return name if name.startswith(f"{OWNERS_FOLDER}/") else name.split("/")[0]


def _is_ours(name: str) -> bool:
    top, _, below = name.partition("/")
    if top == OWNERS_FOLDER:
        return below in ("", ".lock") or is_claim(below) or is_temporary(below)
    return name == RAY_LOG or is_temporary(top)
