"""What holds for each of our processes: a clock that never steps back, threads that do not spin, quick imports.

OpenMP reads the environment when torch is first imported, and only then. In a host's process the user decides.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_BEGAN_S = time.time() - time.monotonic()
_LOADING = threading.RLock()
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "passive"}  # threads that spin at barriers slow down all that shares their cores


def unix_time() -> float:
    """Unix time in seconds, counted on from the process's start by a clock that nobody sets."""
    return _BEGAN_S + time.monotonic()


def wait_passively() -> None:
    """For this process and what it starts, unless its user has said otherwise."""
    for name, value in PASSIVE_WAIT.items():
        os.environ.setdefault(name, value)


@contextmanager
def quick_imports() -> Iterator[None]:
    """For the import of torch and diffusers, in four fifths of the time that it takes otherwise.

    They make a million objects, of which none is garbage: nobody looks for any. Every scheduler of diffusers imports
    `scipy.stats` for settings that plans do not have: it is loaded if one is used.
    """
    _load_when_used("scipy.stats")
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _LoadedWhenUsed(ModuleType):
    """A module whose code runs when something of it is first asked for, one thread after the other.

    The standard library's LazyLoader runs it at the second import.
    """

    def __getattr__(self, name: str) -> Any:
        with _LOADING:
            if not (name.startswith("__") or vars(self).get("_is_loading")):
                self._is_loading = True
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
                return getattr(self, name)
        return ModuleType.__getattribute__(self, name)


def _load_when_used(name: str) -> None:
    if name not in sys.modules and (spec := find_spec(name)) is not None:
        module = sys.modules[name] = module_from_spec(spec)
        module.__class__ = _LoadedWhenUsed
