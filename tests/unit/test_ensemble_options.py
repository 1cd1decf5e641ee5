"""Precision, offloading and compiling change how an ensemble is sampled, not what it draws."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from ensemble_fixtures import NAMES, draw, saved_ensemble
from torch._dynamo.utils import counters

from ebdiff_orchestrator.ensemble import EnsemblePipeline, load_ensemble, routes
from schemas.errors import UserError
from schemas.plan import SamplingPlan

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "ensemble"
    saved_ensemble(path)
    return path


@pytest.fixture
def compilations() -> Iterator[dict[str, int]]:
    """torch's own count, from zero, of what it compiled."""
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def with_weights(pipeline: EnsemblePipeline) -> list[int]:
    """The experts whose weights are in memory."""
    experts = enumerate(pipeline.unet.experts)
    return [index for index, expert in experts if all(weight.device.type != "meta" for weight in expert.parameters())]


def test_a_precision_that_does_not_fit_is_refused_and_says_what_does(folder: Path) -> None:
    with pytest.raises(UserError, match=r"dtype = fp16 \(float16\): expected fp32 or bf16 on a CPU"):
        load_ensemble(folder, torch_dtype=torch.float16, device="cpu")
    with pytest.raises(UserError, match=r"torch_dtype = torch\.int8: expected None or one of torch\.float32"):
        load_ensemble(folder, torch_dtype=torch.int8)
    assert load_ensemble(folder, torch_dtype=torch.float16).unet.dtype == torch.float16  # to be moved to a GPU


@pytest.mark.parametrize(
    ("kind", "dtype"), [("pixels", None), ("pixels", torch.bfloat16), ("VQModel", None), ("drawings", None)]
)
def test_an_offloaded_ensemble_draws_the_same_bits(tmp_path: Path, kind: str, dtype: torch.dtype | None) -> None:
    saved_ensemble(tmp_path, SamplingPlan(steps=4), kind=kind)
    plain = load_ensemble(tmp_path, torch_dtype=dtype)
    offloaded = load_ensemble(tmp_path, torch_dtype=dtype, offload=True)
    assert offloaded.unet.dtype == plain.unet.dtype
    assert torch.equal(draw(offloaded, 0, 1), draw(plain, 0, 1))
    assert torch.equal(draw(offloaded, 0, 1, 2), draw(plain, 0, 1, 2))


def test_only_the_expert_at_work_has_its_weights_in_memory(folder: Path) -> None:
    pipeline = load_ensemble(folder, offload=True)
    assert with_weights(pipeline) == []
    seen: list[list[int]] = []
    pipeline(2, timesteps=[900, 500, 300, 100, 0], on_step=lambda: seen.append(with_weights(pipeline)))
    assert seen == [[2], [2], [1], [0], [0]]


def test_a_trajectory_reads_every_expert_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def fill(network: torch.nn.Module, where: Path, device: torch.device, real: object = routes.fill_network) -> None:
        read.append(where.name)
        real(network, where, device)  # type: ignore[operator]

    monkeypatch.setattr(routes, "fill_network", fill)
    pipeline = load_ensemble(folder, offload=True)
    assert read == []
    draw(pipeline, 0, 1)
    assert read == NAMES[::-1]


def test_a_batch_of_several_owners_works_offloaded(folder: Path) -> None:
    images, timesteps = torch.randn(3, 1, 8, 8), torch.tensor([900, 5, 300])
    with torch.no_grad():
        expected = load_ensemble(folder).unet(images, timesteps).sample
        assert torch.equal(load_ensemble(folder, offload=True).unet(images, timesteps).sample, expected)


@pytest.mark.parametrize("move", [lambda p: p.to("cpu"), lambda p: p.unet.half(), lambda p: p.unet.to(torch.bfloat16)])
def test_an_offloaded_ensemble_stays_where_it_is_and_in_its_precision(folder: Path, move: object) -> None:
    pipeline = load_ensemble(folder, offload=True)
    with pytest.raises(UserError, match=r"offload = True: expected False .* load_ensemble the device and torch_dtype"):
        move(pipeline)  # type: ignore[operator]


def test_an_offloaded_ensemble_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    pipeline = load_ensemble(folder, offload=True)
    pipeline.save_pretrained(tmp_path / "copy")
    for name in NAMES:
        assert (tmp_path / "copy/unet" / name / WEIGHTS).read_bytes() == (folder / "unet" / name / WEIGHTS).read_bytes()
    assert torch.equal(draw(pipeline, 0, 1), draw(load_ensemble(tmp_path / "copy"), 0, 1))


def test_offloaded_weights_that_do_not_fit_are_named_when_they_are_read(tmp_path: Path) -> None:
    saved_ensemble(tmp_path)
    pipeline = load_ensemble(tmp_path, offload=True)
    weights = tmp_path / "unet" / NAMES[1] / WEIGHTS
    cut = weights.read_bytes()[:-100]
    for damage in (lambda: weights.write_bytes(cut), weights.unlink):
        damage()
        for use in (lambda: draw(pipeline, 0, 1), lambda: load_ensemble(tmp_path, offload=True)):
            with pytest.raises(UserError, match=f"{NAMES[1]}/{WEIGHTS}: expected the file as it was saved"):
                use()


def test_each_expert_is_compiled_once_at_its_first_step_and_saved_as_any_other(
    folder: Path, tmp_path: Path, compilations: dict[str, int]
) -> None:
    plain, compiled = load_ensemble(folder), load_ensemble(folder)
    compiled.unet.compile(backend="eager")  # the real one takes a minute
    after = [compilations["unique_graphs"]]
    note = lambda: after.append(compilations["unique_graphs"])  # noqa: E731
    compiled(2, timesteps=[900, 500, 300, 100, 0], show_progress=False, on_step=note)
    assert after == [0, 1, 1, 2, 3, 3]
    expected = draw(plain, 0, 1)
    assert torch.allclose(draw(compiled, 0, 1), expected, atol=1e-5)
    assert compilations["unique_graphs"] == 3
    compiled.save_pretrained(tmp_path)
    assert set(compiled.unet.state_dict()) == set(plain.unet.state_dict())
    assert torch.equal(draw(load_ensemble(tmp_path), 0, 1), expected)


def test_more_experts_than_torch_compiles_of_one_class_are_all_compiled(
    folder: Path, compilations: dict[str, int]
) -> None:
    compiled = load_ensemble(folder)
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled.unet.compile(backend="eager")
        draw(compiled, 0, 1)
    assert compilations["unique_graphs"] == 3


def test_offloading_a_compiled_ensemble_compiles_nothing_twice(folder: Path, compilations: dict[str, int]) -> None:
    both = load_ensemble(folder, offload=True)
    both.unet.compile(backend="eager")
    first, second = draw(both, 0, 1), draw(both, 0, 1)
    assert compilations["unique_graphs"] == 3
    assert torch.equal(first, second)
    assert torch.allclose(first, draw(load_ensemble(folder), 0, 1), atol=1e-5)


def test_a_machine_that_cannot_compile_is_told_to_leave_it_out(folder: Path, compilations: dict[str, int]) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler found")

    pipeline = load_ensemble(folder)
    pipeline.unet.compile(backend=no_compiler)
    with pytest.raises(UserError, match=r"compile = True: .*no C\+\+ compiler found.* Leave compile out"):
        draw(pipeline, 0, 1)
