"""The pipeline of an ensemble that draws vector drawings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image

from ebdiff_orchestrator.ensemble.pictures import Drawing, to_pil
from ebdiff_orchestrator.ensemble.routed_pipeline import RoutedPipeline, listed, one_each
from ebdiff_orchestrator.ensemble.scheduler import Generators
from region_workers.data.drawings import raster, strokes_of
from schemas.data import RasterPlan
from schemas.errors import shown, user_error

Lengths = int | Sequence[int] | torch.Tensor | None
_MOST_POINTS = 100_000


@dataclass
class VectorPipelineOutput(BaseOutput):  # type: ignore[misc]
    """`drawings`: of each its strokes in order, float32 [n, 2], y downwards; `images`: the drawings rendered."""

    drawings: list[Drawing]
    images: list[Image.Image]


class VectorPipeline(RoutedPipeline):
    """Drawings from an ensemble of `DrawingGRU`s: `unet` is their `TimestepRouter`; schedulers as for images.

    Raises `UserError` if the experts' config does not say what rows are, or how long drawings are is no count of them.
    """

    noun: ClassVar[str] = "drawings"
    sample_type: ClassVar[str] = "rows"
    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin) -> None:
        super().__init__()
        coordinates = unet.config.get("coordinates")
        if coordinates not in ("absolute", "delta"):
            expected = "absolute or delta in the config of experts that draw"
            raise user_error("coordinates", shown(coordinates), expected, "Save the ensemble again.")
        counts = unet.config.get("length_counts")
        self._up_to_length = None if counts is None else _summed(counts)
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        timesteps: Sequence[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        show_progress: bool = True,
        on_step: Callable[[], None] | None = None,
        lengths: Lengths = None,
        raster: RasterPlan = RasterPlan(),  # noqa: B008 - immutable
    ) -> VectorPipelineOutput | tuple[Any, ...]:
        """Draw `batch_size` drawings: strokes, and pictures by `raster` ("pil"); or a tuple of all their rows ("rows").

        Rows are what the network denoises, float32 [L, 3]: x, y and the pen, above 0.8 where a stroke ends.
        `lengths` are the rows of all drawings or of each, at most as many as the longest of the training has; default:
        drawn as they are distributed there. With a list of generators, one a drawing, a drawing depends on its own
        generator and length alone. The rest is as for images (`EnsemblePipeline`). Raises `UserError` for options that
        do not fit.
        """
        if batch_size is None:
            batch_size = 1 if lengths is None else len(listed(lengths))
        self._check_call(batch_size, generator, output_type, ("pil", "rows"))
        lengths_B = self._lengths(lengths, batch_size, generator)
        self._set_timesteps(num_inference_steps, timesteps)

        def predict(rows_BL3: torch.Tensor, timestep: int | float) -> torch.Tensor:
            rows_BL3 = rows_BL3.to(self.unet.dtype)
            return cast(torch.Tensor, self.unet(rows_BL3, timestep, lengths=lengths_B).sample.float())

        # As long as the longest there can be, so that a drawing's noise does not depend on those beside it.
        shape_BL3 = (batch_size, self._longest or int(lengths_B.max()), 3)
        rows_BL3 = self._denoise(shape_BL3, predict, generator, eta, show_progress, on_step).cpu().numpy()
        self.maybe_free_model_hooks()
        rows = [rows_L3[:length] for rows_L3, length in zip(rows_BL3, lengths_B.tolist(), strict=True)]
        if output_type == "rows":
            return (rows,)
        drawings = self.finished(rows)
        images = [_picture(drawing, raster) for drawing in drawings]
        return VectorPipelineOutput(drawings=drawings, images=images) if return_dict else (drawings, images)

    def finished(self, samples: Sequence[np.ndarray]) -> list[Drawing]:
        """The strokes of rows [L, 3]."""
        return [strokes_of(rows_L3, self.unet.config.coordinates) for rows_L3 in samples]

    @property
    def _longest(self) -> int | None:
        return None if self._up_to_length is None else len(self._up_to_length) - 1

    def _lengths(self, lengths: Lengths, batch: int, generator: Generators) -> torch.Tensor:
        """The rows of each drawing, int64 [B], on the CPU."""
        if lengths is None:
            return self._random_lengths(batch, generator)
        numbers = one_each("lengths", lengths, batch, "a drawing")
        longest = self._longest or _MOST_POINTS
        if wrong := [length for length in numbers if type(length) is not int or not 1 <= length <= longest]:
            raise user_error("lengths", shown(wrong[0]), f"whole numbers from 1 to {longest}", "Change it.")
        return torch.tensor(numbers)

    def _random_lengths(self, batch: int, generator: Generators) -> torch.Tensor:
        """As long as the training's drawings are: each as likely as one of these."""
        up_to_length = self._up_to_length
        if up_to_length is None:
            expected = "one, or one a drawing, since the ensemble does not say how long drawings are"
            raise user_error("lengths", None, expected, "Pass them.")
        generators = generator if isinstance(generator, list) else [generator] * batch
        total = int(up_to_length[-1])
        chosen = [
            torch.randint(total, (1,), generator=each, device="cpu" if each is None else each.device).cpu()
            for each in generators
        ]
        return torch.searchsorted(up_to_length, torch.cat(chosen), right=True)


def _picture(drawing: Drawing, plan: RasterPlan) -> Image.Image:
    return to_pil(raster(drawing, plan))


def _summed(counts: Any) -> torch.Tensor:
    """How many drawings have up to 0, 1, 2, ... rows, int64, to the longest. `UserError` if they are no counts."""
    fine = isinstance(counts, list | tuple) and all(type(each) is int and 0 <= each < 2**40 for each in counts)
    used = [length for length, count in enumerate(counts) if count] if fine else []
    if not used or used[0] == 0 or used[-1] > _MOST_POINTS:
        expected = f"how many drawings have 0, 1, 2, ... rows: none have 0, some have more, none above {_MOST_POINTS}"
        raise user_error("length_counts", "in the experts' config", expected, "Save the ensemble again.")
    return torch.tensor(counts[: used[-1] + 1]).cumsum(0)
