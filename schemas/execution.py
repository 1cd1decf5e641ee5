"""The sections of a plan that change nothing in the result: saving, reporting, previews, and what workers ask for."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.errors import cross_field_error
from schemas.limits import MANY, MOST_STEPS, MOST_TIMESTEPS, MOST_WORKERS
from schemas.section import Place, Section, is_none

PREVIEWS_FOLDER = "previews"  # in the run directory

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
PreviewSource = Literal["dense", "expert"]
_BY_DEFAULT: tuple[TrackerName, ...] = ("tensorboard",)


class CheckpointPlan(Section):
    """How often a worker saves; changes nothing in the result."""

    interval_steps: int = Field(1000, ge=1, le=MOST_STEPS)
    keep: int = Field(2, ge=1, le=MANY, description="Newest checkpoints that stay on disk.")
    stop_limit_s: float = Field(
        120, gt=0, le=10**8, description="Longest wait for the workers to save, once the run is asked to stop."
    )


class LoggingPlan(Section):
    """How often a worker reports, and to what; changes nothing in the result."""

    interval_steps: int = Field(50, ge=1, le=MOST_STEPS)
    trackers: tuple[TrackerName, ...] = Field(
        _BY_DEFAULT,
        exclude_if=lambda names: names == _BY_DEFAULT,
        description="Where curves and pictures go beside the run's own files: tensorboard (its folder tensorboard/), "
        "mlflow, wandb; [] for none.",
    )

    @model_validator(mode="after")
    def _trackers_once(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise cross_field_error("logging.trackers", list(self.trackers), "each tracker once", "Leave one out.")
        return self


class PreviewsPlan(Section):
    """A few images while the run trains, always from the same noise; changes nothing in the result.

    They are drawn from the EMA weights of each region's newest checkpoint, as soon as every region has one: its expert,
    or the dense network while it still draws its ticket (the raw weights, unless draw.weights is ema).
    """

    interval_s: float = Field(
        1800,
        gt=0,
        le=10**8,
        description="Least seconds between two previews, and before the first. A preview also waits until all of them "
        "together, if it costs what the last one did, take at most 0.5% of the processor time so far: of the seconds "
        "since the launch times the cores that the driver may use.",
    )
    num_images: int = Field(16, ge=1, le=256)
    steps: int = Field(20, ge=1, le=MOST_TIMESTEPS, description="Sampling steps; the rest is as in `sampling`.")
    measure: Literal["wavelet"] | None = Field(
        None,
        exclude_if=is_none,
        description="wavelet: the Frechet wavelet distance of the preview's images from as many of the data, evenly "
        "spread. Of so few images it compares the previews of a run with each other, and nothing else; null: none.",
    )


class PreviewRecord(Section):
    """One preview, beside its picture; `steps`: those of each region's checkpoint, by the region's name."""

    number: int
    unix_s: float
    steps: dict[str, int]
    source: dict[str, PreviewSource] = Field(description="Whose steps they are: the region's, or its dense network's.")
    num_images: int
    sampling_steps: int
    seconds: float
    processor_s: float = Field(description="Processor time of the whole process that drew it.")
    measures: dict[str, float] = Field(default_factory=dict, description="By name; of few images.")


def picture_key(number: int) -> str:
    return f"{PREVIEWS_FOLDER}/{number:06d}.png"


def record_key(number: int) -> str:
    """A preview's record in the run directory; written last."""
    return f"{PREVIEWS_FOLDER}/{number:06d}.json"


class WorkersPlan(Section):
    """What a region asks of the cluster; changes nothing in the experiment."""

    gpus: Annotated[float, Field(le=MOST_WORKERS)] | Literal["auto"] = Field(
        "auto", description="GPUs a region: a fraction shares a device, above 1 means DDP; auto: 1 if there is any."
    )
    cpus: float = Field(1, gt=0, le=MOST_WORKERS, description="CPUs a worker.")
    processes: int = Field(1, ge=1, le=MOST_WORKERS, description="DDP workers a region without GPUs.")
    parallel_efficiency: float = Field(
        0.9, gt=0, le=1, description="Share of the speed that each doubling of a region's GPUs keeps; for placement."
    )
    elastic: bool = Field(
        False, description="A free GPU joins the region that ends last, at its next checkpoint; rounding may differ."
    )
    retries: int = Field(2, ge=0, le=MANY, description="Further attempts of a region, anew with each that got further.")
    wait_limit_s: float = Field(3600, gt=0, le=10**8, description="Longest wait for free resources.")
    hang_limit_s: float = Field(
        1800,
        gt=0,
        le=10**8,
        description="Longest time without a step; a worker that makes none any more ends, to be tried again.",
    )
    store_limit_s: float = Field(
        900, gt=0, le=10**8, description="Longest time without an answer of the object store that holds the run."
    )
    cache_dir: Place | None = Field(None, description="Decoded images; default: EBDIFF_CACHE, else ~/.cache/ebdiff.")

    @field_validator("gpus")
    @classmethod
    def _fraction_or_whole(cls, value: float | str) -> float | str:
        if isinstance(value, float) and (value < 0 or (value > 1 and value != int(value))):
            expected = "a fraction up to 1 (shared device) or a whole number (DDP)"
            raise cross_field_error("workers.gpus", value, expected, "Use for example 0.5, 1 or 2.")
        return value

    @property
    def one_device_each(self) -> bool:
        """Whether a region starts on one whole device, or one process: what placement can widen."""
        return self.gpus in ("auto", 0, 1) and self.processes == 1

    @property
    def asked_each(self) -> str:
        """For people: the fields that say how many devices a region starts on."""
        return f"workers.gpus = {self.gpus}, workers.processes = {self.processes}"

    @model_validator(mode="after")
    def _elastic_from_one(self) -> Self:
        if self.elastic and not self.one_device_each:
            raise needs_one_device_each("workers.elastic", True, self)
        return self


def needs_one_device_each(field: str, value: object, workers: WorkersPlan) -> ValueError:
    """The error of a field that widens regions itself, where they start on several devices already."""
    asked = f"workers.gpus of auto, 0 or 1 and one process, not {workers.asked_each}"
    expected = f"{asked}: it decides itself how many a region gets"
    return cross_field_error(field, value, expected, "Leave workers.gpus and workers.processes at their defaults.")
