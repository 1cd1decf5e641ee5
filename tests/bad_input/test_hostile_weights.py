"""Weights made to do harm: pickles under their names, headers that lie, masks and values that do not agree."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from places import DENSE, WEIGHTS, Harm, lying_offsets, plan_of, reseal
from safetensors.torch import load_file, save_file
from small_training import job_of, small_plan, train_here
from torch import Tensor

from ebdiff_orchestrator.ensemble import ensemble_of, load_ensemble
from ebdiff_orchestrator.evaluation.inception import load_inception
from region_workers.networks.dense import build_dense, load_verified
from region_workers.networks.packed_weights import unpack, write_weights
from region_workers.networks.pretrained import find_dense
from region_workers.networks.pruned_unet import PrunedUNet2DModel, extract_expert
from region_workers.storage.integrity import file_digest, file_digests, seal_folder
from region_workers.storage.places import cache_dir_of
from region_workers.worker.run import run_job
from schemas.errors import RunFailed, UserError

NAME = "mid_block.resnets.0.conv1.weight"
MASK = f"{NAME}.mask"
Tensors = dict[str, Tensor]
PEOPLE = (UserError, RunFailed)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A trained run; an expert with one packed weight, of which every third value is kept, and an ensemble of it."""
    place, plan = tmp_path_factory.mktemp("good"), plan_of(**DENSE)
    train_here(place / "run", cache_dir)
    folder = place / "expert"
    network = extract_expert(build_dense(plan.model, plan.data), {})
    weight = network.get_parameter(NAME)
    mask = torch.arange(weight.numel()).view_as(weight) % 3 == 0
    weight.data *= mask
    network.save_config(folder)
    write_weights(folder / WEIGHTS, network.state_dict(), {NAME: mask})
    experts = [load_verified(folder, file_digests(folder))]
    ensemble_of(experts, [(0, 1000)], ["all"], plan.diffusion, plan.sampling).save_pretrained(place / "ensemble")
    return place


def _expert(place: Path, spoilt: bytes) -> Path:
    """The expert's folder, with these weights."""
    (place / "expert" / WEIGHTS).write_bytes(spoilt)
    return place / "expert"


def _ensemble(place: Path, spoilt: bytes) -> Path:
    """The ensemble, its expert with these weights and its seals made to fit."""
    folder = place / "ensemble"
    (folder / "unet/all" / WEIGHTS).write_bytes(spoilt)
    seal_folder(folder / "unet")
    seal_folder(folder)
    return folder


def _offloaded(place: Path, spoilt: bytes) -> None:
    load_ensemble(_ensemble(place, spoilt), offload=True)(1, num_inference_steps=2, show_progress=False)


def _verified(place: Path, spoilt: bytes) -> None:
    folder = _expert(place, spoilt)
    load_verified(folder, file_digests(folder))


def _go_on_from(place: Path, state: bytes) -> None:
    """Train further from a checkpoint with this state, whose digests are made to fit."""
    folder = place / "run/train/all/checkpoints/step-000000004"
    (folder / "state.safetensors").write_bytes(state)
    digests = json.loads((folder / "checkpoint.json").read_text())["sha256"]
    digests["state.safetensors"] = file_digest(folder / "state.safetensors")
    reseal(folder / "checkpoint.json", sha256=digests)
    further = small_plan(training={**small_plan().training.model_dump(), "steps": 6})
    run_job(job_of(further, place / "run", cache_dir_of()))


def _inception(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    load_inception(file, torch.device("cpu"))


READERS: dict[str, Callable[[Path, bytes], object]] = {
    "verified expert": _verified,
    "plain": lambda place, spoilt: PrunedUNet2DModel.from_pretrained(_expert(place, spoilt)),
    "ensemble": lambda place, spoilt: load_ensemble(_ensemble(place, spoilt)),
    "offloaded ensemble": _offloaded,
    "pretrained": lambda place, spoilt: find_dense(str(_expert(place, spoilt))).load(dropout=0.0, side=8),
    "checkpoint": _go_on_from,
    "inception": lambda place, spoilt: _inception(place / "inception.safetensors", spoilt),
    "inception of torch": lambda place, spoilt: _inception(place / "inception.pth", spoilt),
}
OF_PACKED = ("verified expert", "plain", "ensemble", "offloaded ensemble", "pretrained")


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "plain"])
@pytest.mark.parametrize("form", ["plain", "of torch"])
def test_a_pickle_under_the_name_of_weights_is_refused_and_not_run(
    kind: str, form: str, good: Path, tmp_path: Path
) -> None:
    mark, file = tmp_path / "harm", tmp_path / "pickle"
    if form == "plain":
        file.write_bytes(pickle.dumps({"weight": Harm(mark)}))
    else:
        torch.save({"weight": Harm(mark)}, file)
    with pytest.raises(PEOPLE, match="xpected"):
        READERS[kind](Path(shutil.copytree(good, tmp_path / "place")), file.read_bytes())
    assert not mark.exists()
    pickle.loads(pickle.dumps(Harm(mark)))  # noqa: S301 - the proof that it would have done its harm
    assert mark.exists()


