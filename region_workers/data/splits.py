"""Which files of a local folder belong to the plan's split."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.errors import plan_error
from schemas.plan import DataPlan

# The words by which the datasets library tells the splits of a folder apart.
_SPLIT_OF_WORD = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], "test"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
}


def files_of_split(root: Path, files: list[Path], plan: DataPlan) -> list[Path]:
    """The files of `plan.split`: those whose folder or name begins with a word for it (train/, test-0.parquet).

    A folder that names fewer than two splits is not split, and all of it is `train`: one that is called train may
    hold trains. Raises PlanError if the split is not there.
    """
    split_of_file = {file: _split_of(file.relative_to(root)) for file in files}
    splits = sorted({split for split in split_of_file.values() if split})
    if len(splits) < 2:
        check_not_split(plan)
        return files
    wanted = _SPLIT_OF_WORD.get(plan.split)
    if wanted not in splits:
        raise plan_error("data.split", plan.split, f"one of {', '.join(splits)}", f"These are what {root} holds.")
    return [file for file, split in split_of_file.items() if split == wanted]


def check_not_split(plan: DataPlan) -> None:
    """Raise PlanError if the plan asks for a part of local data that has none."""
    if plan.split != "train":
        remedy = f"{plan.path} is not divided into splits: leave data.split out."
        raise plan_error("data.split", plan.split, "train, which means all of it", remedy)


def without_split_folder(relative: list[Path]) -> list[Path]:
    """Paths within a split: without the folder at the top that names it (train/), if all of them lie in such folders.

    Tells the folders of classes from the folder of a split.
    """
    in_split = all(len(path.parts) > 1 and _split_of(path) for path in relative)
    return [Path(*path.parts[1:]) for path in relative] if in_split else relative


def _split_of(relative: Path) -> str | None:
    words = [relative.parts[0]] if len(relative.parts) > 1 else re.split(r"[-_.\d]", relative.name)[:1]
    return _SPLIT_OF_WORD.get(words[0].lower())
