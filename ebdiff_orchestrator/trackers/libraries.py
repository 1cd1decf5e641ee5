"""The libraries behind `Tracker`, each imported when a plan asks for it: TensorBoard, MLflow, Weights & Biases."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ebdiff_orchestrator.trackers.group import TENSORBOARD_FOLDER, WANDB_FOLDER, Series
from region_workers.storage.durable import write_bytes, write_text

_MLFLOW_TAG = "ebdiff.run"
_MLFLOW_AT_ONCE = 500  # metrics a request; MLflow takes 1,000
_WANDB_STEP = "updates"


class TensorBoard:
    """Event files, a folder a region, so that the curves of all regions and runs lie in one chart.

    Written anew by each launch, from what the run has on record: so no step is there twice, and none is missing.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / TENSORBOARD_FOLDER
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writers: dict[str, Any] = {}

    def last_step(self, series: Series) -> int:
        return -1

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        for name, value in values.items():
            self._writer(series).add_scalar(f"{series.kind}/{name}", value, step, walltime=unix_s)

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None:
        with Image.open(png) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        self._writer(series).add_image(series.kind, pixels_HWC, step, walltime=unix_s, dataformats="HWC")

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, series: Series) -> Any:
        if series.region not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[series.region] = SummaryWriter(str(self._folder / series.region))
        return self._writers[series.region]


class MLflow:
    """A run of MLflow, found again by a tag; it is kept where MLFLOW_TRACKING_URI says, else in the run directory.

    An experiment a plan's name, a run a run directory; metrics are named `REGION/KIND/NAME`.
    """

    def __init__(self, run_dir: Path, run_id: str, run_name: str, name: str, parameters: Mapping[str, str]) -> None:
        from mlflow import MlflowClient

        folder = (run_dir / "mlflow").resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri()
        _keep_files_in(folder)
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it takes databases alone, which skinny has not
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_MLFLOW_TAG}` = '{run_id}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, tags={_MLFLOW_TAG: run_id}, run_name=run_name)
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
        if len(self._waiting) >= _MLFLOW_AT_ONCE:
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


class WandB:
    """A run gone on with by its id; WANDB_MODE=offline keeps it in the run directory, to be synced.

    Metrics are named `REGION/KIND/NAME`, over `REGION/KIND/updates`.

    What was handed over is remembered in a file of the run. A driver that was killed may have handed over more, so what
    is offline and was not synced yet is written anew.
    """

    def __init__(self, run_dir: Path, run_id: str, run_name: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._file = run_dir / WANDB_FOLDER / "handed_over.json"
        self._file.parent.mkdir(exist_ok=True)
        self._last: dict[str, int] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self._wandb, self._known = wandb, set[str]()
        quiet = wandb.Settings(console="off", silent=True)
        self._run: Any = wandb.init(
            project=name, name=run_name, id=run_id[:32], resume="allow", dir=str(run_dir), config=dict(config),
            settings=quiet, reinit="create_new",
        )  # fmt: skip
        if self._run.offline:
            self._begin_anew_unless_synced()

    def last_step(self, series: Series) -> int:
        return self._last.get(series.name, -1)

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        self._log(series, {f"{series.name}/{name}": value for name, value in values.items()}, step)

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None:
        self._log(series, {f"{series.name}/image": self._wandb.Image(str(png))}, step)

    def flush(self) -> None:
        write_bytes(self._file, json.dumps(self._last).encode())

    def close(self) -> None:
        self.flush()
        self._run.finish()

    def _begin_anew_unless_synced(self) -> None:
        folders = {file.parent for file in self._file.parent.glob("*run-*/run-*.wandb")}
        earlier = folders - {Path(self._run.dir).parent}
        if all(folder.name.startswith("offline-") and not any(folder.glob("*.synced")) for folder in earlier):
            self._last = {}
            for folder in earlier:
                shutil.rmtree(folder, ignore_errors=True)

    def _log(self, series: Series, values: Mapping[str, Any], step: int) -> None:
        if series.name not in self._known:
            self._known.add(series.name)
            self._run.define_metric(f"{series.name}/*", step_metric=f"{series.name}/{_WANDB_STEP}")
        self._run.log({**values, f"{series.name}/{_WANDB_STEP}": step})
        self._last[series.name] = step
