"""Drawing: when the queue agrees, and what each importance and option gives."""

import pytest
import torch
from trainer_fixtures import MakeTrainer, RunFirstJob, make_trainer, run_first_job

from region_workers.networks.pruned_unet import PrunedUNet2DModel
from region_workers.pruning.mask import queue_distances
from region_workers.storage.tables import read_masks, read_metrics
from region_workers.training.masks import accumulate_importance_gradients, importance_timesteps
from schemas.experiment import Importance
from schemas.job import TICKET_FILE, Ticket
from schemas.plan import DrawPlan

__all__ = ["make_trainer", "run_first_job"]


def _masks(*flipped: int) -> list[torch.Tensor]:
    """Masks of 20 bits, each with that many bits off from all-ones."""
    masks = []
    for count in flipped:
        mask = torch.ones(20, dtype=torch.bool)
        mask[:count] = False
        masks.append(mask)
    return masks


def test_nothing_is_drawn_until_the_queue_is_full() -> None:
    plan = DrawPlan()
    assert queue_distances(_masks(0, 0, 0, 0), plan) is None
    assert not plan.masks_agree(None)
    assert plan.masks_agree(queue_distances(_masks(0, 0, 0, 0, 0), plan))


def test_the_newest_mask_must_be_near_each_of_the_others_the_threshold_included() -> None:
    plan = DrawPlan(threshold=0.1)
    assert queue_distances(_masks(9, 2, 1, 1, 1, 0), plan) == (0.05, 0.05, 0.05, 0.1)
    assert plan.masks_agree(queue_distances(_masks(9, 2, 1, 1, 1, 0), plan))
    assert not plan.masks_agree(queue_distances(_masks(3, 1, 1, 1, 0), plan))


def test_a_stride_puts_every_nth_mask_in_the_queue() -> None:
    plan = DrawPlan(queue_length=3, queue_stride=2)
    assert queue_distances(_masks(4, 9, 2, 9, 0), plan) == (0.1, 0.2)
    assert queue_distances(_masks(9, 2, 9, 0), plan) is None


def test_importance_timesteps_are_spread_over_the_region() -> None:
    assert importance_timesteps((240, 460), 4) == [240, 295, 350, 405]
    assert importance_timesteps((5, 8), None) == [5, 6, 7]
    assert importance_timesteps((0, 3), 9) == [0, 1, 2]


@pytest.mark.parametrize("passes", [1, 2])
def test_importance_gradients_are_a_function_of_weights_and_seed_and_change_nothing(
    make_trainer: MakeTrainer, passes: int
) -> None:
    trainer = make_trainer("model.dropout=0.5", f"training.gradient_accumulation={passes}")
    plan = DrawPlan(importance="taylor", importance_timesteps=2)
    first = accumulate_importance_gradients(trainer, plan, lambda: None)
    state = torch.manual_seed(7).get_state()
    again = accumulate_importance_gradients(trainer, plan, lambda: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.network.training
    assert all(parameter.grad is None for parameter in trainer.parameters.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(gradient.any() for gradient in first.values())


@pytest.mark.parametrize("passes", [1, 2])
def test_importance_gradients_are_those_of_the_summed_loss_diff_pruning_s_up_to_its_threshold(
    make_trainer: MakeTrainer, passes: int
) -> None:
    trainer = make_trainer(f"training.gradient_accumulation={passes}")
    trainer.sampler.span = (100, 250)
    network, family = trainer.network.eval(), trainer.family
    share = trainer.training.batch_size // passes
    losses, by_timestep = [], []
    for timestep in (100, 130, 160, 190, 220):
        network.zero_grad()
        for first_row in range(0, share * passes, share):
            batch = family.batch(0, slice(first_row, first_row + share))
            generator = trainer.randomness.generator(first_row, "importance-noise")
            noise = torch.randn(batch.clean.shape, generator=generator)
            alpha = family.alphas_cumprod[timestep]
            noisy = alpha.sqrt() * batch.clean + (1 - alpha).sqrt() * noise
            predicted = family.predict(network, batch, noisy, torch.full((share,), timestep))
            loss = (predicted - noise).square().sum() / share / passes
            loss.backward()  # type: ignore[no-untyped-call]
            if first_row == 0:
                losses.append(loss.item())
        by_timestep.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    ratios = [loss / max(losses[: place + 1]) for place, loss in enumerate(losses)]
    end = min(range(5), key=ratios.__getitem__)  # the first below a threshold between it and all before it
    threshold = (ratios[end] + min(ratios[:end])) / 2

    cases: list[tuple[Importance, int]] = [("taylor", 5), ("diff-pruning", end)]
    for importance, summed in cases:
        plan = DrawPlan(importance=importance, importance_timesteps=5, diff_pruning_threshold=threshold)
        for name, gradient in accumulate_importance_gradients(trainer, plan, lambda: None).items():
            torch.testing.assert_close(gradient, sum(part[name] for part in by_timestep[:summed]))


@pytest.mark.parametrize("scoring", ["at-once", "sequential"])
@pytest.mark.parametrize("importance", ["magnitude", "taylor", "diff-pruning", "random"])
def test_each_importance_draws_a_ticket_and_an_expert_with_the_dense_weights(
    run_first_job: RunFirstJob, importance: str, scoring: str
) -> None:
    changes = (f"draw.importance={importance}", f"draw.scoring={scoring}", "draw.importance_timesteps=3")
    run_dir = run_first_job(*changes, "draw.threshold=1.0", "training.steps=1")
    folder = run_dir / "draw/0-260/tickets/0-260"
    ticket = Ticket.model_validate_json((folder / TICKET_FILE).read_text())
    assert (ticket.interval, ticket.step, ticket.importance) == (5, 10, importance)
    assert len(ticket.distances) == 4
    assert len(read_masks(run_dir / "draw/0-260/masks.arrow")) == 5
    expert = PrunedUNet2DModel.from_pretrained(folder / "expert")
    kept = ticket.kept_channels["conv_in"].outputs
    assert kept is not None
    assert expert.conv_in.out_channels == len(kept) == 12


def test_a_region_without_pruning_gets_the_dense_network_at_once(run_first_job: RunFirstJob) -> None:
    run_dir = run_first_job("training.steps=3", "regions=[{train: [0, 1000], pruning_ratio: 0.0}]")
    ticket = Ticket.model_validate_json((run_dir / "draw/0-1000/tickets/0-1000" / TICKET_FILE).read_text())
    assert (ticket.step, ticket.kept_channels) == (0, {})
    assert (run_dir / "train/0-1000/expert/config.json").is_file()
    metrics = read_metrics(run_dir / "train/0-1000/metrics.parquet")
    assert [row["step"] for row in metrics] == [2, 3], "the last step is always logged"


def test_ema_weights_are_ranked_and_inherited_when_the_plan_says_so(run_first_job: RunFirstJob) -> None:
    changes = ("draw.threshold=1.0", "training.steps=1", "training.ema_decay=0.999")
    run_dirs = [run_first_job(f"draw.weights={weights}", *changes, into=weights) for weights in ("raw", "ema")]
    places = [run_dir / "draw/0-260/tickets/0-260/expert" for run_dir in run_dirs]
    raw, ema = (PrunedUNet2DModel.from_pretrained(place).conv_out.weight for place in places)
    assert raw.shape == ema.shape
    assert not torch.equal(raw, ema)
