"""The feature table: datasets joined with stored features by key. Every head takes this, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.augment import Augment
from pipeline.config import FeatureSpec
from pipeline.datasets import KEY_DTYPE, Dataset, check_classes, shortened
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.records import TableRecord, load_dataset
from pipeline.store import FeatureStore

__all__ = ["FeatureTable", "Part", "StoredFeatures", "joined", "load_table", "row_keys"]

log = logging.getLogger("tlpipe")

# Features that are held in memory are held about three times: as a table, as the training rows, and prepared.
COPIES = 3
BLOCKS = 4  # a block read from disk, its copy for the step, and room for what is made of them
LEAST_SHARDS = 8  # in a block: a folder's shards each hold one class, and a step must see all


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
    def shape(self) -> tuple[int, ...]:
        """[n, d], or [n, h, w, c]."""
        shapes = [store.row_shape() for store in self.stores]
        return (len(self.places[0]), *shapes[0][:-1], sum(shape[-1] for shape in shapes))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> StoredFeatures:
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
        _check_finite(features)
        return features

    def blocks(self, generator: np.random.Generator | None) -> Iterator[NDArray[np.int64]]:
        """All rows, as many at a time as may be held, each shard read once; a generator draws the shards' order."""
        order = np.argsort(self.places[0][:, 0], kind="stable")
        starts = np.unique(self.places[0][order, 0], return_index=True)[1]
        shards = np.split(order, starts[1:])
        if generator:
            shards = [shards[number] for number in generator.permutation(len(shards))]
        block: list[NDArray[np.int64]] = []
        for rows in shards:
            if block and sum(map(len, block)) + len(rows) > self.block_rows:
                yield np.concatenate(block)
                block = []
            block.append(rows)
        if block:
            yield np.concatenate(block)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a table.

    Attributes:
        features: Shape [n, d] or [n, h, w, c]; an array, or on disk.
        labels: Class indices, shape [n].
        keys: Image keys, shape [n].
        views: Number of the view, shape [n].
    """

    features: NDArray[np.floating] | StoredFeatures
    labels: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    views: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether the features are an array."""
        return not isinstance(self.features, StoredFeatures)

    def array(self) -> NDArray[np.floating]:
        """The features as an array.

        Raises:
            ConfigError: If there are more than may be held.
        """
        if isinstance(self.features, StoredFeatures):
            if len(self) > self.features.block_rows:
                raise ConfigError(
                    f"{len(self):,} rows of {self.features.shape[1]:,} features are more than --memory lets be held, "
                    "and this head needs all at once; raise --memory, or take linear, ridge, centroid or mlp512-128"
                )
            return self.features.read(np.arange(len(self)))
        return self.features

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Part:
        """Some of the rows; what lies on disk stays there."""
        if isinstance(self.features, StoredFeatures):
            return Part(self.features.take(rows), self.labels[rows], self.keys[rows], self.views[rows])
        return Part(self.features[rows], self.labels[rows], self.keys[rows], self.views[rows])

    def up_to_view(self, view: int | None) -> Part:
        """The rows of this view and those before it; None for all."""
        return self if view is None or (self.views <= view).all() else self.select(self.views <= view)

    def load(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Features of some of the rows, in memory; without a copy if these are all rows in their order."""
        if isinstance(self.features, StoredFeatures):
            return self.features.read(rows)
        return self.features if _is_all(rows, len(self)) else self.features[rows]

    def blocks(self, generator: np.random.Generator | None = None) -> Iterator[NDArray[np.int64]]:
        """All rows, as many at a time as may be held: features in memory in one block, in their order.

        With a generator, blocks of features on disk hold shards drawn at random.
        """
        if isinstance(self.features, StoredFeatures):
            yield from self.features.blocks(generator)
        elif len(self):
            yield np.arange(len(self))


def _is_all(rows: NDArray[np.int64], n: int) -> bool:
    return len(rows) == n and bool((rows == np.arange(n)).all())


def joined(first: Part, second: Part) -> Part:
    """The rows of two parts of one table, one after the other."""
    if isinstance(first.features, StoredFeatures) and isinstance(second.features, StoredFeatures):
        places = tuple(map(np.concatenate, zip(first.features.places, second.features.places, strict=True)))
        features: NDArray[np.floating] | StoredFeatures = StoredFeatures(
            first.features.stores, places, first.features.block_rows
        )
    else:
        features = np.concatenate([first.array(), second.array()])
    columns = [np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("labels", "keys", "views")]
    return Part(features, *columns)


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features, labels and splits of a dataset; rows are images of view 0, then those of each further view.

    Attributes:
        records: Of the feature sets whose columns stand side by side.
        class_names: Sorted.
        features: Shape [n, d] or [n, h, w, c]; an array, or on disk.
        labels: Index into `class_names`, shape [n].
        splits: "train", "val" or "test", shape [n].
        views: Number of the view, shape [n].
        keys: Image keys, shape [n].
        locations: Where each image lies, shape [n].
        missing: Images of the dataset that have no features because they can't be read.
    """

    records: tuple[TableRecord, ...]
    class_names: tuple[str, ...]
    features: NDArray[np.floating] | StoredFeatures
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    views: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    locations: tuple[str, ...]
    missing: int

    def array(self) -> NDArray[np.floating]:
        """The features as an array, however many."""
        if isinstance(self.features, StoredFeatures):
            return self.features.read(np.arange(len(self.labels)))
        return self.features

    @property
    def id(self) -> str:
        """The features id; several are joined by commas."""
        return ",".join(record.id for record in self.records)

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """What the features are."""
        return tuple(record.spec for record in self.records)

    def part(self, split: str, view: int = 0) -> Part:
        """The rows of one split: of `train` all views, of `val` and `test` one view, images in the same order."""
        chosen = self.splits == split
        if split != "train":
            chosen &= self.views == view
        return Part(self.features, self.labels, self.keys, self.views).select(chosen)


def row_keys(image_keys: NDArray[np.bytes_], augment: Augment | None, view: int) -> NDArray[np.bytes_]:
    """Keys under which the features of one view of some images are stored, shape [n]."""
    if view == 0 or augment is None:
        return image_keys
    return np.array([augment.row_key(key, view) for key in image_keys.tolist()], KEY_DTYPE)


def load_table(
    cache: Path,
    records: Sequence[TableRecord],
    views: int | None = None,
    *,
    test_views: int = 0,
    memory: int | None = None,
) -> FeatureTable:
    """Join a dataset with its features, or with several sets of features of the same images.

    Args:
        cache: The cache folder.
        records: What to load; the first one's labels and splits count, and the others must agree.
        views: Number of augmented views of the training images; None for all that were extracted.
        test_views: The same of the validation and test images.
        memory: Bytes of features that may be held; what is more stays on disk. None for half of the machine's.

    Raises:
        StoreError: If features are missing or damaged.
        ConfigError: If there are fewer views, the sets don't fit each other, or `memory` is too little to read in.
        DataError: If the sets disagree about labels or splits, or a feature is no finite number.
    """
    views = min(record.config.views for record in records) if views is None else views
    _check_views(records, max(views, test_views))
    stores, unreadable = [], set()
    for record in records:
        store = FeatureStore(cache, record.spec)
        for damage in store.open():
            log.warning("%s %s; it was set aside", damage.path, damage.cause)
        stores.append(store)
        unreadable |= set(store.quarantined())
    dataset = load_dataset(cache, records[0].dataset)
    images = np.arange(len(dataset))
    for record in records[1:]:
        images = images[_agreeing(dataset, load_dataset(cache, record.dataset), records[0].id, record.id)[images]]
    augment = Augment.parse(records[0].config.augment) if records[0].config.augment else None
    columns = []
    for view in range(max(views, test_views) + 1):
        of_train = dataset.splits[images] == "train"
        rows = images[(of_train & (view <= views)) | (~of_train & (view <= test_views))]
        keys = row_keys(dataset.keys[rows], augment, view)
        has = np.array([store.has(keys) for store in stores])
        for record, stored in zip(records, has, strict=True):
            lost = [key for key in dataset.keys[rows[~stored]].tolist() if key not in unreadable]
            if lost:
                raise StoreError(
                    f"Features of {len(lost):,} images of {record.id} are missing; compute them: "
                    f"{record.config.command()}"
                )
        stored = has.all(axis=0)
        columns.append((rows[stored], keys[stored], view))
    rows, keys = (np.concatenate([column[number] for column in columns]) for number in (0, 1))
    present, labels = np.unique(dataset.labels[rows], return_inverse=True)
    class_names = tuple(dataset.class_names[label] for label in present)
    check_classes(dataset.name, class_names)
    locations = tuple(dataset.locations[row] for row in rows)
    return FeatureTable(
        records=tuple(records),
        class_names=class_names,
        features=_features(stores, keys, locations, memory),
        labels=labels.astype(np.int64),
        splits=dataset.splits[rows],
        views=np.concatenate([np.full(len(part), view) for part, _, view in columns]),
        keys=dataset.keys[rows],
        locations=locations,
        missing=len(dataset) - len(columns[0][0]),
    )


def _check_views(records: Sequence[TableRecord], wanted: int) -> None:
    """Refuse views that were not extracted, or not alike in all sets."""
    for record in records:
        if wanted > record.config.views:
            raise ConfigError(
                f"{wanted} views are wanted, {record.id} has {record.config.views}; "
                f"compute them: tlpipe extract with --views {wanted}"
            )
        if wanted and record.config.augment != records[0].config.augment:
            raise ConfigError(
                f"The views of {records[0].id} are made by {records[0].config.augment!r}, those of {record.id} by "
                f"{record.config.augment!r}; extract them alike, or use --views 0"
            )


def _agreeing(dataset: Dataset, other: Dataset, name: str, other_name: str) -> NDArray[np.bool_]:
    """Which images of a dataset the other has too.

    Raises:
        DataError: If they have no image in common, or disagree about the label or split of one.
    """
    known: dict[bytes, set[tuple[str, str]]] = {}
    rows = zip(other.keys.tolist(), other.labels.tolist(), other.splits.tolist(), strict=True)
    for key, label, split in rows:
        known.setdefault(key, set()).add((other.class_names[label], split))
    shared = np.array([key in known for key in dataset.keys.tolist()])
    differing = [
        dataset.locations[row]
        for row in np.flatnonzero(shared)
        if (dataset.class_names[dataset.labels[row]], str(dataset.splits[row])) not in known[bytes(dataset.keys[row])]
    ]
    if differing or not shared.any():
        what = f"another label or split of {shortened(differing)}" if differing else "no image in common"
        raise DataError(f"{name} and {other_name} have {what}; extract both from the same data")
    if not shared.all():
        log.warning("%s images of %s are not in %s and are left out", f"{(~shared).sum():,}", name, other_name)
    return shared


def _features(
    stores: Sequence[FeatureStore], keys: NDArray[np.bytes_], locations: Sequence[str], memory: int | None
) -> NDArray[np.floating] | StoredFeatures:
    """The rows as an array if they may be held, else on disk."""
    memory = runtime.memory_limit() // 2 if memory is None else memory
    places = tuple(store.places(keys) for store in stores)
    row_bytes = 4 * sum(int(np.prod(store.row_shape())) for store in stores)
    if COPIES * row_bytes * len(keys) <= memory:
        parts = [store.read_at(part) for store, part in zip(stores, places, strict=True)]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        _check_finite(features, locations)
        return features
    block_rows = memory // BLOCKS // row_bytes
    largest = max(int(np.bincount(part[:, 0]).max(initial=1)) for part in places)
    least = min(LEAST_SHARDS * largest, len(keys))
    if block_rows < least:
        raise ConfigError(
            f"--memory of {memory / 1e6:,.0f} MB is too little for these features; give at least "
            f"{np.ceil(least * BLOCKS * row_bytes / 1e6):,.0f}MB"
        )
    log.info("%.1f GB of features stay on disk, and are read as they are needed", row_bytes * len(keys) / 1e9)
    return StoredFeatures(tuple(stores), places, int(block_rows))


def _check_finite(features: NDArray[np.floating], locations: Sequence[str] | None = None) -> None:
    """Refuse features that are no finite numbers.

    Raises:
        DataError: Naming images where they are known.
    """
    bad = np.flatnonzero(~np.isfinite(features.reshape(len(features), -1)).all(axis=1))
    if len(bad):
        named = f" ({shortened([locations[row] for row in bad.tolist()])})" if locations else ""
        raise DataError(
            f"Features of {len(bad):,} images{named} are no finite numbers; extract them with --precision float32"
        )
