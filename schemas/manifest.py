"""The manifest: the one file that says what a run is, what it has done and what it has left on disk."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.data import RasterPlan
from schemas.job import Artifact, Hardware
from schemas.plan import Plan
from schemas.section import Sealed, Section, is_none
from schemas.stage_names import is_draw, is_training

MANIFEST_FILE = "manifest.json"
STUDY_FILE = "study.yaml"  # in its place: the folder is a study's, with a run in each folder below it
RAY_LOG = "ray.log"  # not there unless Ray had something to say
RAY_FOLDER = ".ray"  # Ray Train wants a place of its own; nothing in it is read
MANIFEST_VERSION = 3
EVALUATE_JOB = "evaluate"  # its usage is no part of what training cost
POINTS_COUNTED = 100  # of a drawing, where costs are counted: they are in proportion to it

ExtractorName = Literal["inception", "random-conv", "wavelet"]
Status = Literal["pending", "running", "done", "failed"]


class Costs(Section):
    """Parameters, and multiply-accumulates of one forward pass by two counters.

    `params` counts the UNet, as the paper does: not the table of class vectors that CrossAttn blocks attend to
    (`context_embedding`, classes + 1 rows; 0.51 M for ImageNet), which is never pruned and which CompVis keeps beside
    its UNet; a class embedding that is added to the time embedding counts.

    `macs` is torch-pruning's counter, which the paper used: convolutions, linear layers, norms and activations, but
    not the attention's matrix products. `macs_with_attention` is half of torch.utils.flop_counter's operations:
    convolutions, linear layers and the attention's products (CIFAR-10: 6.06 G and 6.22 G). Of a DrawingGRU both are
    the latter, of a drawing of POINTS_COUNTED points.
    """

    params: int
    macs: int
    macs_with_attention: int


class SparseCosts(Section):
    """What a sparse network keeps of the `maskable` weights and of all parameters, and would cost if nothing were
    computed for a masked weight: theoretical, for no device does so.

    `forward_macs` and `step_macs` count convolutions, linear layers and the attention's products, for one sample: of a
    forward pass, and of a training step by the method's average. `stored_bytes`: what the weights take in the expert's
    file, its header left out, and `dense_bytes`: what they would if none were masked.
    """

    maskable: int
    kept: int
    kept_params: int
    forward_macs: int
    step_macs: int
    stored_bytes: int
    dense_bytes: int


class RegionSizes(Section):
    """One region's expert."""

    realised_ratio: float = Field(description="The share of all prunable channels that its pruning ratio removes.")
    costs: Costs
    sparse: SparseCosts | None = Field(None, exclude_if=is_none, description="null: its weights have no mask.")


class NetworkSizes(Section):
    """The dense network and each region's expert, in the plan's order."""

    dense: Costs
    regions: tuple[RegionSizes, ...]


class StageRecord(Section):
    """One stage: what determines it, how it went, what it left."""

    name: str
    key: str = ""
    status: Status = "pending"
    attempts: int = 0
    started_at: float | None = Field(None, description="Unix time in seconds; of the first attempt.")
    finished_at: float | None = None
    active_s: float = Field(0.0, description="Seconds of work over all attempts, interrupted work not counted twice.")
    steps: int = 0
    artifacts: tuple[Artifact, ...] = ()
    hardware: Hardware | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    reused_from: str | None = Field(None, description="The run directory whose equal stage was taken over.")
    error: str | None = None


class DeviceUsage(Section):
    """The devices that one job, or one of the driver's own stages, held and for how long, waiting included."""

    job: str
    attempt: int
    started_at: float = Field(description="Unix time in seconds: when the devices were taken.")
    ended_at: float
    workers: int
    gpus: float = Field(description="GPUs over all workers; 0 on CPUs.")

    @property
    def worker_hours(self) -> float:
        return (self.ended_at - self.started_at) / 3600 * self.workers

    @property
    def gpu_hours(self) -> float:
        return (self.ended_at - self.started_at) / 3600 * self.gpus


class Launch(Section):
    """One time that a driver worked on the run; `ended_at` moves along while it does."""

    started_at: float
    ended_at: float


class DenseCost(Section):
    """What training the dense start took, in the run that it comes from."""

    steps: int
    active_s: float
    worker_hours: float
    gpu_hours: float


class DenseSource(Section):
    """The dense network that a run starts from."""

    path: str
    digest: str = Field(description="SHA-256 of its config and weights.")
    class_name: str
    arguments: dict[str, Any] = Field(description="Of its class: what it is built from.")
    cost: DenseCost | None = Field(None, description="null where it is unknown: the network is not a run's.")


