"""What runs on a GPU, on a pretended one: no tensor is left on the host, or has a dtype that does not fit.

Jobs run whole, as a worker runs them: draws by each importance, trainings with each option, a checkpoint and how it is
gone on from. Ensembles are loaded and drawn from whole. Not shown: what a kernel computes, memory, streams and pinned
memory; DDP, whose reducer reads addresses; `torch.compile`, which passes over what runs under a dispatch mode, as all
does here. tests/gpu has those.
"""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL
from pretended_device import ACCELERATOR, CUDA, pretended
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError  # type: ignore[attr-defined]

from ebdiff_orchestrator.ensemble import ensemble_of, load_ensemble
from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data import batches
from region_workers.data.samples import Samples
from region_workers.networks.dense import build_dense
from region_workers.networks.pruned_unet import extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import compute_mask, kept_channels
from region_workers.training import timing
from region_workers.training.device import World
from region_workers.training.family import family_of
from region_workers.training.timing import random_samples, timing_job
from region_workers.training.trainer import Trainer
from region_workers.worker import run as worker
from schemas.plan import Plan

_UNET = {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 2}
_PIXELS = {**_UNET, "down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"]}
_LATENTS = {**_UNET, "family": "latent", "vae": "vae", "latent_channels": 3, "latent_downscale": 2}
_LATENTS |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
_CROSS = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
_CLASSES = {"num_classes": 3, "label_dropout": 0.2}
MODELS: dict[str, dict[str, Any]] = {
    "pixels": _PIXELS,
    "pixels with classes": {**_PIXELS, **_CLASSES},
    "latents": _LATENTS,
    "latents with classes": {**_LATENTS, **_CLASSES},
    "latents that attend to classes": {**_LATENTS, **_CROSS, "attention_head_dim": 4, **_CLASSES},
    "drawings": {"family": "vector", "hidden_size": 8, "num_layers": 2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16, channels last, dropout, RigL, Taylor": {
        "training": {"precision": "bf16", "channels_last": True},
        "model": {"dropout": 0.1},
        "draw": {"importance": "taylor", "importance_timesteps": 1},
        "sparsity": {"method": "rigl", "interval_steps": 1, "stop_share": 1.0},
    },
    "SpeeD, AdamW, MagRan, Diff-Pruning in sequence": {
        "training": {"timesteps": {"sampling": "speed", "weighting": "speed"}, "weight_decay": 0.01},
        "draw": {"importance": "diff-pruning", "importance_timesteps": 2, "scoring": "sequential"},
        "sparsity": {"method": "magran", "interval_steps": 1, "stop_share": 1.0},
    },
    "Min-SNR, decay, no clip, static masks, magnitude of the EMA": {
        "training": {"timesteps": {"weighting": "min-snr"}, "learning_rate_decay": 0.9, "gradient_clip": None},
        "draw": {"weights": "ema"},
        "sparsity": {"method": "static"},
    },
    "P2, no EMA, two parts, random": {
        "training": {"timesteps": {"weighting": "p2"}, "ema_decay": None, "gradient_accumulation": 2},
        "draw": {"importance": "random"},
    },
}
_BF16, _SPEED, _MIN_SNR, _P2 = OPTIONS
JOBS = [("pixels with classes", _BF16), ("latents with classes", _BF16), ("latents", _P2), ("pixels", _SPEED)]
JOBS += [("latents that attend to classes", _MIN_SNR), ("drawings", _SPEED), ("drawings", _MIN_SNR)]
POINTS = 3  # of a drawing; each is a step of its network
SAMPLINGS = [(model, None, False) for model in MODELS]
SAMPLINGS += [
    ("latents with classes", torch.bfloat16, True),
    ("pixels", torch.float16, False),
    ("drawings", None, True),
]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timing, "POINTS_COUNTED", POINTS)
    with pretended(monkeypatch):
        yield


class _Store(NamedTuple):
    of: Plan

    def samples(self) -> Samples:
        return random_samples(self.of, 8)


