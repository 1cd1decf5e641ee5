"""A ticket: a mask that has stopped changing, as kept channels per layer, with how and when it was drawn."""

from __future__ import annotations

from schemas.sealed import Sealed
from schemas.section import Section


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
