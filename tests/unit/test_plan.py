"""Plans: presets, bases, changes, what belongs to the experiment, and notes (what is refused: tests/bad_input)."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ONE_REGION, MakePlan
from drawing_files import scribbles, write_lines
from pydantic import ValidationError
from typer.testing import CliRunner

from ebdiff_orchestrator import launch
from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.plans.data_checks import DIGITS_IMAGES, check_data_fits, data_notes
from ebdiff_orchestrator.plans.load import load_plan, plan_as_yaml, plan_from_values, preset_plan, step_notes
from ebdiff_orchestrator.plans.preset_plans import methods, presets
from ebdiff_orchestrator.plans.preview import width_notes
from region_workers.data.sources import DigitsSource
from schemas.errors import PlanError, UserError
from schemas.plan import DIGITS, Plan


def unbounded(schema: Any, path: str = "") -> Iterator[str]:
    """The numbers and texts of a JSON schema that may be as large or as long as one likes."""
    if isinstance(schema, dict):
        bounds = {"integer": {"maximum", "exclusiveMaximum"}, "number": {"maximum", "exclusiveMaximum"}}
        needed = {**bounds, "string": {"maxLength"}}.get(str(schema.get("type")), set())
        if needed and not schema.keys() & {*needed, "const", "enum"}:
            yield path
    if isinstance(schema, dict | list):
        for key, part in schema.items() if isinstance(schema, dict) else enumerate(schema):
            yield from unbounded(part, f"{path}.{key}")


def test_every_number_of_a_plan_has_an_upper_bound_and_every_text_a_longest() -> None:
    assert list(unbounded(Plan.model_json_schema())) == []


def test_default_routes_give_each_timestep_to_the_largest_start_at_or_below_it() -> None:
    assert Plan().routes() == ((0, 240), (240, 440), (440, 1000))


def test_a_plan_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValidationError):
        Plan().seed = 3  # type: ignore[misc]


def test_workers_and_logging_are_no_part_of_the_experiment_but_the_seed_is(tiny_plan: MakePlan) -> None:
    plan = tiny_plan()
    assert tiny_plan("workers.gpus=2", "logging.interval_steps=7", "name=other").experiment_digest() == (
        plan.experiment_digest()
    )
    assert tiny_plan("seed=1").experiment_digest() != plan.experiment_digest()


def test_a_draw_may_go_on_with_a_higher_limit_unless_the_limit_decides_its_result(tiny_plan: MakePlan) -> None:
    assert tiny_plan("draw.max_intervals=50").experiment_digest() == tiny_plan().experiment_digest()
    last = "draw.on_timeout=take_last"
    assert tiny_plan(last, "draw.max_intervals=50").experiment_digest() != tiny_plan(last).experiment_digest()


def test_every_preset_loads_and_survives_a_round_trip_through_yaml(tmp_path: Path) -> None:
    assert {"digits", "cifar10"} <= set(presets())
    for name in presets():
        plan = load_plan(name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(plan_as_yaml(plan))
        assert load_plan(str(file)) == plan


def test_a_preset_s_name_in_the_place_of_a_plan_is_told_of_load_plan(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plan = digits: expected a Plan.*load_plan"):
        launch("digits", tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_plan_as_yaml_shows_every_field_also_those_that_no_digest_has_by_default() -> None:
    plan = load_plan("digits")
    written = yaml.safe_load(plan_as_yaml(plan))
    assert set(written) == set(Plan.model_fields)
    assert (written["previews"], written["sparsity"]) == (None, None)
    for name in ("data", "model", "training", "sampling", "logging", "workers"):
        assert set(written[name]) == set(type(getattr(plan, name)).model_fields), name
    assert set(written["regions"][0]) == set(type(plan.regions[0]).model_fields)
    assert plan_from_values(written).experiment_digest() == plan.experiment_digest()


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_goes_with_every_method(preset: str) -> None:
    for method in methods():
        plan = load_plan(f"{preset}-{method}")
        assert plan.name == f"{preset}-{method}"
        assert plan.data == load_plan(preset).data
    dense, scratch = load_plan(f"{preset}-dense"), load_plan(f"{preset}-scratch")
    assert dense.regions[0].pruning_ratio == 0
    assert (scratch.draw.method, scratch.draw.inherit_weights) == ("one-shot", False)
    assert load_plan(f"{preset}-eb-iterwise").draw.interval_steps == 1
    both = load_plan(f"{preset}-eb-speed")
    assert len(both.regions) == 1
    assert both.training.timesteps.sampling == "speed"


def test_two_methods_join_in_either_order_or_not_at_all() -> None:
    joined = set()
    for pair in combinations(methods(), 2):
        plans = [preset_plan(f"digits-{first}-{second}") for first, second in (pair, pair[::-1])]
        assert plans[0] is None or plans[0] == plans[1].model_copy(update={"name": plans[0].name}), pair
        joined |= {frozenset(pair)} if plans[0] else set()
    assert joined == {frozenset({name, "speed"}) for name in methods() if name != "speed"} | {frozenset({"eb", "slim"})}


def test_a_plan_holds_only_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: cifar10-eb\nname: mine\ntraining: {steps: 5}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\nseed: 7\n")
    plan = load_plan(str(tmp_path / "other.yaml"))
    assert (plan.name, plan.seed, plan.training.steps) == ("other", 7, 5)
    assert plan.training.batch_size == load_plan("cifar10").training.batch_size
    assert len(plan.regions) == 1
    (tmp_path / "it's my plan.yaml").write_text("base: mine.yaml\n")
    assert load_plan(str(tmp_path / "it's my plan.yaml")).name == "it-s-my-plan"
    (tmp_path / "mine.yaml").write_text("base: other.yaml\n")
    with pytest.raises(PlanError, match=r"base = mine.yaml|base = other.yaml"):
        load_plan(str(tmp_path / "other.yaml"))


def test_a_blank_before_a_hash_is_kept_where_it_is_quoted() -> None:
    assert load_plan("digits", ["data.path='photos #1'"]).data.path == "photos #1"


def test_changes_reach_lists_and_numbers_with_exponents() -> None:
    plan = load_plan("digits", ["regions.1.pruning_ratio=0.5", "training.learning_rate=2e-4", "training.steps=7"])
    assert plan.regions[1].pruning_ratio == 0.5
    assert plan.training.learning_rate == 2e-4
    assert plan.training.steps == 7


def test_a_preset_is_found_beside_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits-eb"):
        (tmp_path / name).mkdir()
        assert load_plan(name).name == name


def test_a_batch_larger_than_the_data_set_or_not_shared_evenly_is_refused(tiny_plan: MakePlan) -> None:
    with pytest.raises(PlanError, match="at most the data set's 7 images"):
        check_data_fits(tiny_plan(), images=7, world_size=1)
    with pytest.raises(PlanError, match="a multiple of 3"):
        check_data_fits(tiny_plan(), images=100, world_size=3)
    check_data_fits(tiny_plan(), images=8, world_size=2)


def test_a_plan_notes_what_its_data_lack_on_this_machine_and_opens_no_image(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    assert DigitsSource().count() == DIGITS_IMAGES
    folder, table = tmp_path / "images", tmp_path / "images.parquet"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"never opened")
    pq.write_table(pa.table({"image": [b"never decoded"] * 5}), table)
    cases = [
        (DIGITS, 1797, None),
        (DIGITS, 1798, "training.batch_size = 1798: expected at most the data set's 1797 images"),
        (folder, 5, None),
        (folder, 6, "training.batch_size = 6: expected at most the data set's 5 images"),
        (table, 5, None),
        (table, 6, "training.batch_size = 6: expected at most the data set's 5 images"),
        (tmp_path / "nosuch", 4, f"There is no file or folder at {tmp_path / 'nosuch'}"),
        (tmp_path / "nosuch.parquet", 4, "data.path = "),
        (tmp_path, 4, "a folder of Parquet files or of images, not of both"),
        ("somebody/images", 10**6, None),
    ]
    lines = write_lines(tmp_path / "a.ndjson", scribbles(5))
    drawn = ["model={family: vector}", "data.drawings={}", "data.random_flip=false"]
    of_drawings = [
        (lines, 5, None),
        (lines, 6, "training.batch_size = 6: expected at most the data set's 5 drawings"),
        (tmp_path / "nosuch", 4, "expected drawings that the run's machines can read"),
        ("somebody/drawings", 4, "There is no file or folder"),
        (table, 4, "a QuickDraw .ndjson file"),
    ]
    for path, batch, expected in cases + of_drawings:
        changes = drawn if (path, batch, expected) in of_drawings else []
        notes = data_notes(tiny_plan(f"data.path={path}", f"training.batch_size={batch}", *changes))
        assert len(notes) == (expected is not None), (path, batch, notes)
        assert (expected or "") in "".join(notes)


def test_an_expert_with_one_channel_in_each_norm_group_is_noted(tiny_plan: MakePlan) -> None:
    """Of 16 channels at the network's ends, 50% leaves 8."""
    assert width_notes(tiny_plan(ONE_REGION)) == []  # in 4 groups
    [note] = width_notes(tiny_plan(ONE_REGION, "model.norm_num_groups=8"))
    assert note.startswith("regions.0.pruning_ratio = 0.5: one channel is left in each of the 8 norm groups")
    assert width_notes(load_plan("kanji")) == []
    shown = CliRunner().invoke(app, ["plan", "cifar10"], catch_exceptions=False).stdout
    assert "note: regions.2.pruning_ratio = 0.8" in shown


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        (("training.steps=100",), ["regions.2.steps = 2600, the region's own, stays: training.steps = 100"]),
        (("training.steps=100", "regions.2.steps=100"), []),
        (("training.steps=100", ONE_REGION), []),
        (("seed=1",), []),
    ],
)
def test_a_region_with_steps_of_its_own_is_noted(changes: tuple[str, ...], notes: list[str]) -> None:
    found = step_notes(load_plan("digits", changes), changes)
    assert [note.partition(" is for")[0] for note in found] == notes
    typed = ["plan", "digits", "--yaml", *(word for change in changes for word in ("--set", change))]
    told = CliRunner().invoke(app, typed, catch_exceptions=False).stderr
    assert told == "".join(f"note: {note}\n" for note in found)


@pytest.mark.parametrize("form", ["", "--yaml", "--json"])
def test_the_note_is_the_last_line_and_no_part_of_what_is_read_by_programs(form: str) -> None:
    typed = ["plan", "digits", "--set", "training.batch_size=5000", *form.split()]
    result = CliRunner().invoke(app, typed, catch_exceptions=False)
    told = result.stderr if form else result.stdout
    assert result.exit_code == 0
    assert told.splitlines()[-1].startswith("note: training.batch_size = 5000")
    assert not form or yaml.safe_load(result.stdout)["name"] == "digits"


def test_a_plan_as_yaml_is_checked_without_its_network() -> None:
    result = CliRunner().invoke(app, ["plan", "digits", "--yaml", "--set", "data.resolution=9"])
    assert isinstance(result.exception, PlanError)
    assert "a multiple of 2" in str(result.exception)
