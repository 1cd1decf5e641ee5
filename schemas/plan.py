"""The plan: the whole experiment as its user writes it, validated, frozen and hashed."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.data import DIGITS, CropPlan, DataPlan
from schemas.digest import digest
from schemas.errors import cross_field_error, shown
from schemas.execution import CheckpointPlan, LoggingPlan, PreviewsPlan, WorkersPlan, needs_one_device_each
from schemas.experiment import DiffusionPlan, DrawPlan, SamplingPlan, SparsityPlan, TimestepPlan, TrainingPlan
from schemas.limits import MOST_WAVELET_PX
from schemas.model import ModelPlan, PixelModelPlan
from schemas.regions import LONGEST_NAME, NAME, RegionPlan, check_regions
from schemas.section import Section, is_none

__all__ = [
    "DIGITS",
    "CheckpointPlan",
    "CropPlan",
    "DataPlan",
    "DiffusionPlan",
    "DrawPlan",
    "LoggingPlan",
    "Placement",
    "Plan",
    "PreviewsPlan",
    "SamplingPlan",
    "SparsityPlan",
    "TimestepPlan",
    "TrainingPlan",
    "WorkersPlan",
]

Placement = Literal["one-per-region", "packed", "balanced"]
_NOT_THE_EXPERIMENT: dict[str, Any] = {
    "name": True,
    "placement": True,
    "workers": True,
    "checkpointing": True,
    "logging": True,
    "previews": True,
    # Images, the VAE and a dense start are known by their digests; how drawings are rendered changes none of them.
    "data": {"path": True, "max_pixels": True, "drawings": {"raster"}},
    "model": {"pretrained", "vae", "vae_subfolder"},
}

_NOT_OF_DRAWINGS = {"config_name": None, "image_column": None, "label_column": None, "crop": None, "random_flip": False}
_TRAINING_OF_DRAWINGS = {"precision": "fp32", "channels_last": False, "compile": False}


class Plan(Section):
    """The whole experiment. `Plan.model_validate(dict)` raises pydantic's ValidationError, a ValueError."""

    name: str = Field(
        "run", pattern=NAME, max_length=LONGEST_NAME, description="Names the run directory, if none is given."
    )
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataPlan = DataPlan()
    model: ModelPlan = PixelModelPlan()
    diffusion: DiffusionPlan = DiffusionPlan()
    regions: tuple[RegionPlan, ...] = (
        RegionPlan(train=(0, 260), pruning_ratio=0.3),
        RegionPlan(train=(240, 460), pruning_ratio=0.6),
        RegionPlan(train=(440, 1000), pruning_ratio=0.8),
    )
    draw: DrawPlan = DrawPlan()
    training: TrainingPlan = TrainingPlan()
    sparsity: SparsityPlan | None = Field(
        None, exclude_if=is_none, description="Train the experts sparsely; null: all their weights count."
    )
    sampling: SamplingPlan = SamplingPlan()
    checkpointing: CheckpointPlan = CheckpointPlan()
    logging: LoggingPlan = LoggingPlan()
    previews: PreviewsPlan | None = Field(
        None, exclude_if=is_none, description="A few images while the run trains; null: none."
    )
    workers: WorkersPlan = WorkersPlan()
    placement: Placement = Field(
        "one-per-region",
        description="packed: as few GPUs as end as early; balanced: several GPUs a region where that is sooner.",
    )

    @model_validator(mode="after")
    def _regions_cover_the_timesteps(self) -> Self:
        check_regions(self.regions, self.diffusion.num_train_timesteps)
        return self

    @model_validator(mode="after")
    def _each_worker_has_an_image(self) -> Self:
        for field in ("processes", "gpus"):
            count = getattr(self.workers, field)
            if count != "auto" and count > self.training.batch_size:
                expected = f"at most training.batch_size = {self.training.batch_size}, an image for each worker"
                raise cross_field_error(f"workers.{field}", count, expected, "Lower it, or raise the batch size.")
        return self

    @model_validator(mode="after")
    def _draw_has_its_weights(self) -> Self:
        if self.draw.weights == "ema" and self.training.ema_decay is None:
            expected = "raw, since training.ema_decay is null"
            raise cross_field_error("draw.weights", "ema", expected, "Set training.ema_decay, or rank raw.")
        if self.draw.method == "slim" and self.model.pretrained is not None:
            expected = "null with draw.method = slim, whose weights are fresh"
            raise cross_field_error("model.pretrained", self.model.pretrained, expected, "Leave it out.")
        return self

    @model_validator(mode="after")
    def _sparsity_has_a_method(self) -> Self:
        for index, region in enumerate(self.regions):
            if region.sparsity is not None and self.sparsity is None:
                expected = "none without a section `sparsity`, which says how the mask comes about"
                remedy = "Set sparsity.method (static, rigl or magran)."
                raise cross_field_error(f"regions.{index}.sparsity", region.sparsity, expected, remedy)
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> Self:
        total = self.diffusion.num_train_timesteps
        asked_for = {"sampling": self.sampling.steps, **({"previews": self.previews.steps} if self.previews else {})}
        for section, steps in asked_for.items():
            if steps > total:
                expected = f"at most diffusion.num_train_timesteps = {total}"
                raise cross_field_error(f"{section}.steps", steps, expected, "Lower it.")
        steps, offset = self.sampling.steps, self.sampling.steps_offset
        highest = int(0.8 * total) if self.sampling.spacing == "quadratic" else (steps - 1) * (total // steps)
        if offset and highest + offset >= total:
            expected = f"at most {total - 1 - highest}, since the first of {steps} timesteps is {highest} without it"
            raise cross_field_error("sampling.steps_offset", offset, expected, "Lower it, or take fewer steps.")
        return self

    @model_validator(mode="after")
    def _previews_can_be_measured(self) -> Self:
        if self.previews is None or self.previews.measure is None:
            return self
        raster = self.data.raster
        side = self.data.resolution if raster is None else raster.canvas_px
        if self.previews.num_images < 2 or side % 2 or side > MOST_WAVELET_PX:
            expected = f"null, or two images or more of an even side of at most {MOST_WAVELET_PX} pixels"
            raise cross_field_error("previews.measure", self.previews.measure, expected, "Leave it out.")
        return self

    @model_validator(mode="after")
    def _labels_exist(self) -> Self:
        if self.model.num_classes is not None and self.data.label_column is None:
            expected = f"a column of labels, since model.num_classes = {self.model.num_classes}"
            remedy = "Name the column (label for a folder of images), or set model.num_classes to null."
            raise cross_field_error("data.label_column", None, expected, remedy)
        if self.sampling.guidance_scale != 1 and self.model.num_classes is None:
            expected = "1, since the model has no classes"
            raise cross_field_error("sampling.guidance_scale", self.sampling.guidance_scale, expected, "Set it so.")
        return self

    @model_validator(mode="after")
    def _drawings_are_for_vectors(self) -> Self:
        family = str(self.model.family)
        if self.data.drawings is None:
            if family == "vector":
                remedy = "Add the section (`drawings: {}` takes its defaults), or choose another model.family."
                raise cross_field_error("data.drawings", None, "a section, since model.family = vector", remedy)
            return self
        if family != "vector":
            remedy = "Set it so, or leave data.drawings out."
            raise cross_field_error("model.family", family, "vector, since data.drawings is set", remedy)
        for field, unset in _NOT_OF_DRAWINGS.items():
            value = getattr(self.data, field)
            if value != unset:
                value = "..." if field == "crop" else shown(value)
                expected = f"{shown(unset)}, since data.drawings is set and only images have it"
                raise cross_field_error(f"data.{field}", value, expected, "Leave it out.")
        for field, only in _TRAINING_OF_DRAWINGS.items():
            value = getattr(self.training, field)
            if value != only:
                expected = f"{shown(only)}, since model.family = vector"
                raise cross_field_error(f"training.{field}", shown(value), expected, "Leave it out.")
        return self

    @model_validator(mode="after")
    def _placement_from_one(self) -> Self:
        if self.placement != "one-per-region" and not self.workers.one_device_each:
            raise needs_one_device_each("placement", self.placement, self.workers)
        return self

    def routes(self) -> tuple[tuple[int, int], ...]:
        """The timesteps [start, stop) that each region owns at sampling: up to where the next region starts."""
        starts = [region.train[0] for region in self.regions]
        return tuple(zip(starts, [*starts[1:], self.diffusion.num_train_timesteps], strict=True))

    def steps_of(self, region: RegionPlan) -> int:
        """Training steps of a region: its own, else the plan's."""
        return region.steps or self.training.steps

    def sparsity_of(self, region: RegionPlan) -> SparsityPlan | None:
        """How a region's expert is sparse, with its own sparsity if it has one; None: it is not."""
        if self.sparsity is None or region.sparsity is None:
            return self.sparsity
        return self.sparsity.model_copy(update={"sparsity": region.sparsity})

    def experiment(self) -> dict[str, Any]:
        """What determines the result, as JSON values: all but the name, workers, checkpointing, logging and previews.

        The images are known by their digest, kept in the manifest, not by where they lie. A limit on the draw
        decides only whether it fails, unless the plan takes the last mask at the limit; so a draw that ran into it
        can go on with a higher one.
        """
        values = self.model_dump(mode="json", exclude=_NOT_THE_EXPERIMENT)
        if self.draw.on_timeout == "error":
            del values["draw"]["max_intervals"]
        return values

    def experiment_digest(self) -> str:
        return digest(self.experiment())
