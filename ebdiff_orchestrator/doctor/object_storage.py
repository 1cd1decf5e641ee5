"""Object stores: that every node reaches the run's URL, and reads there what the others write."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ebdiff_orchestrator.doctor.finding import Finding, wrong, wrong_or_fine
from region_workers.storage.run_files import RunFiles
from schemas.errors import UserError
from schemas.section import Section

_CHECK = "shared storage"
_DRIVER_KEY = "driver"
_REMEDY = "Give the nodes the credentials and the endpoint (AWS_ENDPOINT_URL) of the store, and leave to write there."


class StoreAnswer(Section):
    """What one node found at the URL: the object that it wrote there, or why it could not."""

    wrote: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class StoreTest:
    """An object of the driver's below the run's URL, there while it is being looked at."""

    url: str
    secret: str

    def sees(self, answer: StoreAnswer) -> bool:
        """Whether the driver reads what a node wrote."""
        return answer.wrote is not None and _read(RunFiles(self.url), answer.wrote) == self.secret


@contextmanager
def store_test(url: str) -> Iterator[StoreTest]:
    """The driver's side; leaves nothing behind. OSError or UserError if it cannot."""
    test = StoreTest(f"{url}/.doctor-{secrets.token_hex(6)}", secrets.token_hex(8))
    store = RunFiles(test.url)
    try:
        store.write(_DRIVER_KEY, test.secret.encode())
        yield test
    finally:
        with suppress(OSError):  # what cannot be written cannot be deleted either, and the finding says so
            for key in store.list_keys():
                store.delete(key)


def look_at_store(url: str, secret: str) -> dict[str, Any]:
    """The side of one node, run on it; a `StoreAnswer` as plain values."""
    key = f"node-{secrets.token_hex(6)}"
    try:
        store = RunFiles(url)
        if _read(store, _DRIVER_KEY) != secret:
            return StoreAnswer(problem="what the driver wrote is not there").model_dump()
        store.write(key, secret.encode())
    except (OSError, UserError) as error:
        return StoreAnswer(problem=f"{type(error).__name__}: {error}").model_dump()
    return StoreAnswer(wrote=key).model_dump()


def judge_store(url: str, answers: Mapping[str, StoreAnswer], seen: Mapping[str, bool]) -> Finding:
    """`answers`: of the nodes; `seen`: whether the driver read what each of them wrote."""
    problems = [f"{name}: {answer.problem}" for name, answer in answers.items() if answer.problem is not None]
    problems += [f"{name}: wrote elsewhere" for name, answer in answers.items() if answer.wrote and not seen[name]]
    return wrong_or_fine(_CHECK, problems, _REMEDY, f"{url} is read and written by {len(answers)} node(s)")


def cannot_reach(error: Exception) -> Finding:
    """The driver's own side failed."""
    return wrong(_CHECK, str(error), _REMEDY)


def _read(store: RunFiles, key: str) -> str | None:
    try:
        return store.read(key).decode()
    except FileNotFoundError:
        return None
