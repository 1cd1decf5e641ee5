"""The dense network that a plan starts from: a diffusers folder, a hub model, or an earlier dense run's expert."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from region_workers.networks.costs import CostCounter, cost_counter
from region_workers.networks.dense import build_dense, loading_arguments, network_class
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.packed_weights import whole_shapes
from region_workers.networks.supported import check_prunable, network_inputs
from region_workers.storage.integrity import file_digest, is_whole, read_manifest, read_object
from region_workers.storage.places import find_model
from schemas.digest import digest
from schemas.errors import PlanError, RunFailed, UserError, command, plan_error
from schemas.job import CONFIG_FILE, EXPERT_FOLDER, WEIGHTS_FILE
from schemas.manifest import MANIFEST_FILE, DenseSource
from schemas.model import ModelPlan
from schemas.plan import DataPlan
from schemas.stage_names import train_stage_name

_FILES = (CONFIG_FILE, "*.safetensors", f"unet/{CONFIG_FILE}", "unet/*.safetensors")
_EXPECTED = "a diffusers model folder or pipeline, a hub name, or the directory of a finished dense run"
_FIELD = "model.pretrained"


@dataclass(frozen=True)
class DenseFolder:
    """A dense network on disk: its folder, its class's name and arguments, and the run that trained it, if one did."""

    folder: Path
    class_name: str
    arguments: dict[str, Any]
    run: Path | None

    def digest(self) -> str:
        """SHA-256 of the class, the arguments and the weights' bytes."""
        weights = {path.name: file_digest(path) for path in sorted(self.folder.glob("*.safetensors"))}
        return digest({"class": self.class_name, "arguments": self.arguments, "weights": weights})

    def load(self, **arguments: Any) -> nn.Module:
        """The network with its weights, float32, on the CPU; with these arguments in place of its own.

        Weights are loaded strictly; PlanError if they are not those of the network.
        """
        try:
            network: nn.Module = network_class(self.class_name).from_pretrained(self.folder, **arguments)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _bad_weights(self.folder, str(error).splitlines()[0]) from None
        return network


def find_dense(pretrained: str) -> DenseFolder:
    """What `model.pretrained` names. PlanError if there is no dense network, or only one that is pruned or pickled."""
    path = find_model(_FIELD, pretrained, _EXPECTED, _FILES, without=["vae/*", "vqvae/*"])
    run = path.resolve() if (path / MANIFEST_FILE).is_file() else None
    folder = _expert_of(path) if run else _network_folder(path, pretrained)
    config = _config(folder, pretrained)
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    if arguments.pop("kept_channels", None):
        raise plan_error(_FIELD, pretrained, "a dense network", "This one is pruned: give the one that it came from.")
    if not any(folder.glob("*.safetensors")):
        raise plan_error(_FIELD, pretrained, f"weights as {WEIGHTS_FILE}", "Convert them: no pickle is read.")
    dense = DenseFolder(folder, str(config.get("_class_name")), arguments, run)
    try:
        network = _without_weights(dense.class_name, arguments)
        if not isinstance(network, DrawingGRU):
            check_prunable(cast(Any, network).config)
    except UserError as error:
        raise PlanError(f"{_FIELD} = {pretrained}: {error}") from None
    except (ValueError, TypeError, LookupError, NameError, AttributeError, ArithmeticError, RuntimeError) as error:
        remedy = f"Its {CONFIG_FILE} says what cannot be built ({error}). Replace the file."
        raise plan_error(_FIELD, pretrained, _EXPECTED, remedy) from None
    _check_weights(folder, network)
    return dense


def dense_network(model: ModelPlan, data: DataPlan, dense_digest: str | None) -> nn.Module:
    """The plan's dense network, on the CPU: with fresh weights, or those of `model.pretrained`.

    Raises RunFailed if the latter are not those of `dense_digest`.
    """
    if model.pretrained is None:
        network: nn.Module = build_dense(model, data)
        return network
    dense = find_dense(model.pretrained)
    _check_digest(dense, dense_digest, model.pretrained)
    network = dense.load(**loading_arguments(model, data))
    _check_digest(dense, dense_digest, model.pretrained)  # nobody has written there since it was looked at
    return network


def dense_counter(model: ModelPlan, data: DataPlan, dense: DenseSource | None = None) -> CostCounter:
    """What the plan's dense network and its prunings cost; `dense`: its start as recorded, for it may have moved."""
    if model.pretrained is None:
        return cost_counter(model, data)
    found = dense or find_dense(model.pretrained)
    network = _without_weights(found.class_name, found.arguments)
    return CostCounter(network, network_inputs(network, side=loading_arguments(model, data).get("sample_size")))


