"""What is said of each picture of a labelling, and the names of its classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.data import UNLABELLED, Dataset
from pipeline.data.corrections import DROP
from pipeline.errors import ConfigError, TlpipeError

MOST_NAME = 200  # characters


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
    """

    label: str
    checked: bool = False


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
    """

    def __init__(self, dataset: Dataset, classes: Iterable[str]) -> None:
        self.classes = list(classes)
        self.labels = dataset.labels.copy()
        self.dropped = np.zeros(len(dataset), np.bool_)
        self._checked = np.zeros(len(dataset), np.bool_)

    def __getitem__(self, row: int) -> Mark:
        number = int(self.labels[row])
        label = DROP if self.dropped[row] else "" if number == UNLABELLED else self.classes[number]
        return Mark(label, bool(self._checked[row]))

    def __setitem__(self, row: int, mark: Mark) -> None:
        self.dropped[row] = mark.label == DROP
        self.labels[row] = UNLABELLED if mark.label in ("", DROP) else self.number(mark.label)
        self._checked[row] = mark.checked

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
