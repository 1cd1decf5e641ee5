"""`ebdiff estimate`: steps are really timed, and the prediction follows from them by the paper's definitions."""

import json

import pytest
import torch
from conftest import MakePlan
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.reports.estimate import Assumptions, Estimate, measure_steps, predict
from region_workers.training import timing
from region_workers.training.device import World
from region_workers.training.timing import StepTime, StepTimer, random_samples
from schemas.plan import Plan

CPU = World(torch.device("cpu"), 0, 1)
HALF = "regions=[{train: [0, 1000], pruning_ratio: 0.5}]"
ONE_SHOT = ("draw.method=one-shot", "training.steps=100")  # one mask of a dense start
REGIONS = {0.0: 10.0, 0.3: 6.0, 0.6: 3.0, 0.8: 1.0}  # seconds a step
LATENT = (
    "model={family: latent, vae: none, block_out_channels: [32, 64], layers_per_block: 1, norm_num_groups: 8, "
    "down_block_types: [DownBlock2D, CrossAttnDownBlock2D], up_block_types: [CrossAttnUpBlock2D, UpBlock2D], "
    "num_classes: 5, cross_attention_dim: 16}"
)


def _predict(plan: Plan, times: dict[float, float], interval: int = 100, **assumed: int) -> Estimate:
    steps = {ratio: StepTime(seconds, 2, 128, None) for ratio, seconds in times.items()}
    fresh = plan.model_copy(update={"model": plan.model.model_copy(update={"pretrained": None})})
    return predict(plan, preview_plan(fresh), steps, interval, Assumptions(**assumed), "cpu")


def test_the_papers_speed_ups_follow_from_its_step_times(tiny_plan: MakePlan) -> None:
    """Table 4: TA-EB 5.78x = 4 x 1.44; a 30% finetune of 100K steps is charged 800K dense ones: 0.92x."""
    times = {0.0: 1.44, 0.3: 1.0, 0.6: 0.6, 0.8: 0.4}
    found = _predict(tiny_plan("training.steps=200000"), times, dense_steps=800_000)
    assert found.given_steps is not None
    assert found.given_steps.speed_up == pytest.approx(5.76)
    assert found.equal_steps.speed_up == pytest.approx(1.44)
    one = "regions=[{train: [0, 1000], pruning_ratio: 0.3}]"
    finetune = tiny_plan(one, "draw.method=one-shot", "training.steps=100000")
    tuned = _predict(finetune, times, interval=0, dense_steps=800_000).given_steps
    assert tuned is not None
    assert tuned.speed_up == pytest.approx(0.92, abs=0.001)
    assert tuned.hours_saved < 0


def test_a_run_takes_as_long_as_its_slowest_region_and_is_charged_for_all(tiny_plan: MakePlan) -> None:
    times = {0.0: 10.0, 0.3: 5.0, 0.6: 2.0, 0.8: 1.0}
    found = _predict(tiny_plan("training.steps=1000"), times, draw_intervals=7)
    assert [stage.seconds for stage in found.draws] == [7000.0] * 3
    assert found.makespan_s == 12_000.0
    assert found.device_hours * 3600 == pytest.approx(21_000 + 8_000)
    assert found.draw_share == pytest.approx(21 / 29)
    assert found.equal_steps.hours_saved == pytest.approx(1 - 29_000 / 10_000)
    shared = _predict(tiny_plan("draw.scope=shared", "training.steps=1000"), times)
    assert [(stage.name, stage.seconds) for stage in shared.draws] == [("draw/shared", 7000.0)]
    assert shared.makespan_s == 12_000.0


def test_a_queue_must_fill_and_gradients_of_a_mask_cost_steps(tiny_plan: MakePlan) -> None:
    for changes, assumed, steps in (
        (["draw.queue_length=9"], {"draw_intervals": 3}, 9 * 100),
        (["draw.importance=taylor", "draw.importance_timesteps=50"], {}, 7 * (100 + 50)),
        (["draw.method=one-shot"], {"interval": 0}, 0),
    ):
        assert _predict(tiny_plan(HALF, *changes), {0.0: 1.0, 0.5: 1.0}, **assumed).draws[0].steps == steps


