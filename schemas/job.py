"""What driver and workers tell each other by files of the run: claims to it, jobs, progress, results."""

import re
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from schemas.experiment import SparsityPlan
from schemas.model import ModelPlan
from schemas.plan import CheckpointPlan, DataPlan, DiffusionPlan, DrawPlan, LoggingPlan, Plan, TrainingPlan
from schemas.section import Sealed, Section, is_none

OWNERS_FOLDER = ".owners"  # numbered claims, of which the newest is the owner's
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.json"
FAILURE_FILE = "failure.json"
STOP_FILE = "stop-requested"
GROW_FILE = "grow-requested"  # in a train stage's folder
RECENT_METRICS_FILE = "recent_metrics.json"  # for who looks on; the truth is in Parquet
MASKS_FILE = "masks.arrow"
METRICS_FILE = "metrics.parquet"
MASK_MOVES_FILE = "mask_moves.parquet"  # of a sparse training
TICKETS_FOLDER = "tickets"
CHECKPOINTS_FOLDER = "checkpoints"
TICKET_FILE = "ticket.json"
EXPERT_FOLDER = "expert"
REPLACED_SHARE = "replaced_share"  # a figure of a sparse training: of the first masks' weights
CONFIG_FILE = "config.json"  # diffusers' name
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # diffusers' name

_CLAIM = re.compile(r"[0-9]{8}-[0-9a-f]{8}\.json")
_RESOURCES = {"resident_bytes", "device_allocated_bytes", "device_reserved_bytes", "processor_cores"}
ProgressState = Literal["starting", "running", "stopped", "done"]


class Claim(Section):
    """A driver's claim to a run. Its holder rewrites it as long as it lives: `beat` counts how often."""

    number: int
    token: str
    host: str
    pid: int
    process: str = ""  # tells this very process from any other of this machine; empty where that cannot be told
    lease_s: float  # a holder that has not rewritten its claim for so long is taken for dead
    beat: int = 0
    released: bool = False

    @property
    def name(self) -> str:
        """The file's name. Of two claims the greater name is the newer, or wins."""
        return f"{self.number:08d}-{self.token}.json"


def is_claim(name: str) -> bool:
    """Whether a file of this name is a claim; nothing else in the folder counts."""
    return _CLAIM.fullmatch(name) is not None


class Note(Section):
    """A driver's word to its workers: whose (WorkerJob.owner), and to which attempts; none: to all of them.

    A worker heeds none but those of the driver that gave it its job.
    """

    owner: str = ""
    attempts: tuple[int, ...] = ()

    def is_for(self, owner: str, attempt: int) -> bool:
        """Whether it is meant for this attempt of this driver's."""
        return self.owner == owner and (not self.attempts or attempt in self.attempts)


class DrawTarget(Section):
    """One ticket to be drawn."""

    region: str
    pruning_ratio: float


class DrawStage(Section):
    """Train the dense model on [start, stop) until every target's ticket has appeared."""

    name: str
    key: str
    timesteps: tuple[int, int]
    targets: tuple[DrawTarget, ...]


class TrainStage(Section):
    """Train one region's expert from its ticket, found in the folder of the stage `draw`."""

    name: str
    key: str
    region: str
    timesteps: tuple[int, int]
    steps: int
    draw: str
    sparsity: SparsityPlan | None = None


class WorkerJob(Section):
    """All that one worker needs: a draw, a training, or both after one another."""

    name: str
    attempt: int
    run_dir: str
    owner: str = ""  # the claim of the driver that gave the job; one that is not the run's newest is void
    cache_dir: str | None = None
    use_gpu: bool = True
    store_digest: str  # of what is denoised: the images, or the latents made of them
    dense_digest: str | None = None  # of model.pretrained
    seed: int
    data: DataPlan
    model: ModelPlan
    diffusion: DiffusionPlan
    draw_plan: DrawPlan
    training: TrainingPlan
    checkpointing: CheckpointPlan
    hang_limit_s: float = 1800.0
    store_limit_s: float = 900.0
    logging: LoggingPlan
    draw: DrawStage | None
    train: TrainStage | None

    def stages(self) -> tuple[str, ...]:
        """The names of the stages this job completes, in order."""
        return tuple(stage.name for stage in (self.draw, self.train) if stage is not None)


