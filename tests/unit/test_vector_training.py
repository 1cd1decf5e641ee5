"""Drawings are trained as ChiroDiff trains them, and their tickets give narrower networks of the same kind."""

from pathlib import Path

import pytest
import torch
from conftest import ONE_REGION, MakeJobs, MakePlan
from diffusers import UNet2DModel
from drawing_files import VECTOR
from torch import nn
from trainer_fixtures import MakeTrainer, RunFirstJob, largest_difference, make_trainer, run_first_job, state_after

from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.run.resolve import adopt_dense
from region_workers.networks.dense import load_verified
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.pruning.weight_masks import kept_counts, maskable_shapes
from region_workers.storage.integrity import file_digests
from region_workers.training.trainer import Trainer
from region_workers.worker.run import run_job
from schemas.errors import PlanError
from schemas.job import Ticket
from schemas.model import VectorModelPlan
from schemas.plan import Plan

__all__ = ["make_trainer", "run_first_job"]

DENSE = "regions=[{train: [0, 1000], pruning_ratio: 0, name: all}]"
VECTOR_OF_ITS_SIZE = ("model={family: vector}", VECTOR[1])  # what the plan does not say, the network does
CHIRODIFF = (
    "diffusion={num_train_timesteps: 35, beta_start: 0.00286, beta_end: 0.571}",
    "regions=[{train: [0, 35], pruning_ratio: 0.5, name: all}]",
    "sampling.steps=4",
    "training={steps: 6, batch_size: 12, learning_rate: 1e-3, learning_rate_decay: 0.5, weight_decay: 0.01,"
    " gradient_clip: 0.1, ema_decay: 0.9, ema_warmup: true}",
)


