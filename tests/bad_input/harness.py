"""One bad input: what is typed, what the message must say, and the checks that hold for every one of them."""

import os
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import typer

from ebdiff_orchestrator.cli.app import main

EXPECTATION = re.compile(r"\bexpected\b", re.IGNORECASE)
REMEDY = re.compile(
    r"(?:^|[.:;?)] )"
    r"(?:Add|Change|Check|Choose|Close|Convert|Correct|Did you mean|Finish|Get|Give|Have it|Leave|Lower|Make|Move|Name|"
    r"Order|Put|Quote|Raise|Remove|Rename|Repair|Replace|Resize|Restore|Save|See|Separate|Set|Shrink|Start|Swap|Use|Write)\b",
    re.IGNORECASE | re.MULTILINE,
)
# For cases refused after the networks were counted: one network in the place of four.
ONE_NETWORK = ("--set", "regions=[{train: [0, 1000], pruning_ratio: 0}]")
_get_command = cache(typer.main.get_command)  # which builds all commands anew each time, a fifth of a case's time
_CLAIMS = ".owners"  # who holds a run, which is nothing of the run itself


@dataclass(frozen=True)
class Case:
    """A command line typed in the folder of `site`; `plan` is put there first as plan.yaml.

    `says`: fragments of the message: the field (or option, or file), the value, what was expected, what to do.
    """

    name: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    plan: str | bytes | None = field(default=None, repr=False)
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str


def call(argv: tuple[str, ...], capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Answer:
    """The command line in this process, by the same way as the installed command."""
    patch.setattr(sys, "argv", ["ebdiff", *argv])
    patch.setattr(typer.main, "get_command", _get_command)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capfd.readouterr()
    return Answer(int(str(ended.value.code)), captured.out, captured.err)


def contents(folder: Path) -> dict[str, tuple[int, ...] | str | None]:
    """Everything below a folder, by path: files by size and time of change, links by their targets."""
    found: dict[str, tuple[int, ...] | str | None] = {}
    waiting = [str(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.name == _CLAIMS:
                continue
            if entry.is_symlink():
                found[entry.path] = str(Path(entry.path).readlink())
            elif entry.is_file():
                status = entry.stat()
                found[entry.path] = (status.st_size, status.st_mtime_ns, status.st_ino)
            elif entry.is_dir():
                found[entry.path] = None
                waiting.append(entry.path)
    return found


def check(case: Case, answer: Answer) -> None:
    """Exit code 2 and a message for people, with all that a person needs."""
    shown = f"\n{' '.join(case.argv)}\n{answer.err}"
    assert answer.code == 2, shown + answer.out
    assert "Traceback" not in answer.err + answer.out, shown
    text = " ".join(answer.err.split())
    missing = [part for part in case.says if part not in text]
    assert not missing, f"{missing} not in:{shown}"
    expectation = EXPECTATION.search(answer.err)
    assert expectation, f"says nothing of what is expected:{shown}"
    assert REMEDY.search(answer.err, expectation.end()), f"says nothing of what to do:{shown}"
    assert len(answer.err) < 4000, f"too long to read:{shown}"
