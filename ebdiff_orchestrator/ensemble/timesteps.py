"""The timesteps at which an ensemble is sampled, largest first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from schemas.errors import UserError, problem


def spaced_timesteps(spacing: str, count: int, total: int, offset: int = 0) -> list[int]:
    """`count` timesteps out of [0, `total`), largest first; each `offset` later than the spacing says (LDM's: 1).

    quadratic: int(linspace(0, sqrt(0.8 T), count)^2), the DDIM reference code's and the paper's; it starts at 0.8 T
    and repeats its smallest values. uniform: i * (T // count), "leading" in diffusers. Raises `UserError`.
    """
    if count < 1:
        raise UserError(problem("num_inference_steps", count, "at least 1", "Raise it."))
    if count > total:
        raise UserError(problem("num_inference_steps", count, f"at most {total}, the timesteps", "Lower it."))
    if spacing == "quadratic":
        ascending = [int(root**2) for root in np.linspace(0, math.sqrt(0.8 * total), count)]
    elif spacing == "uniform":
        ascending = [index * (total // count) for index in range(count)]
    else:
        raise UserError(problem("spacing", spacing, "quadratic or uniform", "Change the scheduler's spacing."))
    if ascending[-1] + offset >= total:
        expected = f"at most {total - 1 - ascending[-1]} with {count} steps, so that the first is below {total}"
        raise UserError(problem("steps_offset", offset, expected, "Lower it, or take fewer steps."))
    return [timestep + offset for timestep in reversed(ascending)]


def check_timesteps(timesteps: Sequence[int], total: int) -> list[int]:
    """A custom list as it is, if it never rises and lies in [0, `total`); raises `UserError` otherwise."""
    listed = [int(timestep) for timestep in timesteps]
    if not listed or listed[0] >= total or listed[-1] < 0:
        raise UserError(problem("timesteps", listed, f"values from {total - 1} down to 0", "Change the list."))
    if any(later > earlier for earlier, later in itertools.pairwise(listed)):
        raise UserError(problem("timesteps", listed, "values that never rise", "Sort the list, largest first."))
    return listed
