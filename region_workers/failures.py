"""What can break a stage, and whether another attempt could help."""

from __future__ import annotations

import torch

from schemas.errors import RunFailed, UserError


class NonFiniteLossError(RunFailed):
    """The loss or the gradient is no longer a number; the update of that step was not made."""


class TicketNotDrawnError(RunFailed):
    """The mask was still changing when `draw.max_intervals` was reached."""


class StageHeldError(RuntimeError):
    """Another worker, perhaps one left over from before a crash, still holds the stage."""


class StopRequestedError(Exception):
    """The run was asked to stop; the state is saved."""


def is_retryable(error: BaseException) -> bool:
    """Whether the same work may succeed when tried again: not if its inputs decide that it fails."""
    return not isinstance(error, RunFailed | UserError | torch.OutOfMemoryError | AssertionError)


def message_for_people(error: BaseException) -> str:
    """One line: what went wrong and, where it is known, what to do."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The device ran out of memory. Lower training.batch_size, raise training.gradient_accumulation, "
            "use training.precision=bf16, or give each region more of the device (workers.gpus)."
        )
    if isinstance(error, RunFailed | UserError | StageHeldError):
        return str(error)
    return f"{type(error).__name__}: {error}"
