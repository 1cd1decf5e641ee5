"""One network in training: a step is the paper's equation, an Adam update and an EMA update."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from region_workers.training.device import World
from region_workers.training.diffusion import TimestepSampler, diffusion_loss
from region_workers.training.family import ModelFamily
from region_workers.training.randomness import StepRandomness, set_dropout_rows, use_batch_dropout
from region_workers.training.sparse import SparseWeights
from schemas.errors import RunFailed
from schemas.plan import SparsityPlan, TrainingPlan


class Trainer:
    """Network, optimizer and EMA of one stage on one worker; the network's masks if it is sparse.

    `step` counts finished updates, `total_steps` those that the stage will make. Nothing in `train_step` waits for the
    device: a loss that is not finite blocks every later update on the device itself, and `read_metrics`, called at the
    log interval, raises.
    """

    def __init__(
        self,
        network: nn.Module,
        family: ModelFamily,
        randomness: StepRandomness,
        sampler: TimestepSampler,
        training: TrainingPlan,
        world: World,
        keep_ema: bool = True,
        sparsity: SparsityPlan | None = None,
        total_steps: int = 0,
    ) -> None:
        self.network = network.to(world.device).train()
        if training.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.step = 0
        self.family, self.randomness, self.sampler, self.training = family, randomness, sampler, training
        self._world = world
        self._rows = worker_rows(training.batch_size, training.gradient_accumulation, world)
        self._dropouts = use_batch_dropout(self.network)
        self.parameters = dict(self.network.named_parameters())
        self.sparse = SparseWeights(self.network, sparsity, total_steps, randomness)
        keep_ema = keep_ema and training.ema_decay is not None
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()} if keep_ema else None
        self.optimizer = _optimizer(list(self.parameters.values()), training)
        self._replicas = _replicas(self.network, world)
        module = self._replicas or self.network
        self._forward: nn.Module = torch.compile(module) if training.compile else module  # type: ignore[assignment]
        self._guard = NonFiniteGuard(world.device, sampler.span)
        self._loss_sum = torch.zeros((), device=world.device)
        self._gradient_norm = torch.zeros((), device=world.device)
        self._losses = 0

    def train_step(self) -> None:
        """One update: the gradient of the step's loss, clipped, then Adam and the EMA; masked if sparse."""
        loss = self._accumulate_gradients()
        self.sparse.update(self.step, self.optimizer, self.ema)
        self.sparse.mask_gradients()
        self._gradient_norm = self._clip_gradients()
        self._guard.watch(loss + self._gradient_norm, self.step)
        self._set_learning_rate()
        self.optimizer.found_inf = self._guard.blocked  # type: ignore[attr-defined]  # fused: no update if it is 1
        self.optimizer.step()
        self.sparse.mask_weights()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            weight = 1.0 - ema_decay(self.step, self.training)
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.parameters.values()], weight)
        self._loss_sum += loss
        self._losses += 1
        self.step += 1

    def _clip_gradients(self) -> torch.Tensor:
        """Clip the gradients, if the plan says so; the norm that they had, which is finite if they are."""
        weights, clip = list(self.parameters.values()), self.training.gradient_clip
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if clip is not None:
            nn.utils.clip_grads_with_norm_(weights, clip, norm)
        return norm

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _set_learning_rate(self) -> None:
        """The rate is a function of the step, so that a checkpoint need not hold it."""
        decay = self.training.learning_rate_decay
        if decay is not None:
            epoch = self.step // self.family.steps_per_epoch
            for group in self.optimizer.param_groups:
                group["lr"] = self.training.learning_rate * decay**epoch

    def _accumulate_gradients(self) -> torch.Tensor:
        """Backward over the step's micro-batches; the mean loss, the same on every worker.

        Timesteps and noise are drawn for the whole batch, of which this worker takes its rows.
        """
        device, batch_size = self._world.device, self.training.batch_size
        mean_loss = torch.zeros((), device=device)
        generator = self.randomness.generator(self.step)
        timesteps_B = self.sampler.draw(batch_size, generator)
        noise: torch.Tensor | None = None
        for rows in self._rows:
            self._sync_gradients(rows is self._rows[-1])
            set_dropout_rows(self._dropouts, rows, batch_size, device)
            self.randomness.seed_network(self.step)
            batch = self.family.batch(self.step, rows)
            if noise is None:
                noise = torch.randn((batch_size, *batch.clean.shape[1:]), generator=generator, device=device)
            predict = partial(self.family.predict, self._forward, batch)
            schedule, weights = self.family.alphas_cumprod, (self.sampler.weights_T, batch.value_weights)
            loss = diffusion_loss(predict, batch.clean, timesteps_B[rows], noise[rows], schedule, *weights)
            loss = loss / self.training.gradient_accumulation
            loss.backward()  # type: ignore[no-untyped-call]
            mean_loss += loss.detach()
        return self._world.average(mean_loss)

    def _sync_gradients(self, enabled: bool) -> None:
        """Whether the next backward pass averages the gradients over the workers: once an update, in its last."""
        if self._replicas is not None:
            self._replicas.require_backward_grad_sync = enabled

    def read_metrics(self) -> tuple[float, float]:
        """Mean loss since the last call and the last gradient norm; waits for the device.

        Raises NonFiniteLossError, naming the step, if a loss or gradient was not finite.
        """
        self.check_finite()
        count = max(self._losses, 1)
        loss, norm = float(self._loss_sum) / count, float(self._gradient_norm)
        self._loss_sum.zero_()
        self._losses = 0
        return loss, norm

    def check_finite(self) -> None:
        self._guard.check()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint must hold: weights, EMA, moments, masks, by prefixed names; the losses of this row."""
        tensors = {f"weights.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {"loss_sum": self._loss_sum, "losses": torch.tensor(self._losses), **self.sparse.state_tensors()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for name, parameter in self.parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Go on from `state_tensors` saved after `step` updates; every tensor must be there."""
        self.step, self._losses = step, int(tensors["losses"])
        self._loss_sum.copy_(tensors["loss_sum"])
        self.sparse.load_state_tensors(tensors)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
            if self.ema is not None:
                self.ema[name].copy_(tensors[f"ema.{name}"])
            for moment in ("step", "exp_avg", "exp_avg_sq") if step else ():
                like = self._loss_sum if moment == "step" else parameter
                # Copied, for `tensors` may lie in a mapped file, which would stay on the disk.
                self.optimizer.state[parameter][moment] = torch.empty_like(like).copy_(tensors[f"{moment}.{name}"])

    def final_weights(self) -> dict[str, torch.Tensor]:
        """The weights a stage hands on: the EMA if there is one."""
        return self.ema if self.ema is not None else {name: p.detach() for name, p in self.parameters.items()}

    @contextmanager
    def using_weights(self, weights: dict[str, torch.Tensor] | None) -> Iterator[None]:
        """Use other weights for a while; None changes nothing."""
        if weights is None:
            yield
            return
        raw = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy_weights(weights)
        try:
            yield
        finally:
            self._copy_weights(raw)

    @torch.no_grad()
    def _copy_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])