def _check_digest(dense: DenseFolder, expected: str | None, pretrained: str) -> None:
    found = dense.digest()
    if found != expected:
        raise RunFailed(
            f"{_FIELD} = {pretrained}: the network is not the one the run began with (digest {found[:12]}, "
            f"expected {(expected or 'none')[:12]}). Restore it, or start a new run."
        )


def _check_weights(folder: Path, network: nn.Module) -> None:
    """Raise PlanError unless the files in `folder` hold as many weights of each shape as `network` has.

    Only their headers are read. Names are left to the loading, since diffusers knows older ones too.
    """
    stored = dict[str, tuple[int, ...]]()
    for path in _weight_files(folder):
        if path.exists() and not path.is_file():  # to read a pipe would wait for its other end
            raise _bad_weights(folder, f"{path.name} is no regular file")
        try:
            with safe_open(path, framework="pt") as file:
                stored |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _bad_weights(folder, f"{path.name} is no whole safetensors file: {error}") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found, expected = Counter(whole_shapes(stored, shapes)), Counter(shapes.values())
    for shape in (found - expected) + (expected - found):
        counts = f"{found[shape]} weights of shape {list(shape)}, not {expected[shape]}"
        raise _bad_weights(folder, f"{WEIGHTS_FILE} holds {counts} as by {CONFIG_FILE}")


def _weight_files(folder: Path) -> list[Path]:
    """The one file of the weights, or those that the index of several names."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / f"{WEIGHTS_FILE}.index.json"
    try:
        names = sorted(set(read_object(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _bad_weights(folder, f"there is neither {WEIGHTS_FILE} nor a readable {index.name}: {error}") from None
    outside = [name for name in names if name != Path(str(name)).name]
    if outside:
        raise _bad_weights(folder, f"{index.name} names {outside[0]}, which is outside the folder")
    return [folder / name for name in names]


def _bad_weights(folder: Path, reason: str) -> PlanError:
    expected = f"safetensors weights that fit its {CONFIG_FILE}"
    return plan_error(_FIELD, folder, expected, f"They do not ({reason}). Replace the files, or save the model anew.")


def _config(folder: Path, pretrained: str) -> dict[str, Any]:
    try:
        return read_object(folder / CONFIG_FILE)
    except ValueError as error:
        raise plan_error(_FIELD, pretrained, _EXPECTED, f"{folder}: {error}. Replace the file.") from None


def _without_weights(class_name: str, arguments: dict[str, Any]) -> nn.Module:
    """The network on the meta device."""
    with torch.device("meta"):
        network: nn.Module = network_class(class_name).from_config(arguments)
    return network


def _expert_of(run: Path) -> Path:
    """The expert of a run of one region that was not pruned."""
    try:
        manifest = read_manifest(run)
    except UserError as error:
        raise PlanError(f"{_FIELD} = {run}: {error}") from None
    regions = manifest.plan.regions
    if len(regions) != 1 or regions[0].pruning_ratio != 0:
        found = ", ".join(f"{region.name} pruned by {region.pruning_ratio:g}" for region in regions)
        raise plan_error(_FIELD, run, "a run of one region with pruning_ratio 0", f"It trains {found}: choose another.")
    stage = train_stage_name(regions[0])
    if manifest.stage(stage).status != "done":
        remedy = f"Its training is not done. Finish it: {command('resume', run)}"
        raise plan_error(_FIELD, run, "a finished run", remedy)
    recorded = [item for item in manifest.stage(stage).artifacts if item.path.startswith(f"{stage}/{EXPERT_FOLDER}/")]
    damaged = next((item.path for item in recorded if not is_whole(run, item)), None)
    if damaged is not None:
        remedy = f"It is missing or damaged. `{command('resume', run)}` makes it again, to the same bits."
        raise plan_error(_FIELD, run, f"{damaged} as the run recorded it", remedy)
    return run / stage / EXPERT_FOLDER


def _network_folder(path: Path, pretrained: str) -> Path:
    """The folder of the network itself: the path, or unet/ in a pipeline; one expert of an ensemble of one."""
    for folder in (path, path / "unet"):
        config = folder / CONFIG_FILE
        if not config.is_file():
            continue
        values = _config(folder, pretrained)
        if values.get("_class_name") != "TimestepRouter":
            return folder
        names = values.get("names")
        experts = [name for name in names if name == Path(str(name)).name] if isinstance(names, list) else []
        if len(experts) == 1:
            return folder / str(experts[0])
        remedy = f"This is an ensemble of {len(experts)} experts: give one of their folders."
        raise plan_error(_FIELD, pretrained, "one dense network", remedy)
    remedy = f"It has neither {CONFIG_FILE} nor unet/{CONFIG_FILE}: check the path."
    raise plan_error(_FIELD, pretrained, _EXPECTED, remedy)
