"""The data section of a plan, images or vector drawings; and what a store made of them says of itself."""

from math import prod
from typing import Any, Literal

from pydantic import Field

from schemas.limits import LARGE, MANY, MAX_PIXELS, MOST_PIXELS
from schemas.section import Place, Sealed, Section, Text, is_none

Coordinates = Literal["absolute", "delta"]
Posterior = Literal["sample", "mode"]

DIGITS = "sklearn:digits"


class CropPlan(Section):
    """A square cut from every image before it is resized, in pixels of the image."""

    center_x: int = Field(ge=0, le=MANY, description="Column of the square's centre.")
    center_y: int = Field(ge=0, le=MANY, description="Row of the square's centre.")
    size: int = Field(
        ge=1, le=MANY, description="Side of the square: it spans [centre - size // 2, centre - size // 2 + size)."
    )


class RasterPlan(Section):
    """How a drawing is rendered, for people and for measures: black lines on white, filling a square.

    No source states the settings that sparse drawings were measured with: these are ours, and stand beside every value.
    """

    canvas_px: int = Field(64, ge=8, le=4096, description="Side of the picture. Ours.")
    line_width_px: float = Field(1.0, gt=0, le=256, description="Width of the lines. Ours.")
    margin: float = Field(0.05, ge=0, lt=0.5, description="Share of the canvas that stays white on each side. Ours.")


class DrawingsPlan(Section):
    """What is done to the strokes of each drawing once (ChiroDiff, arXiv 2304.03785, and its released code)."""

    coordinates: Coordinates = Field(
        "absolute",
        description="Rows hold the position of a point, or the step to it from the one before: `threeseqabs`, which "
        "the released config.yml sets, and `threeseqdel`, the released code's default.",
    )
    max_strokes: int = Field(
        25, ge=1, le=10_000, description="Strokes of a drawing that count, its first ones. The released code's."
    )
    point_spacing: float = Field(
        0.05,
        ge=1e-4,
        le=1,
        description="Distance of neighbouring points of a stroke, in units of the largest distance of a point from "
        "the drawing's first. The released code's.",
    )
    max_points: int = Field(
        300,
        ge=3,
        le=100_000,
        description="A drawing of as many points or more, at that spacing, is left out. The released code's.",
    )
    scale: float = Field(
        10.0,
        gt=0,
        le=LARGE,
        description="The largest distance of a point from the first, in rows. The released code's.",
    )
    raster: RasterPlan = RasterPlan()


class DataPlan(Section):
    """Where the images or drawings come from and what is done to each one once."""

    path: Place = Field(
        DIGITS,
        description=f"A hub name, a folder of images or a Parquet file, as the datasets library reads it, or {DIGITS}; "
        "with `drawings`, a QuickDraw .ndjson file, a folder of them, or a folder or .zip of SVG files.",
    )
    config_name: Text | None = Field(None, description="The hub data set's configuration.")
    split: Text = "train"
    image_column: Text | None = Field(None, description="The column of images; found by itself if there is one.")
    label_column: Text | None = Field(
        None,
        description="The column of class labels, for a class-conditional model; in a folder of images the folders at "
        "its top are the classes, under the name `label`.",
    )
    crop: CropPlan | None = Field(None, description="A fixed square to cut out first; null: the centre square.")
    interpolation: Literal["lanczos", "bilinear", "bicubic"] = Field(
        "lanczos", description="Pillow's antialiased filter that resizes to `resolution`."
    )
    resolution: int = Field(8, ge=4, le=16384, description="Side in pixels: shorter side resized, centre cropped.")
    channels: Literal[1, 3] = Field(1, description="1: greyscale, 3: RGB (alpha is laid on white).")
    random_flip: bool = Field(False, description="Mirror each image with probability 1/2, anew each step.")
    max_unreadable: float = Field(0.01, ge=0, lt=1, description="The share of unreadable images that stops the run.")
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=MOST_PIXELS, description="An image of more counts as unreadable; nothing of it is decoded."
    )
    drawings: DrawingsPlan | None = Field(
        None, exclude_if=is_none, description="The data are vector drawings, for model.family = vector; null: images."
    )

    @property
    def kind(self) -> Literal["images", "drawings"]:
        """For people: what the data are."""
        return "images" if self.drawings is None else "drawings"

    @property
    def raster(self) -> RasterPlan | None:
        """How drawings are rendered; None for images."""
        return None if self.drawings is None else self.drawings.raster


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
    posterior: Posterior | None = None  # what of it a latent is; null: there is none
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
    coordinates: Coordinates
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
