"""The manifest: the one file that says what a run is, what it has done and what it has left on disk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.job import Artifact, Hardware
from schemas.plan import Plan
from schemas.section import Section

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1

Status = Literal["pending", "running", "done", "failed"]


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
    error: str | None = None


class Manifest(Section):
    """Everything the driver knows about a run. Only the driver writes it."""

    version: Literal[1] = 1
    created_at: float
    updated_at: float
    plan: Plan
    experiment_digest: str
    store_digest: str | None = None
    attempts: int = Field(0, description="Jobs started so far, in all launches; numbers the next one.")
    software: dict[str, str]
    stages: dict[str, StageRecord]

    def stage(self, name: str) -> StageRecord:
        """The record of a stage."""
        return self.stages[name]

    def with_stage(self, record: StageRecord) -> Manifest:
        """A copy in which `record` stands for its stage."""
        return self.model_copy(update={"stages": {**self.stages, record.name: record}})

    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(record.status == "done" for record in self.stages.values())
