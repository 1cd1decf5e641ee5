"""Plans refuse what cannot run, and say the field, the value, what was expected and what to do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from drawing_files import scribbles, write_lines
from pydantic import ValidationError
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.plans.data_checks import DIGITS_IMAGES, check_data_fits, data_notes
from ebdiff_orchestrator.plans.load import load_plan, plan_as_yaml, plan_from_values
from ebdiff_orchestrator.plans.preset_plans import methods, presets
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.plans.sizes import width_notes
from region_workers.data.sources import DigitsSource
from schemas.errors import PlanError
from schemas.plan import DIGITS, Plan
from tests.conftest import ONE_REGION

MakePlan = Callable[..., Plan]


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


def _vector(**sections: dict[str, object]) -> dict[str, object]:
    model = {"family": "vector", **sections.pop("model", {})}
    return {"model": model, "data": {"path": "drawings.ndjson", "drawings": {}}, **sections}


def _regions(*spans: tuple[int, int]) -> dict[str, object]:
    return {"regions": [{"train": list(span), "pruning_ratio": 0.5} for span in spans]}


def _drawings(**data: object) -> dict[str, object]:
    return {"model": {"family": "vector"}, "data": {"drawings": {}, **data}}


def test_default_routes_give_each_timestep_to_the_largest_start_at_or_below_it() -> None:
    assert Plan().routes() == ((0, 240), (240, 440), (440, 1000))


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        (_regions((0, 200), (300, 1000)), "regions.1.train", "timesteps 200 to 299 have no region"),
        (_regions((0, 600), (300, 800), (500, 1000)), "regions.2.train", "only neighbours may overlap"),
        (_regions((10, 1000)), "regions.0.train", "a start of 0"),
        (_regions((0, 900)), "regions.0.train", "diffusion.num_train_timesteps = 1000"),
        ({"regions": []}, "regions", "at least one region"),
        (_regions((0, 600), (0, 1000)), "regions.1.train", "a start above 0"),
        ({"draw": {"max_intervals": 4}}, "draw.max_intervals", "at least 5"),
        ({"draw": {"max_intervals": 8, "queue_stride": 2}}, "draw.max_intervals", "at least 9"),
        ({"sampling": {"steps": 2000}}, "sampling.steps", "at most diffusion.num_train_timesteps = 1000"),
        ({"training": {"batch_size": 10, "gradient_accumulation": 3}}, "training.gradient_accumulation", "a divisor"),
        ({"workers": {"gpus": 1.5}}, "workers.gpus", "a whole number"),
        ({"model": {"block_out_channels": [60, 120]}}, "model.block_out_channels", "multiples of"),
        ({"draw": {"weights": "ema"}, "training": {"ema_decay": None}}, "draw.weights", "raw"),
        ({"diffusion": {"beta_start": 0.5}}, "diffusion.beta_start", "at most"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate", "finite"),
        ({"data": {"drawings": {}}}, "model.family", "vector, since data.drawings is set"),
        ({"model": {"family": "vector"}}, "data.drawings", "a section, since model.family = vector"),
        (_drawings(random_flip=True), "data.random_flip", "false, since data.drawings is set"),
        (_drawings(label_column="word"), "data.label_column", "null, since data.drawings is set"),
        (_drawings(crop={"center_x": 5, "center_y": 5, "size": 4}), "data.crop", "null, since data.drawings is set"),
        (_drawings(drawings={"point_spacing": 0}), "data.drawings.point_spacing", "greater"),
        (_drawings(drawings={"raster": {"margin": 0.5}}), "data.drawings.raster.margin", "less than 0.5"),
        (_vector(training={"precision": "bf16"}), "training.precision", "fp32, since model.family = vector"),
        (_vector(training={"compile": True}), "training.compile", "false, since model.family = vector"),
        (_vector(training={"channels_last": True}), "training.channels_last", "false, since model.family = vector"),
        (_vector(sampling={"guidance_scale": 2}), "sampling.guidance_scale", "the model has no classes"),
        (_vector(model={"time_embed_dim": 7}), "model.time_embed_dim", "a multiple of 2"),
        (_vector(model={"num_classes": 3}), "model.num_classes", "a key that plans have"),
        ({"name": ".."}, "name", "pattern"),
        ({"regions": [{"name": "..", "train": [0, 1000], "pruning_ratio": 0.5}]}, "name", "pattern"),
        ({"training": {"stepz": 3}}, "training.stepz", "Did you mean training.steps?"),
        ({"training": {"steps": "many"}}, "training.steps", "a whole number"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_field_and_expectation(
    values: dict[str, object], field: str, says: str
) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_values(dict(values))
    assert field in str(caught.value)
    assert says in str(caught.value)


def test_every_mistake_of_a_plan_is_named_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_values({"training": {"steps": 0, "learning_rate": -1}, "seed": -5})
    for field in ("training.steps", "training.learning_rate", "seed"):
        assert field in str(caught.value)


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


def test_a_plan_holds_only_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: cifar10-eb\nname: mine\ntraining: {steps: 5}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\nseed: 7\n")
    plan = load_plan(str(tmp_path / "other.yaml"))
    assert (plan.name, plan.seed, plan.training.steps) == ("other", 7, 5)
    assert plan.training.batch_size == load_plan("cifar10").training.batch_size
    assert len(plan.regions) == 1
    (tmp_path / "mine.yaml").write_text("base: other.yaml\n")
    with pytest.raises(PlanError, match=r"base = mine.yaml|base = other.yaml"):
        load_plan(str(tmp_path / "other.yaml"))


def test_changes_reach_lists_and_numbers_with_exponents() -> None:
    plan = load_plan("digits", ["regions.1.pruning_ratio=0.5", "training.learning_rate=2e-4", "training.steps=7"])
    assert plan.regions[1].pruning_ratio == 0.5
    assert plan.training.learning_rate == 2e-4
    assert plan.training.steps == 7


@pytest.mark.parametrize("change", ["training.steps", "regions.9.pruning_ratio=0.5", "seed.x=1", "=3"])
def test_a_change_that_cannot_be_made_is_refused_with_itself_in_the_message(change: str) -> None:
    with pytest.raises(PlanError, match="--set"):
        load_plan("digits", [change])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"training: {steps: 5}\ntraining: {batch_size: 3}\n", "stands twice"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"training: [1, 2", "expected valid YAML"),
        (b"", "a mapping of keys to values"),
        (None, "a folder"),
    ],
)
def test_a_plan_file_that_cannot_be_meant_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "plan.yaml"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(PlanError, match=says):
        load_plan(str(file))


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(PlanError, match="cifar10, digits"):
        load_plan("nosuch")


@pytest.mark.parametrize("ratio", ["0.001", "0.999"])
def test_a_ratio_that_removes_nothing_or_everything_is_refused_before_anything_starts(
    tiny_plan: MakePlan, ratio: str
) -> None:
    with pytest.raises(PlanError, match=r"regions\.0\.pruning_ratio"):
        preview_plan(tiny_plan(f"regions.0.pruning_ratio={ratio}"))


def test_a_batch_larger_than_the_data_set_or_not_shared_evenly_is_refused(tiny_plan: MakePlan) -> None:
    with pytest.raises(PlanError, match="at most the data set's 7 images"):
        check_data_fits(tiny_plan(), images=7, world_size=1)
    with pytest.raises(PlanError, match="a multiple of 3"):
        check_data_fits(tiny_plan(), images=100, world_size=3)
    check_data_fits(tiny_plan(), images=8, world_size=2)


def _folder(path: Path) -> Path:
    path.mkdir()
    for number in range(5):
        (path / f"{number}.png").write_bytes(b"never opened")
    return path


def _table(path: Path) -> Path:
    pq.write_table(pa.table({"image": [b"never decoded"] * 5}), path)
    return path


def test_a_plan_notes_what_its_data_lack_on_this_machine_and_opens_no_image(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    assert DigitsSource().count() == DIGITS_IMAGES
    folder, table = _folder(tmp_path / "images"), _table(tmp_path / "images.parquet")
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
