"""What plain diffusers can do with an ensemble folder, as the README says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, UNet2DModel
from diffusers.pipelines import pipeline_loading_utils
from ensemble_fixtures import saved_ensemble

from ebdiff_orchestrator.ensemble import EnsemblePipeline, ListDDIMScheduler, TimestepRouter, load_ensemble


def draw(pipe: object, **options: object) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipe(2, generator=generators, num_inference_steps=6, output_type="np", **options).images


def test_plain_diffusers_loads_it_and_draws_our_bits(tmp_path: Path) -> None:
    saved_ensemble(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert [type(pipe), type(pipe.unet), type(pipe.scheduler)] == [DDPMPipeline, TimestepRouter, ListDDIMScheduler]
    assert np.array_equal(draw(pipe), draw(load_ensemble(tmp_path)))


def test_our_pipeline_class_loads_it_the_diffusers_way_with_the_ensembles_own_steps(tmp_path: Path) -> None:
    saved_ensemble(tmp_path)
    pipe = EnsemblePipeline.from_pretrained(tmp_path)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert np.array_equal(pipe(2, generator=generators, output_type="np").images, draw(load_ensemble(tmp_path)))


def test_plain_diffusers_loads_it_in_half_precision(tmp_path: Path) -> None:
    saved_ensemble(tmp_path)
    assert DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_what_plain_diffusers_saves_loads_again(tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "ours")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    pipe.save_pretrained(tmp_path / "theirs")
    index = json.loads((tmp_path / "theirs" / "model_index.json").read_text())
    assert index["unet"] == ["ebdiff_orchestrator.ensemble.router", "TimestepRouter"]
    assert np.array_equal(draw(load_ensemble(tmp_path / "theirs")), draw(pipe))


def test_one_experts_folder_is_an_ordinary_model(tmp_path: Path) -> None:
    experts = saved_ensemble(tmp_path)
    alone = UNet2DModel.from_pretrained(tmp_path / "unet" / "240-460", low_cpu_mem_usage=False)
    images = torch.randn(1, 1, 8, 8)
    assert torch.allclose(alone(images, 300).sample, experts[1](images, 300).sample, atol=1e-6)


@pytest.mark.parametrize("options", ["", ", trust_remote_code=True"])
def test_without_our_import_diffusers_says_what_to_import(tmp_path: Path, options: str) -> None:
    saved_ensemble(tmp_path)
    program = f"from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained({str(tmp_path)!r}{options})"
    loader = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    if hasattr(pipeline_loading_utils, "_get_library_or_raise"):
        assert loader.returncode == 1
        assert "import ebdiff_orchestrator.ensemble." in loader.stderr
    else:  # older diffusers imports what the folder names
        assert loader.returncode == 0, loader.stderr


def test_device_map_is_refused_with_the_remedy(tmp_path: Path) -> None:
    saved_ensemble(tmp_path)
    with pytest.raises(ValueError, match="Load the ensemble first"):
        TimestepRouter.from_pretrained(tmp_path / "unet", device_map={"": "cpu"})
    with pytest.raises(ValueError, match="without device_map"):  # how a pipeline plans a device_map
        TimestepRouter.from_config(TimestepRouter.load_config(tmp_path / "unet"))