def test_steps_are_those_of_the_written_out_recipe(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(*VECTOR, *CHIRODIFF)
    expected = _written_out(make_trainer(*VECTOR, *CHIRODIFF), steps=4)
    state_after(trainer, 4)
    assert trainer.ema is not None
    for name, (weights, ema) in expected.items():
        assert torch.allclose(trainer.parameters[name], weights, rtol=0, atol=1e-6), name
        assert torch.allclose(trainer.ema[name], ema, rtol=0, atol=1e-6), name


def _written_out(parts: Trainer, steps: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights and EMA by name; an epoch has two steps."""
    network = parts.network
    weights = dict(network.named_parameters())
    ema = {name: parameter.detach().clone() for name, parameter in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00286, 0.571, 35, dtype=torch.float64), 0).float()
    for step in range(steps):
        generator = parts.randomness.generator(step)
        half = torch.randint(0, 35, (7,), generator=generator)
        t = torch.cat([half, 34 - half])[:12]
        batch = parts.family.batch(step, slice(None))
        assert batch.lengths is not None
        noise = torch.randn(batch.clean.shape, generator=generator)
        kept = alpha_bar[t].view(-1, 1, 1)
        noisy = kept.sqrt() * batch.clean + (1 - kept).sqrt() * noise
        errors = [
            (network(noisy[i : i + 1, :length], t[i : i + 1]).sample - noise[i, :length]).square().mean()
            for i, length in enumerate(batch.lengths.tolist())
        ]
        optimizer.zero_grad()
        torch.stack(errors).mean().backward()
        nn.utils.clip_grad_norm_(weights.values(), 0.1)
        optimizer.step()
        schedule.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in weights.items():
            ema[name] = decay * ema[name] + (1 - decay) * parameter.detach()
    return {name: (parameter.detach(), ema[name]) for name, parameter in weights.items()}


def test_a_training_whose_learning_rate_falls_is_resumed_to_the_same_bits(make_trainer: MakeTrainer) -> None:
    whole, resumed = (make_trainer(*VECTOR, *CHIRODIFF) for _ in range(2))
    resumed.load_state_tensors(state_after(whole, 3), 3)
    assert largest_difference(state_after(whole, 3), state_after(resumed, 3)) == 0.0
    assert resumed.optimizer.param_groups[0]["lr"] == 1e-3 * 0.5**2


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(make_trainer: MakeTrainer) -> None:
    one, four = (
        state_after(make_trainer(*VECTOR, "training.gradient_clip=null", f"training.gradient_accumulation={passes}"), 1)
        for passes in (1, 4)
    )
    for name in [name for name in one if name.startswith("exp_avg.")]:
        assert torch.allclose(one[name], four[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("scoring", ["at-once", "sequential"])
@pytest.mark.parametrize("importance", ["magnitude", "taylor", "diff-pruning", "random"])
def test_a_ticket_narrows_the_network_to_its_most_important_units(
    run_first_job: RunFirstJob, importance: str, scoring: str
) -> None:
    draw = f"{{interval_steps: 2, threshold: 1, importance: {importance}, scoring: {scoring}, importance_timesteps: 3}}"
    run_dir = run_first_job(*VECTOR, ONE_REGION, f"draw={draw}", "training.steps=2")
    ticket = Ticket.model_validate_json((run_dir / "draw/all/tickets/all/ticket.json").read_text())
    assert ticket.realised_ratio == 0.5
    for folder in (run_dir / "draw/all/tickets/all/expert", run_dir / "train/all/expert"):
        expert = load_verified(folder, file_digests(folder))
        assert isinstance(expert, DrawingGRU)
        assert expert.config.hidden_size == 4
        assert sum(expert.config.length_counts) == 24


def test_a_sparse_network_on_top_of_a_ticket_is_saved_as_what_it_is(run_first_job: RunFirstJob) -> None:
    sparsity = "sparsity={method: rigl, sparsity: 0.6, interval_steps: 2}"
    run_dir = run_first_job(*VECTOR, ONE_REGION, "draw.threshold=1", sparsity, "training.steps=4")
    expert = DrawingGRU.from_pretrained(run_dir / "train/all/expert")
    assert expert.config.hidden_size == 4
    counts = kept_counts(maskable_shapes(expert), 0.6, "erk")
    assert {name: int(expert.get_parameter(name).count_nonzero()) for name in counts} == counts


@pytest.fixture(scope="module")
def dense_folder(tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained expert of a dense run."""
    folder = tmp_path_factory.mktemp("dense")
    (job,) = make_jobs(tiny_plan(*VECTOR, DENSE, "training.steps=2"), folder)
    run_job(job)
    return folder / "train/all/expert"


def test_a_trained_network_is_pruned_once_and_keeps_its_weights_and_frequencies(
    tiny_plan: MakePlan, make_jobs: MakeJobs, dense_folder: Path, tmp_path: Path
) -> None:
    one_shot = (ONE_REGION, "draw.method=one-shot", f"model.pretrained={dense_folder}", "training.steps=1")
    plan, source = adopt_dense(tiny_plan(*VECTOR_OF_ITS_SIZE, *one_shot))
    assert isinstance(plan.model, VectorModelPlan)
    assert (plan.model.hidden_size, plan.model.num_layers) == (8, 2)
    assert preview_plan(plan, source).regions[0].costs.params < preview_plan(plan, source).dense.params
    (job,) = make_jobs(plan, tmp_path)
    run_job(job)
    dense = load_verified(dense_folder, file_digests(dense_folder))
    expert = load_verified(tmp_path / "draw/all/tickets/all/expert")
    assert isinstance(dense, DrawingGRU)
    assert isinstance(expert, DrawingGRU)
    assert expert.config.frequencies == dense.config.frequencies
    ticket = Ticket.model_validate_json((tmp_path / "draw/all/tickets/all/ticket.json").read_text())
    kept = ticket.kept_channels["out_proj"]
    assert kept.outputs is not None
    assert torch.equal(expert.out_proj.bias, dense.out_proj.bias[list(kept.outputs)])


def test_slim_draws_frequencies_and_lengths_as_a_draw_does(run_first_job: RunFirstJob) -> None:
    configs = []
    for change in ("draw.threshold=1", "draw.method=slim"):
        run_dir = run_first_job(*VECTOR, ONE_REGION, "training.steps=1", change, into=change)
        configs.append(dict(DrawingGRU.from_pretrained(run_dir / "train/all/expert").config))
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        (("data.drawings.coordinates=delta",), r"data\.drawings\.coordinates = delta: expected absolute"),
        (("model.hidden_size=16",), r"model\.hidden_size = 16: expected 8"),
        (("model.time_embed_dim=4",), r"model\.time_embed_dim = 4: expected 8"),
    ],
)
def test_what_the_plan_says_of_a_trained_network_must_be_true(
    tiny_plan: MakePlan, dense_folder: Path, changes: tuple[str, ...], refusal: str
) -> None:
    with pytest.raises(PlanError, match=refusal):
        adopt_dense(tiny_plan(*VECTOR_OF_ITS_SIZE, f"model.pretrained={dense_folder}", *changes))


def test_a_network_of_another_family_is_refused(tiny_plan: MakePlan, dense_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"expected a UNet, since model\.family = pixel"):
        adopt_dense(Plan.model_validate({"model": {"pretrained": str(dense_folder)}}))
    UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
    ).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"expected a DrawingGRU, since model\.family = vector"):
        adopt_dense(tiny_plan(*VECTOR, f"model.pretrained={tmp_path}"))
