"""The paper's baselines as plans: a trained dense network pruned once, and finetuned or trained from scratch."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ONE_REGION, MakeJobs, MakePlan
from diffusers import UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file

from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.run.resolve import adopt_dense
from region_workers.networks.pruned_unet import PrunedUNet2DModel
from region_workers.storage.tables import read_masks
from region_workers.worker.run import run_job
from schemas.job import WEIGHTS_FILE, Ticket
from schemas.plan import Plan

DENSE = "regions=[{train: [0, 1000], pruning_ratio: 0, name: all}]"


@pytest.fixture(scope="module")
def dense_folder(tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained expert of a dense run."""
    folder = tmp_path_factory.mktemp("dense")
    (job,) = make_jobs(tiny_plan(DENSE, "training.steps=4"), folder)
    run_job(job)
    return folder / "train/all/expert"


def _run(plan: Plan, make_jobs: MakeJobs, folder: Path) -> tuple[Ticket, PrunedUNet2DModel]:
    """The ticket and the expert as it was drawn, after the whole job."""
    plan, _ = adopt_dense(plan)
    (job,) = make_jobs(plan, folder)
    run_job(job)
    drawn = folder / "draw/all/tickets/all"
    ticket = Ticket.model_validate_json((drawn / "ticket.json").read_text())
    assert (folder / "train/all/expert" / WEIGHTS_FILE).is_file()
    return ticket, PrunedUNet2DModel.from_pretrained(drawn / "expert")


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "diff-pruning", "random"])
def test_one_shot_prunes_the_trained_network_and_keeps_its_weights(
    tiny_plan: MakePlan, make_jobs: MakeJobs, dense_folder: Path, tmp_path: Path, importance: str
) -> None:
    plan = tiny_plan(
        ONE_REGION,
        "draw.method=one-shot",
        f"draw.importance={importance}",
        "draw.importance_timesteps=3",
        f"model.pretrained={dense_folder}",
        "training.steps=2",
    )
    ticket, expert = _run(plan, make_jobs, tmp_path / "run")
    assert (ticket.step, ticket.interval, ticket.importance) == (0, 0, importance)
    (mask,) = read_masks(tmp_path / "run/draw/all/masks.arrow")
    assert mask["step"] == 0
    trained = load_file(dense_folder / WEIGHTS_FILE)["conv_in.weight"]
    kept = ticket.kept_channels["conv_in"].outputs
    assert kept is not None
    assert len(kept) == 8
    assert torch.equal(expert.conv_in.weight, trained[list(kept)])


def test_scratch_keeps_the_channels_of_the_trained_network_and_none_of_its_weights(
    tiny_plan: MakePlan, make_jobs: MakeJobs, dense_folder: Path, tmp_path: Path
) -> None:
    changes = (ONE_REGION, "draw.method=one-shot", f"model.pretrained={dense_folder}", "training.steps=2")
    finetuned, inherited = _run(tiny_plan(*changes), make_jobs, tmp_path / "finetune")
    scratch, fresh = _run(tiny_plan(*changes, "draw.inherit_weights=false"), make_jobs, tmp_path / "scratch")
    _, again = _run(tiny_plan(*changes, "draw.inherit_weights=false"), make_jobs, tmp_path / "again")
    assert scratch.kept_channels == finetuned.kept_channels
    for name, weight in fresh.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
    assert not torch.equal(fresh.conv_in.weight, inherited.conv_in.weight)
    assert fresh.conv_in.weight.shape == inherited.conv_in.weight.shape


def test_slim_has_the_widths_of_a_ticket_and_fresh_weights_and_makes_no_dense_ones(
    tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (ONE_REGION, "training.steps=1")
    drawn, inherited = _run(tiny_plan(*short, "draw.threshold=1"), make_jobs, tmp_path / "eb")
    devices = []
    build = UNet2DModel.__init__

    @functools.wraps(build)
    def noted(self: UNet2DModel, *args: object, **kwargs: object) -> None:
        devices.append(torch.empty(0).device.type)
        build(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DModel, "__init__", noted)
    slim, fresh = _run(tiny_plan(*short, "draw.method=slim"), make_jobs, tmp_path / "slim")
    assert set(devices) == {"meta"}
    _, again = _run(tiny_plan(*short, "draw.method=slim"), make_jobs, tmp_path / "again")
    _, other = _run(tiny_plan(*short, "draw.method=slim", "seed=1"), make_jobs, tmp_path / "other")
    assert (slim.importance, slim.step, slim.realised_ratio) == ("none", 0, drawn.realised_ratio)
    assert {name: p.shape for name, p in fresh.named_parameters()} == {
        name: p.shape for name, p in inherited.named_parameters()
    }
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in fresh.named_parameters())
    assert not torch.equal(fresh.conv_in.weight, inherited.conv_in.weight)
    assert not torch.equal(fresh.conv_in.weight, other.conv_in.weight)


def test_a_dense_start_trains_on_when_nothing_is_pruned(
    tiny_plan: MakePlan, make_jobs: MakeJobs, dense_folder: Path, tmp_path: Path
) -> None:
    ticket, expert = _run(tiny_plan(DENSE, f"model.pretrained={dense_folder}"), make_jobs, tmp_path / "run")
    assert ticket.kept_channels == {}
    assert torch.equal(expert.conv_in.weight, load_file(dense_folder / WEIGHTS_FILE)["conv_in.weight"])


def test_the_network_comes_from_the_folder_and_not_from_the_plans_defaults(dense_folder: Path) -> None:
    plan = Plan.model_validate({"model": {"pretrained": str(dense_folder)}})
    adopted, source = adopt_dense(plan)
    assert adopted.model.block_out_channels == (16, 32)
    assert source is not None
    assert source.cost is None
    assert adopt_dense(adopted)[0] == adopted


def test_a_network_with_what_a_plan_has_no_form_for_keeps_it_and_can_be_resumed(tmp_path: Path) -> None:
    shape = {"sample_size": None, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DConditionModel(
        **shape,
        **blocks,
        block_out_channels=(16, 32),
        layers_per_block=(1, 2),
        mid_block_type="UNetMidBlock2D",
        resnet_time_scale_shift="scale_shift",
    )
    network.save_pretrained(tmp_path / "network")
    plan, source = adopt_dense(Plan.model_validate({"model": {"pretrained": str(tmp_path / "network")}}))
    assert plan.model.block_out_channels == (16, 32)
    again = Plan.model_validate_json(plan.model_dump_json())  # every field counts as written by its author
    assert adopt_dense(again) == (plan, source)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert preview_plan(plan).dense.params == parameters
    shutil.rmtree(tmp_path / "network")
    assert preview_plan(plan, source).dense.params == parameters
