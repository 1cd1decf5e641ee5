"""The router runs only the owner of each timestep and is saved and loaded whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from ensemble_fixtures import NAMES, ROUTES, markers, tiny_experts, tiny_unet

from ebdiff_orchestrator.ensemble import TimestepRouter
from region_workers.storage.integrity import seal_folder
from schemas.errors import UserError

X = torch.zeros(1, 1, 2, 2)
WEIGHTS = "diffusion_pytorch_model.safetensors"
HOST_TIMESTEPS = [300, 300.5, torch.tensor(300), torch.tensor([5, 300, 900])]


@pytest.mark.parametrize(
    ("timestep", "owner"),
    [(0, 0), (259, 0), (260, 1), (439, 1), (440, 2), (999, 2), (259.9, 0), (439.5, 1), (999.9, 2)],
)
def test_only_the_owner_of_a_timestep_runs(timestep: float, owner: int) -> None:
    experts, router = markers()
    for form in (timestep, torch.tensor(timestep, dtype=torch.float64), torch.tensor([timestep], dtype=torch.float64)):
        prediction = router(X, form).sample
        assert int(prediction.flatten()[0] // 1e6) == owner
    assert [len(expert.calls) for expert in experts] == [3 if index == owner else 0 for index in range(3)]


@pytest.mark.parametrize("timestep", [-1, -0.5, 1000, 1e9, float("nan"), float("inf")])
def test_a_timestep_that_no_expert_owns_is_an_error_naming_it_and_the_range(timestep: float) -> None:
    _, router = markers()
    for form in (timestep, torch.tensor(timestep)):
        with pytest.raises(ValueError, match=r"timestep = .*0 <= timestep < 1000") as caught:
            router(X, form)
        assert str(timestep).removesuffix(".0").split("e")[0] in str(caught.value)


def test_a_batch_of_mixed_timesteps_comes_back_in_order_with_its_conditioning() -> None:
    experts, router = markers()
    timesteps = torch.tensor([700, 3, 300, 100, 999])
    labels = torch.arange(5) * 1000.0
    prediction = router(torch.zeros(5, 1, 2, 2), timesteps, labels=labels).sample[:, 0, 0, 0]
    owners = torch.tensor([2, 0, 1, 0, 2])
    assert torch.equal(prediction, owners * 1e6 + timesteps + labels)
    assert [expert.calls for expert in experts] == [[2], [1], [2]]


def test_mixed_timesteps_give_what_each_expert_gives_alone() -> None:
    experts = tiny_experts(num_class_embeds=3)
    router = TimestepRouter(experts, ROUTES, NAMES).eval()
    images = torch.randn(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 0])
    timesteps = torch.tensor([500, 10, 300, 20])
    with torch.no_grad():
        together = router(images, timesteps, class_labels=labels).sample
        positional = router(images, timesteps, labels, return_dict=False)[0]
        for row, owner in enumerate([2, 0, 1, 0]):
            one = slice(row, row + 1)
            alone = experts[owner](images[one], int(timesteps[row]), class_labels=labels[one]).sample
            assert torch.allclose(together[one], alone, atol=1e-6)
    assert torch.equal(together, positional)


def test_a_number_gives_the_bits_that_the_expert_itself_gives() -> None:
    experts = tiny_experts()
    router = TimestepRouter(experts, ROUTES, NAMES)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(router(images, 300).sample, experts[1](images, 300).sample)


def test_a_fraction_reaches_the_expert_unrounded() -> None:
    experts, router = markers()
    assert router(X, 259.75).sample.flatten()[0].item() == 259.75
    assert experts[0].calls


def test_the_wrong_number_of_timesteps_is_an_error() -> None:
    _, router = markers()
    with pytest.raises(ValueError, match="2 values: expected 1 or 3"):
        router(torch.zeros(3, 1, 2, 2), torch.tensor([1, 2]))


@pytest.mark.parametrize("timestep", HOST_TIMESTEPS)
def test_numbers_and_host_tensors_never_read_from_the_device(timestep: object) -> None:
    # A meta tensor has no values: reading one raises.
    router = TimestepRouter(tiny_experts(), ROUTES, NAMES).to("meta")
    assert router(torch.zeros(3, 1, 8, 8, device="meta"), timestep).sample.shape == (3, 1, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("timestep", HOST_TIMESTEPS)
def test_numbers_and_host_tensors_make_no_wait_for_a_gpu(timestep: object) -> None:
    router = TimestepRouter(tiny_experts(), ROUTES, NAMES).to("cuda")
    images = torch.zeros(3, 1, 8, 8, device="cuda")
    router(images, timestep)
    torch.cuda.set_sync_debug_mode("error")
    try:
        router(images, timestep)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("routes", [(0, 260), (240, 440), (440, 1000)]),
        ("routes", [(0, 260), (270, 440), (440, 1000)]),
        ("routes", [(1, 260), (260, 440), (440, 1000)]),
        ("routes", [(260, 440), (0, 260), (440, 1000)]),
        ("routes", [(0, 260), (260, 260), (260, 1000)]),
        *[("names", names) for names in (["a", "a", "b"], ["a", "b"], ["..", "a", "b"], ["a/b", "c", "d"])],
        *[("in_channels", 3), ("out_channels", 2), ("sample_size", 16), ("num_class_embeds", 4)],  # of one expert
    ],
)
def test_no_partition_names_that_are_no_folders_and_experts_that_disagree_are_refused(field: str, value: Any) -> None:
    given: dict[str, Any] = {"routes": ROUTES, "names": NAMES, field: value}
    other = {} if field in ("routes", "names") else {field: value}
    with pytest.raises(UserError, match=field):
        TimestepRouter([tiny_unet(), tiny_unet(**other), tiny_unet()], given["routes"], given["names"])


def test_the_config_has_what_pipelines_read() -> None:
    router = TimestepRouter(tiny_experts(), ROUTES, NAMES)
    assert (router.config.sample_size, router.config.in_channels, router.config.out_channels) == (8, 1, 1)
    assert router.config.names == NAMES
    assert router.dtype == torch.float32
    assert router.to(torch.bfloat16).dtype == torch.bfloat16
    assert router.device.type == "cpu"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    TimestepRouter(tiny_experts(), ROUTES, NAMES).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def test_a_saved_router_loads_to_the_same_bits_as_plain_files(saved: Path) -> None:
    files = sorted(str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file())
    of_experts = [f"{name}/{file}" for name in NAMES for file in ("config.json", WEIGHTS)]
    assert files == sorted(["config.json", "seal.json", *of_experts])
    router, loaded = TimestepRouter(tiny_experts(), ROUTES, NAMES), TimestepRouter.from_pretrained(saved)
    images, timesteps = torch.randn(3, 1, 8, 8), torch.tensor([5, 300, 900])
    assert torch.equal(loaded(images, timesteps).sample, router(images, timesteps).sample)
    assert loaded.config.routes == [list(route) for route in ROUTES]
    assert not loaded.training


def test_a_router_loads_in_the_asked_precision_and_from_a_subfolder(saved: Path) -> None:
    loaded = TimestepRouter.from_pretrained(saved.parent, subfolder="unet", torch_dtype=torch.float16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


def test_weights_that_do_not_fit_their_config_are_refused(saved: Path) -> None:
    shutil.copy(*[saved / name / WEIGHTS for name in NAMES[:2]])
    seal_folder(saved)
    with pytest.raises(UserError, match=r"240-460: expected weights that fit"):
        TimestepRouter.from_pretrained(saved)


def test_saving_over_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="new or empty folder"):
        TimestepRouter(tiny_experts(), ROUTES, NAMES).save_pretrained(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_pickles_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="safe_serialization"):
        TimestepRouter(tiny_experts(), ROUTES, NAMES).save_pretrained(tmp_path / "unet", safe_serialization=False)


def test_where_an_expert_was_loaded_from_is_not_saved_with_it(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "dense")
    expert = UNet2DModel.from_pretrained(tmp_path / "dense", low_cpu_mem_usage=False)
    TimestepRouter([expert], [(0, 1000)], ["all"]).save_pretrained(tmp_path / "unet")
    assert str(tmp_path) not in (tmp_path / "unet" / "all" / "config.json").read_text()
