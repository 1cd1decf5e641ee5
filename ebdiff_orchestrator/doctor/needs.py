"""What a plan needs of the nodes: room for its workers, memory, /dev/shm, free space."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ebdiff_orchestrator.cluster.executor import THIS_MACHINE, Request, request_of, workers_on_node
from ebdiff_orchestrator.doctor.facts import (
    Finding,
    Node,
    answering,
    bytes_below,
    fine,
    nearest_folder,
    note,
    wrong,
    wrong_or_fine,
)
from ebdiff_orchestrator.plans.data_checks import count_here
from ebdiff_orchestrator.plans.preview import PlanPreview, preview_plan
from region_workers.networks.dense import loading_arguments
from region_workers.networks.pretrained import dense_counter
from region_workers.networks.supported import network_inputs
from region_workers.storage.places import cache_dir_of
from region_workers.storage.run_files import local_folder
from schemas.model import LatentModelPlan
from schemas.plan import Plan

_ROOM, _MEMORY, _SPACE = "room", "memory", "free space"
_SHM_OF_NCCL = 1 << 30  # workers of one region on one node exchange gradients through it
_SHM_OF_RAY = 1 << 26
_AS_THE_KERNEL_ROUNDS = 0.95
_FEWER_ON_A_NODE = "raise workers.cpus, so that fewer workers share a node"
_FEWER_HERE = "give --address=auto after `ray start --head --num-cpus=N`, so that fewer workers share this machine"
_PROCESS_BYTES = 3 << 29  # a Python process with torch, diffusers and Ray: 1.5 GiB
_CUDA_BYTES = 1 << 30  # a CUDA context with cuDNN and cuBLAS
_FLOAT_BYTES, _LATENT_BYTES = 4, 2
_SLACK = 1.1  # metrics, masks, file systems' own needs
FIXED_BYTES = 16 << 20


def check_needs(nodes: Sequence[Node], plan: Plan, run_dir: str | None) -> list[Finding]:
    """Whether the plan's workers find room, memory and /dev/shm on the nodes, and a run and its data find space."""
    request = _request(nodes, plan)
    memory = check_memory(nodes, plan, request, footprint(plan, request.processes))
    findings = [check_room(nodes, plan), *memory, check_shm(nodes, request, plan)]
    if run_dir is not None:
        own, cache = local_folder(run_dir), cache_dir_of(plan.workers.cache_dir)
        folder = own or cache_dir_of()  # what is in an object store is also in it, as far as it has come
        disk, data_bytes = nearest_folder(folder), store_bytes(plan, count_here(plan.data))
        beside = data_bytes is not None and disk.stat().st_dev == nearest_folder(cache).stat().st_dev
        to_come = max(0, (data_bytes or 0) - bytes_below(cache)) if beside else 0
        free, there = shutil.disk_usage(disk).free, bytes_below(own) if own else 0
        findings += [
            check_run_space(run_bytes(preview_plan(plan)), free, there, str(folder), to_come),
            check_store_space(data_bytes, nodes),
        ]
    return findings


def check_room(nodes: Sequence[Node], plan: Plan) -> Finding:
    """Whether the cluster holds the workers of one region, and of all at once."""
    request = _request(nodes, plan)
    have = sum(workers_on_node(request, node.resources) for node in nodes)
    at_once = have // request.processes
    if at_once == 0:
        asked = f"a region asks for {request}, and the nodes hold {have} such worker(s)"
        return wrong(_ROOM, asked, "Set workers.gpus, workers.cpus or workers.processes lower, or add nodes.")
    regions = len(plan.regions)
    told = f"{min(at_once, regions)} of {regions} region(s) at once, {request} each"
    if plan.placement == "one-per-region" and at_once < regions:
        return note(_ROOM, f"{told}; the others wait", "placement: packed or balanced shares out what there is.")
    return fine(_ROOM, told)


def _request(nodes: Sequence[Node], plan: Plan) -> Request:
    return request_of(plan.workers, sum(node.resources.get("GPU", 0.0) for node in nodes))


