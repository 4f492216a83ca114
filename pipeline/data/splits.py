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
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SplitConfig
from pipeline.data.dataset import SPLITS, UNKNOWN, UNLABELLED, in_order, shortened
from pipeline.errors import DataError
from pipeline.util.text import counted

LEAST = 3  # a class of fewer distinct images or groups is left to training alone


def carve(
    keys: NDArray[np.bytes_],
    labels: NDArray[np.int64],
    splits: NDArray[np.int8],
    config: SplitConfig,
    *,
    groups: NDArray[np.int64] | None = None,
    known: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Fill in the splits a source doesn't have.

    Args:
        keys: Image keys, shape [n].
        labels: Class indices, or `UNLABELLED`, shape [n].
        splits: Number in `SPLITS` of each image, or `UNKNOWN` where the source gives none, shape [n].
        config: Shares and seed.
        groups: As in `Dataset`.
        known: The same of what each image was given before, shape [n].

    Returns:
        Number in `SPLITS` of each image, shape [n].

    Raises:
        DataError: If `test_from` is "val" and there is no validation set.
    """
    given = {SPLITS[number] for number in np.unique(splits).tolist() if number != UNKNOWN}
    if "test" not in given and config.test_from == "val" and "val" not in given:
        raise DataError("--test-from val needs a validation set in the data, and there is none; leave it out")
    carved = np.where(splits == UNKNOWN, SPLITS.index("train"), splits).astype(np.int8)
    carving = _Carving(keys, labels, carved, keys if groups is None else groups, known, config.seed)
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

    What units have stands in columns, as there may be millions: of the rows, sorted by unit, and of the pairs of a unit
    and a class that it has images of.

    Attributes:
        splits: Number in `SPLITS` of the split of each image, changed in place.
        units: Number of the unit of each image.
        known: Number in `SPLITS` of the split that each unit had before, or `UNKNOWN`.
    """

    def __init__(
        self,
        keys: NDArray[np.bytes_],
        labels: NDArray[np.int64],
        splits: NDArray[np.int8],
        units: NDArray[Any],
        known: NDArray[np.int8] | None,
        seed: int,
    ) -> None:
        self.keys, self.splits, self.seed = keys, splits, seed
        order, begins = in_order(units)
        self.rows = order.astype(np.int32)
        self.first_row = np.append(np.flatnonzero(begins), len(units)).astype(np.int32)
        self.n_units = len(self.first_row) - 1
        self.units = np.empty(len(units), np.int32)
        self.units[self.rows] = np.cumsum(begins) - 1
        labelled = labels != UNLABELLED
        self.n_classes = int(labels.max(initial=UNLABELLED)) + 1
        numbers = self.units[labelled].astype(np.int64)
        numbers *= self.n_classes
        numbers += labels[labelled]
        pairs, sizes = np.unique(numbers, return_counts=True)
        self.sizes = sizes.astype(np.int32)
        unit, label = np.divmod(pairs, max(self.n_classes, 1))
        self.pair_unit, self.pair_class = unit.astype(np.int32), label.astype(np.int32)
        self.first_pair = np.searchsorted(self.pair_unit, np.arange(self.n_units + 1)).astype(np.int32)
        self.known = np.full(self.n_units, UNKNOWN, np.int8)
        if known is not None:
            # Images that were apart and are now found to belong together: none leaves test, or val.
            for number in range(len(SPLITS)):
                self.known[self.units[known == number]] = number

    def within(self, source: str) -> NDArray[np.bool_]:
        """Units that lie in one split alone: what the source has put into several stays where it is."""
        inside = np.ones(self.n_units, np.bool_)
        inside[self.units[self.splits != SPLITS.index(source)]] = False
        return inside

    def classes(self, source: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images and units of each class in a split, each of shape [n_classes]."""
        inside = self.within(source)[self.pair_unit]
        return self._images(inside), np.bincount(self.pair_class[inside], minlength=self.n_classes)

    def _images(self, pairs: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Images of each class in some of the pairs, shape [n_classes]."""
        return np.bincount(self.pair_class[pairs], self.sizes[pairs], self.n_classes).astype(np.int64)

    def fill(
        self,
        source: str,
        target: str,
        fraction: float,
        classes: tuple[NDArray[np.int64], NDArray[np.int64]],
        reserve: int,
    ) -> None:
        """Move units to another split: those that lay there before, then new ones until all classes have enough.

        Args:
            source: Where units are taken from.
            target: Where they go.
            fraction: Share of the images of each class.
            classes: Images and units of each class that the share is one of.
            reserve: Units of each class that must stay.
        """
        n_images, n_units = classes
        divided = n_units >= LEAST
        # A unit of a class that is left to training alone stays there with all its images.
        movable = self.within(source) & (self.first_pair[1:] > self.first_pair[:-1])
        movable[self.pair_unit[~divided[self.pair_class]]] = False
        number = SPLITS.index(target)
        before = movable & (self.known == number)
        self.splits[before[self.units]] = number
        movable &= ~before
        moved = before[self.pair_unit]
        wanted = np.where(divided, np.maximum(1, (fraction * n_images + 0.5).astype(np.int64)), 0)
        lacking = (wanted - self._images(moved)).tolist()
        left = np.bincount(self.pair_class[movable[self.pair_unit]], minlength=self.n_classes).tolist()
        untouched = set(np.flatnonzero(divided).tolist()) - set(self.pair_class[moved].tolist())

        def may_leave(sizes: dict[int, int]) -> bool:
            return all(left[label] > reserve for label in sizes)

        def move(unit: int, sizes: dict[int, int]) -> None:
            self.splits[self.rows[self.first_row[unit] : self.first_row[unit + 1]]] = number
            untouched.difference_update(sizes)
            for label, n in sizes.items():
                left[label] -= 1
                lacking[label] -= n

        staying = []
        for unit in self._order(np.flatnonzero(movable & (self.known < 0)), target):
            sizes = self._sizes(unit)
            nearer = sum(abs(lacking[label]) - abs(lacking[label] - n) for label, n in sizes.items()) > 0
            if nearer and may_leave(sizes):
                move(unit, sizes)
            else:
                staying.append(unit)
        for label in sorted(untouched):  # one of its units is larger than the whole share
            fitting = {unit: sizes for unit in staying if label in (sizes := self._sizes(unit)) and may_leave(sizes)}
            if label in untouched and fitting:
                unit = min(fitting, key=lambda one: sum(fitting[one].values()))
                move(unit, fitting[unit])
                staying.remove(unit)

    def _sizes(self, unit: int) -> dict[int, int]:
        """Images of each class that a unit has."""
        pairs = slice(self.first_pair[unit], self.first_pair[unit + 1])
        return dict(zip(self.pair_class[pairs].tolist(), self.sizes[pairs].tolist(), strict=True))

    def _order(self, units: NDArray[np.int64], target: str) -> list[int]:
        """Units by the least hash of their images."""
        salt = hashlib.blake2b(f"{target}/{self.seed}".encode(), digest_size=16).digest()
        numbers = {}
        for unit in units.tolist():
            rows = self.rows[self.first_row[unit] : self.first_row[unit + 1]]
            numbers[unit] = min(_number(key, salt) for key in self.keys[rows].tolist())
        return sorted(numbers, key=numbers.__getitem__)


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
    if not together and not any(any(column) for column in names if column is not None):
        return None
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [np.array([(rows[0], row) for row in rows], np.int32) for rows in together]
    for column in (keys.tolist(), *names):
        seen: dict[Any, int] = {}
        firsts = [seen.setdefault(name, row) if name else row for row, name in enumerate(column or ())]
        edges.append(np.column_stack([firsts, np.arange(len(firsts))]).astype(np.int32))
    ends = np.concatenate(edges)
    graph = coo_array((np.ones(len(ends), np.bool_), (ends[:, 0], ends[:, 1])), (len(keys), len(keys)))
    numbers = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers if len(np.unique(numbers)) < len(np.unique(keys)) else None


def twin_rows(keys: NDArray[np.bytes_]) -> list[list[int]]:
    """Rows of each image that is there more than once, in the order of their first rows."""
    order, begins = in_order(keys)
    double = ~begins
    double[:-1] |= ~begins[1:]
    groups = np.split(order[double], np.flatnonzero(begins[double])[1:])
    return sorted(group.tolist() for group in groups if len(group))


def twins(
    keys: NDArray[np.bytes_], labels: NDArray[np.int64], splits: NDArray[np.str_], locations: Sequence[str]
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
