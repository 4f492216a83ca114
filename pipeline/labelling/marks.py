"""What is said of each picture of a labelling, and the names of its classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data import UNLABELLED, Dataset
from pipeline.data.corrections import DROP
from pipeline.errors import ConfigError, TlpipeError

MOST_NAME = 200  # characters
BY_DATA, NEW = -1, -2  # numbers of answers: of none, and of one that is not written yet


class OvertakenError(TlpipeError):
    """Another window has said something else of pictures meanwhile.

    Attributes:
        labels: What is said of them now, by image key.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        said = sorted(set(labels.values()))
        told = " and ".join("no label" if not one else "left out" if one == DROP else one for one in said)
        super().__init__(f"Another window has answered meanwhile ({told}), so nothing was changed")
        self.labels = labels


class Mark(NamedTuple):
    """What is said of a picture.

    Attributes:
        label: The class, or "drop"; "" for nothing.
        checked: Whether a person looked at a label that it had already, so that it isn't doubted again.
        led: Whether the label was first given where the picture had been looked for, beside others with their labels.
        answer: Number of the answer that says it; `BY_DATA` if the data do.
    """

    label: str
    checked: bool = False
    led: bool = False
    answer: int = BY_DATA


class Change(NamedTuple):
    """What an answer has changed, so that it can be taken back."""

    row: int
    before: Mark
    after: Mark


class Marks:
    """What is said of all pictures; by row, as a list.

    Args:
        dataset: The pictures, with the labels that the data gives them.
        classes: Names of the classes, those of the data first; more may be appended.

    Attributes:
        classes: Their names.
        labels: Numbers of classes, or `UNLABELLED`, shape [n].
        dropped: Whether a picture is left out, shape [n].
        led: Whether its label was first given where it had been looked for, shape [n].
    """

    def __init__(self, dataset: Dataset, classes: Iterable[str]) -> None:
        self.classes = list(classes)
        self._of_data, self.labels = dataset.labels, dataset.labels.copy()
        self.dropped, self.led, self._checked = (np.zeros(len(dataset), np.bool_) for _ in range(3))
        self._answers = np.full(len(dataset), BY_DATA)

    def __getitem__(self, row: int) -> Mark:
        label = DROP if self.dropped[row] else self._name(int(self.labels[row]))
        return Mark(label, bool(self._checked[row]), bool(self.led[row]), int(self._answers[row]))

    def __setitem__(self, row: int, mark: Mark) -> None:
        self.dropped[row] = mark.label == DROP
        self.labels[row] = UNLABELLED if mark.label in ("", DROP) else self.number(mark.label)
        self._checked[row], self.led[row], self._answers[row] = mark.checked, mark.led, mark.answer

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which pictures have no label, and are not left out, shape [n]."""
        found: NDArray[np.bool_] = (self.labels == UNLABELLED) & ~self.dropped
        return found

    def by_data(self, row: int) -> Mark:
        """What the data say of a picture."""
        return Mark(self._name(int(self._of_data[row])))

    def _name(self, number: int) -> str:
        return "" if number == UNLABELLED else self.classes[number]

    def number(self, name: str) -> int:
        """The number of a class.

        Raises:
            ConfigError: If there is no such class.
        """
        if name not in self.classes:
            raise ConfigError(f"There is no class {name[:MOST_NAME]!r}; name it first")
        return self.classes.index(name)


def check_name(name: str) -> str:
    """The name of a class, if it can be one.

    Raises:
        ConfigError: If not.
    """
    if not name or name == DROP or len(name) > MOST_NAME or not name.isprintable():
        raise ConfigError(
            f"{name[:MOST_NAME]!r} can't be the name of a class; give 1 to {MOST_NAME} printable characters, and not "
            f"{DROP!r}, which leaves a picture out"
        )
    return name