def check_memory(nodes: Sequence[Node], plan: Plan, request: Request, need: Footprint) -> list[Finding]:
    """Whether the GPUs hold the network's training, and the nodes their workers."""
    most = request.processes * len(plan.regions)
    on_hosts = _on_hosts(nodes, request, need, most)
    return [_on_devices(nodes, request, need, most), on_hosts] if request.gpus else [on_hosts]


def check_shm(nodes: Sequence[Node], request: Request, plan: Plan) -> Finding:
    """Whether /dev/shm is there and large enough; a container's default of 64 MiB is not for several GPUs."""
    wide = request.processes > 1 or plan.placement == "balanced" or plan.workers.elastic
    needed = _SHM_OF_NCCL if wide else _SHM_OF_RAY
    has = {node.name: facts.shm_bytes or 0 for node, facts in answering(nodes)}
    small = [f"{name} has {_gib(size)}" for name, size in has.items() if size < needed * _AS_THE_KERNEL_ROUNDS]
    remedy = "Give containers more: docker run --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm."
    fits = f"at least {_gib(needed)} on every node"
    return wrong_or_fine("/dev/shm", small, f"Expected {_gib(needed)}. {remedy}", fits)


def _on_devices(nodes: Sequence[Node], request: Request, need: Footprint, most: int) -> Finding:
    """A fraction of a GPU is a share of its memory too; `most`: workers that the plan has at once."""
    sharing = min(most, max(1, int(1 / request.gpus + 1e-6)))
    needed = sharing * need.on_device_bytes()
    small = [
        f"{node.name}: {gpu.name} has {_gib(gpu.memory_bytes)}"
        for node, facts in answering(nodes)
        for gpu in dict.fromkeys(facts.gpus)
        if gpu.memory_bytes < needed
    ]
    asked = f"{sharing} worker(s) on a GPU need about {_gib(needed)}"
    remedy = "Lower training.batch_size, raise training.gradient_accumulation, or use training.precision=bf16."
    return wrong_or_fine(_MEMORY, [f"{asked}; {', '.join(small)}"] if small else [], remedy, asked)


