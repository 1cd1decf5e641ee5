"""How the masks of a run's sparse trainings have moved: what the trainings recorded of them, in shares."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ebdiff_orchestrator.reports.masks import newest_of_run
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.tables import read_mask_moves
from schemas.experiment import SparsityPlan
from schemas.job import MASK_MOVES_FILE
from schemas.plan import Plan
from schemas.stage_names import train_stage_name

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RecordedMoves:
    """One region's masks of weights, oldest first; `steps` [masks] begins with 0, the first masks.

    `layers`: the masked ones, in the network's order; `weights` and `kept` are [layers], and what has changed
    [masks, layers], as the table MASK_MOVES has it. `finished`: the training has ended.
    """

    region: str
    plan: SparsityPlan
    layers: tuple[str, ...]
    weights: Counts
    kept: Counts
    steps: Counts
    exchanged: Counts
    replaced: Counts
    ever_kept: Counts
    finished: bool

    @property
    def densities(self) -> Shares:
        """The share of each layer's weights that is kept, [layers]."""
        return self.kept / self.weights

    def over_time(self) -> dict[str, Shares]:
        """By measure, of all layers together, [masks].

        `exchanged`, `replaced`: of the kept weights, those that the update took for others, and those of the first mask
        that are kept no more. `distance` from the first mask: the share of bits that differ. `ever_kept`: of all.
        """
        return {
            "exchanged": self.exchanged.sum(axis=1) / self.kept.sum(),
            "replaced": self.replaced.sum(axis=1) / self.kept.sum(),
            "distance": 2 * self.replaced.sum(axis=1) / self.weights.sum(),
            "ever_kept": self.ever_kept.sum(axis=1) / self.weights.sum(),
        }

    def by_layer(self) -> dict[str, Shares]:
        """By measure, of the newest masks, [layers]; `exchanged` by all updates together, so it may be more than 1."""
        return {
            "density": self.densities,
            "exchanged": self.exchanged.sum(axis=0) / np.maximum(self.kept, 1),
            "replaced": self.replaced[-1] / np.maximum(self.kept, 1),
            "ever_kept": self.ever_kept[-1] / self.weights,
        }

    def replaced_by_chance(self) -> float:
        """What would be replaced if the first masks and the newest had nothing to do with each other."""
        return float((self.kept * (1 - self.densities)).sum() / self.kept.sum())

    def as_json(self) -> dict[str, Any]:
        rounded = {name: shares.round(6).tolist() for name, shares in self.over_time().items()}
        layers = {name: shares.round(6).tolist() for name, shares in self.by_layer().items()}
        return {
            "region": self.region,
            "method": self.plan.method,
            "sparsity": self.plan.sparsity,
            "training_finished": self.finished,
            "steps": self.steps.tolist(),
            **rounded,
            "replaced_by_chance": round(self.replaced_by_chance(), 6),
            "layers": {
                "name": list(self.layers),
                "weights": self.weights.tolist(),
                "kept": self.kept.tolist(),
                **layers,
            },
        }


def recorded_moves(run: RunDirectory, plan: Plan) -> tuple[RecordedMoves, ...]:
    """Of every sparse region whose training has left any, finished or not."""
    sparse = ((region, sparsity) for region in plan.regions if (sparsity := plan.sparsity_of(region)))
    found = (_recorded(run, train_stage_name(region), region.name, sparsity) for region, sparsity in sparse)
    return tuple(moves for moves in found if moves is not None)


def _recorded(run: RunDirectory, stage: str, region: str, plan: SparsityPlan) -> RecordedMoves | None:
    found, finished = newest_of_run(run, stage, MASK_MOVES_FILE, _columns)
    return None if found is None else RecordedMoves(region=region, plan=plan, finished=finished, **found)


def _columns(data: bytes) -> dict[str, Any]:
    """The table's columns as the fields of RecordedMoves. ValueError if it has not a row for each layer and mask."""
    table = read_mask_moves(data)
    names = table["layer"].to_pylist()
    layers = tuple(dict.fromkeys(names))
    masks = len(names) // max(len(layers), 1)
    if not masks or names != [*layers] * masks or any(column.null_count for column in table.columns):
        raise ValueError("expected a row for each layer and mask")
    of_masks = {name: table[name].to_numpy().reshape(masks, -1) for name in table.column_names if name != "layer"}
    weights, kept, steps = (of_masks.pop(name) for name in ("weights", "kept", "step"))
    if (steps != steps[:, :1]).any():
        raise ValueError("expected a row for each layer and mask")
    if weights.min() < 1 or kept.min() < 0 or (kept > weights).any() or not kept.any():
        raise ValueError("expected layers that keep some of their weights")
    return {"layers": layers, "weights": weights[0], "kept": kept[0], "steps": steps[:, 0], **of_masks}
