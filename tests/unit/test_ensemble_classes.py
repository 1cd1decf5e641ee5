"""Class-conditional ensembles: labels reach the experts, guidance is the formula, folders remember both."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from ensemble_fixtures import (
    CLASSES,
    NAMES,
    ROUTES,
    attending_experts,
    attending_unet,
    by_hand,
    class_experts,
    draw,
    ensemble,
    noise_of,
)

from ebdiff_orchestrator.ensemble import EnsemblePipeline, TimestepRouter, iter_samples, samples_of
from schemas.errors import UserError


def pipeline(guidance_scale: float = 1.0, eta: float = 0.0) -> EnsemblePipeline:
    return ensemble("classes", guidance_scale=guidance_scale, eta=eta)


def labelled(pipe: EnsemblePipeline, labels: object, scale: float | None = None) -> torch.Tensor:
    return draw(pipe, 3, 4, class_labels=labels, guidance_scale=scale)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_the_formula(scale: float) -> None:
    """Equation 6 of arXiv 2207.12598 in its other form, with two passes a step."""

    def guided(expert: torch.nn.Module, x: torch.Tensor, timestep: int) -> torch.Tensor:
        null = expert(x, timestep, class_labels=torch.full((2,), CLASSES)).sample
        wanted = expert(x, timestep, class_labels=torch.tensor([1, 3])).sample
        return null + scale * (wanted - null)

    pipe = pipeline()
    images = labelled(pipe, [1, 3], scale)
    expected = by_hand(pipe, noise_of((1, 8, 8), 3, 4), guided)
    assert torch.allclose(images, (expected / 2 + 0.5).clamp(0, 1), atol=1e-4)
    if scale:
        assert not torch.allclose(images, labelled(pipe, [2, 0], scale), atol=1e-2)


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 2), (1.0, 2), (3.0, 4)])
def test_a_step_is_one_pass_and_doubled_only_where_guidance_needs_it(scale: float, rows: int) -> None:
    pipe = pipeline()
    seen: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    labelled(pipe, [1, 3], scale)
    assert seen == [rows] * 6


def test_the_ensembles_guidance_is_what_a_call_that_names_none_uses() -> None:
    pipe = pipeline(guidance_scale=3.0)
    assert torch.equal(labelled(pipe, [1, 3]), labelled(pipe, [1, 3], 3.0))
    assert not torch.allclose(labelled(pipe, [1, 3]), labelled(pipe, [1, 3], 1.0), atol=1e-3)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(labelled(pipe, [1, 3]), labelled(pipe, [1, 3], 3.0))


def test_labels_may_be_a_number_a_list_or_a_tensor() -> None:
    pipe = pipeline()
    expected = labelled(pipe, [2, 2])
    for given in (2, torch.tensor([2, 2]), np.int64(2)):
        assert torch.equal(labelled(pipe, given), expected)
    assert torch.allclose(labelled(pipe, CLASSES, 3.0), labelled(pipe, 0, 0.0), atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "class_labels = None: expected a class from 0 to 3, or 4 for `no class`"),
        ([1, 2, 3], "3 of them: expected 2, one an image"),
        ([1, 5], r"class_labels = \[5\]: expected classes from 0 to 3"),
        (-1, r"class_labels = \[-1\]"),
        ([0.5, 1.0], r"class_labels = \[0\.5\]"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled(pipeline(), labels)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_that_guides_nowhere_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="guidance_scale"):
        labelled(pipeline(), [1, 2], scale)


def test_an_ensemble_without_classes_takes_neither_labels_nor_guidance() -> None:
    plain = ensemble()
    assert plain.num_classes is None
    for labels, scale, field in ((1, None, "class_labels"), (None, 2.0, "guidance_scale")):
        with pytest.raises(UserError, match=field):
            labelled(plain, labels, scale)
    with pytest.raises(UserError, match="classes"):
        samples_of(plain, 1, 0, None, 1, classes=[0])
    assert labelled(plain, None, 1.0).shape == (2, 1, 8, 8)


def test_the_router_publishes_the_classes_of_either_kind_of_expert() -> None:
    assert TimestepRouter(class_experts(), ROUTES, NAMES).num_classes == CLASSES
    attending = TimestepRouter(attending_experts(), ROUTES, NAMES)
    assert (attending.num_classes, attending.config.num_context_classes) == (CLASSES, CLASSES + 1)
    with pytest.raises(UserError, match="num_context_classes"):
        TimestepRouter([attending_unet(), attending_unet(num_context_classes=3)], [(0, 9), (9, 20)], ["a", "b"])


def test_labels_of_a_mixed_batch_reach_the_attention_of_the_right_expert() -> None:
    experts = attending_experts()
    router = TimestepRouter(experts, ROUTES, NAMES)
    latents, labels = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, CLASSES])
    timesteps = torch.tensor([500, 10, 300, 20])
    with torch.no_grad():
        together = router(latents, timesteps, class_labels=labels).sample
        other = router(latents, timesteps, class_labels=labels.flip(0)).sample
        for row, owner in enumerate([2, 0, 1, 0]):
            one = slice(row, row + 1)
            alone = experts[owner](latents[one], int(timesteps[row]), class_labels=labels[one]).sample
            assert torch.allclose(together[one], alone, atol=1e-5)
    assert (together - other).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_network_that_must_be_given_a_context_gets_none() -> None:
    torch.manual_seed(0)
    expert = UNet2DConditionModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=CLASSES + 1,
    ).eval()
    router = TimestepRouter([expert], [(0, 1000)], ["all"])
    latents, labels = torch.randn(2, 3, 4, 4), torch.tensor([1, 4])
    expected = expert(latents, 7, None, class_labels=labels).sample
    assert torch.equal(router(latents, 7, class_labels=labels).sample, expected)
    assert torch.equal(router(latents, 7, None, labels).sample, expected)
    assert router.num_classes == CLASSES


def test_images_take_the_classes_in_turn_wherever_a_range_begins() -> None:
    pipe = pipeline(guidance_scale=2.0, eta=0.5)
    images = samples_of(pipe, 7, seed=3, steps=None, batch_size=7)
    by_class = samples_of(pipe, 7, 3, None, 7, classes=[0, 1, 2, 3, 0, 1, 2])
    assert np.array_equal(images, by_class)
    for batch_size, first in ((2, 0), (3, 4), (1, 6)):
        part = np.concatenate(list(iter_samples(pipe, 7 - first, 3, None, batch_size, first=first)))
        assert np.abs(part.astype(int) - images[first:]).max() <= 1
    one_class = samples_of(pipe, 7, 3, None, 7, classes=[1])
    same = np.abs(one_class.astype(int) - images).max((1, 2, 3)) <= 1
    assert same.tolist() == [index % CLASSES == 1 for index in range(7)]
    assert not np.array_equal(images, samples_of(pipe, 7, 3, None, 7, guidance_scale=0.0))


def test_batches_of_one_size_give_the_same_bits_wherever_they_are_cut() -> None:
    pipe = pipeline(guidance_scale=2.0, eta=0.5)
    whole = samples_of(pipe, 12, 3, None, 4)
    for first in (4, 3):
        assert np.array_equal(samples_of(pipe, 8, 3, None, 4, first=first), whole[first : first + 8])


def test_images_come_a_batch_at_a_time_and_options_are_checked_at_once() -> None:
    pipe = pipeline()
    batches = iter_samples(pipe, 5, 0, 2, batch_size=2)
    passes: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    assert [next(batches).shape, len(passes)] == [(2, 8, 8, 1), 2]
    assert [len(batch) for batch in batches] == [2, 1]
    for classes in ([], [5], [-1]):
        with pytest.raises(UserError, match="class"):
            iter_samples(pipe, 5, 0, 2, 2, classes=classes)
