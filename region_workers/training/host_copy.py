"""Copies of a stage's tensors on the host, taken between two steps, so that they can be written while it goes on."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class HostCopy:
    """Host memory for the tensors of one stage, asked for once and then used again.

    Pinned where the tensors are on a GPU: a copy to pinned memory runs at the bus's full speed.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors as they are now, contiguous on the host; valid until the next call."""
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        for name, tensor in tensors.items():
            if name not in self._buffers:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[name] = empty
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return {name: self._buffers[name] for name in tensors}
