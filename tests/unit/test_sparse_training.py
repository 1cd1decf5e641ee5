"""Sparse training on a real network: what each method's masks, weights, moments and EMA are after every step."""

from pathlib import Path

import pytest
import torch
from conftest import ONE_REGION, MakeJobs, MakePlan
from drawing_files import VECTOR
from safetensors.torch import load_file
from trainer_fixtures import MakeTrainer, RunFirstJob, largest_difference, make_trainer, run_first_job, state_after

from ebdiff_orchestrator.plans.preview import preview_plan
from region_workers.networks.packed_weights import masks_of
from region_workers.networks.pruned_unet import PrunedUNet2DModel
from region_workers.pruning.weight_masks import kept_counts, maskable_shapes
from region_workers.training.sparse import exchanged_share
from region_workers.training.trainer import Trainer
from region_workers.worker.run import run_job
from schemas.experiment import SparsityPlan
from schemas.job import WEIGHTS_FILE

__all__ = ["make_trainer", "run_first_job"]

METHODS = ["static", "rigl", "magran"]
STEPS, UPDATES = 12, {3, 6}  # by an interval of 3, up to three quarters of the steps
BF16 = ("training.precision=bf16", "training.channels_last=true")
ACCUMULATED = ("training.gradient_accumulation=2", "training.weight_decay=0.1", "training.ema_decay=null")
MOVING = [("rigl", ()), ("rigl", BF16), ("rigl", ACCUMULATED), ("magran", ()), ("rigl", VECTOR), ("magran", VECTOR)]


def sparse_plan(method: str, sparsity: float = 0.6, prune_ratio: float = 0.3) -> tuple[str, ...]:
    section = f"{{method: {method}, sparsity: {sparsity}, prune_ratio: {prune_ratio}, interval_steps: 3}}"
    return (f"sparsity={section}", f"training.steps={STEPS}")


def _masks(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in trainer.sparse.masks.items()}


def _kept(values: dict[str, torch.Tensor], names: set[str]) -> dict[str, int]:
    return {name: int(values[name].count_nonzero()) for name in names}


