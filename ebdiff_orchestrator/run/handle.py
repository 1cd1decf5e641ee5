"""What `launch` returns: the run's manifest, its tickets and its ensemble, read when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ebdiff_orchestrator.ensemble.pipeline import EnsemblePipeline, load_ensemble
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import draw_folder
from schemas.job import TICKET_FILE, Ticket
from schemas.manifest import Manifest


@dataclass(frozen=True)
class RunHandle:
    """A run in a folder or under a URL."""

    run_dir: str | Path

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is now."""
        return RunDirectory(self.run_dir).read()

    @property
    def tickets(self) -> dict[str, Ticket]:
        """The ticket of each region that has one, by the region's name."""
        run = RunDirectory(self.run_dir)
        plan = run.read().plan
        files = {region.name: run.fetch(f"{draw_folder(plan, region)}/{TICKET_FILE}") for region in plan.regions}
        return {n: Ticket.model_validate_json(f.read_text()) for n, f in files.items() if f.is_file()}

    @property
    def ensemble(self) -> EnsemblePipeline:
        """The finished ensemble as a diffusers pipeline, on the CPU."""
        return load_ensemble(RunDirectory(self.run_dir).ensemble())
