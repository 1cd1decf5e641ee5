"""What holds for every plan: which regions are taken, who owns a timestep, what a stage's key depends on, manifests."""

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ebdiff_orchestrator.ensemble.routes import Routes
from ebdiff_orchestrator.plans.load import plan_as_yaml, plan_from_values, read_yaml
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from region_workers.storage.integrity import read_manifest
from schemas.errors import PlanError, UserError
from schemas.manifest import MANIFEST_FILE, Manifest
from schemas.plan import Plan

Span = tuple[int, int]

fixed = settings(derandomize=True, deadline=None, max_examples=150, database=None)
few = settings(fixed, max_examples=40)
bounds = st.integers(-1, 12)
spans = st.lists(st.tuples(bounds, bounds), min_size=0, max_size=5)


@st.composite
def good_regions(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Regions that cover [0, T) in order, of which only neighbours overlap."""
    starts = [0, *sorted(draw(st.sets(st.integers(1, 60), max_size=5)))]
    total = starts[-1] + draw(st.integers(1, 20))
    regions: list[Span] = []
    for index, start in enumerate(starts):
        here = [*starts, total, total]
        least = max(here[index + 1], regions[-1][1] + 1 if regions else 0)
        most = here[index + 2] if index + 1 < len(starts) else total
        stop = total if index + 1 == len(starts) else draw(st.integers(min(least, most), most))
        regions.append((start, stop))
    assume(total >= 2 and _follow_the_rules(regions, total))
    return regions, total


def _plan(regions: list[Span], total: int) -> Plan:
    listed = [{"train": list(span), "pruning_ratio": 0.5} for span in regions]
    return plan_from_values(
        {"regions": listed, "diffusion": {"num_train_timesteps": total}, "sampling": {"steps": 1, "spacing": "uniform"}}
    )


def _follow_the_rules(regions: list[Span], total: int) -> bool:
    """The rules as the plan's description has them, counted timestep by timestep."""
    if not regions or any(not 0 <= start < stop for start, stop in regions):
        return False
    covered = [sum(start <= t < stop for start, stop in regions) for t in range(total)]
    in_order = all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(regions))
    apart = all(a[1] <= c[0] for a, c in zip(regions, regions[2:], strict=False))
    return regions[0][0] == 0 and regions[-1][1] == total and min(covered, default=0) >= 1 and in_order and apart


@fixed
@given(spans, st.integers(2, 12))
def test_exactly_the_regions_that_follow_the_rules_are_accepted(regions: list[Span], total: int) -> None:
    if _follow_the_rules(regions, total):
        _plan(regions, total)
    else:
        with pytest.raises(PlanError, match="regions"):
            _plan(regions, total)


@fixed
@given(good_regions())
def test_each_timestep_belongs_to_the_region_with_the_largest_start_at_or_below_it(
    good: tuple[list[Span], int],
) -> None:
    regions, total = good
    plan = _plan(regions, total)
    assert [t for start, stop in plan.routes() for t in range(start, stop)] == list(range(total))
    for (start, stop), (train_start, train_stop) in zip(plan.routes(), regions, strict=True):
        assert train_start == start < stop <= train_stop
    routes = Routes(plan.routes(), [region.name for region in plan.regions])
    for timestep in range(total):
        owner = routes.owner(timestep)
        assert owner == max(index for index, (start, _) in enumerate(regions) if start <= timestep)
        assert regions[owner][0] <= timestep < regions[owner][1], "an expert owns what it has not trained on"
    for outside in (-1, total, total + 0.5, float("nan")):
        with pytest.raises(UserError):
            routes.owner(outside)


def _keys(plan: Plan, inputs: Inputs) -> list[str]:
    stages = [stage for job in outline_jobs(plan, inputs) for stage in (job.draw, job.train) if stage]
    return [stage.key for stage in stages]


NOT_OF_THE_RESULT = {
    "name": st.sampled_from(["other", "b"]),
    "workers.gpus": st.sampled_from(["auto", 0, 1, 2, 0.5]),
    "workers.cpus": st.floats(0.5, 64),
    "workers.retries": st.integers(0, 9),
    "workers.wait_limit_s": st.floats(1, 1e6),
    "workers.cache_dir": st.sampled_from(["/somewhere", "else"]),
    "checkpointing.interval_steps": st.integers(1, 10**6),
    "checkpointing.keep": st.integers(1, 9),
    "logging.interval_steps": st.integers(1, 10**6),
    "data.path": st.sampled_from(["/moved", "sklearn:digits"]),
    "sampling.steps": st.integers(1, 100),
    "sampling.num_images": st.integers(1, 10**6),
    "training.steps": st.integers(1, 10**6),
}
OF_THE_RESULT = {
    "seed": st.integers(1, 2**62),
    "training.batch_size": st.sampled_from([4, 16, 32]),
    "training.learning_rate": st.floats(1e-6, 1e-4),
    "training.learning_rate_decay": st.floats(0.1, 0.9),
    "training.precision": st.just("bf16"),
    "training.cpu_threads": st.integers(2, 64),
    "training.ema_decay": st.floats(0.1, 0.9),
    "training.timesteps.sampling": st.just("speed"),
    "model.dropout": st.floats(0.2, 0.9),
    "model.layers_per_block": st.integers(2, 4),
    "diffusion.beta_end": st.floats(0.03, 0.9),
    "draw.threshold": st.floats(0.01, 0.4),
    "draw.interval_steps": st.integers(3, 100),
    "draw.importance": st.sampled_from(["taylor", "random"]),
    "data.random_flip": st.just(False),
}