def from_plan(plan: Plan) -> dict[str, Any]:
    """The fields of a WorkerJob that are the plan's own."""
    sections = ("seed", "data", "model", "diffusion", "training", "checkpointing", "logging")
    return {"draw_plan": plan.draw, **{name: getattr(plan, name) for name in sections}}


class Artifact(Section):
    """A file of a run: path relative to the run directory, which it must not leave, and what it must hold."""

    path: str
    size_bytes: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_in_the_run(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{value!r} is not a path inside the run directory")
        return value


class Hardware(Section):
    """The device a stage ran on."""

    device: str
    world_size: int
    cpu_threads: int


class StageResult(Sealed):
    """Written last by a finished stage; `attempt` and `owner` are those of the job that finished it."""

    stage: str
    key: str
    attempt: int = 0
    owner: str = ""
    started_at: float
    finished_at: float
    active_s: float
    steps: int
    inputs: tuple[Artifact, ...] = ()
    artifacts: tuple[Artifact, ...]
    hardware: Hardware
    metrics: dict[str, float]
    peak_memory_bytes: int | None = None  # of the leading worker: allocated on a CUDA device, else resident
    reused_from: str | None = None  # the run directory that this stage was taken over from


class Progress(Section):
    """Where a job stands; rewritten every second or so. `attempt` and `owner` are those of the job.

    `mask_distances`: of a draw, by region that waits for its ticket, once its queue of masks is full: the largest
    distance of the newest mask to the others in it. The ticket is drawn when it is at most `mask_threshold`.
    """

    stage: str
    attempt: int = 0
    owner: str = ""
    state: ProgressState = "running"
    step: int = 0
    first_step: int = 0  # what this attempt went on from
    total_steps: int | None = None
    loss: float | None = None
    steps_per_s: float | None = None
    note: str = ""
    mask_distances: dict[str, float] = Field(default_factory=dict, exclude_if=lambda distances: not distances)
    mask_threshold: float | None = Field(None, exclude_if=is_none)
    stage_started_at: float = 0.0
    updated_at: float = 0.0


class MetricsRow(Section):
    """A row of a stage's metrics, as in Parquet. What the leading worker took is None where nobody says."""

    step: int
    loss: float  # mean over the steps since the row before
    gradient_norm: float
    learning_rate: float
    steps_per_s: float
    unix_time_s: float
    resident_bytes: int | None = None  # of the process
    device_allocated_bytes: int | None = None  # the most since the stage began, and so is the next
    device_reserved_bytes: int | None = None
    processor_cores: float | None = None  # the process's processor seconds a second since the row before

    def resources(self) -> dict[str, float]:
        """What the worker took, by name."""
        return {name: float(value) for name, value in self if name in _RESOURCES and value is not None}

    def progress(self) -> dict[str, float]:
        """How the training gets on, by name."""
        return self.model_dump(exclude={"step", "unix_time_s", *_RESOURCES})


class RecentMetrics(Section):
    """The newest rows of a stage's metrics; the row before them is that of the step `after`, 0 for none."""

    after: int
    rows: tuple[MetricsRow, ...]


class Failure(Section):
    """Why a job broke off, for people, and the traceback for those who want to know more.

    `attempt` and `owner` are those of the job.
    """

    stage: str
    attempt: int
    owner: str = ""
    message: str
    retryable: bool
    traceback: str
    at: float


class KeptChannels(Section):
    """The channels of one layer that stay, as indices into the dense layer; None: all of them."""

    outputs: tuple[int, ...] | None = None
    inputs: tuple[int, ...] | None = None


class Ticket(Sealed):
    """What a draw hands to a training. A dense region's ticket keeps everything."""

    region: str
    pruning_ratio: float
    realised_ratio: float
    importance: str
    weights: str
    interval: int
    step: int
    distances: tuple[float, ...]
    converged: bool
    kept_channels: dict[str, KeptChannels]
