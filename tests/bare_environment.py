"""An environment that has torch, diffusers and safetensors, what they need, and nothing else, made in a second."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

_INSTALLED = ("torch", "diffusers", "safetensors")


def bare_python(folder: Path) -> Path:
    """The interpreter of a virtual environment in `folder`, whose packages are links to those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for name in _needed(_INSTALLED):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin" / "python"


def _needed(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they require here, without extras."""
    found, open_ends = set[str](), list(names)
    while open_ends:
        name = open_ends.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_ends.append(requirement.name)
    return found
