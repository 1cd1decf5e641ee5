"""What one node says of itself, gathered on it by functions that import little; and what a check then finds."""

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ebdiff_orchestrator.run.manifests import versions_of
from region_workers.storage.integrity import file_digest
from region_workers.storage.places import cache_dir_of
from schemas.digest import digest
from schemas.section import Section

PACKAGES = ("ebdiff-orchestrator", "torch", "ray", "diffusers", "torch-pruning", "numpy", "safetensors", "pyarrow")
OUR_CODE = "code"  # among the versions: the digest of this project's own files
_OUR_PACKAGES = ("schemas", "region_workers", "ebdiff_orchestrator")
_ROOT = Path(__file__).resolve().parents[2]
_DEVICES = Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg")  # the last: in Windows' Linux
_CUDA_LIMIT_S = 120.0
_ASK_CUDA = """
import torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
[torch.zeros(1, device=f"cuda:{i}") for i in range(len(devices))]
print(*(f"{device.total_memory} {device.name}" for device in devices), sep="\\n")
"""


class Gpu(Section):
    """One GPU that torch can use."""

    name: str
    memory_bytes: int


class NodeFacts(Section):
    """A node: its software, devices, memory, and how Ray's processes on it authenticate.

    `code_folder`: where this project's code is imported from. `cuda_problem`: why torch cannot use the GPUs that the
    node seems to have. `shm_bytes`: size of /dev/shm; None where there is none. `token_mode`: the mode of the file with
    Ray's token, if there is one.
    """

    versions: dict[str, str]
    code_folder: str
    gpus: tuple[Gpu, ...]
    cuda_problem: str | None
    memory_bytes: int
    shm_bytes: int | None
    auth_mode: str | None
    token_file: str
    token_mode: int | None
    cache_dir: str
    cache_free_bytes: int
    cache_used_bytes: int


class Node(Section):
    """One node: what Ray says that it has (CPU, GPU), and what it says of itself, or why it could not."""

    name: str
    resources: dict[str, float]
    facts: NodeFacts | None
    problem: str | None = None


class Finding(Section):
    """One line of the report: fine, worth knowing (`note`), or wrong and then what to do."""

    check: str
    status: Literal["fine", "note", "wrong"]
    what: str
    remedy: str = ""


class Examination(Section):
    """The findings, and the nodes that they are about."""

    findings: tuple[Finding, ...]
    nodes: tuple[Node, ...]

    @property
    def wrong(self) -> int:
        """How many checks found something wrong."""
        return sum(finding.status == "wrong" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"fine": not self.wrong, **self.model_dump(mode="json")}


def fine(check: str, what: str) -> Finding:
    return Finding(check=check, status="fine", what=what)


def note(check: str, what: str, remedy: str = "") -> Finding:
    return Finding(check=check, status="note", what=what, remedy=remedy)


def wrong(check: str, what: str, remedy: str) -> Finding:
    return Finding(check=check, status="wrong", what=what, remedy=remedy)


def wrong_or_fine(check: str, problems: Sequence[str], remedy: str, what: str) -> Finding:
    """All the problems as one finding; `what` if there are none."""
    return wrong(check, "; ".join(problems), remedy) if problems else fine(check, what)


def answering(nodes: Sequence[Node]) -> list[tuple[Node, NodeFacts]]:
    return [(node, node.facts) for node in nodes if node.facts is not None]


def gather_facts(cache_dir: str | None, of_ray: bool) -> dict[str, Any]:
    """The facts of this machine as plain values, so that they travel between versions of this package.

    `of_ray`: this is a task of Ray's, from which it hides the GPUs.
    """
    cache = cache_dir_of(cache_dir)
    gpus, problem = _gpus(of_ray)
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    shared_memory = Path("/dev/shm")
    facts = NodeFacts(
        versions={**versions_of(PACKAGES), OUR_CODE: _code()},
        code_folder=str(_ROOT),
        gpus=gpus,
        cuda_problem=problem,
        memory_bytes=_memory_bytes(),
        shm_bytes=shutil.disk_usage(shared_memory).total if shared_memory.is_dir() else None,
        auth_mode=os.environ.get("RAY_AUTH_MODE"),
        token_file=str(token_file),
        token_mode=stat.S_IMODE(token_file.stat().st_mode) if token_file.is_file() else None,
        cache_dir=str(cache),
        cache_free_bytes=shutil.disk_usage(nearest_folder(cache)).free,
        cache_used_bytes=bytes_below(cache),
    )
    return facts.model_dump(mode="json")


def clock() -> float:
    """Unix time, as this machine has it."""
    return time.time()


def nearest_folder(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def bytes_below(folder: Path) -> int:
    """The size of all files below a folder; 0 if there is none. Files may come and go meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(path, name).stat().st_size
    return total


def _code() -> str:
    """What tells whether two nodes run the same files of this project, wherever they lie."""
    files = sorted(file for package in _OUR_PACKAGES for file in (_ROOT / package).rglob("*.py"))
    return digest({str(file.relative_to(_ROOT)): file_digest(file) for file in files})[:12]


def _gpus(of_ray: bool) -> tuple[tuple[Gpu, ...], str | None]:
    """Ask torch in a process of its own, since CUDA stays loaded."""
    if not any(path.exists() for path in _DEVICES):
        return (), None
    hidden = "CUDA_VISIBLE_DEVICES" if of_ray else ""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_CUDA],
            env={name: value for name, value in os.environ.items() if name != hidden},
            capture_output=True,
            text=True,
            timeout=_CUDA_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (), f"CUDA gave no answer within {_CUDA_LIMIT_S:.0f} s"
    if asked.returncode:
        return (), (asked.stderr.strip().splitlines() or ["torch ended without a word"])[-1]
    lines = [line.split(" ", 1) for line in asked.stdout.splitlines() if line]
    return tuple(Gpu(name=name, memory_bytes=int(size)) for size, name in lines), None


def _memory_bytes() -> int:
    """The host's memory, or the container's share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            return min(total, int(text))
    return total
