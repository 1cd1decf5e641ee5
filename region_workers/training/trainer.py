"""One network in training: a step is the paper's equation, an Adam update and an EMA update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from region_workers.training.device import World
from region_workers.training.dropout import share_dropout, take_rows
from region_workers.training.failures import NonFiniteLossError
from region_workers.training.family import Batch, ModelFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.timesteps import TimestepSampler
from schemas.plan import TrainingPlan


def ema_decay(step: int, training: TrainingPlan) -> float:
    """The EMA's decay after `step` earlier updates: constant, or min(decay, (1+k)/(10+k)) with the warm-up."""
    assert training.ema_decay is not None
    if training.ema_warmup:
        return min(training.ema_decay, (1 + step) / (10 + step))
    return training.ema_decay


class Trainer:
    """Network, optimizer and EMA of one stage on one worker.

    `step` counts finished updates. Nothing in `train_step` waits for the device: a loss that is not finite blocks
    every later update on the device itself, and `read_metrics`, called at the log interval, raises.
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
    ) -> None:
        self.network = network.to(world.device).train()
        if training.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self._dropouts = share_dropout(self.network)
        self.step = 0
        self._family, self._randomness, self._sampler = family, randomness, sampler
        self._training, self._world = training, world
        self.parameters = dict(self.network.named_parameters())
        keep_ema = keep_ema and training.ema_decay is not None
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()} if keep_ema else None
        kind = torch.optim.AdamW if training.weight_decay else torch.optim.Adam
        self.optimizer = kind(
            self.parameters.values(),
            lr=training.learning_rate,
            betas=training.adam_betas,
            eps=training.adam_eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self._replicas = self._distributed()
        module = self._replicas or self.network
        self._forward: nn.Module = torch.compile(module) if training.compile else module  # type: ignore[assignment]
        self._blocked = torch.zeros((), device=world.device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)
        self._loss_sum = torch.zeros((), device=world.device)
        self._gradient_norm = torch.zeros((), device=world.device)
        self._losses = 0

    def train_step(self) -> None:
        """One update: timesteps and noise of this step, forward, backward, clip, Adam, EMA."""
        loss = self._accumulate_gradients()
        if self._training.gradient_clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self._training.gradient_clip)
            self._gradient_norm = norm.detach()
            self._block_if_not_finite(loss + norm.detach())
        else:
            self._block_if_not_finite(loss)
        self.optimizer.found_inf = self._blocked  # type: ignore[attr-defined]  # fused Adam skips the update if set
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            weight = 1.0 - ema_decay(self.step, self._training)
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.parameters.values()], weight)
        self._loss_sum += loss
        self._losses += 1
        self.step += 1

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
        """Raise NonFiniteLossError if any step so far had a loss or gradient that is not finite."""
        bad_step = int(self._first_bad_step)
        if bad_step >= 0:
            raise NonFiniteLossError(
                f"The loss or gradient of step {bad_step} (timesteps {list(self._sampler.span)}) is not finite; the "
                "update was not made and the last good checkpoint stays. Lower training.learning_rate, set "
                "training.gradient_clip, or use training.precision=fp32, in a new run."
            )

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint must hold: weights, EMA, Adam's moments, by prefixed names; the losses of this row."""
        tensors = {f"weights.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {"loss_sum": self._loss_sum, "losses": torch.tensor(self._losses)}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for name, parameter in self.parameters.items():
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                if parameter in self.optimizer.state:
                    tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Go on from `state_tensors` saved after `step` updates; every tensor must be there."""
        self.step, self._losses = step, int(tensors["losses"])
        self._loss_sum.copy_(tensors["loss_sum"])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
            if self.ema is not None:
                self.ema[name].copy_(tensors[f"ema.{name}"])
            if step:
                self.optimizer.state[parameter] = self._adam_state(parameter, name, tensors)

    def final_weights(self) -> dict[str, torch.Tensor]:
        """The weights a stage hands on: the EMA if there is one."""
        return self.ema if self.ema is not None else {name: p.detach() for name, p in self.parameters.items()}

    @contextmanager
    def using_weights(self, weights: dict[str, torch.Tensor] | None) -> Iterator[None]:
        """Compute with other weights for a while; None changes nothing."""
        if weights is None:
            yield
            return
        raw = {name: p.detach().clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(raw[name])

    def _accumulate_gradients(self) -> torch.Tensor:
        """Backward over this worker's rows in equal passes; the mean loss, the same on every worker."""
        passes, batch_size = self._training.gradient_accumulation, self._training.batch_size
        share = batch_size // (self._world.size * passes)
        first_row = self._world.rank * share * passes
        generator = self._randomness.generator(self.step)
        timesteps_B = self._sampler.draw(batch_size, generator)
        noise_BCHW: torch.Tensor | None = None
        total = torch.zeros((), device=self._world.device)
        for index in range(passes):
            rows = slice(first_row + index * share, first_row + (index + 1) * share)
            take_rows(self._dropouts, rows, batch_size, self._world.device)
            self._randomness.seed_network(self.step)
            batch = self._family.batch(self.step, rows)
            if noise_BCHW is None:
                shape = (batch_size, *batch.clean.shape[1:])
                noise_BCHW = torch.randn(shape, generator=generator, device=self._world.device)
            total += self._backward(batch, timesteps_B[rows], noise_BCHW[rows], passes, last=index == passes - 1)
        if self._world.size > 1:
            torch.distributed.all_reduce(total, op=torch.distributed.ReduceOp.SUM)
            total /= self._world.size
        return total

    def _backward(
        self, batch: Batch, timesteps: torch.Tensor, noise: torch.Tensor, passes: int, last: bool
    ) -> torch.Tensor:
        if self._replicas is not None:
            self._replicas.require_backward_grad_sync = last  # reduce once an update, after the last pass
        bf16 = self._training.precision == "bf16"
        with torch.autocast(self._world.device.type, dtype=torch.bfloat16, enabled=bf16):
            errors_B = self._family.errors(self._forward, batch, timesteps, noise)
            loss = self._sampler.weighted_mean(errors_B, timesteps) / passes
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _block_if_not_finite(self, value: torch.Tensor) -> None:
        bad = ~torch.isfinite(value)
        self._first_bad_step = torch.where(bad & (self._first_bad_step < 0), self.step, self._first_bad_step)
        self._blocked = torch.maximum(self._blocked, bad.float())

    def _adam_state(
        self, parameter: nn.Parameter, name: str, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        state = {"step": tensors[f"step.{name}"].to(self._world.device)}
        for moment in ("exp_avg", "exp_avg_sq"):
            value = torch.empty_like(parameter, memory_format=torch.preserve_format)
            state[moment] = value.copy_(tensors[f"{moment}.{name}"])
        return state

    def _distributed(self) -> DistributedDataParallel | None:
        if self._world.size == 1:
            return None
        ids = [self._world.device.index] if self._world.device.type == "cuda" else None
        return DistributedDataParallel(self.network, device_ids=ids)
