"""The precisions that an ensemble is sampled in."""

from __future__ import annotations

import torch

from schemas.errors import UserError, problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_dtype(dtype: torch.dtype | None, device: str | torch.device | None) -> None:
    """Raise `UserError` for a precision that no network samples in, or that `device`, if one is named, is not for."""
    if dtype is None:
        return
    if dtype not in DTYPES.values():
        names = ", ".join(str(each) for each in DTYPES.values())
        raise UserError(problem("torch_dtype", dtype, f"None or one of {names}", "Change it."))
    if dtype == torch.float16 and device is not None and torch.device(device).type == "cpu":
        raise UserError(
            problem(
                "dtype",
                "fp16 (float16)",
                "fp32 or bf16 on a CPU, which takes 20 to 40 times as long in float16",
                "Use bf16 (bfloat16), or a GPU.",
            )
        )
