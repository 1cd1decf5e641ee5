"""A run of Weights & Biases, gone on with by its id; WANDB_MODE=offline keeps it in the run directory, to be synced."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.trackers.group import WANDB_FOLDER, Series
from region_workers.storage.durable import write_bytes

_STEP = "updates"


class WandB:
    """Metrics are named `REGION/KIND/NAME`, over `REGION/KIND/updates`.

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
            self._run.define_metric(f"{series.name}/*", step_metric=f"{series.name}/{_STEP}")
        self._run.log({**values, f"{series.name}/{_STEP}": step})
        self._last[series.name] = step