def _on_hosts(nodes: Sequence[Node], request: Request, need: Footprint, most: int) -> Finding:
    each = need.on_host_bytes(request.gpus > 0)
    problems, largest = [], 0
    for node, facts in answering(nodes):
        workers = min(most, workers_on_node(request, node.resources))
        largest = max(largest, workers)
        if workers * each > facts.memory_bytes:
            problems.append(
                f"{node.name}: {workers} worker(s) need about {_gib(workers * each)}, it has {_gib(facts.memory_bytes)}"
            )
    on_cluster = all(node.name != THIS_MACHINE for node in nodes)  # an embedded Ray has CPUs as the plan asks for
    remedy = f"Lower training.batch_size, or {_FEWER_ON_A_NODE if on_cluster else _FEWER_HERE}."
    return wrong_or_fine(_MEMORY, problems, remedy, f"{largest} worker(s) on a node need about {_gib(largest * each)}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker of the largest network that the plan trains.

    `state`: weights, gradients, Adam's moments and EMA. `activations`: what one pass keeps for its backward pass.
    """

    params: int
    state_bytes: int
    activation_bytes: int

    def on_device_bytes(self) -> int:
        return self.state_bytes + self.activation_bytes + _CUDA_BYTES

    def on_host_bytes(self, uses_gpu: bool) -> int:
        """In its node's memory: everything without a GPU, else the process and the copy that a checkpoint makes."""
        return _PROCESS_BYTES + self.state_bytes + (0 if uses_gpu else self.activation_bytes)


def footprint(plan: Plan, processes: int) -> Footprint:
    network, inputs = _largest_network(plan)
    samples = plan.training.batch_size // (processes * plan.training.gradient_accumulation)
    params = sum(parameter.numel() for parameter in network.parameters())
    copies = 4 + (plan.training.ema_decay is not None) + (processes > 1)  # DDP keeps the gradients twice
    per_sample = kept_for_backward_bytes(network, inputs)
    narrow = 2 if plan.training.precision == "bf16" else 1
    return Footprint(params, copies * params * _FLOAT_BYTES, max(1, samples) * per_sample // narrow)


def kept_for_backward_bytes(network: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """What autograd keeps, parameters left out, of one sample's forward pass; network and inputs on the meta device."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # views of one tensor share it
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    samples = len(next(iter(inputs.values())))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.train()(**inputs)
    bytes_kept = sum(storage.nbytes() for storage in kept.values())
    del output
    return int(bytes_kept) // samples


def _largest_network(plan: Plan) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """On the meta device: the dense network if a draw trains it, else the region's that is pruned least."""
    ratio = min(region.pruning_ratio for region in plan.regions) if not plan.draw.trains_dense else 0.0
    network = dense_counter(plan.model, plan.data).network_at(ratio)
    return network, network_inputs(network, side=loading_arguments(plan.model, plan.data).get("sample_size"))


def run_bytes(preview: PlanPreview) -> int:
    """At its fullest every region keeps its checkpoints, one more being written, its ticket, its expert and a copy.

    A checkpoint holds weights and Adam's moments, and the EMA where there is one (in a draw: where it is ranked).
    """
    plan = preview.plan
    kept = plan.checkpointing.keep + 1
    has_ema = plan.training.ema_decay is not None
    draws = plan.draw.trains_dense and any(region.pruning_ratio for region in plan.regions)
    dense_state = preview.dense.params * (3 + (has_ema and plan.draw.weights == "ema")) * draws
    numbers = 0
    for region in preview.regions:
        train_state = region.costs.params * (3 + has_ema)
        drawn = dense_state if plan.draw.scope == "per-region" else 0
        numbers += kept * max(drawn, train_state) + 4 * region.costs.params
    if plan.draw.scope == "shared":
        numbers += kept * dense_state
    pixels = plan.sampling.num_images * _pixels(plan)
    return int(_SLACK * (numbers * _FLOAT_BYTES + 2 * pixels)) + FIXED_BYTES


def store_bytes(plan: Plan, images: int | None) -> int | None:
    """Decoded images, a byte a value, and their latents in float16, mirrored ones beside them; drawings, at most.

    None where it is not known how many there are.
    """
    if images is None:
        return None
    if plan.data.drawings is not None:
        return images * plan.data.drawings.max_points * 3 * _FLOAT_BYTES
    size = images * _pixels(plan)
    if isinstance(plan.model, LatentModelPlan):
        side = plan.data.resolution // plan.model.latent_downscale
        copies = 2 if plan.data.random_flip else 1
        size += images * copies * plan.model.latent_channels * side**2 * _LATENT_BYTES
    return size


def _pixels(plan: Plan) -> int:
    """Bytes of an image, or of the picture of a drawing."""
    data = plan.data
    return data.resolution**2 * data.channels if data.drawings is None else data.drawings.raster.canvas_px**2


def check_run_space(needed_bytes: int, free_bytes: int, there_bytes: int, folder: str, data_bytes: int = 0) -> Finding:
    """Whether the run fits; `there_bytes`: what its directory holds; `data_bytes`: decoded data to come on its disk."""
    left = max(0, needed_bytes - there_bytes)
    told = f"the run will write about {_gb(left)}"
    if data_bytes:
        told += f", the decoded data on the same disk {_gb(data_bytes)},"
    if left + data_bytes > free_bytes:
        return wrong(_SPACE, f"{told} and {folder} has {_gb(free_bytes)}", "Make room, or lower checkpointing.keep.")
    return fine(_SPACE, f"{told}; {_gb(free_bytes)} are free")


def check_store_space(needed_bytes: int | None, nodes: Sequence[Node]) -> Finding:
    """Whether the decoded images or drawings fit in each node's cache; one that is there already counts as room."""
    if needed_bytes is None:
        return note(_SPACE, "how many samples there are is not known before they are read, nor the size of their store")
    lacking = [
        f"{node.name}: {facts.cache_dir} has {_gb(facts.cache_free_bytes)}"
        for node, facts in answering(nodes)
        if needed_bytes > facts.cache_free_bytes + facts.cache_used_bytes
    ]
    wanted = f"the decoded data take {_gb(needed_bytes)}"
    remedy = "Make room, or set workers.cache_dir or EBDIFF_CACHE to another disk."
    return wrong_or_fine(_SPACE, [f"{wanted}, but {'; '.join(lacking)}"] if lacking else [], remedy, wanted)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
