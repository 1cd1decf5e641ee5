"""What a store of images or of latents says of itself: its content's digest, its shape, where it came from."""

from math import prod
from typing import Any, Literal

from schemas.section import Sealed, Section


class StoreInfo(Sealed):
    """The `store.json` beside a store's samples; written last."""

    format: Literal[3] = 3
    key: str  # digest of all that determines the samples
    digest: str  # SHA-256 of the samples, of the shape as text, then of the int64 labels if there are any
    shape: tuple[int, ...]
    samples_bytes: int  # size of samples.npy, header included
    checksums_sha256: str  # of checksums.npy: the CRC-32 of each row of samples.npy, or of each drawing
    labels_sha256: str | None = None  # of labels.npy: an int64 below num_classes for each sample; null: no labels
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None  # null: the classes are numbers without names

    @property
    def samples(self) -> int:
        """How many images or drawings there are."""
        return self.shape[-4]

    @property
    def checksums(self) -> int:
        """How many checksums there are: one for each image, mirrored ones too."""
        return prod(self.shape[:-3])


class ImageInfo(StoreInfo):
    """Of a store of images, uint8. `digest`: of the pixels in order."""

    shape: tuple[int, int, int, int]  # images, height, width, channels
    unreadable_names: tuple[str, ...]  # what was left out, as file names or row numbers
    source: dict[str, Any]  # its identity, of which with the transform the key was made, less the files one by one


class VaeInfo(Section):
    """The VAE that made latents and that decodes them."""

    class_name: Literal["AutoencoderKL", "VQModel"]
    digest: str  # SHA-256 of its config, with the scaling factor in force, and of its weights
    posterior: Literal["sample", "mode"] | None = None  # what of it a latent is; null: there is none
    scaling_factor: float  # latents = (the VAE's - shift_factor) * scaling_factor
    shift_factor: float | None = None


class LatentInfo(StoreInfo):
    """Of a store of latents, float16. `digest`: of the digests of the shards as which they were encoded."""

    shape: tuple[int, int, int, int, int]  # variants (2: also mirrored), images, channels, height, width
    images_digest: str
    vae: VaeInfo


class ShardRecord(Sealed):
    """One finished shard of latents, the images [start, stop)."""

    key: str
    start: int
    stop: int
    digest: str  # SHA-256 of its float16 values, one variant after the other


class DrawingInfo(StoreInfo):
    """Of a store of drawings, float32. `digest`: of the rows of all drawings in order, then of their offsets."""

    shape: tuple[int, Literal[3]]  # rows of all drawings, one drawing behind the other; x, y, pen
    drawings: int
    coordinates: Literal["absolute", "delta"]
    offsets_sha256: str  # of offsets.npy: int64 [drawings + 1], drawing i has the rows [offsets[i], offsets[i + 1])
    unreadable_names: tuple[str, ...]
    too_long_names: tuple[str, ...]  # left out for data.drawings.max_points, which is no fault of theirs
    source: dict[str, Any]

    @property
    def samples(self) -> int:
        return self.drawings

    @property
    def checksums(self) -> int:
        return self.drawings
