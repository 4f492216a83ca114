"""What a dataset is: rows of image key, label, split and location."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source import KEY_DTYPE, ImageSource
from pipeline.errors import DataError
from pipeline.util.texts import Texts

SPLITS = ("train", "val", "test")
UNKNOWN = -1
"""Stands for the number of a split that is not known."""
UNLABELLED = -1
"""The label of an image that has none."""

AT_ONCE = 100_000  # rows whose keys are compared; side by side, all keys of a large dataset take much memory


def among(keys: NDArray[np.bytes_], others: NDArray[np.bytes_] | Collection[bytes]) -> NDArray[np.bool_]:
    """Which image keys are among others, shape [n]."""
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    column = others if isinstance(others, np.ndarray) else np.array(list(others), KEY_DTYPE)
    ordered: NDArray[np.bytes_] = np.sort(column)
    found = np.empty(len(keys), np.bool_)
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        nearest = np.minimum(np.searchsorted(ordered, some), len(ordered) - 1)
        found[start : start + AT_ONCE] = ordered[nearest] == some
    return found


def in_order(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Bring equal values together, as `numpy.unique` does, but without a copy of them.

    Returns:
        The rows sorted by value, of equal ones the first one first, and which of them begin another value; shape [n].
    """
    order = np.argsort(values, kind="stable")
    begins = np.ones(len(values), np.bool_)
    for start in range(1, len(values), AT_ONCE):
        some = values[order[start - 1 : start + AT_ONCE]]
        begins[start : start + AT_ONCE] = some[1:] != some[:-1]
    return order, begins


def split_numbers(splits: NDArray[Any]) -> NDArray[np.int8]:
    """Numbers in `SPLITS` of names of splits, as text or bytes, and `UNKNOWN` of any other name."""
    numbers = np.full(len(splits), UNKNOWN, np.int8)
    for number, split in enumerate(SPLITS):
        numbers[splits == (split.encode() if splits.dtype.kind == "S" else split)] = number
    return numbers


def split_names(numbers: NDArray[np.int8]) -> NDArray[np.str_]:
    """Names of splits by their numbers in `SPLITS`; "" of `UNKNOWN`, which is the last."""
    return np.array([*SPLITS, ""])[numbers]


def printable(path: Path | str) -> str:
    """A path as text that any file or terminal can hold: what is no UTF-8, or would control a terminal, is escaped."""
    text = path if isinstance(path, str) else path.as_posix()
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in ("Cc", "Cs") else one for one in text
    )


def shortened(items: list[str], most: int = 5) -> str:
    """The first few of `items`, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image without features: where it lies and why it can't be read."""

    location: str
    cause: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a reader found.

    Attributes:
        name: Short name for people.
        labels: Class name of each image; "" of one without a label.
        splits: Split of each image; "" where the source gives none.
        locations: Where each image lies, for people: a path below the data folder, or `x_train[17]`.
        source: Where the pixels come from, in the same order.
        notes: What a user should know: files left aside, doubles merged.
        groups: Name of the group of each image that no split may part, "" for none; None if there are no groups.
        others: Further columns that the source has, text by name.
    """

    name: str
    labels: list[str]
    splits: list[str]
    locations: Sequence[str]
    source: ImageSource
    notes: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    others: dict[str, list[str]] = field(default_factory=dict)

    def take(self, indices: NDArray[np.int64]) -> Listing:
        """Only these images."""

        def some(column: Sequence[str]) -> list[str]:
            return [column[index] for index in indices]

        return replace(
            self,
            labels=some(self.labels),
            splits=some(self.splits),
            locations=Texts(self.locations[index] for index in indices),
            source=self.source.take(indices),
            groups=self.groups and some(self.groups),
            others={name: some(texts) for name, texts in self.others.items()},
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of (image key, label, split, location) and the class names; no pixels.

    Attributes:
        name: Short name for people.
        keys: Image keys, shape [n].
        labels: Index into `class_names`, or `UNLABELLED`, shape [n].
        splits: "train", "val" or "test", shape [n].
        locations: Where each image lies, shape [n].
        class_names: Sorted; there may be one, or none.
        groups: Rows of the same number must not be parted by a split, shape [n]; byte-identical images always have the
            same. None if these are all that belong together.
        others: Further columns that the source has, text of shape [n] by name. Nothing depends on them.
    """

    name: str
    keys: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    locations: Sequence[str]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def id(self) -> str:
        """Digest of the rows and class names, without locations and further columns; 32 hexadecimal characters.

        Groups are part of it only where there are any, so that ids of before there were groups stay what they were.
        """
        digest = hashlib.blake2b("\0".join(self.class_names).encode(), digest_size=16)
        for column, kind in ((self.keys, KEY_DTYPE), (self.labels, "<i8"), (self.splits, "S5")):
            digest.update(np.ascontiguousarray(column, kind).data)
        if self.groups is not None:
            digest.update(b"groups")
            digest.update(np.ascontiguousarray(self.groups, "<i8").data)
        return digest.hexdigest()

    def label_name(self, row: int) -> str:
        """The class name of a row; "" if it has no label."""
        label = int(self.labels[row])
        return self.class_names[label] if label != UNLABELLED else ""

    def without(self, dropped: NDArray[np.bool_]) -> Dataset:
        """The same dataset less some rows, given by a mask of shape [n]; the class names stay."""
        kept = ~dropped
        return replace(
            self,
            keys=self.keys[kept],
            labels=self.labels[kept],
            splits=self.splits[kept],
            locations=Texts(compress(self.locations, kept)),
            groups=None if self.groups is None else self.groups[kept],
            others={name: tuple(compress(texts, kept)) for name, texts in self.others.items()},
        )

    def counts(self) -> dict[str, int]:
        """Images per split, of those splits that have any."""
        found = Counter(self.splits.tolist())
        return {split: found[split] for split in SPLITS if found[split]}


@dataclass(frozen=True, slots=True, eq=False)
class KnownSplits:
    """How images were split before.

    Attributes:
        keys: Image keys, shape [n].
        splits: Number in `SPLITS`, or `UNKNOWN` of images that were not drawn, as they had no label, shape [n].
        groups: As in `Dataset`, where these are to be kept together.
    """

    keys: NDArray[np.bytes_]
    splits: NDArray[np.int8]
    groups: NDArray[np.int64] | None


def check_classes(name: str, class_names: tuple[str, ...]) -> None:
    """Refuse data that no classifier can be trained on.

    Raises:
        DataError: If there are fewer than two classes.
    """
    if len(class_names) < 2:
        found = f"only one class, {class_names[0]!r}" if class_names else "no classes"
        raise DataError(
            f"{name} has {found}; a classifier needs two or more (a folder for each class, "
            "or a column `label` with two or more values)"
        )
