"""What README and docs say is there is there: files, commands, options; and the page of fields is the schemas'."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.study.load import load_study

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_INLINE = re.compile(r"`(ebdiff [a-z][^`]*)`")
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def _blocks(page: Path, *languages: str) -> Iterator[str]:
    return (text for language, text in _BLOCK.findall(page.read_text()) if language in languages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block, str(page), "exec")


def _commands(page: Path) -> list[list[str]]:
    """Each `ebdiff ...` of the page's shell blocks and sentences; comments and what follows in a shell left out."""
    lines = "\n".join(_blocks(page, "sh")).replace("\\\n", " ").splitlines()
    inline = _INLINE.findall(_BLOCK.sub("", page.read_text()))
    lines += [re.sub(r"\\\||[\[\]]|\.\.\.", " ", text) for text in inline]  # PLAN [--json \| --yaml]
    found = [re.search(r"(?:^|[ (])ebdiff (?!@)(.*)", line) for line in lines]
    words = [shlex.split(match[1], comments=True) for match in found if match]
    return [part[: next((i for i, word in enumerate(part) if word in (">", "|", "&&")), None)] for part in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in _commands(page):
        command = commands[words[0]]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [word for word in words[1:] if word.startswith("-") and word.split("=")[0] not in options]
        assert not unknown, f"ebdiff {shlex.join(words)}"


def test_some_commands_are_found() -> None:
    assert sum(len(_commands(page)) for page in PAGES) > 60


@pytest.mark.parametrize("file", sorted((ROOT / "docs").glob("*.yaml")), ids=lambda file: file.name)
def test_the_studies_beside_the_pages_can_be_read(file: Path) -> None:
    assert load_study(file).rows


def test_the_page_of_fields_is_that_of_the_schemas() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "plan_reference.py"))["page"]()
    assert (ROOT / "docs" / "plan.md").read_text() == page, "run: python docs/plan_reference.py"
