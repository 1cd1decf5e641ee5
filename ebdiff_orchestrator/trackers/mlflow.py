"""A run of MLflow, found again by a tag; it is kept where MLFLOW_TRACKING_URI says, else in the run directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.trackers.tracker import Series

_TAG = "ebdiff.run"
_AT_ONCE = 500  # metrics a request; MLflow takes 1,000


class MLflow:
    """An experiment a plan's name, a run a run directory; metrics are named `REGION/KIND/NAME`."""

    def __init__(self, run_dir: Path, run_id: str, name: str, parameters: Mapping[str, str]) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir / "mlflow").resolve().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it takes databases alone, which skinny has not
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run_id}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, tags={_TAG: run_id}, run_name=run_dir.name)
        self._run = run.info.run_id
        self._waiting: list[Any] = []
        self._client.update_run(self._run, status="RUNNING")  # an earlier launch has ended it
        for key, value in parameters.items() if not found else ():
            self._client.log_param(self._run, key, value)

    def last_step(self, series: Series) -> int:
        names = [key for key in self._client.get_run(self._run).data.metrics if key.startswith(f"{series.name}/")]
        histories = [self._client.get_metric_history(self._run, name) for name in names]
        return max((metric.step for history in histories for metric in history), default=-1)

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        from mlflow.entities import Metric

        at_ms = int(unix_s * 1000)
        self._waiting += [Metric(f"{series.name}/{name}", value, at_ms, step) for name, value in values.items()]
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None:
        self._client.log_artifact(self._run, str(png), artifact_path=series.kind)
        self.scalars(series, {"shown": float(step)}, step, unix_s)  # by which the last one is found again

    def flush(self) -> None:
        if self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting)
            self._waiting = []

    def close(self) -> None:
        self.flush()
        self._client.set_terminated(self._run)