def worker_rows(batch_size: int, parts: int, world: World) -> list[slice]:
    """This worker's rows of the global batch, in equal parts."""
    size = batch_size // (world.size * parts)
    starts = range(world.rank * size * parts, (world.rank + 1) * size * parts, size)
    return [slice(start, start + size) for start in starts]


def weights_handed_on(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`Trainer.final_weights` of a state that `Trainer.state_tensors` gave."""
    prefix = "ema." if any(name.startswith("ema.") for name in state) else "weights."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def ema_decay(step: int, training: TrainingPlan) -> float:
    """The EMA's decay after `step` earlier updates: constant, or min(decay, (1+k)/(10+k)) with the warm-up."""
    assert training.ema_decay is not None
    if training.ema_warmup:
        return min(training.ema_decay, (1 + step) / (10 + step))
    return training.ema_decay


class NonFiniteLossError(RunFailed):
    """The loss or the gradient is no longer a number; the update of that step was not made."""


class NonFiniteGuard:
    """Blocks every update from the first bad step on, on the device itself; `check` raises, later.

    `blocked`: float32 [], 1 once a loss or gradient was not finite; the fused optimizers skip an update whose
    `found_inf` it is.
    """

    def __init__(self, device: torch.device, span: tuple[int, int]) -> None:
        self._span = span
        self.blocked = torch.zeros((), device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, value: torch.Tensor, step: int) -> None:
        """Check a scalar that is not finite if the loss or the gradients of the step are not."""
        bad = ~torch.isfinite(value)
        self._first_bad_step = torch.where(bad & (self._first_bad_step < 0), step, self._first_bad_step)
        self.blocked = torch.maximum(self.blocked, bad.float())

    def check(self) -> None:
        """Raise NonFiniteLossError if a step so far was bad; waits for the device."""
        bad_step = int(self._first_bad_step)
        if bad_step >= 0:
            raise NonFiniteLossError(
                f"The loss or gradient of step {bad_step} (timesteps {list(self._span)}) is not finite; the "
                "update was not made and the last good checkpoint stays. Lower training.learning_rate, set "
                "training.gradient_clip, or use training.precision=fp32, in a new run."
            )


def _optimizer(parameters: list[nn.Parameter], training: TrainingPlan) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if training.weight_decay else torch.optim.Adam
    return kind(
        parameters,
        lr=training.learning_rate,
        betas=training.adam_betas,
        eps=training.adam_eps,
        weight_decay=training.weight_decay,
        fused=True,
    )


def _replicas(network: nn.Module, world: World) -> DistributedDataParallel | None:
    """The network as one of the region's replicas, whose gradients are averaged; None for a worker alone."""
    if world.size == 1:
        return None
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids)
