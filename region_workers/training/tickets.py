"""The tickets of a draw in its stage's folder, each beside the expert that it gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from region_workers.networks.pruned_unet import PrunedNetwork, extract_expert
from region_workers.storage.durable import write_folder, write_model
from region_workers.storage.integrity import file_digest, files_in, read_verified, seal_folder
from schemas.digest import seed_from
from schemas.job import EXPERT_FOLDER, TICKET_FILE, TICKETS_FOLDER, KeptChannels, Ticket


class Tickets:
    """Those drawn so far. `drawn`: by region; `digests`: the SHA-256 of their files, by path in the stage's folder."""

    def __init__(self, stage_folder: Path) -> None:
        self._folder = stage_folder
        self.drawn: dict[str, Ticket] = {}
        self.digests: dict[str, str] = {}

    def restore(self, digests: Mapping[str, str], regions: Iterable[str]) -> None:
        """Read the tickets that a checkpoint names. Those drawn after the checkpoint are drawn again."""
        self.digests = dict(digests)
        for region in regions:
            name = f"{TICKETS_FOLDER}/{region}/{TICKET_FILE}"
            if name in self.digests:
                data = read_verified(self._folder / name, self.digests[name])
                self.drawn[region] = Ticket.model_validate_json(data)

    def write(self, ticket: Ticket, expert: PrunedNetwork) -> None:
        def write(folder: Path) -> None:
            write_model(folder / TICKET_FILE, ticket)
            expert.save_pretrained(folder / EXPERT_FOLDER)
            seal_folder(folder)

        place = self._folder / TICKETS_FOLDER / ticket.region
        write_folder(place, write)
        self.digests |= {str(path.relative_to(self._folder)): file_digest(path) for path in files_in(place)}

    def files(self) -> list[Path]:
        return files_in(self._folder / TICKETS_FOLDER)


def fresh_expert(
    dense: nn.Module, kept: Mapping[str, KeptChannels], seed: int, timesteps: tuple[int, int], ratio: float
) -> PrunedNetwork:
    """An expert with these kept channels and fresh weights, on the CPU. Only the shapes of `dense` matter."""
    expert = extract_expert(dense, kept)
    torch.manual_seed(seed_from(seed, "fresh weights", *timesteps, str(ratio)))
    fresh: PrunedNetwork = type(expert).from_config(expert.config)
    return fresh
