"""What plain diffusers can do with an ensemble folder, as the README says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.pipelines import pipeline_loading_utils
from ensemble_fixtures import saved_ensemble, seeded, tiny_experts

from ebdiff_orchestrator.ensemble import ListDDIMScheduler, TimestepRouter, load_ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "ensemble"
    saved_ensemble(path)
    return path


def drawn_by(pipe: object) -> np.ndarray:
    """As DDPMPipeline takes its options."""
    return pipe(2, generator=seeded(1, 2), num_inference_steps=6, output_type="np").images


@pytest.mark.parametrize("kind", ["pixels", "pruned", "packed"])
def test_plain_diffusers_loads_it_and_draws_our_bits(kind: str, tmp_path: Path) -> None:
    saved_ensemble(tmp_path, kind=kind)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert [type(pipe), type(pipe.unet), type(pipe.scheduler)] == [DDPMPipeline, TimestepRouter, ListDDIMScheduler]
    assert np.array_equal(drawn_by(pipe), drawn_by(load_ensemble(tmp_path)))


@pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_plain_diffusers_draws_our_bits_with_its_own_schedulers(kind: type, folder: Path) -> None:
    pipes = DiffusionPipeline.from_pretrained(folder), load_ensemble(folder)
    for pipe in pipes:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    assert np.array_equal(*map(drawn_by, pipes))


def test_plain_diffusers_loads_it_in_half_precision(folder: Path) -> None:
    assert DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_what_plain_diffusers_saves_loads_again(folder: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["ebdiff_orchestrator.ensemble.router", "TimestepRouter"]
    assert np.array_equal(drawn_by(load_ensemble(tmp_path)), drawn_by(pipe))


def test_one_experts_folder_is_an_ordinary_model(folder: Path) -> None:
    alone = UNet2DModel.from_pretrained(folder / "unet" / "240-460", low_cpu_mem_usage=False)
    images = torch.randn(1, 1, 8, 8)
    assert torch.allclose(alone(images, 300).sample, tiny_experts()[1](images, 300).sample, atol=1e-6)


def test_without_our_import_diffusers_says_what_to_import_and_with_it_neither_cluster_nor_socket_is_touched(
    folder: Path, tmp_path: Path
) -> None:
    for kind in ("classes", "pruned"):
        saved_ensemble(tmp_path / kind, kind=kind)
    program = """
import sys
def refuse_sockets(event, arguments): assert not event.startswith("socket."), (event, arguments)
sys.addaudithook(refuse_sockets)
from diffusers import DiffusionPipeline
plain, pruned, classes = sys.argv[1:]
for folder, options in ((classes, {}), (plain, {}), (plain, {"trust_remote_code": True})):
    try:
        print(type(DiffusionPipeline.from_pretrained(folder, **options)))
    except Exception as error:
        print(repr(error))
from ebdiff_orchestrator.ensemble import load_ensemble
for folder in (plain, pruned):
    load_ensemble(folder)(1)
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"ray", "torch_pruning"}, loaded
ours = {name for name in sys.modules if name.startswith("ebdiff_orchestrator.")}
others = {name for name in ours if not name.startswith("ebdiff_orchestrator.ensemble")}
assert not others, others
"""
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "pruned"), str(tmp_path / "classes")]
    loader = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    with_classes, *without = loader.stdout.splitlines()
    assert "Error" in with_classes
    assert "EnsemblePipeline" in with_classes
    imports = hasattr(pipeline_loading_utils, "_get_library_or_raise")  # older diffusers imports what the folder names
    for told in without:
        assert ("import ebdiff_orchestrator.ensemble." if imports else "DDPMPipeline") in told


def test_device_map_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(ValueError, match="Load the ensemble first"):
        TimestepRouter.from_pretrained(folder / "unet", device_map={"": "cpu"})
    with pytest.raises(ValueError, match="without device_map"):  # how a pipeline plans a device_map
        TimestepRouter.from_config(TimestepRouter.load_config(folder / "unet"))
