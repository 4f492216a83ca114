"""The feature table: datasets joined with stored features by key. Every head takes this, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FeatureSpec
from pipeline.data import KEY_DTYPE, UNLABELLED, Dataset, check_classes, shortened
from pipeline.data.augment import Augment
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.store.records import TableRecord, load_dataset
from pipeline.store.rows import HeldFeatures, Part, StoredFeatures, check_finite
from pipeline.store.shards import FeatureStore
from pipeline.util import log
from pipeline.util.text import counted, readable_size
from pipeline.util.texts import Texts

# Features that are held in memory are held about four times: as a table, as training rows, prepared, and in a step.
COPIES = 4
BLOCKS = 4  # a block read from disk, its copy for the step, and room for what is made of them
LEAST_SHARDS = 8  # in a block: a folder's shards each hold one class, and a step must see all


_Column = tuple[NDArray[np.int64], NDArray[np.bytes_], int]  # rows of the dataset, their keys, and the view


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features, labels and splits of a dataset; rows are images of view 0, then those of each further view.

    Attributes:
        records: Of the feature sets whose columns stand side by side.
        class_names: Sorted.
        features: Shape [n, d] or [n, h, w, c]; an array, or on disk.
        labels: Index into `class_names`, or `UNLABELLED` where such rows were asked for, shape [n].
        splits: "train", "val" or "test", shape [n].
        views: Number of the view, shape [n].
        keys: Image keys, shape [n].
        locations: Where each image lies, shape [n].
        missing: Images of the dataset that have no features because they can't be read.
        groups: As in `Dataset`, of each row.
        others: As in `Dataset`, of each row.
    """

    records: tuple[TableRecord, ...]
    class_names: tuple[str, ...]
    features: NDArray[np.floating] | StoredFeatures
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    views: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    locations: Sequence[str]
    missing: int
    groups: NDArray[np.int64] | None = None
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def array(self) -> NDArray[np.floating]:
        """The features as an array, however many."""
        if isinstance(self.features, StoredFeatures):
            return self.features.read(np.arange(len(self.labels)))
        return self.features

    def all(self) -> Part:
        """All rows."""
        return Part(self.features, self.labels, self.keys, self.views, self.groups)

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
        return self.all().select(self.rows(split, view))

    def examples(self, split: str) -> Part:
        """As `part`, but no row is copied before it is read."""
        rows = self.rows(split)
        features = (
            HeldFeatures(self.features, rows) if isinstance(self.features, np.ndarray) else self.features.take(rows)
        )
        return Part(features, self.labels[rows], self.keys[rows], self.views[rows])

    def rows(self, split: str, view: int = 0) -> NDArray[np.int64]:
        """Numbers of the rows that `part` gives."""
        chosen = self.splits == split
        if split != "train":
            chosen &= self.views == view
        return np.flatnonzero(chosen)


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
    labelled: bool = True,
) -> FeatureTable:
    """Join a dataset with its features, or with several sets of features of the same images.

    Args:
        cache: The cache folder.
        records: What to load; the first one's labels and splits count, and the others must agree.
        views: Number of augmented views of the training images; None for all that were extracted.
        test_views: The same of the validation and test images.
        memory: Bytes of features that may be held; what is more stays on disk. None to hold all.
        labelled: Whether to leave out images without a label, and to refuse data of fewer than two classes.

    Raises:
        StoreError: If features are missing or damaged.
        ConfigError: If there are fewer views, the sets don't fit each other, or `memory` is too little to read in.
        DataError: If the sets disagree about labels or splits, there are too few classes, or a feature is no finite
            number.
    """
    views = min(record.config.views for record in records) if views is None else views
    _check_views(records, max(views, test_views))
    stores = []
    for record in records:
        store = FeatureStore(cache, record.spec)
        for damage in store.open():
            log.warning("%s %s; it was set aside", damage.path, damage.cause)
        stores.append(store)
    dataset = load_dataset(cache, records[0].dataset)
    images = np.arange(len(dataset))
    for record in records[1:]:
        images = images[_agreeing(dataset, load_dataset(cache, record.dataset), records[0].id, record.id)[images]]
    if labelled:
        images = images[_labelled(dataset, images)]
    n_images = len(images)
    columns = _columns(dataset, images, records[0].config.augment, views, test_views)
    # An image that can't be read has no rows at all, so that the views of the others stand in the same order.
    unreadable = [_unreadable(dataset, *pair, columns) for pair in zip(records, stores, strict=True)]
    gone = np.isin(dataset.keys, np.concatenate(unreadable))
    columns = [(rows[~gone[rows]], keys[~gone[rows]], view) for rows, keys, view in columns]
    rows, keys = (np.concatenate([column[number] for column in columns]) for number in (0, 1))
    labels = dataset.labels[rows]
    present = np.unique(labels[labels != UNLABELLED])
    labels = np.where(labels == UNLABELLED, UNLABELLED, np.searchsorted(present, labels))
    class_names = tuple(dataset.class_names[label] for label in present)
    if labelled:
        check_classes(dataset.name, class_names)
    locations = Texts(dataset.locations[row] for row in rows)
    return FeatureTable(
        records=tuple(records),
        class_names=class_names,
        features=read_features(stores, keys, locations, memory),
        labels=labels.astype(np.int64),
        splits=dataset.splits[rows],
        views=np.concatenate([np.full(len(part), view) for part, _, view in columns]),
        keys=dataset.keys[rows],
        locations=locations,
        missing=n_images - len(columns[0][0]),
        groups=None if dataset.groups is None else dataset.groups[rows],
        others={name: tuple(texts[row] for row in rows) for name, texts in dataset.others.items()},
    )