def check_every_step(trainer: Trainer, method: str, sparsity: float) -> None:
    """Counts after every step, and what an update leaves of the weights that it exchanged."""
    counts = kept_counts(maskable_shapes(trainer.network), sparsity, "erk")
    before = _masks(trainer)
    first, ever, moved = before, _masks(trainer), 0
    rows = [_row(0, name, 0, first[name], mask, ever[name]) for name, mask in before.items()]
    assert {name: int(mask.sum()) for name, mask in before.items()} == {name: counts[name] for name in before}
    assert all(counts[name] == trainer.parameters[name].numel() for name in counts.keys() - before.keys())
    for step in range(STEPS):
        trainer.train_step()
        after = _masks(trainer)
        changed = {name: before[name] ^ mask for name, mask in after.items()}
        moved += sum(int(places.sum()) for places in changed.values())
        assert any(places.any() for places in changed.values()) == (method != "static" and step in UPDATES), step
        for name, mask in after.items():
            assert int(mask.sum()) == counts[name], (step, name)
            state = trainer.optimizer.state[trainer.parameters[name]]
            values = [trainer.parameters[name], state["exp_avg"], state["exp_avg_sq"]]
            values += [trainer.ema[name]] if trainer.ema is not None else []
            gone = ~mask | changed[name]  # what came in this step is still 0, in the moments too
            assert not any(value[gone].any() for value in values), (step, name)
        for name, mask in after.items():
            ever[name] |= mask
        if any(places.any() for places in changed.values()):
            rows += [_row(step, n, int(changed[n].sum()) // 2, first[n], mask, ever[n]) for n, mask in after.items()]
        before = after
    assert trainer.sparse.moves.table().to_pylist() == rows
    assert all(torch.equal(first[name], before[name]) for name in first) == (method == "static")
    gone = sum(int((first[name] & ~before[name]).sum()) for name in first)
    assert trainer.sparse.moves.replaced_share() == gone / sum(counts[name] for name in first)
    weights = trainer.final_weights()
    assert _kept(weights, set(first)) == _kept(trainer.parameters, set(first)) == {name: counts[name] for name in first}


def _row(
    step: int, name: str, exchanged: int, first: torch.Tensor, mask: torch.Tensor, ever: torch.Tensor
) -> dict[str, object]:
    """What is recorded of a layer's mask."""
    return {
        "step": step,
        "layer": name,
        "weights": mask.numel(),
        "kept": int(mask.sum()),
        "exchanged": exchanged,
        "replaced": int((first & ~mask).sum()),
        "ever_kept": int(ever.sum()),
    }


@pytest.mark.parametrize(("method", "changes"), [("static", ()), ("static", VECTOR), *MOVING])
def test_every_step_keeps_as_many_weights_of_each_layer_and_an_update_starts_them_at_zero(
    make_trainer: MakeTrainer, method: str, changes: tuple[str, ...]
) -> None:
    check_every_step(make_trainer(*sparse_plan(method), *changes), method, 0.6)


def test_exchanging_nothing_makes_the_three_methods_one(make_trainer: MakeTrainer) -> None:
    static, *others = (state_after(make_trainer(*sparse_plan(method, prune_ratio=0)), 5) for method in METHODS)
    assert [largest_difference(static, other) for other in others] == [0.0, 0.0]
    assert largest_difference(static, state_after(make_trainer(*sparse_plan("rigl")), 5)) > 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_sparsity_of_nothing_is_the_dense_run(make_trainer: MakeTrainer, method: str) -> None:
    dense = state_after(make_trainer(f"training.steps={STEPS}"), 5)
    assert largest_difference(dense, state_after(make_trainer(*sparse_plan(method, sparsity=0)), 5)) == 0.0


@pytest.mark.parametrize(("method", "changes"), MOVING)
@pytest.mark.parametrize("step", [3, 4])
def test_a_trainer_resumed_before_or_after_an_update_ends_in_the_same_bits(
    make_trainer: MakeTrainer, method: str, changes: tuple[str, ...], step: int
) -> None:
    whole, resumed = (make_trainer(*sparse_plan(method), *changes) for _ in range(2))
    resumed.load_state_tensors(state_after(whole, step), step)
    assert largest_difference(state_after(whole, 4), state_after(resumed, 4)) == 0.0


@pytest.mark.parametrize(("method", "changes"), MOVING)
def test_an_update_takes_the_smallest_weights_and_gives_the_largest_gradients(
    make_trainer: MakeTrainer, method: str, changes: tuple[str, ...]
) -> None:
    trainer, twin = (make_trainer(*sparse_plan(method), *changes) for _ in range(2))
    twin.load_state_tensors(state_after(trainer, 3), 3)
    twin._accumulate_gradients()
    before = _masks(trainer)
    trainer.train_step()
    share = exchanged_share(SparsityPlan(method="rigl", prune_ratio=0.3, interval_steps=3), 3, STEPS)
    for name, mask in before.items():
        weights = twin.parameters[name].detach().flatten().abs().tolist()
        gradient = twin.parameters[name].grad
        assert gradient is not None
        scores = gradient.flatten().abs().tolist()
        kept = mask.flatten().nonzero().flatten().tolist()
        exchanged = int(share * len(kept))
        stays = set(sorted(kept, key=lambda place: -weights[place])[: len(kept) - exchanged])
        found = set(trainer.sparse.masks[name].flatten().nonzero().flatten().tolist())
        assert stays <= found, name
        free = [place for place in range(mask.numel()) if place not in stays]
        best = set(sorted(free, key=lambda place: -scores[place])[:exchanged])
        assert (found - stays == best) == (method == "rigl" or exchanged == 0), name


def test_random_growth_is_another_in_each_layer_step_and_seed(make_trainer: MakeTrainer) -> None:
    masks = []
    for seed in (0, 0, 1):
        trainer = make_trainer(*sparse_plan("magran"), f"seed={seed}")
        state_after(trainer, 4)
        masks.append(torch.cat([mask.flatten() for mask in trainer.sparse.masks.values()]))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_exchanged_share_falls_by_a_cosine_and_by_default_is_small_where_little_is_kept() -> None:
    plan = SparsityPlan(method="rigl", sparsity=0.5, interval_steps=10)
    assert [exchanged_share(plan, step, 400) for step in (0, 5, 300, 310)] == [0.0] * 4
    assert exchanged_share(plan, 150, 400) == pytest.approx(0.25)
    assert exchanged_share(plan, 10, 400) == pytest.approx(0.5, abs=0.01)
    constant = plan.model_copy(update={"decay": "constant"})
    assert exchanged_share(constant, 290, 400) == 0.5
    assert exchanged_share(constant.model_copy(update={"sparsity": 0.51}), 290, 400) == 0.05
    assert exchanged_share(plan.model_copy(update={"method": "static"}), 10, 400) == 0.0


@pytest.mark.parametrize(
    ("regions", "draws"),
    [("regions=[{train: [0, 1000], pruning_ratio: 0, name: all, sparsity: 0.75}]", 0), (ONE_REGION, 1)],
    ids=["alone", "on a pruned expert"],
)
def test_an_expert_is_saved_as_sparse_as_asked_for(
    tiny_plan: MakePlan,
    make_jobs: MakeJobs,
    tmp_path: Path,
    regions: str,
    draws: int,
) -> None:
    plan = tiny_plan(regions, *sparse_plan("rigl"), "training.steps=4", "draw.threshold=1.0")
    (job,) = make_jobs(plan, tmp_path)
    run_job(job)
    folder = tmp_path / "train/all/expert"
    network = PrunedUNet2DModel.from_pretrained(folder)
    assert bool(network.config.kept_channels) == bool(draws)
    counts = kept_counts(maskable_shapes(network), 0.75 if not draws else 0.6, "erk")
    assert _kept(network.state_dict(), set(counts)) == counts
    state = load_file(next(tmp_path.glob("train/all/checkpoints/*/state.safetensors")))
    assert all(torch.equal(mask, state[f"mask.{name}"]) for name, mask in masks_of(network).items())
    planned = preview_plan(plan).regions[0].sparse
    stored = load_file(folder / WEIGHTS_FILE)
    assert planned is not None
    assert sum(tensor.nbytes for tensor in stored.values()) == planned.stored_bytes < planned.dense_bytes
    assert planned.dense_bytes == sum(weight.nbytes for weight in network.parameters())


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_a_training_extended_by_more_steps_ends_as_one_of_as_many_from_the_start(
    run_first_job: RunFirstJob, method: str
) -> None:
    plan = ("regions=[{train: [0, 1000], pruning_ratio: 0, name: all}]", *sparse_plan(method))
    lengths = (("extended", 5), ("extended", 8), ("whole", 8))
    folders = [run_first_job(*plan, f"training.steps={steps}", into=folder) for folder, steps in lengths]
    extended, whole = (folder / "train/all/expert" / WEIGHTS_FILE for folder in folders[1:])
    assert extended.read_bytes() == whole.read_bytes()
