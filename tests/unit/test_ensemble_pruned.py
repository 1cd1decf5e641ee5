"""An ensemble of pruned experts is rebuilt from configs and kept channels, without the pruning library."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from ensemble_fixtures import saved_ensemble

from ebdiff_orchestrator.ensemble import ensemble_of, load_ensemble
from region_workers.networks.pruned_unet import PrunedUNet2DModel, extract_expert
from region_workers.pruning.groups import find_groups
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import compute_mask, kept_channels
from schemas.plan import DiffusionPlan, SamplingPlan

NAMES = ["0-500", "500-1000"]


def pruned_expert(ratio: float, seed: int) -> PrunedUNet2DModel:
    """A two-level UNet with attention, its channels ranked by magnitude and `ratio` of them removed."""
    torch.manual_seed(seed)
    dense = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=None,
    ).eval()
    groups = find_groups(dense, {"sample": torch.zeros(1, 1, 8, 8), "timestep": torch.zeros(1)})
    mask = compute_mask(groups, channel_scores(groups, dict(dense.named_parameters()), "magnitude"), ratio)
    return extract_expert(dense, kept_channels(groups, mask))


@pytest.fixture(scope="module")
def experts() -> list[PrunedUNet2DModel]:
    return [pruned_expert(0.25, 0), pruned_expert(0.75, 1)]


@pytest.fixture(scope="module")
def folder(experts: list[PrunedUNet2DModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "ensemble"
    ensemble_of(experts, [(0, 500), (500, 1000)], NAMES, DiffusionPlan(), SamplingPlan(steps=4)).save_pretrained(path)
    return path


def test_pruned_experts_load_to_their_own_sizes_and_predict_the_same_bits(
    experts: list[PrunedUNet2DModel], folder: Path
) -> None:
    router = load_ensemble(folder).unet
    sizes = [sum(parameter.numel() for parameter in expert.parameters()) for expert in router.experts]
    assert sizes == [sum(parameter.numel() for parameter in expert.parameters()) for expert in experts]
    assert sizes[1] < sizes[0]
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for expert, timestep in zip(experts, (499, 500), strict=True):
            assert torch.equal(router(images, timestep).sample, expert(images, timestep).sample)


def test_plain_diffusers_draws_what_we_draw_from_pruned_experts(folder: Path) -> None:
    options = {"num_inference_steps": 4, "output_type": "np"}
    plain = DiffusionPipeline.from_pretrained(folder)
    images = plain(1, generator=torch.Generator().manual_seed(1), **options).images
    ours = load_ensemble(folder)(1, generator=torch.Generator().manual_seed(1), **options).images
    assert np.array_equal(images, ours)


def test_one_pruned_experts_folder_loads_by_itself(experts: list[PrunedUNet2DModel], folder: Path) -> None:
    alone = PrunedUNet2DModel.from_pretrained(folder / "unet" / NAMES[1])
    images = torch.randn(1, 1, 8, 8)
    assert torch.allclose(alone(images, 700).sample, experts[1](images, 700).sample, atol=1e-6)


def test_ensembles_load_and_draw_without_cluster_pruning_library_or_socket(folder: Path, tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "ensemble")
    program = f"""
import sys
def refuse_sockets(event, arguments): assert not event.startswith("socket."), (event, arguments)
sys.addaudithook(refuse_sockets)
from ebdiff_orchestrator.ensemble import load_ensemble
for path in ({str(folder)!r}, {str(tmp_path)!r}):
    load_ensemble(path)(1)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"ray", "torch_pruning"}}, loaded
ours = {{name for name in sys.modules if name.startswith("ebdiff_orchestrator.")}}
others = {{name for name in ours if not name.startswith("ebdiff_orchestrator.ensemble")}}
assert not others, others
"""
    subprocess.run([sys.executable, "-c", program], timeout=120, check=True)
