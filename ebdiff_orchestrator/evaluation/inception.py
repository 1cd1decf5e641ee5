"""pytorch-fid's Inception network: where its weights come from, and the 2048 features of an image."""

import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytorch_fid.inception
import torch
from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ebdiff_orchestrator.evaluation.values import OFFICIAL_SHA256
from region_workers.storage.integrity import file_digest
from schemas.errors import RunFailed, UserError, user_error
from schemas.evaluation import ExtractorChoice

FEATURES = 2048
BATCH_IMAGES = 50  # pytorch-fid's default; the last bits of a feature depend on the size of its batch
ANSWER_WITHIN_S = 60.0
_CONVERT = ", or save weights of your own as .safetensors"
WEIGHTS_NAME: str = FID_WEIGHTS_URL.rsplit("/", 1)[-1]


def choose_inception(given: Path | None) -> ExtractorChoice:
    """Inception with the given weights, or pytorch-fid's. UserError if they cannot be had."""
    file = weights_file(given)
    shown = str(file) if given is not None else None
    return ExtractorChoice(name="inception", digest=file_digest(file), num_features=FEATURES, weights_file=shown)


class Inception:
    """The chosen network, on a device. RunFailed if the weights on this node are other ones."""

    def __init__(self, choice: ExtractorChoice, device: torch.device) -> None:
        file = weights_file(Path(choice.weights_file) if choice.weights_file else None)
        found = file_digest(file)
        if found != choice.digest:
            raise RunFailed(
                f"The Inception weights in {file} on this node have the SHA-256 {found[:12]}, the driver's "
                f"{choice.digest[:12]}. Put the same file on every node, or on a filesystem that all share."
            )
        self._network = load_inception(file, device)

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Float32 [B, 2048]: what pytorch-fid computes of the same images in PNG files, uint8 [B, 3, H, W]."""
        with _torchs_own_resize():
            features: torch.Tensor = self._network(images_BCHW.float().div(255))[0].flatten(1)
        return features


def weights_file(given: Path | None) -> Path:
    """The file of the weights: the given one, else the one where torch hub keeps it, downloaded if it is not there.

    Raises UserError if the file is not there, or cannot be downloaded.
    """
    if given is not None:
        if not given.expanduser().is_file():
            raise user_error("--inception-weights", given, "a file", f"Get it from {FID_WEIGHTS_URL}.")
        return given.expanduser().resolve()
    file = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    if not file.is_file():
        _download(file)
    return file


def load_inception(file: Path, device: torch.device) -> nn.Module:
    """The network with the weights in `file`, in eval mode. Raises UserError if they are not an FID Inception's."""
    state = _read(file)
    try:
        with _pytorch_fid_is_given(state):
            network: nn.Module = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[FEATURES]])
    except (RuntimeError, TypeError) as error:
        raise _wrong_weights(file, str(error).splitlines()[0]) from None
    return network.to(device).eval()


@contextmanager
def _pytorch_fid_is_given(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """pytorch-fid builds its network and downloads and unpickles the weights in one go; here it gets ours instead."""
    download = pytorch_fid.inception.load_state_dict_from_url
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    try:
        yield
    finally:
        pytorch_fid.inception.load_state_dict_from_url = download


@contextmanager
def _torchs_own_resize() -> Iterator[None]:
    """On CUDA, deterministic algorithms would resize by another, slower kernel than pytorch-fid's command.

    Nothing in this forward pass needs them: cuDNN's convolutions stay deterministic.
    """
    exact = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(exact)


def _download(file: Path) -> None:
    patience_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_WITHIN_S)  # torch hub sets none, and would wait for a silent server for ever
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(file), hash_prefix=OFFICIAL_SHA256, progress=False)
    except (URLError, OSError, RuntimeError) as error:  # no network, no room, or other bytes than expected
        raise UserError(
            f"FID needs the Inception weights {WEIGHTS_NAME} (95 MB), which could not be downloaded ({error}). "
            f"Fetch {FID_WEIGHTS_URL} where there is a network, and give --inception-weights FILE or put it at {file}; "
            "or measure without weights, by --extractor random-conv or --measure wavelet."
        ) from None
    finally:
        socket.setdefaulttimeout(patience_s)


def _read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in a .safetensors file, or in the published .pth.

    No other .pth is opened: even read as plain tensors, a pickle made to do harm has corrupted memory (CVE-2026-24747).
    """
    if file.suffix != ".safetensors" and file_digest(file) != OFFICIAL_SHA256:
        raise _wrong_weights(file, "a .pth of other bytes than the published one is not opened", _CONVERT)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise _wrong_weights(file, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _wrong_weights(file, "it holds something else")
    return state


def _wrong_weights(file: Path, reason: str, remedy: str = "") -> UserError:
    return user_error(
        "--inception-weights",
        file,
        f"the tensors of pytorch-fid's Inception network ({reason})",
        f"Get {WEIGHTS_NAME} from {FID_WEIGHTS_URL}{remedy}.",
    )