def _columns(
    dataset: Dataset, images: NDArray[np.int64], augment: str | None, views: int, test_views: int
) -> list[_Column]:
    """For each view the rows that have it, with their row keys."""
    made = Augment.parse(augment) if augment else None
    of_train = dataset.splits[images] == "train"
    found: list[_Column] = []
    for view in range(max(views, test_views) + 1):
        rows = images[(of_train & (view <= views)) | (~of_train & (view <= test_views))]
        found.append((rows, row_keys(dataset.keys[rows], made, view), view))
    return found


def _labelled(dataset: Dataset, images: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of some images have a label.

    Raises:
        DataError: If none has.
    """
    found: NDArray[np.bool_] = dataset.labels[images] != UNLABELLED
    if len(found) and not found.any():
        raise DataError(
            f"{dataset.name} has no labels; sort its images into class folders, or give a table with the columns path "
            "and label, then run tlpipe extract again: no feature is computed twice"
        )
    if not found.all():
        left_out = f"{int((~found).sum()):,} of {counted(len(found), 'image')}"
        log.warning("Left out for lack of a label: %s of %s", left_out, dataset.name)
    return found


def _unreadable(
    dataset: Dataset, record: TableRecord, store: FeatureStore, columns: Sequence[_Column]
) -> NDArray[np.bytes_]:
    """Keys of the images that have no features because they can't be read.

    Raises:
        StoreError: If features are missing for no known reason.
    """
    lost = np.unique(np.concatenate([dataset.keys[rows[~store.has(keys)]] for rows, keys, _ in columns]))
    quarantined = set(store.quarantined())
    unknown = [key for key in lost.tolist() if key not in quarantined]
    if unknown:
        raise StoreError(
            f"Features of {counted(len(unknown), 'image')} of {record.id} are missing; compute them: "
            f"{record.config.command()}"
        )
    return lost


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
    for row, (key, split) in enumerate(zip(other.keys.tolist(), other.splits.tolist(), strict=True)):
        known.setdefault(key, set()).add((other.label_name(row), split))
    shared = np.array([key in known for key in dataset.keys.tolist()])
    differing = [
        dataset.locations[row]
        for row in np.flatnonzero(shared).tolist()
        if (dataset.label_name(row), str(dataset.splits[row])) not in known[bytes(dataset.keys[row])]
    ]
    if differing or not shared.any():
        what = f"another label or split of {shortened(differing)}" if differing else "no image in common"
        raise DataError(f"{name} and {other_name} have {what}; extract both from the same data")
    n_other = len(set(known) - set(dataset.keys.tolist()))
    for count, has, lacks in ((int((~shared).sum()), name, other_name), (n_other, other_name, name)):
        if count:
            log.warning("Left out, because %s lacks them: %s of %s", lacks, counted(count, "image"), has)
    return shared


def read_features(
    stores: Sequence[FeatureStore], keys: NDArray[np.bytes_], locations: Sequence[str], memory: int | None
) -> NDArray[np.floating] | StoredFeatures:
    """Features of some rows: an array if they may be held, else on disk.

    Args:
        stores: Whose columns stand side by side.
        keys: Row keys, shape [n].
        locations: Of the images, for errors.
        memory: Bytes that may be held; None to hold all.

    Raises:
        ConfigError: If `memory` is too little to read in.
        DataError: If a feature is no finite number.
    """
    places = tuple(store.places(keys) for store in stores)
    shapes = [store.row_shape() for store in stores]
    copies, n_blocks, number_bytes = COPIES, BLOCKS, 4
    if len(shapes[0]) > 1:  # of activations single batches are widened, and no copy is made
        copies, n_blocks, number_bytes = 1, 3, np.dtype(stores[0].spec.dtype).itemsize
    row_bytes = number_bytes * sum(int(np.prod(shape)) for shape in shapes)
    if memory is None or copies * row_bytes * len(keys) <= memory:
        parts = [store.read_at(part) for store, part in zip(stores, places, strict=True)]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        check_finite(features, locations)
        return features
    block_rows = memory // n_blocks // row_bytes
    largest = max(int(np.bincount(part[:, 0]).max(initial=1)) for part in places)
    least = min(LEAST_SHARDS * largest, len(keys))
    if block_rows < least:
        raise ConfigError(
            f"--memory of {memory / 1e6:,.0f} MB is too little for these features; give at least "
            f"{np.ceil(least * n_blocks * row_bytes / 1e6):,.0f}MB"
        )
    log.info("%s of features stay on disk, and are read as they are needed", readable_size(row_bytes * len(keys)))
    return StoredFeatures(tuple(stores), places, int(block_rows))
