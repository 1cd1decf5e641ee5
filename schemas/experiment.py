"""The sections of a plan that determine the result, besides the data, the model and the regions."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.errors import cross_field_error
from schemas.limits import LARGE, MANY, MOST_GUIDANCE, MOST_IMAGES, MOST_STEPS, MOST_TIMESTEPS
from schemas.section import Section, is_none

Importance = Literal["magnitude", "taylor", "diff-pruning", "random"]
GradientRule = Literal["released", "torch-pruning"]
Distribution = Literal["erk", "er", "uniform"]
_ONLY_OF_UPDATES = {"prune_ratio", "decay", "interval_steps", "stop_share"}


class DiffusionPlan(Section):
    """The forward process (DDPM, arXiv 2006.11239): T timesteps and their betas."""

    num_train_timesteps: int = Field(1000, ge=2, le=MOST_TIMESTEPS, description="T.")
    beta_schedule: Literal["linear", "scaled_linear"] = Field(
        "linear", description="scaled_linear: linear in the square root, as LDM does."
    )
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)

    @model_validator(mode="after")
    def _betas_rise(self) -> Self:
        if self.beta_start > self.beta_end:
            expected = f"at most diffusion.beta_end = {self.beta_end}"
            raise cross_field_error("diffusion.beta_start", self.beta_start, expected, "Swap them.")
        return self


class DrawPlan(Section):
    """How tickets are drawn: the dense model trains until its pruning mask stops changing (paper, section 4.1)."""

    scope: Literal["per-region", "shared"] = Field(
        "per-region", description="per-region: each region on its own timesteps; shared: one dense warm-up over all."
    )
    method: Literal["early-bird", "one-shot", "slim"] = Field(
        "early-bird",
        description="early-bird: train until the mask stops changing; one-shot: one mask of model.pretrained as it is; "
        "slim: none, the control: networks of the ratios' widths with fresh weights.",
    )
    inherit_weights: bool = Field(
        True, description="false: the expert keeps the ticket's channels and starts from fresh weights (`scratch`)."
    )
    importance: Importance = "magnitude"
    gradient_rule: GradientRule = Field(
        "released",
        description="A channel's score by taylor and diff-pruning: released: the sum of (w·gradient)² over its group "
        "and |w·gradient| of its norms, as in the released code; torch-pruning: the mean of |w·gradient|, no norms.",
    )
    scoring: Literal["at-once", "sequential"] = Field(
        "at-once",
        description="at-once: every layer is scored on the dense network; sequential: on what the layers pruned before "
        "it leave, as in the released code.",
    )
    importance_timesteps: int | None = Field(
        None,
        ge=1,
        le=MOST_TIMESTEPS,
        description="taylor and diff-pruning: timesteps of the region whose gradients add up; all if not set.",
    )
    diff_pruning_threshold: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="diff-pruning stops at the timestep whose loss falls under this share of the largest.",
    )
    interval_steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Steps between two masks; an epoch if not set."
    )
    queue_length: int = Field(5, ge=2, le=MANY, description="Masks that must agree.")
    queue_stride: int = Field(1, ge=1, le=MANY, description="Every n-th mask stands in the queue.")
    threshold: float = Field(0.1, gt=0, le=1, description="Largest share of mask bits in which two may differ.")
    max_intervals: int = Field(
        100, ge=1, le=MOST_STEPS, description="Masks after which a draw that has not converged stops."
    )
    on_timeout: Literal["error", "take_last"] = "error"
    weights: Literal["raw", "ema"] = Field("raw", description="The weights that are ranked and inherited.")

    @property
    def trains_dense(self) -> bool:
        """Whether the dense network is trained for the tickets."""
        return self.method == "early-bird"

    def masks_agree(self, distances: tuple[float, ...] | None) -> bool:
        """Whether the queue is full and its newest mask lies within the threshold of each of the others: a ticket."""
        return distances is not None and max(distances) <= self.threshold

    @model_validator(mode="after")
    def _slim_draws_nothing(self) -> Self:
        if self.method == "slim" and self.scope == "shared":
            expected = "per-region with draw.method = slim, which draws nothing that could be shared"
            raise cross_field_error("draw.scope", self.scope, expected, "Leave it out.")
        return self

    @model_validator(mode="after")
    def _queue_can_fill(self) -> Self:
        needed = (self.queue_length - 1) * self.queue_stride + 1
        if self.max_intervals < needed:
            expected = f"at least {needed}, so that a queue of {self.queue_length} masks can fill"
            remedy = f"Raise draw.max_intervals to {needed} or more, or shorten draw.queue_length."
            raise cross_field_error("draw.max_intervals", self.max_intervals, expected, remedy)
        return self


class TimestepPlan(Section):
    """Which timesteps a step trains on, and how much each counts. Laws over [0, T), conditioned on the region."""

    sampling: Literal["uniform", "speed"] = Field(
        "uniform", description="uniform, in antithetic pairs; speed: SpeeD's law (arXiv 2405.17403)."
    )
    weighting: Literal["none", "speed", "min-snr", "p2"] = Field(
        "none", description="Weights of the loss: SpeeD's, Min-SNR (arXiv 2303.09556), P2 (arXiv 2204.00227)."
    )
    speed_tau: int = Field(
        700, ge=1, le=MOST_TIMESTEPS, description="SpeeD: timesteps below it are drawn speed_k times as often."
    )
    speed_k: float = Field(5.0, ge=1, le=MANY)
    speed_lambda: float = Field(0.6, ge=0.5, le=1, description="SpeeD: weights below speed_tau span [1 - λ, λ].")
    min_snr_gamma: float = Field(5.0, gt=0, le=LARGE)
    p2_gamma: float = Field(1.0, ge=0, le=100)
    p2_k: float = Field(1.0, gt=0, le=LARGE)


class TrainingPlan(Section):
    """One region's training, and the dense training of its draw."""

    steps: int = Field(1000, ge=1, le=MOST_STEPS)
    batch_size: int = Field(128, ge=1, le=MOST_IMAGES, description="Images a step, over all workers of a region.")
    learning_rate: float = Field(2e-4, gt=0, le=1)
    learning_rate_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        exclude_if=is_none,
        description="After every pass over the data the learning rate is multiplied by it; null: it is constant.",
    )
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0, le=1)
    timesteps: TimestepPlan = TimestepPlan()
    weight_decay: float = Field(0.0, ge=0, le=100, description="Decoupled, as AdamW's; 0: Adam.")
    gradient_clip: float | None = Field(
        1.0, gt=0, le=LARGE, description="Largest norm of the gradient; null: no clipping."
    )
    ema_decay: float | None = Field(0.9999, ge=0, lt=1, description="null: no EMA.")
    ema_warmup: bool = Field(False, description="Decay of min(ema_decay, (1+k)/(10+k)) at step k, for short runs.")
    gradient_accumulation: int = Field(
        1, ge=1, le=MOST_IMAGES, description="Passes that share one update; the batch is cut in as many."
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = Field(False, description="torch.compile the network.")
    determinism: Literal["exact", "fast"] = Field(
        "exact", description="exact: a resumed run equals an uninterrupted one, bit for bit; fast: not so on a GPU."
    )
    cpu_threads: int = Field(
        1, ge=1, le=4096, description="Threads of a worker; part of the experiment, since it changes the bits on a CPU."
    )

    @model_validator(mode="after")
    def _accumulation_divides(self) -> Self:
        if self.batch_size % self.gradient_accumulation:
            expected = f"a divisor of training.batch_size = {self.batch_size}"
            remedy = "Change one of the two."
            raise cross_field_error("training.gradient_accumulation", self.gradient_accumulation, expected, remedy)
        return self


class SparsityPlan(Section):
    """Sparse-to-sparse training (arXiv 2504.21380): every convolution and linear weight has a mask; biases have none.

    What the paper does not state, as far as it could be read, is a choice of ours and says so.
    """

    method: Literal["static", "rigl", "magran"] = Field(
        description="static: the first mask stays; rigl, magran: every update the smallest weights leave, and as many "
        "come: those of the largest gradient (rigl, arXiv 1911.11134), or at random (magran)."
    )
    sparsity: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="The share of the maskable weights that is zero, in every region without one of its own; the "
        "paper finds 0.25 to 0.5 safe for rigl and magran.",
    )
    distribution: Distribution = Field(
        "erk",
        description="How dense each layer is: erk, er: the smaller the denser, by all sides of its weight (arXiv "
        "1911.11134) or by its inputs and outputs (arXiv 1707.04780); uniform: all alike. The default is ours.",
    )
    prune_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The share of a layer's kept weights that an update exchanges; null: 0.5 up to a sparsity of 0.5, "
        "which is ours, and 0.05 above, which the paper recommends.",
    )
    decay: Literal["constant", "cosine"] = Field(
        "cosine", description="cosine: the exchanged share falls to 0 at the last update, as RigL's; ours."
    )
    interval_steps: int = Field(100, ge=1, le=MOST_STEPS, description="Steps between two updates; RigL's.")
    stop_share: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Updates end at this share of the steps: RigL's. The EMA must forget what left before the end.",
    )

    def determinants(self, steps: int) -> dict[str, Any]:
        """The fields that determine a training of `steps`, of which a static mask is independent."""
        if self.method == "static":
            return self.model_dump(mode="json", exclude=_ONLY_OF_UPDATES)
        return {**self.model_dump(mode="json"), "steps": steps}


