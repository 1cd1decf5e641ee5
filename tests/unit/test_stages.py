"""Which stages go with which: keys of regions beside one another (more on keys: test_properties_plan), what follows."""

import pytest
from conftest import MakePlan
from drawing_files import VECTOR

from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, with_what_follows
from schemas.plan import Plan


def _keys(plan: Plan) -> list[str]:
    return [stage.key for job in outline_jobs(plan, Inputs("store")) for stage in (job.draw, job.train) if stage]


_STATIC, _RIGL = "sparsity={method: static, sparsity: 0.5}", "sparsity={method: rigl, sparsity: 0.5}"


@pytest.mark.parametrize(
    ("before", "after", "same_training"),
    [
        ((), (_STATIC,), False),
        ((_STATIC,), (_RIGL,), False),
        ((_STATIC,), (_STATIC, "sparsity.distribution=er"), False),
        ((_STATIC,), (_STATIC, "regions.0.sparsity=0.4"), False),
        ((_STATIC,), (_STATIC, "regions.0.sparsity=0.5"), True),
        ((_STATIC,), (_STATIC, "sparsity.prune_ratio=0.1", "sparsity.interval_steps=7"), True),
        ((_STATIC,), (_STATIC, "training.steps=99"), True),
        ((_RIGL,), (_RIGL, "sparsity.prune_ratio=0.1"), False),
        ((_RIGL,), (_RIGL, "training.steps=99"), False),
    ],
)
def test_a_mask_changes_the_trainings_key_by_what_it_depends_on_and_never_the_draws(
    tiny_plan: MakePlan, before: tuple[str, ...], after: tuple[str, ...], same_training: bool
) -> None:
    old, new = _keys(tiny_plan(*before)), _keys(tiny_plan(*after))
    assert old[0] == new[0]
    assert (old[1] == new[1]) == same_training


def test_a_plan_without_sparsity_is_written_and_hashed_without_it(tiny_plan: MakePlan) -> None:
    assert "sparsity" not in tiny_plan().model_dump_json()
    assert "sparsity" not in str(tiny_plan().experiment())
    assert "sparsity" in str(tiny_plan(_STATIC).experiment())


def test_how_drawings_are_rendered_and_where_they_lie_is_no_part_of_a_run_of_theirs(tiny_plan: MakePlan) -> None:
    plan, other = (tiny_plan(*VECTOR, f"data.drawings.raster.canvas_px={side}") for side in (28, 64))
    assert _keys(plan) == _keys(other)
    assert plan.experiment_digest() == other.experiment_digest()
    wider = tiny_plan(*VECTOR, "model.hidden_size=16")
    assert not set(_keys(wider)) & set(_keys(plan))


def test_a_training_after_a_shared_draw_does_not_depend_on_the_other_tickets(tiny_plan: MakePlan) -> None:
    shared = _keys(tiny_plan("draw.scope=shared"))
    other = _keys(tiny_plan("draw.scope=shared", "regions.2.pruning_ratio=0.7"))
    assert shared[0] != other[0]
    assert shared[1:3] == other[1:3]
    assert shared[3] != other[3]


def test_another_ratio_in_one_region_leaves_the_other_regions_keys(tiny_plan: MakePlan) -> None:
    before, after = _keys(tiny_plan()), _keys(tiny_plan("regions.2.pruning_ratio=0.7"))
    assert before[:4] == after[:4]
    assert not set(before[4:]) & set(after[4:])


@pytest.mark.parametrize(
    ("scope", "stage", "followers"),
    [
        ("per-region", "draw/0-260", {"train/0-260", "ensemble", "samples"}),
        ("per-region", "train/240-460", {"ensemble", "samples"}),
        ("per-region", "ensemble", {"samples"}),
        ("per-region", "samples", set()),
        ("shared", "draw/shared", {"train/0-260", "train/240-460", "train/440-1000", "ensemble", "samples"}),
    ],
)
def test_all_that_is_made_from_a_stage_follows_it(
    tiny_plan: MakePlan, scope: str, stage: str, followers: set[str]
) -> None:
    assert with_what_follows(tiny_plan(f"draw.scope={scope}"), [stage]) == {stage} | followers
