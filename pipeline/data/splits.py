"""Splits that the source doesn't have, carved by image key.

What is promised:

- Of each class, val and test get their shares of its images, exact to one image. A class of fewer than three distinct
  images (or groups) is left to training; a larger one has at least one in every split.
- What belongs together stays together: byte-identical images, and images of one group (a patient, a camera, near
  duplicates). Groups of many images can't be cut to size, so shares are then met as nearly as whole groups allow.
- The draw depends on the image keys and the seed alone: images are taken in the order of a keyed hash. So names, order
  and place of the files change nothing.
- Images that were split before, in an extract of the same data with the same options, stay where they are, and new ones
  fill what their classes lack: a class that grows keeps its val and test images, and none of its training images moves.
  So a class that had two images, and has three now, gets its first val image with the fourth.
  Where nothing is known of an earlier extract (another cache, a folder that moved), the first so many of each class by
  the hash are taken, and a new image may take the place of an old one: out of test go at most as many as came.
- Images without a label are left to training, where nothing uses them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SplitConfig
from pipeline.data.dataset import UNLABELLED, shortened
from pipeline.errors import DataError
from pipeline.util.text import counted

LEAST = 3  # a class of fewer distinct images or groups is left to training alone


def carve(
    keys: NDArray[np.bytes_],
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    config: SplitConfig,
    *,
    groups: NDArray[np.int64] | None = None,
    known: Mapping[bytes, str] | None = None,
) -> NDArray[np.str_]:
    """Fill in the splits a source doesn't have.

    Args:
        keys: Image keys, shape [n].
        labels: Class indices, or `UNLABELLED`, shape [n].
        splits: "train", "val", "test", or "" where the source gives none, shape [n].
        config: Shares and seed.
        groups: As in `Dataset`.
        known: The split that an image was given before, by its key.

    Returns:
        "train", "val" or "test", shape [n].

    Raises:
        DataError: If `test_from` is "val" and there is no validation set.
    """
    given = set(splits.tolist())
    if "test" not in given and config.test_from == "val" and "val" not in given:
        raise DataError("--test-from val needs a validation set in the data, and there is none; leave it out")
    carved = np.where(splits == "", "train", splits).astype("U5")
    units = np.unique(keys, return_inverse=True)[1] if groups is None else groups
    carving = _Carving(keys, labels, carved, units, known or {}, config.seed)
    wanted = []
    if "test" not in given and config.test_fraction:
        wanted.append((config.test_from, "test", config.test_fraction))
    if "val" not in given and config.val_fraction:
        wanted.append(("train", "val", config.val_fraction))
    classes = {source: carving.classes(source) for source, _, _ in wanted}  # before any of them are moved
    for turn, (source, target, fraction) in enumerate(wanted, start=1):
        # Each class keeps a unit for every split that comes after this one.
        others = [start for start, _, _ in wanted[turn:]]
        carving.fill(source, target, fraction, classes[source], reserve=1 + others.count(source))
    return carved


class _Carving:
    """Units of images that stay together, as they are moved from one split to another.

    Attributes:
        splits: Split of each image, changed in place.
        rows: Of each unit.
        sizes: How many images of each class a unit has.
        known: The split that each unit had before; the units of which nothing is known are missing.
    """

    def __init__(
        self,
        keys: NDArray[np.bytes_],
        labels: NDArray[np.int64],
        splits: NDArray[np.str_],
        units: NDArray[np.int64],
        known: Mapping[bytes, str],
        seed: int,
    ) -> None:
        self.keys, self.labels, self.splits, self.seed = keys.tolist(), labels.tolist(), splits, seed
        self.rows: dict[int, list[int]] = defaultdict(list)
        self.sizes: dict[int, dict[int, int]] = defaultdict(dict)
        self.known: dict[int, str] = {}
        for row, (key, unit) in enumerate(zip(self.keys, units.tolist(), strict=True)):
            self.rows[unit].append(row)
            if (label := self.labels[row]) != UNLABELLED:
                self.sizes[unit][label] = self.sizes[unit].get(label, 0) + 1
            if key in known:
                # Images that were apart and are now found to belong together: none leaves test, or val.
                self.known[unit] = max(known[key], self.known.get(unit, "train"), key=("train", "val", "test").index)

    def within(self, source: str) -> list[int]:
        """Units that lie in one split alone: what the source has put into several stays where it is."""
        splits = self.splits.tolist()
        return [unit for unit, rows in self.rows.items() if all(splits[row] == source for row in rows)]

    def classes(self, source: str) -> dict[int, tuple[int, int]]:
        """Images and units of each class in a split."""
        images: Counter[int] = Counter()
        units: Counter[int] = Counter()
        for unit in self.within(source):
            for label, n in self.sizes[unit].items():
                images[label] += n
                units[label] += 1
        return {label: (images[label], units[label]) for label in images}

    def fill(
        self, source: str, target: str, fraction: float, classes: dict[int, tuple[int, int]], reserve: int
    ) -> None:
        """Move units to another split: those that lay there before, then new ones until all classes have enough.

        Args:
            source: Where units are taken from.
            target: Where they go.
            fraction: Share of the images of each class.
            classes: Images and units of each class that the share is one of.
            reserve: Units of each class that must stay.
        """
        lacking = {
            label: max(1, int(fraction * n_images + 0.5))
            for label, (n_images, n_units) in classes.items()
            if n_units >= LEAST
        }
        movable = {unit: self.sizes[unit] for unit in self.within(source)}
        # A unit of a class that is left to training alone stays there with all its images.
        movable = {unit: sizes for unit, sizes in movable.items() if sizes and sizes.keys() <= lacking.keys()}
        left = Counter(label for sizes in movable.values() for label in sizes)
        untouched = set(lacking)

        def move(unit: int) -> None:
            sizes = movable.pop(unit)
            self.splits[self.rows[unit]] = target
            untouched.difference_update(sizes)
            for label, n in sizes.items():
                left[label] -= 1
                lacking[label] -= n

        for unit in [unit for unit in movable if self.known.get(unit) == target]:
            move(unit)
        order = self._order([unit for unit in movable if unit not in self.known], target)
        for unit in order:
            sizes = movable[unit]
            nearer = sum(abs(lacking[label]) - abs(lacking[label] - n) for label, n in sizes.items()) > 0
            if nearer and all(left[label] > reserve for label in sizes):
                move(unit)
        for label in sorted(untouched):  # one of its units is larger than the whole share
            fitting = [unit for unit in order if unit in movable and label in movable[unit]]
            fitting = [unit for unit in fitting if all(left[other] > reserve for other in movable[unit])]
            if label in untouched and fitting:
                move(min(fitting, key=lambda unit: sum(movable[unit].values())))

    def _order(self, units: Sequence[int], target: str) -> list[int]:
        """Units by the least hash of their images."""
        salt = hashlib.blake2b(f"{target}/{self.seed}".encode(), digest_size=16).digest()
        numbers = {unit: min(_number(self.keys[row], salt) for row in self.rows[unit]) for unit in units}
        return sorted(units, key=lambda unit: numbers[unit])


def _number(key: bytes, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=salt).digest(), "big")


def joined_groups(
    keys: NDArray[np.bytes_], *names: Sequence[str] | None, together: Sequence[Sequence[int]] = ()
) -> NDArray[np.int64] | None:
    """Groups of images that share a key or a name, directly or through others.

    Args:
        keys: Image keys, shape [n].
        names: Columns of n names; "" belongs to no other, and a column that is None says nothing.
        together: Rows of further groups.

    Returns:
        Numbers of groups in the order of their first rows, shape [n]; None if only byte-identical images belong
        together.
    """
    found = list(range(len(keys)))

    def first_of(row: int) -> int:
        while found[row] != row:
            found[row] = found[found[row]]
            row = found[row]
        return row

    def join(row: int, other: int) -> None:
        first, second = sorted((first_of(row), first_of(other)))
        found[second] = first

    for column in (keys.tolist(), *names):
        seen: dict[Any, int] = {}
        for row, name in enumerate(column or ()):
            if name:
                join(row, seen.setdefault(name, row))
    for rows in together:
        for row in rows:
            join(rows[0], row)
    firsts = np.array([first_of(row) for row in range(len(found))], np.int64)
    numbers = np.unique(firsts, return_inverse=True)[1].astype(np.int64)
    return numbers if len(np.unique(numbers)) < len(np.unique(keys)) else None


def twin_rows(keys: NDArray[np.bytes_]) -> list[list[int]]:
    """Rows of each image that is there more than once, in the order of their first rows."""
    double = {key for key, count in Counter(keys.tolist()).items() if count > 1}
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys.tolist()):
        if key in double:
            groups[key].append(row)
    return list(groups.values())


def twins(
    keys: NDArray[np.bytes_], labels: NDArray[np.int64], splits: NDArray[np.str_], locations: list[str]
) -> list[str]:
    """Name byte-identical images that lie in several splits, or under several labels.

    Returns:
        Sentences for people; none where all is well.
    """
    groups = twin_rows(keys)
    across = [rows for rows in groups if len({splits[row] for row in rows}) > 1]
    disputed = [rows for rows in groups if len({int(labels[row]) for row in rows}) > 1]
    notes = []
    for found, what in ((across, "across more than one split"), (disputed, "under more than one label")):
        if found:
            named = shortened([" = ".join(locations[row] for row in rows) for rows in found])
            notes.append(f"{counted(len(found), 'group')} of byte-identical images {what}: {named}")
    return notes
