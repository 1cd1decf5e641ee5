"""A run of MLflow, found again by a tag; it is kept where MLFLOW_TRACKING_URI says, else in the run directory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ebdiff_orchestrator.trackers.group import Series
from region_workers.storage.durable import write_text

_TAG = "ebdiff.run"
_AT_ONCE = 500  # metrics a request; MLflow takes 1,000


class MLflow:
    """An experiment a plan's name, a run a run directory; metrics are named `REGION/KIND/NAME`."""

    def __init__(self, run_dir: Path, run_id: str, run_name: str, name: str, parameters: Mapping[str, str]) -> None:
        from mlflow import MlflowClient

        folder = (run_dir / "mlflow").resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri()
        _keep_files_in(folder)
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it takes databases alone, which skinny has not
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run_id}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, tags={_TAG: run_id}, run_name=run_name)
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


def _keep_files_in(folder: Path) -> None:
    """Have MLflow put pictures into its folder where that is now: it does where it was made, as its files say."""
    for file in (*folder.glob("[!.]*/meta.yaml"), *folder.glob("[!.]*/*/meta.yaml")):
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        places = {"artifact_location": file.parent, "artifact_uri": file.parent / "artifacts"}
        here = {name: place.as_uri() for name, place in places.items() if name in known}
        if not here.items() <= known.items():
            write_text(file, yaml.safe_dump({**known, **here}))
