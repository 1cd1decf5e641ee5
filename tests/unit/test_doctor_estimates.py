"""What `ebdiff doctor` expects a run to need, against what one really takes."""

from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from conftest import ONE_REGION, MakePlan
from serial_cluster import SerialCluster

from ebdiff_orchestrator.doctor.facts import bytes_below
from ebdiff_orchestrator.doctor.needs import FIXED_BYTES, footprint, kept_for_backward_bytes, run_bytes, store_bytes
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.run import launch as driver
from region_workers.networks.dense import build_dense
from region_workers.networks.supported import network_inputs
from schemas.plan import Plan


def _kept_by_autograd(plan: Plan, samples: int) -> int:
    """Bytes that a real forward pass keeps for its backward pass, on the CPU, parameters left out."""
    torch.manual_seed(0)
    network = build_dense(plan.model, plan.data).train()
    shaped = network_inputs(network)
    inputs = {name: torch.ones(samples, *tensor.shape[1:], dtype=tensor.dtype) for name, tensor in shaped.items()}
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(**inputs)
    total = sum(kept.values())
    del output
    return total


def test_activations_are_those_of_a_real_step(tiny_plan: MakePlan) -> None:
    plan = tiny_plan("training.batch_size=8")
    estimated = footprint(plan, processes=1).activation_bytes
    assert estimated == pytest.approx(_kept_by_autograd(plan, 8), rel=0.15)


def test_a_wider_network_or_a_larger_share_of_the_batch_needs_more(tiny_plan: MakePlan) -> None:
    small = footprint(tiny_plan(), processes=1)
    wide = footprint(tiny_plan("model.block_out_channels=[32, 64]"), processes=1)
    assert wide.params > small.params
    assert wide.activation_bytes > small.activation_bytes
    assert footprint(tiny_plan("training.gradient_accumulation=4"), 1).activation_bytes * 4 == small.activation_bytes
    assert footprint(tiny_plan(), processes=2).activation_bytes * 2 == small.activation_bytes
    assert footprint(tiny_plan("training.precision=bf16"), 1).activation_bytes * 2 == small.activation_bytes
    assert footprint(tiny_plan(), 1).state_bytes == 5 * small.params * 4  # weights, gradients, two moments, EMA


def test_a_plan_that_prunes_at_once_needs_its_widest_expert_only(tiny_plan: MakePlan) -> None:
    assert footprint(tiny_plan("draw.method=slim"), 1).params < footprint(tiny_plan(), 1).params


def test_what_a_dense_start_needs_is_counted_of_the_network_itself(tiny_plan: MakePlan, tmp_path: Path) -> None:
    plan = tiny_plan(f"model.pretrained={tmp_path}")
    own = build_dense(plan.model, plan.data)
    own = type(own).from_config({**own.config, "resnet_time_scale_shift": "scale_shift"})  # no field of a plan
    own.save_pretrained(tmp_path)
    assert footprint(plan, 1).params == sum(parameter.numel() for parameter in own.parameters())


def test_counting_what_is_kept_builds_no_weights() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.SiLU(), torch.nn.Linear(20, 5))
    kept = kept_for_backward_bytes(network, {"input": torch.empty(2, 10, device="meta")})
    # The input is kept for the first layer, its output for the SiLU, the SiLU's for the last one.
    assert kept == (10 + 20 + 20) * 4


def test_a_run_stays_within_its_estimate_and_not_far_below(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    plan = tiny_plan(
        ONE_REGION,
        "model.block_out_channels=[32, 64]",
        "draw={interval_steps: 1, queue_length: 2, max_intervals: 6, threshold: 1e-9, on_timeout: take_last}",
        "checkpointing.interval_steps=1",
        "training.steps=4",
    )
    fullest = 0
    ended = Event()

    def weigh() -> None:
        nonlocal fullest
        while not ended.is_set():
            fullest = max(fullest, bytes_below(tmp_path / "run"))

    watcher = Thread(target=weigh)
    watcher.start()
    try:
        driver.launch(plan, tmp_path / "run", executor=serial_cluster)
    finally:
        ended.set()
        watcher.join()
    expected = run_bytes(preview_plan(plan))
    assert 0.5 * (expected - FIXED_BYTES) < fullest < expected
    assert store_bytes(plan, 1797) == 1797 * 8 * 8


def test_a_store_of_latents_holds_the_pixels_and_both_mirrored_halves(tiny_plan: MakePlan) -> None:
    latent = tiny_plan(
        "data.resolution=32",
        "data.channels=3",
        "data.label_column=label",
        "model={family: latent, vae: vae, num_classes: 10}",
    )
    side = 32 // latent.model.latent_downscale  # type: ignore[union-attr]
    per_image = latent.model.latent_channels * side * side * 2 * 2  # type: ignore[union-attr]
    assert store_bytes(latent, 10) == 10 * (32 * 32 * 3 + per_image)
