"""What can break a stage, and whether another attempt could help."""

import errno
from pathlib import Path

import torch
import torch.distributed as dist

from schemas.errors import NO_SPACE, NO_WRITING, RunFailed, UserError, disk_problem

_FOR_GOOD = (*NO_SPACE, *NO_WRITING, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class TicketNotDrawnError(RunFailed):
    """The mask was still changing when `draw.max_intervals` was reached."""


class StageHeldError(RuntimeError):
    """Another worker, perhaps one left over from before a crash, still holds the stage."""


class HangError(RuntimeError):
    """No step was made, nor anything made ready for the first, for too long."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"No step was made and no image made ready for {limit_s:.0f} s, so the worker ended itself: another worker "
            "of its region, the device or a disk does not answer. Where a step really takes so long, raise "
            "workers.hang_limit_s."
        )


class ScratchLostError(RuntimeError):
    """The worker's own folder was deleted under it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder}, where this worker keeps what it has not sent yet, was deleted while it worked. Nothing in the "
            "store was touched; the next attempt goes on from there. Keep workers.cache_dir out of what is cleaned up."
        )


class StopRequestedError(Exception):
    """The run was asked to stop; the state is saved."""


class OutdatedError(StopRequestedError):
    """The run has another owner, or the job another attempt: what this worker makes is not sent any more."""


_OF_THE_WORKER = (StageHeldError, HangError, ScratchLostError)  # they say it themselves; another attempt may help


def is_retryable(error: BaseException) -> bool:
    """Whether the same work may succeed when tried again: if the machine or its neighbours failed, not the program.

    That is a device that broke, a connection or a disk that did not answer, a worker told to end. What the program or
    its inputs decide would fail again.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _FOR_GOOD
    broken = (*_OF_THE_WORKER, torch.AcceleratorError, dist.DistError, SystemExit, KeyboardInterrupt)
    return isinstance(error, broken) or _is_of_the_process_group(error) or _is_of_the_end(error)


def message_for_people(error: BaseException) -> str:
    """One line: what went wrong and, where it is known, what to do."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The device ran out of memory. Lower training.batch_size, raise training.gradient_accumulation, "
            "use training.precision=bf16, or give each region more of the device (workers.gpus)."
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # torch's, for want of one of its own
        return "The machine ran out of memory. Lower training.batch_size, or raise training.gradient_accumulation."
    if isinstance(error, dist.DistError) or _is_of_the_process_group(error):
        return f"The workers of the region lost each other: {str(error).splitlines()[0]}"
    if _is_of_the_end(error):
        return f"The worker was told to end, as by SIGTERM ({error})."
    if isinstance(error, OSError) and (told := disk_problem(error)):
        return told
    if isinstance(error, (RunFailed, UserError, *_OF_THE_WORKER)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _is_of_the_process_group(error: BaseException) -> bool:
    """Gloo, and torch.distributed when a neighbour is gone, raise plain RuntimeErrors."""
    return _is_not_ours(error) and any(word in str(error) for word in ("gloo", "peer", "process group"))


def _is_of_the_end(error: BaseException) -> bool:
    """What Python raises in the threads of a process that was told to end."""
    return _is_not_ours(error) and "shutdown" in str(error)


def _is_not_ours(error: BaseException) -> bool:
    """Whether it is a RuntimeError that its words must tell apart; ours name folders, which may be called anything."""
    return isinstance(error, RuntimeError) and not isinstance(error, (RunFailed, *_OF_THE_WORKER))