class SamplingPlan(Section):
    """How images are drawn from the ensemble, and how many at the end of the run."""

    steps: int = Field(100, ge=1, le=MOST_TIMESTEPS)
    spacing: Literal["quadratic", "uniform"] = Field(
        "quadratic",
        description="quadratic: int(linspace(0, sqrt(0.8 T), steps)^2), the paper's; uniform: every T/steps.",
    )
    steps_offset: int = Field(
        0, ge=0, le=MOST_TIMESTEPS, description="Added to every timestep; 1: LDM's sampler, which ends at 1."
    )
    set_alpha_to_one: bool = Field(
        True, description="Whether the clean image has an ᾱ of 1; false: that of timestep 0, as in LDM's sampler."
    )
    eta: float = Field(0.0, ge=0, le=1, description="0: DDIM; 1: as noisy as DDPM.")
    variance_strength: float | None = Field(
        None,
        ge=0,
        le=1,
        exclude_if=is_none,
        description="Share of eta's noise that a step adds; ChiroDiff (arXiv 2304.03785): 0.75; null: all of it.",
    )
    clip_sample: bool = Field(False, description="Clip the predicted image to [-1, 1] in each step.")
    guidance_scale: float = Field(
        1.0, ge=0, le=MOST_GUIDANCE, description="Classifier-free guidance of a class-conditional model; 1: none."
    )
    num_images: int = Field(64, ge=1, le=MOST_IMAGES)
    batch_size: int = Field(64, ge=1, le=MOST_IMAGES)
