"""Encode some images of a store, in pieces that are the same however the work is shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from region_workers.data.latents.shards import Latents
from region_workers.data.latents.vae import encode, load_vae
from region_workers.data.store import ImageStore, ensure_store, find_store
from schemas.digest import seed_from
from schemas.errors import RunFailed
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan
from schemas.section import Section

# Raise it whenever the same image and VAE give other latents: stores of the older version are then built anew.
ENCODING_VERSION = 1
_BATCH_IMAGES = 16  # a constant, since a kernel may sum in another order for another batch


class ShardCall(Section):
    """All that a worker needs to encode the images [start, stop); it opens the images and the VAE itself."""

    model: LatentModelPlan
    data: DataPlan
    cache_dir: str
    images_digest: str
    vae_digest: str
    start: int
    stop: int
    cpu_threads: int
    use_gpu: bool


def encode_shard(call: ShardCall) -> Latents:
    """The latents float16 [V, stop - start, C, h, w], on this process's GPU if the call may use one.

    Raises RunFailed if this machine's images or VAE are not those of the call.
    """
    cache_dir = Path(call.cache_dir)
    store = find_store(cache_dir, call.images_digest) or ensure_store(call.data, cache_dir)
    if store.digest != call.images_digest:
        raise _not_the_same("data.path", call.data.path, store.digest, call.images_digest)
    vae, info = load_vae(call.model, call.data.channels)
    if info.digest != call.vae_digest:
        raise _not_the_same("model.vae", call.model.vae, info.digest, call.vae_digest)
    device = torch.device("cuda" if call.use_gpu and torch.cuda.is_available() else "cpu")
    return encode_images(
        vae.to(device), store, (call.start, call.stop), call.data.random_flip, device, call.cpu_threads, info.posterior
    )


def encode_images(
    vae: Any,
    store: ImageStore,
    span: tuple[int, int],
    mirror_too: bool,
    device: torch.device,
    cpu_threads: int,
    posterior: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Latents:
    """The scaled latents of the images [start, stop): float16 [V, stop - start, C, h, w]; V = 2 if `mirror_too`.

    The VAE is on `device`. Where the `posterior` is to be sampled, the noise is a function of the store's digest, the
    variant and the image's number alone, so that runs of any seed share their latents. `progress(images)` hears of the
    images done. Raises RunFailed for values that float16 does not hold.
    """
    start, stop = span
    pieces = []
    with torch.no_grad(), _same_bits(cpu_threads):
        for first in range(start, stop, _BATCH_IMAGES):
            images_BHWC = store.piece(first, min(first + _BATCH_IMAGES, stop))
            images_BCHW = torch.from_numpy(images_BHWC).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
            variants = [images_BCHW, images_BCHW.flip(3)] if mirror_too else [images_BCHW]
            latents = []
            for number, variant in enumerate(variants):
                rows = range(first, first + len(images_BHWC))
                generators = _generators(store.digest, number, rows) if posterior == "sample" else None
                latents.append(encode(vae, variant.contiguous(), generators))
            latents_VBChw = torch.stack(latents).half()
            if not bool(torch.isfinite(latents_VBChw).all()):
                raise RunFailed(
                    f"the VAE gives latents beyond float16 for images {first} to {first + len(images_BHWC) - 1} of the "
                    "store. Set a smaller model.scaling_factor, or choose another VAE."
                )
            pieces.append(latents_VBChw.cpu().numpy())
            if progress is not None:
                progress(first + len(images_BHWC) - start)
    latents_VnChw: Latents = np.concatenate(pieces, axis=1)
    return latents_VnChw


def _generators(images_digest: str, variant: int, images: range) -> list[torch.Generator]:
    """One an image, on the CPU, so that its numbers are the same on every device."""
    stream = (images_digest, "posterior", variant)
    return [torch.Generator("cpu").manual_seed(seed_from(*stream, index=image)) for image in images]


@contextmanager
def _same_bits(cpu_threads: int) -> Iterator[None]:
    """Within it, equal images give equal bits on the same kind of device; afterwards torch is set as it was."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(cpu_threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _not_the_same(field: str, value: str, found: str, expected: str) -> RunFailed:
    return RunFailed(
        f"{field} = {value}: on this machine it is not what the driver has (digest {found[:12]}, expected "
        f"{expected[:12]}). Give every machine the same."
    )