def test_the_makespan_is_that_of_the_plans_placement(tiny_plan: MakePlan) -> None:
    """Draws left aside (one mask of a dense start), three regions of 600, 300 and 100 s on three devices."""
    plans = {choice: tiny_plan(*ONE_SHOT, f"placement={choice}") for choice in ("one-per-region", "packed", "balanced")}
    found = {choice: _predict(plan, REGIONS, interval=0, devices=3) for choice, plan in plans.items()}
    assert {choice: one.makespan_s for choice, one in found.items()} == {
        "one-per-region": 600.0,
        "packed": 600.0,
        "balanced": pytest.approx(700 / (2 * 0.9)),  # 600, then 100, on two devices; 300 on the third
    }
    assert found["packed"].device_hours * 3600 == pytest.approx(1000)
    assert found["balanced"].device_hours * 3600 == pytest.approx(300 + 700 / 0.9)
    assert any("balanced, where each doubling keeps 90%" in line for line in found["balanced"].assumptions)


def test_fewer_devices_than_regions_take_the_longest_first(tiny_plan: MakePlan) -> None:
    plan = tiny_plan(*ONE_SHOT)
    assert [_predict(plan, REGIONS, interval=0, devices=count).makespan_s for count in (1, 2, 9)] == [1000, 600, 600]


def test_latents_with_classes_are_timed_without_a_vae(tiny_plan: MakePlan) -> None:
    plan = tiny_plan(LATENT, "data.label_column=label", "data.resolution=32", "data.channels=3")
    samples = random_samples(plan, 4)
    assert samples.rows.shape == (8, 3, 8, 8)
    assert samples.labels is not None
    assert StepTimer(plan, CPU).measure(0.5, 2).seconds > 0


def test_a_plan_without_gpus_is_timed_on_the_cpu(tiny_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu = "ebdiff_orchestrator.reports.estimate.current_world"
    monkeypatch.setattr(with_gpu, lambda use_gpu: World(torch.device("cuda"), 0, 1) if use_gpu else CPU)
    monkeypatch.setattr(StepTimer, "measure", lambda self, ratio, steps: StepTime(1.0, steps, 8, None))
    said: list[str] = []
    assert measure_steps(tiny_plan("workers.gpus=0"), 2, said.append)[1] == "cpu"
    assert said[0].startswith("workers.gpus = 0: these are times of a CPU")


def test_a_slow_cpu_times_a_smaller_batch_the_same_for_all(
    tiny_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At half a second an image, 128 of them three times over would take 192 s."""
    timed: list[int] = []

    def pretend(self: StepTimer, ratio: float, batch_size: int, steps: int) -> tuple[float, None]:
        timed.append(batch_size)
        return 0.5 * (1 - ratio) * batch_size, None

    monkeypatch.setattr(StepTimer, "_time", pretend)
    timer = StepTimer(tiny_plan("training.batch_size=128"), CPU)
    assert [timer.measure(ratio, 5).seconds for ratio in (0.0, 0.5)] == [64.0, 32.0]
    assert timed[1] == timed[2] < 128
    monkeypatch.setattr(timing, "_CPU_BUDGET_S", 1e6)
    assert StepTimer(tiny_plan("training.batch_size=128"), CPU).measure(0.3, 5).batch_size == 128


def test_a_busy_machine_is_noticed(tiny_plan: MakePlan) -> None:
    for seconds, is_busy in ((3.0, True), (0.7, False)):
        found = _predict(tiny_plan(), {0.0: 1.0, 0.3: seconds, 0.6: 0.5, 0.8: 0.4})
        assert any("busy" in line for line in found.assumptions) == is_busy


def test_the_command_times_every_network_prints_json_and_says_what_it_assumes() -> None:
    small = ["--set", "model.block_out_channels=[16, 32]", "--set", "training.batch_size=8"]
    result = CliRunner().invoke(app, ["estimate", "digits", "--json", "--steps", "2", *small], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [network["pruning_ratio"] for network in found["networks"]] == [0.0, 0.3, 0.6, 0.8]
    assert all(network["seconds"] > 0 and network["batch_size"] == 8 for network in found["networks"])
    assert result.stderr.startswith("No GPU here: these are times of a CPU")
    assert result.stderr.count("timing ") == 4
    assert found["given_dense_steps"] is None
    assert any("interval 7, 8 steps" in line for line in found["assumptions"])
