"""A loss that is not finite stops training before the update, without a wait for the device at every step."""

from __future__ import annotations

import torch

from schemas.errors import RunFailed


class NonFiniteLossError(RunFailed):
    """The loss or the gradient is no longer a number; the update of that step was not made."""


class NonFiniteGuard:
    """Blocks every update from the first bad step on, on the device itself; `check` raises, later.

    `blocked`: float32 [], 1 once a loss or gradient was not finite; the fused optimizers skip an update whose
    `found_inf` it is.
    """

    def __init__(self, device: torch.device, span: tuple[int, int]) -> None:
        self._span = span
        self.blocked = torch.zeros((), device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, value: torch.Tensor, step: int) -> None:
        """Check a scalar that is not finite if the loss or the gradients of the step are not."""
        bad = ~torch.isfinite(value)
        self._first_bad_step = torch.where(bad & (self._first_bad_step < 0), step, self._first_bad_step)
        self.blocked = torch.maximum(self.blocked, bad.float())

    def check(self) -> None:
        """Raise NonFiniteLossError if a step so far was bad; waits for the device."""
        bad_step = int(self._first_bad_step)
        if bad_step >= 0:
            raise NonFiniteLossError(
                f"The loss or gradient of step {bad_step} (timesteps {list(self._span)}) is not finite; the "
                "update was not made and the last good checkpoint stays. Lower training.learning_rate, set "
                "training.gradient_clip, or use training.precision=fp32, in a new run."
            )