@pytest.mark.parametrize(("model", "option"), JOBS)
def test_a_job_keeps_to_its_device(model: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, states, state_of = _plan(model, OPTIONS[option]), [], Trainer.state_tensors

    def state_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
        states.append(state_of(trainer))
        return states[-1]

    monkeypatch.setattr(Trainer, "state_tensors", state_tensors)
    monkeypatch.setattr(worker, "current_world", lambda *_: World(ACCELERATOR, 0, 1))
    monkeypatch.setattr(worker, "_open_store", lambda *_: _Store(plan))
    for steps in (1, 2) if option == _SPEED else (2,):
        longer = plan.model_copy(update={"training": plan.training.model_copy(update={"steps": steps})})
        outline = outline_jobs(longer, Inputs("", None))[0]
        worker.run_job(worker_job(longer, outline, tmp_path, Inputs("", None), attempt=steps))
    elsewhere = {name for name, tensor in states[-1].items() if tensor.device != ACCELERATOR}
    assert {name.split(".")[0] for name in elsewhere} <= {"losses", "ever_kept"}  # the host's own


@pytest.mark.parametrize("model", MODELS)
def test_batches_and_pruning_keep_to_cuda(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(model, {})
    for resident_bytes in (0, batches.RESIDENT_LIMIT_BYTES):
        monkeypatch.setattr(batches, "RESIDENT_LIMIT_BYTES", resident_bytes)
        family = family_of(timing_job(plan), random_samples(plan, 8), CUDA, data_seed=0)
        batch = family.batch(1, slice(1, 3))
    with torch.no_grad():
        network = family.build_dense().to(CUDA)
        groups = find_groups(network, network_inputs(network))
        on_device, on_host = (
            compute_mask(groups, [torch.zeros(group.size, device=device) for group in groups], 0.5)
            for device in (CUDA, "cpu")
        )
        expert = extract_expert(network, kept_channels(groups, on_host))
        predicted = family.predict(expert, batch, batch.clean, torch.zeros(2, dtype=torch.long, device=CUDA))
    assert {on_device.device, batch.clean.device, predicted.device} == {CUDA}
    assert {weight.device for weight in expert.state_dict().values()} == {CUDA}


@pytest.mark.parametrize(("model", "dtype", "offload"), SAMPLINGS)
def test_sampling_keeps_to_cuda(model: str, dtype: torch.dtype | None, offload: bool, tmp_path: Path) -> None:
    plan = _plan(model, {})
    experts = [build_dense(plan.model, plan.data) for _ in range(2)]
    tiny = {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": 3}
    vae = AutoencoderKL(**tiny) if plan.model.family == "latent" else None
    saved = ensemble_of(experts, [(0, 500), (500, 1000)], ["early", "late"], plan.diffusion, plan.sampling, vae)
    saved.save_pretrained(tmp_path / "ensemble")
    pipeline = load_ensemble(tmp_path / "ensemble", dtype, CUDA, offload=offload)
    options: dict[str, Any] = {"lengths": [3, 5], "output_type": "rows"} if model == "drawings" else {}
    if plan.model.num_classes:
        options = {"class_labels": [0, 1], "guidance_scale": 3.0}
    generator = [torch.Generator(CUDA), torch.Generator(CUDA)]
    pipeline(batch_size=2, generator=generator, num_inference_steps=3, eta=1.0, show_progress=False, **options)
    shape = (5, 3) if model == "drawings" else (3 if vae else 1, *[4 if vae else 8] * 2)
    rows = torch.zeros(2, *shape, dtype=dtype or torch.float32, device=CUDA)
    labels = {"class_labels": torch.zeros(2, dtype=torch.long, device=CUDA)} if plan.model.num_classes else {}
    assert pipeline.unet(rows, torch.tensor([10, 700]), **labels).sample.device == CUDA  # two owners


def test_what_is_left_on_the_host_is_found() -> None:
    plan = _plan("pixels", {})
    family = family_of(timing_job(plan), random_samples(plan, 8), CUDA, data_seed=0)
    batch, network = family.batch(0, slice(None)), family.build_dense()
    with torch.no_grad(), pytest.raises(FakeTensorDeviceMismatchError):
        family.predict(network, batch, batch.clean, torch.zeros(4, dtype=torch.long, device=CUDA))


def _plan(name: str, option: dict[str, Any]) -> Plan:
    model = MODELS[name]
    images = {"resolution": 8, "channels": 3 if "vae" in model else 1, "random_flip": True}
    labels = {"label_column": "label"} if "num_classes" in model else {}
    sections: dict[str, dict[str, Any]] = {
        "model": copy.deepcopy(model),
        "data": {"path": "samples", **({"drawings": {}} if name == "drawings" else {**images, **labels})},
        "training": {"batch_size": 4, "steps": 2, "ema_decay": 0.9, "gradient_clip": 1.0},
        "draw": {"interval_steps": 1, "queue_length": 2, "threshold": 1.0},
    }
    given = {key: {**sections.get(key, {}), **section} for key, section in {**sections, **option}.items()}
    regions = [{"train": [0, 1000], "pruning_ratio": 0.5}]
    return plan_from_values({"name": "pretended", "logging": {"interval_steps": 1}, "regions": regions, **given})


if __name__ == "__main__":
    sys.exit(pytest.main(["-n", "0", "-q", "-p", "no:cacheprovider", __file__]))