class Evaluation(Section):
    """One measurement of the ensemble's images."""

    key: str = Field(description="Digest of the ensemble, the images drawn and the reference.")
    ensemble_digest: str = Field(description="SHA-256 of the files of the ensemble that was measured.")
    extractor: ExtractorName = Field(
        "inception", exclude_if=lambda name: name == "inception", description="The network that made the features."
    )
    fid: float | None = Field(None, exclude_if=is_none, description="The Frechet distance of Inception's features.")
    frechet_distance: float | None = Field(
        None,
        exclude_if=is_none,
        description="Of another extractor's: no FID. Of wavelet packets their distances' mean.",
    )
    packet_level: int | None = Field(None, exclude_if=is_none, description="Of wavelet packets: halvings of the side.")
    feature_images: int | None = Field(
        None, exclude_if=is_none, description="Of each side so many features gave kid, precision and recall."
    )
    kid: float | None = Field(None, exclude_if=is_none, description="Kernel distance of the features, mean of subsets.")
    kid_deviation: float | None = Field(None, exclude_if=is_none, description="Over the subsets.")
    precision: float | None = Field(None, exclude_if=is_none, description="Share of images among the reference's.")
    recall: float | None = Field(None, exclude_if=is_none, description="Share of the reference among the images.")
    num_images: int
    steps: int = Field(description="Sampling steps an image.")
    seed: int
    guidance_scale: float
    inception_sha256: str | None = Field(None, exclude_if=is_none, description="Of Inception's weights.")
    extractor_sha256: str | None = Field(None, exclude_if=is_none, description="Of another extractor's weights.")
    raster: RasterPlan | None = Field(
        None, exclude_if=is_none, description="How drawings were rendered, both sides'; null: images were measured."
    )
    reference_digest: str
    reference_images: int
    seconds_per_image: float = Field(description="Of one worker: sampling alone.")
    wall_s: float
    workers: int
    at: float

    @model_validator(mode="after")
    def _check_extractor(self) -> Self:
        by_inception, by_other = (self.fid, self.inception_sha256), (self.frechet_distance, self.extractor_sha256)
        ours, theirs = (by_inception, by_other) if self.extractor == "inception" else (by_other, by_inception)
        if None in ours or theirs != (None, None):
            raise ValueError("fid and inception_sha256 are Inception's, frechet_distance and extractor_sha256 others'")
        if (self.extractor == "wavelet") != (self.packet_level is not None):
            raise ValueError("packet_level is of wavelet packets alone, which have one")
        return self

    @property
    def distance(self) -> float:
        distance = self.fid if self.extractor == "inception" else self.frechet_distance
        assert distance is not None, "it was validated"
        return distance

    @property
    def weights_sha256(self) -> str:
        sha256 = self.inception_sha256 if self.extractor == "inception" else self.extractor_sha256
        assert sha256 is not None, "it was validated"
        return sha256

    @property
    def is_full(self) -> bool:
        """Whether it is FID-50K: fewer images give a higher, not comparable number."""
        return self.num_images >= 50_000


class Manifest(Sealed):
    """Everything the driver knows about a run. Only the driver writes it."""

    version: Literal[3] = 3
    created_at: float
    updated_at: float
    plan: Plan
    experiment_digest: str
    store_digest: str | None = None
    dense: DenseSource | None = None
    vae_digest: str | None = None
    sizes: NetworkSizes | None = Field(
        None, exclude_if=is_none, description="Of its networks, as counted at its launch; null: it was begun before."
    )
    step_seconds: dict[float, float] | None = Field(
        None, description="One update's seconds on one worker, by pruning ratio; measured where placement plans by it."
    )
    attempts: int = Field(0, description="Jobs started so far, in all launches; numbers the next one.")
    software: dict[str, str]
    stages: dict[str, StageRecord]
    launches: tuple[Launch, ...] = ()
    usage: tuple[DeviceUsage, ...] = ()
    evaluations: dict[str, Evaluation] = Field(default_factory=dict, description="By the evaluation's key.")

    def begun(self) -> bool:
        """Whether there is anything in the run that a new plan must not take the place of."""
        worked = any(record.status != "pending" for record in self.stages.values())
        return bool(self.attempts or worked or self.usage or self.evaluations)

    def training_usage(self) -> tuple[DeviceUsage, ...]:
        """What making the ensemble took: all usage but that of its evaluations."""
        return tuple(held for held in self.usage if held.job != EVALUATE_JOB)

    def stage(self, name: str) -> StageRecord:
        return self.stages[name]

    def start_cost(self) -> DenseCost | None:
        """What training the dense start took: nothing where the run starts fresh, None where it is not known."""
        nothing = DenseCost(steps=0, active_s=0.0, worker_hours=0.0, gpu_hours=0.0)
        return nothing if self.dense is None else self.dense.cost

    def draws(self) -> list[StageRecord]:
        return [record for name, record in self.stages.items() if is_draw(name)]

    def trainings(self) -> list[StageRecord]:
        return [record for name, record in self.stages.items() if is_training(name)]

    def with_stage(self, record: StageRecord) -> Self:
        return self.model_copy(update={"stages": {**self.stages, record.name: record}})

    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(record.status == "done" for record in self.stages.values())
