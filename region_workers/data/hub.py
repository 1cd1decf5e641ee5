"""Images of a data set on the Hugging Face hub, streamed: nothing is copied but the decoded pixels."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from region_workers.data.decode import Item, Payload
from region_workers.data.parquet import check_label_column, class_names, image_column
from region_workers.storage.durable import write_text
from schemas.digest import digest
from schemas.errors import PlanError, plan_error
from schemas.plan import DataPlan

_TIMEOUT_S = 30.0
_EXPECTED = "a path that exists or the name of a data set that the hub serves"


class HubSource:
    """One split of a hub data set, at the revision that is newest when the source is opened.

    The revision is remembered in `cache_dir`, so that a machine without a network finds the store that was built with
    one. Raises PlanError if the hub neither answers nor was asked before.
    """

    def __init__(self, plan: DataPlan, cache_dir: Path) -> None:
        self._plan = plan
        self._revision = _newest_revision(plan, cache_dir)

    def identity(self) -> dict[str, Any]:
        return {"kind": "hub", **_asked_for(self._plan), "revision": self._revision}

    def count(self) -> int | None:
        splits = self._dataset.info.splits or {}
        # A slice such as train[:10%] is no split of its own, and its size only reading it tells.
        return splits[self._plan.split].num_examples or None if self._plan.split in splits else None

    def class_names(self) -> tuple[str, ...] | None:
        if self._plan.label_column is None:
            return None
        return class_names(_features(self._dataset).arrow_schema, self._plan.label_column)

    def items(self, start: int = 0) -> Iterator[Item]:
        rows, label_column = self._dataset, self._plan.label_column
        schema = _features(rows).arrow_schema
        column = image_column(schema, self._plan.image_column, self._plan.path)
        if label_column is not None:
            check_label_column(schema, label_column, self._plan.path)
        for number, row in enumerate(_undecoded(rows, column, label_column).skip(start), start):
            yield Item(f"row {number}", _payload(row[column]), _label(row, label_column))

    @cached_property
    def _dataset(self) -> Any:
        return _load(self._plan, self._revision)


def _load(plan: DataPlan, revision: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(plan.path, plan.config_name, split=plan.split, revision=revision, streaming=True)
    except Exception as error:  # the hub's clients raise of everything; each means the same to the user
        raise _unreachable(plan, error) from error


def _features(rows: Any) -> Any:
    if rows.features is not None:
        return rows.features
    return rows._resolve_features().features  # no public way to ask a stream for them; reads its first rows


def _undecoded(rows: Any, column: str, label_column: str | None) -> Any:
    from datasets import Features, Image

    features = {column: Image(decode=False)}
    if label_column is not None:
        known = _features(rows)
        # The field of a struct (a.b) comes with the whole struct.
        top = label_column if label_column in known else label_column.split(".")[0]
        features[top] = known[top]
    return rows.select_columns(list(features)).cast(Features(features))


def _label(row: dict[str, Any], label_column: str | None) -> Any:
    if label_column is None:
        return None
    value: Any = row
    for step in [label_column] if label_column in row else label_column.split("."):
        value = None if value is None else value[step]
    return value


def _payload(value: dict[str, Any] | None) -> Payload:
    if value is None:
        return None
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    if not value.get("path"):
        return None
    from datasets.utils.file_utils import xopen

    with xopen(value["path"], "rb") as file:  # inside a remote archive, as the library names it
        return bytes(file.read())


def _newest_revision(plan: DataPlan, cache_dir: Path) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    remembered = cache_dir / "revisions" / digest(_asked_for(plan))[:16]
    try:
        revision = HfApi().dataset_info(plan.path, timeout=_TIMEOUT_S).sha
        assert revision is not None
    except Exception as error:
        if remembered.is_file() and not isinstance(error, RepositoryNotFoundError):
            return remembered.read_text().strip()
        raise _unreachable(plan, error) from error
    # A read-only cache that others filled is still of use; a revision not remembered there costs only the hub's answer.
    if os.access(cache_dir, os.W_OK) and not (remembered.is_file() and remembered.read_text().strip() == revision):
        write_text(remembered, revision + "\n")
    return revision


def _asked_for(plan: DataPlan) -> dict[str, Any]:
    return {"name": plan.path, "config": plan.config_name, "split": plan.split}


def _unreachable(plan: DataPlan, error: Exception) -> PlanError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    remedy = (
        f"There is no file or folder of that name here, and the hub gave none either ({reason}). "
        "Check the spelling, data.config_name, data.split and the network; a private data set needs HF_TOKEN."
    )
    return plan_error("data.path", plan.path, _EXPECTED, remedy)
