"""The device of this process and its place among the workers of its region."""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from schemas.job import Hardware
from schemas.plan import TrainingPlan

_MEMORY_FILE = Path("/proc/self/statm")  # in pages: all, resident, ...
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class World:
    """Which of a region's workers this one is, and on what it computes.

    `preemption_notice` says whether a machine of the region is about to be taken away; all workers ask equally often.
    `on_heartbeat` is called after every step, `on_deleted` with every checkpoint folder that was deleted.
    """

    device: torch.device
    rank: int
    size: int
    preemption_notice: Callable[[], bool] | None = None
    on_heartbeat: Callable[[], None] | None = None
    on_deleted: Callable[[Path], None] | None = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    def heartbeat(self) -> None:
        if self.on_heartbeat is not None:
            self.on_heartbeat()

    def is_preempted(self) -> bool:
        """Whether a machine of the region is about to be taken away."""
        return self.preemption_notice is not None and self.preemption_notice()

    def describe(self, training: TrainingPlan) -> Hardware:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return Hardware(device=name, world_size=self.size, cpu_threads=training.cpu_threads)

    def reset_peak_memory(self) -> None:
        """Count the peak anew, where the device lets us: the host's is the process's whole life's."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> int:
        """The most memory held: allocated on a CUDA device since it was forgotten, else resident on the host."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit_bytes = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes

    def resources(self) -> dict[str, int]:
        """What this process holds: on the host now, where Linux says so; of a CUDA device the most since a reset."""
        held = {}
        if _MEMORY_FILE.exists():
            held["resident_bytes"] = int(_MEMORY_FILE.read_text().split()[1]) * resource.getpagesize()
        if self.device.type == "cuda":
            held["device_allocated_bytes"] = torch.cuda.max_memory_allocated(self.device)
            held["device_reserved_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return held

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def average(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over the region's workers, on each of them; overwrites theirs."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
            tensor /= self.size
        return tensor

    def broadcast_int(self, value: int) -> int:
        """Rank zero's value, on every worker."""
        return int(self.broadcast(torch.tensor([value], device=self.device)))

    def broadcast_bool(self, value: bool) -> bool:
        """Rank zero's value, on every worker."""
        return bool(self.broadcast_int(int(value)))

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank zero's tensor, on every worker; overwrites the others'."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor


def current_world(use_gpu: bool, preemption_notice: Callable[[], bool] | None = None) -> World:
    """From the process group if there is one, else a world of one."""
    joined = dist.is_available() and dist.is_initialized()
    if use_gpu and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    rank, size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
    return World(device, rank, size, preemption_notice)


def prepare_process(training: TrainingPlan) -> None:
    """Set the threads, and in `determinism: exact` everything that makes equal inputs give equal bits."""
    keep_freed_memory()
    torch.set_num_threads(training.cpu_threads)
    exact = training.determinism == "exact"
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(exact)
    # Every tensor here is written before it is read; filling them first would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = exact
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact


def keep_freed_memory() -> None:
    """Have glibc keep what tensors on the host give back, for the next step, rather than return it to the system.

    The system hands memory out as pages that must be zeroed and mapped anew: a step of the CIFAR-10 UNet on a CPU
    touched 80,000 of them, a twentieth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # there is none but glibc's
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it allows
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
