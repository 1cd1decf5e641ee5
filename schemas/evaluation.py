"""What an evaluation hands to its workers, and what it leaves beside the number."""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.data import RasterPlan
from schemas.manifest import Evaluation, ExtractorName
from schemas.plan import DataPlan, TrainingPlan
from schemas.section import Sealed, Section


class SampledImages(Section):
    """Images or drawings of an ensemble: number i depends on (seed, i) alone."""

    kind: Literal["sampled"] = "sampled"
    ensemble: str = Field(description="The ensemble's folder.")
    seed: int
    steps: int
    guidance_scale: float
    batch_size: int = Field(description="Images sampled at a time; it shows in the last bits alone.")
    keep_images: bool = Field(description="Write each image as a PNG too.")


class StoredImages(Section):
    """The first images or drawings of a run's own data, as it trains on them, unflipped."""

    kind: Literal["stored"] = "stored"
    data: DataPlan
    cache_dir: str | None = Field(description="null: each node's own default.")
    store_digest: str


class FolderImages(Section):
    """The image files of a folder, in the order of their names."""

    kind: Literal["folder"] = "folder"
    folder: str
    max_pixels: int = Field(description="Of one image, as data.max_pixels.")


class ExtractorChoice(Section):
    """The network that turns images to features, the same on every node."""

    name: ExtractorName
    digest: str = Field(description="SHA-256 of its weights.")
    num_features: int = Field(description="Of an image.")
    weights_file: str | None = Field(
        None, description="Of Inception, if it was given; null: where torch hub keeps it, on each node."
    )
    packet_level: int | None = Field(None, description="Of wavelet packets: halvings of the side; null: a network.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers of an image; those of wavelet packets are [packets, numbers of each]."""
        level = self.packet_level
        return (self.num_features,) if level is None else (4**level, self.num_features // 4**level)


class Measure(Section):
    """What is compared of two sets of images: values of two measures are never held against each other."""

    extractor: ExtractorChoice
    raster: RasterPlan | None = Field(None, description="How drawings are rendered; null: images.")

    @property
    def key(self) -> dict[str, Any]:
        """The measure's part of a result's key."""
        rendered = {} if self.raster is None else {"raster": self.raster.model_dump(mode="json")}
        return {self.extractor.name: self.extractor.digest, **rendered}


class FeatureJob(Section):
    """Features of `num_images` images, to be written to `folder` shard by shard."""

    folder: str
    num_images: int
    images: Annotated[SampledImages | StoredImages | FolderImages, Field(discriminator="kind")]
    measure: Measure
    training: TrainingPlan
    use_gpu: bool = False


class ShardRecord(Sealed):
    """Written last, beside a finished shard's features."""

    sha256: str = Field(description="Of the features' file.")
    num_images: int
    making_s: float = Field(description="Seconds that drawing or reading the images took, features left out.")
    device: str


class StepShare(Section):
    """How much of the sampling one region does, and what it costs."""

    region: str
    timesteps: int = Field(description="Timesteps that the region owns.")
    steps: int = Field(description="Sampling steps that fall on them.")
    params: int
    macs: int = Field(description="Of one network evaluation of one image, by torch-pruning's counter.")


class EvaluationReport(Sealed):
    """A measurement with what it needs to be read rightly."""

    evaluation: Evaluation
    label: str = Field(description="What the number is, for example FID-50k or FD-random-conv-1k.")
    reference: str = Field(description="The images that it is measured against.")
    statistics_sha256: str = Field(description="Of the statistics beside the report.")
    stored_bytes: int = Field(description="The ensemble on disk.")
    shares: tuple[StepShare, ...]
    params_by_timesteps: int = Field(description="Averaged over the timesteps that each region owns (paper, table 4).")
    macs_by_timesteps: int
    params_by_steps: int = Field(description="Averaged over the sampling steps that each region really gets.")
    macs_by_steps: int
    macs_per_image: int = Field(description="Of all steps, the second pass of guidance included; without a VAE.")
