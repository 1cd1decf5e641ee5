"""The plan: the whole experiment as its user writes it, validated, frozen and hashed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.digest import digest
from schemas.errors import cross_field_error
from schemas.regions import NAME, RegionPlan, check_regions
from schemas.section import Section

DIGITS = "sklearn:digits"
_NOT_THE_EXPERIMENT: dict[str, bool | set[str]] = {
    "name": True,
    "workers": True,
    "checkpointing": True,
    "logging": True,
    "data": {"path"},
}


class DataPlan(Section):
    """Where the images come from and what is done to each one once."""

    path: str = Field(
        DIGITS,
        description=f"A hub name, a folder of images or a Parquet file, as the datasets library reads it, or {DIGITS}.",
    )
    config_name: str | None = Field(None, description="The hub data set's configuration.")
    split: str = "train"
    image_column: str | None = Field(None, description="The column of images; found by itself if there is one.")
    resolution: int = Field(8, ge=4, description="Side in pixels: shorter side resized, centre cropped.")
    channels: Literal[1, 3] = Field(1, description="1: greyscale, 3: RGB (alpha is laid on white).")
    random_flip: bool = Field(False, description="Mirror each image with probability 1/2, anew each step.")
    max_unreadable: float = Field(0.01, ge=0, lt=1, description="The share of unreadable images that stops the run.")


class ModelPlan(Section):
    """The dense network: diffusers' UNet2DModel, by its own argument names."""

    family: Literal["pixel"] = "pixel"
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = Field(2, ge=1)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D")
    norm_num_groups: int = Field(8, ge=1)
    norm_eps: float = Field(1e-6, gt=0)
    attention_head_dim: int | None = None
    downsample_padding: int = 0
    flip_sin_to_cos: bool = False
    freq_shift: int = 1
    act_fn: str = "silu"
    add_attention: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _blocks_agree(self) -> Self:
        levels = len(self.block_out_channels)
        for field in ("down_block_types", "up_block_types"):
            types = getattr(self, field)
            if len(types) != levels:
                raise cross_field_error(
                    f"model.{field}",
                    list(types),
                    f"{levels} entries, one for each of model.block_out_channels",
                    "Make the two lists equally long.",
                )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise cross_field_error(
                    "model.block_out_channels",
                    list(self.block_out_channels),
                    f"multiples of model.norm_num_groups = {self.norm_num_groups}",
                    "Change the widths or the number of norm groups.",
                )
        return self


class DiffusionPlan(Section):
    """The forward process (DDPM, arXiv 2006.11239): T timesteps and their betas."""

    num_train_timesteps: int = Field(1000, ge=2, description="T.")
    beta_schedule: Literal["linear", "scaled_linear"] = Field(
        "linear", description="scaled_linear: linear in the square root, as LDM does."
    )
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)

    @model_validator(mode="after")
    def _betas_rise(self) -> Self:
        if self.beta_start > self.beta_end:
            raise cross_field_error(
                "diffusion.beta_start", self.beta_start, f"at most diffusion.beta_end = {self.beta_end}", "Swap them."
            )
        return self


class DrawPlan(Section):
    """How tickets are drawn: the dense model trains until its pruning mask stops changing (paper, section 4.1)."""

    scope: Literal["per-region", "shared"] = Field(
        "per-region", description="per-region: each region on its own timesteps; shared: one dense warm-up over all."
    )
    importance: Literal["magnitude", "taylor", "diff-pruning", "random"] = "magnitude"
    importance_timesteps: int | None = Field(
        None,
        ge=1,
        description="taylor and diff-pruning: timesteps of the region whose gradients add up; all if not set.",
    )
    diff_pruning_threshold: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="diff-pruning stops at the timestep whose loss falls under this share of the largest.",
    )
    interval_steps: int | None = Field(None, ge=1, description="Steps between two masks; an epoch if not set.")
    queue_length: int = Field(5, ge=2, description="Masks that must agree.")
    queue_stride: int = Field(1, ge=1, description="Every n-th mask stands in the queue.")
    threshold: float = Field(0.1, gt=0, le=1, description="Largest share of mask bits in which two may differ.")
    max_intervals: int = Field(100, ge=1, description="Masks after which a draw that has not converged stops.")
    on_timeout: Literal["error", "take_last"] = "error"
    weights: Literal["raw", "ema"] = Field("raw", description="The weights that are ranked and inherited.")

    @model_validator(mode="after")
    def _queue_can_fill(self) -> Self:
        needed = (self.queue_length - 1) * self.queue_stride + 1
        if self.max_intervals < needed:
            raise cross_field_error(
                "draw.max_intervals",
                self.max_intervals,
                f"at least {needed}, so that a queue of {self.queue_length} masks can fill",
                f"Raise draw.max_intervals to {needed} or more, or shorten draw.queue_length.",
            )
        return self