def _tiny(changes: dict[str, Any]) -> Plan:
    return plan_from_values(
        json.loads(json.dumps(TINY)), [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    )


@few
@given(st.fixed_dictionaries({}, optional=NOT_OF_THE_RESULT))
def test_a_stage_s_key_does_not_depend_on_where_and_how_it_is_computed(changes: dict[str, Any]) -> None:
    inputs = Inputs("images")
    assert _keys(_tiny(changes), inputs) == _keys(_tiny({}), inputs)


@pytest.mark.parametrize("key", sorted(OF_THE_RESULT))
@settings(fixed, max_examples=3)
@given(st.data())
def test_every_stage_s_key_depends_on_all_that_determines_its_result(key: str, data: st.DataObject) -> None:
    inputs = Inputs("images")
    value = data.draw(OF_THE_RESULT[key])
    changed, known = _keys(_tiny({key: value}), inputs), _keys(_tiny({}), inputs)
    assert not set(changed) & set(known)


@few
@given(st.text(min_size=1), st.text(min_size=1))
def test_every_stage_s_key_depends_on_its_inputs(images: str, dense: str) -> None:
    known = set(_keys(_tiny({}), Inputs("the images")))
    assume(images != "the images")
    assert not known & set(_keys(_tiny({}), Inputs(images)))
    assert not known & set(_keys(_tiny({}), Inputs("the images", dense)))


@few
@given(good_regions(), st.integers(0, 2**62), st.floats(1e-8, 1), st.sampled_from(["raw", "ema"]))
def test_a_plan_survives_yaml_and_json_to_the_same_experiment(
    good: tuple[list[Span], int], seed: int, rate: float, weights: str
) -> None:
    regions, total = good
    values = _plan(regions, total).model_dump(mode="json")
    values |= {"seed": seed, "training": {"learning_rate": rate}, "draw": {"weights": weights}}
    plan = plan_from_values(values)
    assert plan_from_values(read_yaml(plan_as_yaml(plan), "it")) == plan
    assert Plan.model_validate_json(plan.model_dump_json()).experiment_digest() == plan.experiment_digest()


texts = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def _complaint(read: Callable[[], object], good: object = None) -> str:
    """What a UserError says; "expected" if there is none, and `good`, if given, was read."""
    try:
        found = read()
    except UserError as error:
        return str(error)
    assert good is None or found == good
    return "expected"


@fixed
@given(st.dictionaries(st.sampled_from([*Plan.model_fields, "typo"]), json_values, max_size=4))
def test_a_plan_of_any_values_is_taken_or_refused_as_a_plan(values: dict[str, Any]) -> None:
    assert "xpected" in _complaint(lambda: plan_from_values(values))


@fixed
@given(st.text(max_size=60))
def test_any_text_after_set_is_taken_or_refused_as_a_plan(change: str) -> None:
    assert "xpected" in _complaint(lambda: plan_from_values(json.loads(json.dumps(TINY)), [change]))


@pytest.fixture(scope="module")
def manifest_json() -> str:
    """Of a run that has begun."""
    with tempfile.TemporaryDirectory() as folder:
        Ledger.begin(RunDirectory(Path(folder)), _tiny({}))
        return (Path(folder) / MANIFEST_FILE).read_text()


def _read(data: bytes) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST_FILE).write_bytes(data)
        return read_manifest(Path(folder))


@few
@given(
    attempts=st.integers(0, 10**9),
    seconds=st.dictionaries(st.floats(0, 0.99), st.floats(1e-6, 1e6), max_size=3),
    error=st.none() | st.text(max_size=40),
    steps=st.integers(0, 10**12),
)
def test_a_manifest_reads_as_it_was_written(
    manifest_json: str, attempts: int, seconds: dict[float, float], error: str | None, steps: int
) -> None:
    manifest = Manifest.model_validate_json(manifest_json)
    record = manifest.stage("train/0-260").model_copy(update={"error": error, "steps": steps})
    changed = manifest.with_stage(record).model_copy(update={"attempts": attempts, "step_seconds": seconds})
    try:
        text = changed.model_dump_json(indent=2)
    except (ValidationError, ValueError):  # a lone surrogate is no text
        assume(False)
    assert _read(text.encode()) == changed


@fixed
@given(st.data())
def test_a_manifest_cut_or_garbled_anywhere_is_refused_in_words(manifest_json: str, data: st.DataObject) -> None:
    whole = manifest_json.encode()
    start = data.draw(st.integers(0, len(whole) - 2), label="start")
    kind = data.draw(st.sampled_from(["cut", "overwritten", "flipped", "inserted"]), label="kind")
    junk = data.draw(st.binary(min_size=1, max_size=6), label="junk")
    damaged = {
        "cut": whole[:start],
        "overwritten": whole[:start] + junk + whole[start + len(junk) :],
        "flipped": whole[:start] + bytes([whole[start] ^ junk[0]]) + whole[start + 1 :],
        "inserted": whole[:start] + junk + whole[start:],
    }[kind]
    unchanged = Manifest.model_validate_json(manifest_json)
    assert "xpected" in _complaint(lambda: _read(damaged), unchanged)


@fixed
@given(json_values)
def test_any_json_in_place_of_a_manifest_is_refused_in_words(value: Any) -> None:
    with pytest.raises(UserError, match="xpected"):
        _read(json.dumps(value).encode())
