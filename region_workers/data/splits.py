"""Which files of a local folder belong to the plan's split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import plan_error
from schemas.plan import DataPlan

# The words by which the datasets library tells the splits of a folder apart.
_SPLIT_OF_WORD = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], "test"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
}


def files_of_split(root: Path, names: list[str], plan: DataPlan) -> list[str]:
    """The files of `plan.split`: those whose folder or name begins with a word for it (train/, test-0.parquet).

    `names` are relative to `root`.

    A folder that names fewer than two splits is not split, and all of it is `train`: one that is called train may
    hold trains. Raises PlanError if the split is not there.
    """
    split_of_name = [_split_of(name) for name in names]
    splits = sorted({split for split in split_of_name if split})
    if len(splits) < 2:
        check_not_split(plan)
        return names
    wanted = _SPLIT_OF_WORD.get(plan.split)
    if wanted not in splits:
        remedy = f"These are what {root} holds: choose one of them."
        raise plan_error("data.split", plan.split, f"one of {', '.join(splits)}", remedy)
    return [name for name, split in zip(names, split_of_name, strict=True) if split == wanted]


def check_not_split(plan: DataPlan) -> None:
    """Raise PlanError if the plan asks for a part of local data that has none."""
    if plan.split != "train":
        remedy = f"{plan.path} is not divided into splits: leave data.split out."
        raise plan_error("data.split", plan.split, "train, which means all of it", remedy)


def without_split_folder(names: Sequence[str]) -> Sequence[str]:
    """Names within a split: without the folder at the top that names it (train/), if all of them lie in such folders.

    Tells the folders of classes from the folder of a split.
    """
    in_split = all("/" in name and _split_of(name) for name in names)
    return [name.partition("/")[2] for name in names] if in_split else names


def _split_of(name: str) -> str | None:
    folder, slash, _ = name.partition("/")
    word = folder if slash else re.split(r"[-_.\d]", name, maxsplit=1)[0]
    return _SPLIT_OF_WORD.get(word.lower())
