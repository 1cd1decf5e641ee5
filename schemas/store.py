"""What a store of images or of latents says of itself: its content's digest, its shape, where it came from."""

from __future__ import annotations

from typing import Any, Literal

from schemas.section import Sealed, Section


class StoreInfo(Sealed):
    """The `store.json` beside a store's pixels."""

    format: Literal[2] = 2
    key: str  # digest of the source's identity and of the transform
    digest: str  # SHA-256 of the uint8 pixels in order, of the shape as text, then of the int64 labels if there are any
    shape: tuple[int, int, int, int]  # images, height, width, channels
    pixels_bytes: int  # size of pixels.npy, header included
    checksums_sha256: str  # of checksums.npy: the CRC-32 of each image's pixels
    labels_sha256: str | None = None  # of labels.npy
    unreadable_names: tuple[str, ...]  # what was left out, as file names or row numbers
    num_classes: int | None = None  # null: no labels; else labels.npy holds an int64 below it for each image
    class_names: tuple[str, ...] | None = None  # null: the classes are numbers without names
    source: dict[str, Any]  # the identity that the key was made of, less the files one by one


class VaeInfo(Section):
    """The VAE that made latents and that decodes them."""

    class_name: Literal["AutoencoderKL", "VQModel"]
    digest: str  # SHA-256 of its config, with the scaling factor in force, and of its weights
    posterior: Literal["sample", "mode"] | None = None  # what of it a latent is; null: there is none
    scaling_factor: float  # latents = (the VAE's - shift_factor) * scaling_factor
    shift_factor: float | None = None


class ShardRecord(Sealed):
    """One finished shard of latents, the images [start, stop)."""

    key: str
    start: int
    stop: int
    digest: str  # SHA-256 of its float16 values, one variant after the other


class LatentInfo(Sealed):
    """The `latents.json` beside a store's latents; written last."""

    format: Literal[2] = 2
    key: str  # digest of the images' digest, of the VAE's, and of what is encoded of each image
    digest: str  # SHA-256 of the shards' digests, of the shape as text, then of the int64 labels if there are any
    dtype: Literal["float16"] = "float16"
    shape: tuple[int, int, int, int, int]  # variants (2: also mirrored), images, channels, height, width
    latents_bytes: int  # size of latents.npy, header included
    checksums_sha256: str  # of checksums.npy: the CRC-32 of each image's latents, one variant after the other
    labels_sha256: str | None = None  # of labels.npy
    shard_digests: tuple[str, ...]
    shard_images: int
    images_digest: str
    vae: VaeInfo
    num_classes: int | None = None  # null: no labels
    class_names: tuple[str, ...] | None = None