class TrainingPlan(Section):
    """One region's training, and the dense training of its draw."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(128, ge=1, description="Images a step, over all workers of a region.")
    learning_rate: float = Field(2e-4, gt=0)
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    gradient_clip: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; null: no clipping.")
    ema_decay: float | None = Field(0.9999, ge=0, lt=1, description="null: no EMA.")
    ema_warmup: bool = Field(False, description="Decay of min(ema_decay, (1+k)/(10+k)) at step k, for short runs.")
    gradient_accumulation: int = Field(
        1, ge=1, description="Passes that share one update; the batch is cut in as many."
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = Field(False, description="torch.compile the network.")
    determinism: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: a resumed run equals an uninterrupted one, bit for bit; fast: not so on a GPU.",
    )
    cpu_threads: int = Field(
        1, ge=1, description="Threads of a worker; part of the experiment, since it changes the bits on a CPU."
    )

    @model_validator(mode="after")
    def _accumulation_divides(self) -> Self:
        if self.batch_size % self.gradient_accumulation:
            raise cross_field_error(
                "training.gradient_accumulation",
                self.gradient_accumulation,
                f"a divisor of training.batch_size = {self.batch_size}",
                "Change one of the two.",
            )
        return self


class SamplingPlan(Section):
    """How images are drawn from the ensemble, and how many at the end of the run."""

    steps: int = Field(100, ge=1)
    spacing: Literal["quadratic", "uniform"] = Field(
        "quadratic",
        description="quadratic: int(linspace(0, sqrt(0.8 T), steps)^2), the paper's; uniform: every T/steps.",
    )
    eta: float = Field(0.0, ge=0, le=1, description="0: DDIM; 1: as noisy as DDPM.")
    clip_sample: bool = Field(False, description="Clip the predicted image to [-1, 1] in each step.")
    num_images: int = Field(64, ge=1)
    batch_size: int = Field(64, ge=1)


class CheckpointPlan(Section):
    """How often a worker saves; changes nothing in the result."""

    interval_steps: int = Field(1000, ge=1)
    keep: int = Field(2, ge=1, description="Newest checkpoints that stay on disk.")


class LoggingPlan(Section):
    """How often a worker reports; changes nothing in the result."""

    interval_steps: int = Field(50, ge=1)


class WorkersPlan(Section):
    """What a region asks of the cluster; changes nothing in the experiment."""

    gpus: float | Literal["auto"] = Field(
        "auto",
        description="GPUs a region: a fraction shares a device, above 1 means DDP; auto: 1 if there is any.",
    )
    cpus: float = Field(1, gt=0, description="CPUs a worker.")
    processes: int = Field(1, ge=1, description="DDP workers a region without GPUs.")
    retries: int = Field(2, ge=0, description="Further attempts of a region after its first.")
    wait_limit_s: float = Field(3600, gt=0, description="Longest wait for free resources.")
    cache_dir: str | None = Field(None, description="Decoded images; default: EBDIFF_CACHE, else ~/.cache/ebdiff.")

    @field_validator("gpus")
    @classmethod
    def _fraction_or_whole(cls, value: float | str) -> float | str:
        if isinstance(value, float) and (value < 0 or (value > 1 and value != int(value))):
            raise cross_field_error(
                "workers.gpus",
                value,
                "a fraction up to 1 (shared device) or a whole number (DDP)",
                "Use for example 0.5, 1 or 2.",
            )
        return value


class Plan(Section):
    """The whole experiment. `Plan.model_validate(dict)` raises pydantic's ValidationError, a ValueError."""

    name: str = Field("run", pattern=NAME, description="Names the run directory, if none is given.")
    seed: int = Field(0, ge=0)
    data: DataPlan = DataPlan()
    model: ModelPlan = ModelPlan()
    diffusion: DiffusionPlan = DiffusionPlan()
    regions: tuple[RegionPlan, ...] = (
        RegionPlan(train=(0, 260), pruning_ratio=0.3),
        RegionPlan(train=(240, 460), pruning_ratio=0.6),
        RegionPlan(train=(440, 1000), pruning_ratio=0.8),
    )
    draw: DrawPlan = DrawPlan()
    training: TrainingPlan = TrainingPlan()
    sampling: SamplingPlan = SamplingPlan()
    checkpointing: CheckpointPlan = CheckpointPlan()
    logging: LoggingPlan = LoggingPlan()
    workers: WorkersPlan = WorkersPlan()

    @model_validator(mode="after")
    def _regions_cover_the_timesteps(self) -> Self:
        check_regions(self.regions, self.diffusion.num_train_timesteps)
        return self

    @model_validator(mode="after")
    def _weights_exist(self) -> Self:
        if self.draw.weights == "ema" and self.training.ema_decay is None:
            raise cross_field_error(
                "draw.weights", "ema", "raw, since training.ema_decay is null", "Set training.ema_decay, or rank raw."
            )
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> Self:
        total = self.diffusion.num_train_timesteps
        if self.sampling.steps > total:
            raise cross_field_error(
                "sampling.steps", self.sampling.steps, f"at most diffusion.num_train_timesteps = {total}", "Lower it."
            )
        return self

    def routes(self) -> tuple[tuple[int, int], ...]:
        """The timesteps [start, stop) that each region owns at sampling: up to where the next region starts."""
        starts = [region.train[0] for region in self.regions]
        return tuple(zip(starts, [*starts[1:], self.diffusion.num_train_timesteps], strict=True))

    def steps_of(self, region: RegionPlan) -> int:
        """Training steps of a region: its own, else the plan's."""
        return region.steps or self.training.steps

    def experiment(self) -> dict[str, Any]:
        """What determines the result, as JSON values: all but the name, workers, checkpointing and logging.

        The images are known by their digest, kept in the manifest, not by where they lie. A limit on the draw
        decides only whether it fails, unless the plan takes the last mask at the limit; so a draw that ran into it
        can go on with a higher one.
        """
        values = self.model_dump(mode="json", exclude=_NOT_THE_EXPERIMENT)
        if self.draw.on_timeout == "error":
            del values["draw"]["max_intervals"]
        return values

    def experiment_digest(self) -> str:
        """SHA-256 of `experiment()`."""
        return digest(self.experiment())
