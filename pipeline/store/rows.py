"""Labelled rows that are read as they are needed: what heads and fine-tuning are fitted on and asked about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data import shortened
from pipeline.errors import ConfigError, DataError
from pipeline.store.shards import FeatureStore

Rows = NDArray[np.int64] | NDArray[np.bool_]

CHECKED = 1024  # rows at a time: what says whether they are finite takes half their memory again
COPIED = 4096  # rows at a time of an array that isn't copied as a whole
MOST_SLICES = 8  # of a shard; smaller ones would be slow to read


class Inputs(Protocol):
    """Inputs of some rows that are no array yet."""

    @property
    def workers(self) -> int:
        """Threads that read them best."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, d], or [n, h, w, c]."""

    def take(self, rows: Rows) -> Inputs:
        """Some of the rows, still not read."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Some of the rows, in memory."""


@dataclass(frozen=True, slots=True)
class HeldFeatures:
    """Some rows of an array that is in memory; none is copied before it is read.

    Attributes:
        array: Features of all rows.
        rows: Numbers of those that are meant, shape [n].
    """

    array: NDArray[np.floating]
    rows: NDArray[np.int64]

    @property
    def workers(self) -> int:
        """Two, so that a batch is read while another is used; more read memory no faster."""
        return 2

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, d], or [n, h, w, c]."""
        return (len(self.rows), *self.array.shape[1:])

    def take(self, rows: Rows) -> HeldFeatures:
        """Some of the rows."""
        return HeldFeatures(self.array, self.rows[rows])

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """A copy of some of the rows."""
        return self.array[self.rows[rows]]


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """Features that stay on disk; rows are read when they are asked for.

    Attributes:
        stores: Feature sets whose columns stand side by side.
        places: Of each row in each of the stores, shape [n, 2].
        block_rows: Rows that may be held at a time.
    """

    stores: tuple[FeatureStore, ...]
    places: tuple[NDArray[np.int64], ...]
    block_rows: int

    @property
    def workers(self) -> int:
        """Two, so that a batch is read while another is used; they share the block that is held."""
        return 2

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, d], or [n, h, w, c]."""
        shapes = [store.row_shape() for store in self.stores]
        return (len(self.places[0]), *shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def take(self, rows: Rows) -> StoredFeatures:
        """Some of the rows, still on disk."""
        return StoredFeatures(self.stores, tuple(places[rows] for places in self.places), self.block_rows)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Some of the rows, in memory.

        Raises:
            StoreError: If a shard went away.
            DataError: If a feature is no finite number.
        """
        parts = [store.read_at(places[rows]) for store, places in zip(self.stores, self.places, strict=True)]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        check_finite(features)
        return features

    def blocks(self, generator: np.random.Generator | None) -> Iterator[NDArray[np.int64]]:
        """All rows, in blocks of as many as may be held, all of about the same size.

        Without a generator a block is a run of whole shards. With one, shards in random order are cut into slices, and
        dealt to the blocks in turn: a folder's shards each hold one class, and a block must hold all.
        """
        if not len(self.places[0]):
            return
        order = np.lexsort((self.places[0][:, 1], self.places[0][:, 0]))
        starts = np.unique(self.places[0][order, 0], return_index=True)[1]
        shards = np.split(order, starts[1:])
        n_blocks = -(-len(order) // self.block_rows)
        while True:
            blocks = _dealt(shards, n_blocks, generator) if generator else _runs(shards, n_blocks)
            if max(map(len, blocks)) <= self.block_rows or n_blocks >= len(shards):
                break
            n_blocks += 1
        yield from blocks


def _runs(shards: list[NDArray[np.int64]], n_blocks: int) -> list[NDArray[np.int64]]:
    """Blocks of shards that follow each other."""
    bounds = [number * len(shards) // n_blocks for number in range(n_blocks + 1)]
    return [np.concatenate(shards[start:end]) for start, end in pairwise(bounds) if end > start]


def _dealt(shards: list[NDArray[np.int64]], n_blocks: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Blocks of slices of as many shards as can be."""
    n_slices = min(n_blocks, MOST_SLICES)
    blocks: list[list[NDArray[np.int64]]] = [[] for _ in range(n_blocks)]
    place = 0
    for number in generator.permutation(len(shards)):
        slices = np.array_split(shards[number], n_slices)
        for turn in generator.permutation(n_slices):
            blocks[place % n_blocks].append(slices[turn])
            place += 1
    return [np.concatenate(block) for block in blocks if block]


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a table.

    Attributes:
        features: Shape [n, d] or [n, h, w, c]; an array, or inputs that are read as they are needed.
        labels: Class indices, shape [n].
        keys: Image keys, shape [n].
        views: Number of the view, shape [n].
        groups: Rows of the same number must not be parted, shape [n]; None if only images of the same key.
    """

    features: NDArray[np.floating] | Inputs
    labels: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    views: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bundles(self) -> NDArray[Any]:
        """What must stay together: the group of each row, else its image key, which it shares with its twins."""
        return self.keys if self.groups is None else self.groups

    def array(self) -> NDArray[np.floating]:
        """The features as an array.

        Raises:
            ConfigError: If there are more than may be held.
        """
        if isinstance(self.features, StoredFeatures) and len(self) > self.features.block_rows:
            raise ConfigError(
                f"{len(self):,} rows of {self.features.shape[1]:,} features are more than --memory lets be held, "
                "and this head needs all at once; raise --memory, or take linear, ridge, centroid or mlp512-128"
            )
        return self.load(np.arange(len(self)))

    def select(self, rows: Rows) -> Part:
        """Some of the rows; what is not in memory stays where it is."""
        features = self.features[rows] if isinstance(self.features, np.ndarray) else self.features.take(rows)
        groups = None if self.groups is None else self.groups[rows]
        return Part(features, self.labels[rows], self.keys[rows], self.views[rows], groups)

    def up_to_view(self, view: int | None) -> Part:
        """The rows of this view and those before it; None for all."""
        return self if view is None or (self.views <= view).all() else self.select(self.views <= view)

    def load(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Features of some of the rows, in memory; without a copy if these are all rows in their order."""
        if not isinstance(self.features, np.ndarray):
            return self.features.read(rows)
        return self.features if _is_all(rows, len(self)) else self.features[rows]

    def blocks(self, generator: np.random.Generator | None = None) -> Iterator[NDArray[np.int64]]:
        """All rows, as many at a time as may be held: an array in one block, in its order.

        With a generator, blocks of features on disk hold slices of shards drawn at random. Without one, those of an
        array of which no copy is wanted are small.
        """
        if isinstance(self.features, StoredFeatures):
            yield from self.features.blocks(generator)
        elif isinstance(self.features, HeldFeatures) and generator is None:
            for start in range(0, len(self), COPIED):
                yield np.arange(start, min(start + COPIED, len(self)))
        elif len(self):
            yield np.arange(len(self))


def _is_all(rows: NDArray[np.int64], n: int) -> bool:
    return len(rows) == n and bool((rows == np.arange(n)).all())


def nothing(part: Part) -> Part:
    """None of the rows."""
    return part.select(np.zeros(0, np.int64))


def joined(first: Part, second: Part) -> Part:
    """The rows of two parts of one table, one after the other."""
    if isinstance(first.features, StoredFeatures) and isinstance(second.features, StoredFeatures):
        places = tuple(map(np.concatenate, zip(first.features.places, second.features.places, strict=True)))
        features: NDArray[np.floating] | Inputs = StoredFeatures(
            first.features.stores, places, first.features.block_rows
        )
    else:
        features = np.concatenate([first.array(), second.array()])
    columns = [np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("labels", "keys", "views")]
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = np.concatenate([first.groups, second.groups])
    labels, keys, views = columns
    return Part(features, labels, keys, views, groups)


def check_finite(features: NDArray[np.floating], locations: Sequence[str] | None = None) -> None:
    """Refuse features that are no finite numbers.

    Raises:
        DataError: Naming images where they are known.
    """
    flat = features.reshape(len(features), math.prod(features.shape[1:]))
    finite = [np.isfinite(flat[at : at + CHECKED]).all(axis=1) for at in range(0, len(flat), CHECKED)]
    bad = np.flatnonzero(~np.concatenate(finite)) if finite else np.zeros(0, np.int64)
    if len(bad):
        named = f" ({shortened([locations[row] for row in bad.tolist()])})" if locations else ""
        raise DataError(
            f"Features of {len(bad):,} images or views{named} are no finite numbers; extract them in another precision "
            "(--precision float32), or look at the weights"
        )