def _lies(whole: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", whole[:8])[0]
    header = whole[8 : 8 + length]
    return {
        "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + whole[8:],
        "a header of all bytes": struct.pack("<Q", len(whole)) + whole[8:],
        "a header of no bytes": struct.pack("<Q", 0) + whole[8:],
        "a header one byte short": struct.pack("<Q", length - 1) + whole[8:],
        "a header that is no JSON": whole[:8] + b"\xff" * length + whole[8 + length :],
        "offsets behind the end": lying_offsets(whole),
        "a shape that the data has not": whole[:8]
        + header.replace(b'"shape":[', b'"shape":[9', 1)
        + whole[8 + length :],
        "a type that there is not": whole[:8] + header.replace(b'"F32"', b'"F99"', 1) + whole[8 + length :],
        "no data": whole[: 8 + length],
        "half of the data": whole[: (8 + length + len(whole)) // 2],
        "more data": whole + b"\0" * 64,
        "nothing": b"",
        "seven bytes": whole[:7],
    }


@pytest.mark.parametrize("kind", ["checkpoint", "verified expert", "ensemble", "pretrained"])
def test_a_safetensors_file_that_lies_about_itself_is_refused(kind: str, good: Path, tmp_path: Path) -> None:
    whole = (good / "expert" / WEIGHTS).read_bytes()
    for number, (name, data) in enumerate(_lies(whole).items()):
        if kind == "checkpoint" and number % 4:  # each is a worker's start: a few will do
            continue
        with pytest.raises(PEOPLE) as refused:
            READERS[kind](Path(shutil.copytree(good, tmp_path / str(number))), data)
        assert "xpected" in str(refused.value), name


def _disagreeing(whole: Tensors) -> Iterator[tuple[str, Tensors]]:
    values, mask, most = whole[NAME], whole[MASK], 2**20
    without = {name: tensor for name, tensor in whole.items() if name not in (NAME, MASK)}
    yield "a value too few", {**whole, NAME: values[1:]}
    yield "a value too many", {**whole, NAME: torch.cat([values, values[:1]])}
    yield "no value", {**whole, NAME: values[:0]}
    yield "very many values", {**whole, NAME: torch.zeros(most)}
    yield "values in rows", {**whole, NAME: values[: values.numel() // 2 * 2].reshape(2, -1)}
    yield "one number", {**whole, NAME: torch.tensor(1.0)}
    yield "a mask that keeps all", {**whole, MASK: torch.full_like(mask, 255)}
    yield "a mask that keeps none", {**whole, MASK: torch.zeros_like(mask)}
    yield "a mask one byte short", {**whole, MASK: mask[:-1]}
    yield "a mask one byte long", {**whole, MASK: torch.cat([mask, mask[:1] * 0])}
    yield "a mask of very many bytes", {**whole, MASK: torch.zeros(most, dtype=torch.uint8)}
    yield "a mask of nothing", {**whole, MASK: mask[:0]}
    yield "a mask in rows", {**whole, MASK: mask.reshape(2, -1)}
    yield "a mask of signed bytes", {**whole, MASK: mask.view(torch.int8)}
    yield "a mask of long numbers", {**whole, MASK: mask.long()}
    yield "a mask of truths", {**whole, MASK: mask > 0}
    yield "values without a mask", {**without, NAME: values}
    yield "a mask without values", {**without, MASK: mask}
    yield "neither", without
    yield "a mask of what there is not", {**whole, "nothing.weight.mask": mask}
    yield "values and a mask of what there is not", {**whole, "nothing.weight": values, "nothing.weight.mask": mask}
    yield "a mask of a whole tensor", {**whole, "conv_in.weight.mask": mask}
    yield "a mask of a mask", {**whole, f"{MASK}.mask": mask}


@pytest.mark.parametrize("kind", OF_PACKED)
def test_masks_and_values_that_do_not_agree_are_refused(kind: str, good: Path, tmp_path: Path) -> None:
    whole = load_file(good / "expert" / WEIGHTS)
    for name, tensors in [("the truth", whole), *_disagreeing(whole)]:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "spoilt")
        place = Path(shutil.copytree(good, tmp_path / name))
        spoilt = (tmp_path / "spoilt").read_bytes()
        if name == "the truth":
            READERS[kind](place, spoilt)
            continue
        with pytest.raises(PEOPLE if kind != "plain" else (ValueError, RuntimeError)) as refused:
            READERS[kind](place, spoilt)
        assert kind == "plain" or "xpected" in str(refused.value), name


def test_bits_behind_the_last_value_are_refused() -> None:
    mask = torch.tensor([0b10000000, 0b10000001], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"places that there are not"):
        unpack({"weight": torch.ones(2), "weight.mask": mask}, torch.nn.Linear(3, 3, bias=False))
