"""Class labels: found beside the images, numbered from 0, checked against the plan's number of classes."""

from array import array

import numpy as np
import numpy.typing as npt

from region_workers.data.decode import Label
from schemas.errors import plan_error

Labels = npt.NDArray[np.int64]

_MOST_CLASSES = 2**31


class LabelRecorder:
    """Collects the labels of successive images: numbers as they are, strings numbered by class.

    The classes are `class_names` if the source knows them, else the strings seen, sorted.
    """

    def __init__(self, column: str, class_names: tuple[str, ...] | None) -> None:
        self._column = column
        self._names = class_names
        self._number_of: dict[str, int] = {name: number for number, name in enumerate(class_names or ())}
        self._numbers = array("q")

    def add(self, name: str, label: Label) -> int | str:
        """Note the label of the image called `name`, and return it.

        Raises PlanError if it is null, negative or no known class.
        """
        if isinstance(label, str):
            if label not in self._number_of and self._names is not None:
                raise self._error(name, f"the label {label!r}", f"one of its {len(self._names)} classes")
            self._numbers.append(self._number_of.setdefault(label, len(self._number_of)))
            return label
        if label is None:
            raise self._error(name, "no label", "a label")
        if not 0 <= label < _MOST_CLASSES or (self._names is not None and label >= len(self._names)):
            classes = "" if self._names is None else f" below its {len(self._names)} classes"
            raise self._error(name, f"the label {label}", f"a number from 0{classes}")
        self._numbers.append(number := int(label))  # of a column of booleans, too
        return number

    def finish(self) -> tuple[Labels, int, tuple[str, ...] | None]:
        """The labels, int64 [N], the number of classes and their names; None for numbers that have no names."""
        numbers, names = np.array(self._numbers, dtype=np.int64), self._names
        if names is None and self._number_of:
            names = tuple(sorted(self._number_of))
            rank = np.empty(len(names), dtype=np.int64)  # in sorted order, of a string by its number as it came
            rank[[self._number_of[name] for name in names]] = np.arange(len(names))
            numbers = rank[numbers]
        return numbers, len(names) if names is not None else int(numbers.max(initial=-1)) + 1, names

    def _error(self, name: str, found: str, expected: str) -> Exception:
        remedy = "Repair or remove that image, or name another column."
        return plan_error("data.label_column", self._column, f"{expected} for every image; {name} has {found}", remedy)


def check_labels(labels: Labels | None, num_classes: int | None) -> None:
    """Raise PlanError unless every sample has a label in [0, num_classes); `num_classes` None asks for none."""
    if num_classes is None:
        return
    if labels is None:
        remedy = "Name the column (label for a folder of images), or set model.num_classes to null."
        raise plan_error("data.label_column", None, f"labels, since model.num_classes = {num_classes}", remedy)
    largest = int(labels.max(initial=-1))
    if largest >= num_classes:
        expected = f"at least {largest + 1}, since data.label_column holds labels up to {largest}"
        remedy = f"Set model.num_classes to {largest + 1} or more, or choose another column."
        raise plan_error("model.num_classes", num_classes, expected, remedy)
