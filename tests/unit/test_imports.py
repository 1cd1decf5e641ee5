"""Who may import whom: ebdiff_orchestrator -> region_workers -> schemas, and ray in one folder only."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from schemas.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "schemas": {"schemas"},
    "region_workers": {"schemas", "region_workers"},
    "ebdiff_orchestrator": {"schemas", "region_workers", "ebdiff_orchestrator"},
}

ORDER = {  # a folder imports itself and those before it
    "region_workers": ["storage", "data", "pruning", "networks", "training", "worker"],
    "ebdiff_orchestrator": [
        *("ensemble", "cluster", "plans", "placement", "trackers", "run", "evaluation", "previews", "reports", "study"),
        *("sharing", "doctor", "cli"),
    ],
}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def _files(package: str) -> list[Path]:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_follow_the_arrows(package: str) -> None:
    for file in _files(package):
        ours = {name.split(".")[0] for name in _imports(file)} & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("package", sorted(ORDER))
def test_a_folder_imports_none_that_comes_after_it(package: str) -> None:
    order = ORDER[package]
    assert {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()} == set(order)
    for file in (path for folder in order for path in _files(f"{package}/{folder}")):
        before = order[: order.index(file.relative_to(ROOT / package).parts[0]) + 1]
        ours = {name.split(".")[1] for name in _imports(file) if name.startswith(f"{package}.")}
        assert ours <= set(before), f"{file.relative_to(ROOT)} imports {ours - set(before)}"


def _importing(module: str) -> set[str]:
    """The packages and folders of the files that import it or a part of it."""
    files = [file.relative_to(ROOT) for package in ALLOWED for file in _files(package)]
    users = [file for file in files if any(f"{name}.".startswith(f"{module}.") for name in _imports(ROOT / file))]
    return {"/".join(file.parts[:2]) for file in users}


def test_only_the_cluster_folder_imports_ray_and_no_schema_torch() -> None:
    assert _importing("ray") == {"ebdiff_orchestrator/cluster"}
    assert not [place for place in _importing("torch") if place.startswith("schemas")]


def test_only_the_storage_folder_knows_of_object_stores() -> None:
    assert _importing("region_workers.storage.object_store") == {"region_workers/storage"}
    for file in (path for package in ALLOWED for path in _files(package)):
        assert "ObjectStore" not in file.read_text() or file.parent.name == "storage", file


def test_the_storage_folder_loads_no_torch() -> None:
    modules = [f"region_workers.storage.{file.stem}" for file in _files("region_workers/storage")]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import ebdiff_orchestrator", ["ray", "torch"]),
        ("import region_workers.worker.run; from ebdiff_orchestrator import load_ensemble", ["ray", "torch_pruning"]),
        ("import schemas.plan, region_workers.storage.tables, schemas.manifest, schemas.job", ["ray", "torch"]),
        ("import ebdiff_orchestrator.doctor.examine", ["ray", "torch"]),  # what it asks each node is imported there
    ],
)
def test_importing_stays_light(statement: str, banned: list[str]) -> None:
    code = f"{statement}; import sys; print([name for name in {banned} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


HEAVY = ["torch", "ray", "diffusers", "datasets", "torch_pruning", "sklearn"]
HEAVY += ["scipy", "pandas", "pyarrow", "numpy", "PIL"]


def _typed(*words: str, banned: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; the last line of its errors: what it imported of the banned."""
    code = (
        "import sys; sys.argv[0] = 'ebdiff'; from ebdiff_orchestrator.cli.app import main\n"
        "try: main()\n"
        f"finally: print([name for name in {banned} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize(
    ("command", "banned"),
    [
        ("--help", [*HEAVY, "schemas.plan"]),
        *((f"{name} --help", [*HEAVY, "schemas.plan"]) for name in ("launch", "plan", "sample", "evaluate", "doctor")),
        ("presets", [*HEAVY, "schemas.plan"]),
        ("plan digits --yaml", HEAVY),
        ("plan cifar10-eb --yaml --set data.path=/nowhere/images", HEAVY),
        ("status RUN", HEAVY),
        ("status RUN --json", HEAVY),
    ],
)
def test_a_command_imports_only_what_it_uses(command: str, banned: list[str], tmp_path: Path) -> None:
    Ledger.begin(RunDirectory(tmp_path / "run"), Plan())
    result = _typed(*command.replace("RUN", str(tmp_path / "run")).split(), banned=banned)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (0, "[]"), result.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("launch cif", "cifar10"),
        ("plan digits-eb-", "digits-eb-iterwise"),
        ("study small-c", "small-cifar10"),
        ("evaluate DIR --measure w", "wavelet"),
    ],
)
def test_a_shell_completes_names_without_heavy_imports(typed: str, expected: str) -> None:
    asked = {
        "_EBDIFF_COMPLETE": "complete_bash",
        "COMP_WORDS": f"ebdiff {typed}",
        "COMP_CWORD": f"{len(typed.split())}",
    }
    told = _typed(banned=[*HEAVY, "schemas.plan"], **asked)
    assert (told.stdout.split(), told.stderr.splitlines()[-1]) == ([expected], "[]"), told.stderr


@pytest.mark.parametrize("shadow", ["schemas/__init__.py", "schemas.py", "region_workers/__init__.py"])
def test_a_user_s_own_package_of_our_name_is_named_with_the_remedy(tmp_path: Path, shadow: str) -> None:
    place = tmp_path / shadow
    place.parent.mkdir(exist_ok=True)
    place.write_text("")
    named = str(place.parent if place.name == "__init__.py" else place)
    for command, code in (
        (["-m", "ebdiff_orchestrator", "presets"], 2),
        (["-c", "from ebdiff_orchestrator import Plan"], 1),
    ):
        said = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert said.returncode == code
        assert f"{named}: expected" in said.stderr
        assert "Rename it" in said.stderr
    assert said.stderr.splitlines()[-1].startswith("ImportError")


def test_a_user_s_folder_of_our_name_without_a_package_in_it_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    subprocess.run([sys.executable, "-m", "ebdiff_orchestrator", "--version"], cwd=tmp_path, check=True)
