"""The VAE of a plan: where it is found, how it scales, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_fixtures import latent_model, save_kl, save_vq
from safetensors.torch import load_file, save_file

from region_workers.data.vae import decode, encode, load_vae
from schemas.errors import PlanError

IMAGES_BCHW = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def edit_config(folder: Path, **values: Any) -> None:
    """Change keys of a VAE's config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@torch.no_grad()
def test_the_latents_of_an_autoencoder_are_its_scaled_means(tmp_path: Path) -> None:
    original = save_kl(tmp_path / "vae", scaling_factor=0.5)
    vae, info = load_vae(latent_model(tmp_path / "vae"), 3)
    latents = encode(vae, IMAGES_BCHW)
    assert latents.shape == (2, 3, 8, 8)
    torch.testing.assert_close(latents, original.encode(IMAGES_BCHW).latent_dist.mean * 0.5)
    torch.testing.assert_close(decode(vae, latents), original.decode(latents / 0.5).sample)
    assert (info.class_name, info.scaling_factor, info.shift_factor) == ("AutoencoderKL", 0.5, None)


@torch.no_grad()
def test_a_sample_of_the_posterior_is_as_far_from_its_mean_as_the_posterior_is_wide(tmp_path: Path) -> None:
    original = save_kl(tmp_path / "vae", scaling_factor=0.5)
    vae, _ = load_vae(latent_model(tmp_path / "vae"), 3)
    latents = encode(vae, IMAGES_BCHW, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    posterior = original.encode(IMAGES_BCHW).latent_dist
    noise = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    torch.testing.assert_close(latents, (posterior.mean + posterior.std * noise) * 0.5)


@pytest.mark.parametrize("asked", [None, "sample", "mode"])
def test_only_an_autoencoder_has_a_posterior_of_which_a_sample_is_taken_unless_the_plan_says_mode(
    asked: str | None, tmp_path: Path
) -> None:
    save_kl(tmp_path / "kl")
    save_vq(tmp_path / "vq")
    assert load_vae(latent_model(tmp_path / "kl", posterior=asked))[1].posterior == (asked or "sample")
    if asked is None:
        assert load_vae(latent_model(tmp_path / "vq"))[1].posterior is None
    else:
        with pytest.raises(PlanError, match=rf"model\.posterior = {asked}: expected null, .* is a VQModel"):
            load_vae(latent_model(tmp_path / "vq", posterior=asked))


@torch.no_grad()
def test_the_latents_of_a_vq_model_are_quantised_by_its_decoder_only(tmp_path: Path) -> None:
    original = save_vq(tmp_path / "vae")
    vae, _ = load_vae(latent_model(tmp_path / "vae"), 3)
    latents = encode(vae, IMAGES_BCHW)
    torch.testing.assert_close(latents, original.quant_conv(original.encoder(IMAGES_BCHW)))
    quantised = original.quantize(latents)[0]
    assert not torch.allclose(latents, quantised)
    torch.testing.assert_close(decode(vae, latents), decode(vae, quantised))


@torch.no_grad()
def test_a_shift_is_taken_off_before_scaling_and_put_back(tmp_path: Path) -> None:
    original = save_kl(tmp_path / "vae", scaling_factor=2.0, shift_factor=0.25)
    vae, info = load_vae(latent_model(tmp_path / "vae"), 3)
    means = original.encode(IMAGES_BCHW).latent_dist.mean
    torch.testing.assert_close(encode(vae, IMAGES_BCHW), (means - 0.25) * 2)
    torch.testing.assert_close(decode(vae, encode(vae, IMAGES_BCHW)), original.decode(means).sample)
    assert info.shift_factor == 0.25


def test_it_is_ready_for_use_and_not_for_training(tmp_path: Path) -> None:
    save_kl(tmp_path / "vae")
    vae, _ = load_vae(latent_model(tmp_path / "vae"))
    assert not vae.training
    assert {(p.dtype, p.requires_grad) for p in vae.parameters()} == {(torch.float32, False)}


@pytest.mark.parametrize("place", ["", "vae", "vqvae", "vqmodel"])
def test_it_is_found_in_a_pipeline(place: str, tmp_path: Path) -> None:
    save_vq(tmp_path / "pipeline" / place)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert load_vae(latent_model(tmp_path / "pipeline"))[1].class_name == "VQModel"


def test_a_named_subfolder_is_taken(tmp_path: Path) -> None:
    save_vq(tmp_path / "vae")
    save_kl(tmp_path / "other")
    assert load_vae(latent_model(tmp_path))[1].class_name == "VQModel"
    assert load_vae(latent_model(tmp_path, vae_subfolder="other"))[1].class_name == "AutoencoderKL"


@pytest.mark.parametrize(("save", "unsaid"), [(save_kl, 0.18215), (save_vq, 1.0)], ids=["kl", "vq"])
def test_the_scaling_factor_is_the_plans_or_the_files_or_that_of_the_kind(
    save: Any, unsaid: float, tmp_path: Path
) -> None:
    save(tmp_path / "vae", scaling_factor=0.3)
    model = latent_model(tmp_path / "vae")
    assert load_vae(model)[1].scaling_factor == 0.3
    assert load_vae(model.model_copy(update={"scaling_factor": 0.7}))[1].scaling_factor == 0.7
    edit_config(tmp_path / "vae", scaling_factor=None)
    assert load_vae(model)[1].scaling_factor == unsaid


def test_a_vae_that_is_saved_again_is_the_same_one_with_the_scaling_in_force(tmp_path: Path) -> None:
    save_kl(tmp_path / "vae")
    vae, info = load_vae(latent_model(tmp_path / "vae", scaling_factor=0.7))
    vae.save_pretrained(tmp_path / "again")
    assert load_vae(latent_model(tmp_path / "again"))[1] == info
    assert load_vae(latent_model(tmp_path / "vae"))[1].digest != info.digest


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    save_kl(tmp_path / "a")
    save_kl(tmp_path / "b", seed=1)
    assert load_vae(latent_model(tmp_path / "a"))[1].digest != load_vae(latent_model(tmp_path / "b"))[1].digest


def test_a_file_without_all_weights_is_refused_for_the_others_would_be_made_up(tmp_path: Path) -> None:
    save_vq(tmp_path / "vae")
    file = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(PlanError, match=r"does not load as VQModel \(there are no weights decoder\.conv_in\.weight\)"):
        load_vae(latent_model(tmp_path / "vae"))


def test_a_quantiser_of_its_own_width_decides_the_channels(tmp_path: Path) -> None:
    save_vq(tmp_path / "vae", vq_embed_dim=4)
    load_vae(latent_model(tmp_path / "vae", latent_channels=4))
    with pytest.raises(PlanError, match=r"model\.latent_channels = 3: expected 4"):
        load_vae(latent_model(tmp_path / "vae"))


def test_a_hub_name_is_downloaded_without_what_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vq(tmp_path / "snapshot" / "vqvae")
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        asked.extend([name, *allow_patterns])
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_vae(latent_model(Path("some/pipeline")))[1].class_name == "VQModel"
    assert asked[0] == "some/pipeline"
    assert "vqvae/diffusion_pytorch_model.safetensors" in asked
    assert not [pattern for pattern in asked if "unet" in pattern or ".bin" in pattern]


def test_a_hub_that_does_not_answer_is_a_problem_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(PlanError, match=r"model\.vae = some/pipeline: .*the hub gives none \(no network\)"):
        load_vae(latent_model(Path("some/pipeline")))
