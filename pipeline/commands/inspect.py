"""Inspect: what a dataset holds, and what is wrong with it; by its features, too, once there are any."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import COMMON, Columns, ExtractConfig, SplitConfig
from pipeline.data import BUILT_IN, UNLABELLED, Dataset, open_dataset, printable, shortened, split_again
from pipeline.data.corrections import read_corrections
from pipeline.errors import ConfigError, StoreError
from pipeline.inspection.doubts import Neighbours, held_out_probabilities, label_errors, outliers
from pipeline.inspection.duplicates import exact_duplicates, same_pictures
from pipeline.inspection.findings import ByFeatures, Inspection, LabelError, facts_of
from pipeline.inspection.page import heading, sections
from pipeline.pages.pictures import Pictures
from pipeline.pages.write import write_inspection
from pipeline.store.records import (
    TableRecord,
    load_dataset,
    newest_pooled,
    plain_name,
    records,
    records_of_data,
    splits_of,
)
from pipeline.store.rows import Part
from pipeline.store.shards import FeatureStore
from pipeline.util import log
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo


def inspect(data: str, cache: Path, reports: Path, seed: int = 0, columns: Columns = COMMON) -> Inspection:
    """Look at a dataset, and write a page with pictures of what was found.

    Args:
        data: As for extract.
        cache: The cache folder; the newest pooled features of the same images are used.
        reports: Where the page goes.
        seed: Of the folds of the cross-validation.
        columns: Of a manifest; if none is named, those of the newest extract of the data.

    Raises:
        DataError: If the data can't be used.
    """
    start = time.perf_counter()
    earlier = newest_pooled(records_of_data(cache, data))
    if columns == COMMON and earlier:
        columns = earlier.config.columns
    opened = open_dataset(data, SplitConfig(), columns=columns, memo=Memo(cache))
    record = _features_of_data(cache, opened.dataset)
    if record is not None:  # as they were split for training
        opened = split_again(opened, record.config.splits, lambda: splits_of(cache, record))
    for note in opened.notes:
        log.warning("%s", note)
    pixel_limit = ExtractConfig.pixel_limit if record is None else record.config.pixel_limit
    facts = facts_of(opened.source, pixel_limit)
    pictures = Pictures(opened.source, opened.dataset.keys, pixel_limit)
    exact = exact_duplicates(opened.dataset.keys)
    by_features = None if record is None else _by_features(opened.dataset, record, cache, pictures, seed)
    # Folders of one name, such as `images`, are told apart by where they lie.
    place = digest_of(os.fsencode(data if data in BUILT_IN else Path(data).expanduser().resolve()))[:4]
    page = reports / f"inspect-{plain_name(opened.dataset.name)}-{place}.html"
    found = Inspection(printable(data), opened, facts, exact, by_features, page, time.perf_counter() - start)
    given = read_corrections(columns.labels) if columns.labels else []
    write_inspection(page, heading(found, given), sections(found), pictures)
    return found


def _features_of_data(cache: Path, dataset: Dataset) -> TableRecord | None:
    """The newest pooled features that cover all images of a dataset, but for unreadable ones."""
    keys = set(dataset.keys.tolist())
    others: set[str] = set()
    for record in reversed(records(cache)):
        if record.spec.pooling == "none" or record.dataset in others:
            continue
        others.add(record.dataset)
        try:
            if keys <= set(load_dataset(cache, record.dataset).keys.tolist()):
                return record
        except StoreError as error:
            log.warning("%s", error)
    return None


def _by_features(
    dataset: Dataset, record: TableRecord, cache: Path, pictures: Pictures, seed: int
) -> ByFeatures | None:
    store = FeatureStore(cache, record.spec)
    store.open()
    rows = np.flatnonzero(store.has(dataset.keys))
    if len(rows) < 2:
        return None
    keys = dataset.keys[rows]
    features = store.read(keys)
    neighbours = Neighbours.of(features, keys, rows)
    near = same_pictures(neighbours, pictures)
    wrong, skipped = _label_errors(dataset, features, rows, seed)
    return ByFeatures(record, len(rows), near, wrong, outliers(neighbours), skipped)


def _label_errors(
    dataset: Dataset, features: NDArray[np.floating], rows: NDArray[np.int64], seed: int
) -> tuple[list[LabelError], list[str]]:
    """Labels that are likely wrong, and of which classes that can't be told."""
    units = dataset.keys if dataset.groups is None else dataset.groups
    names = [
        label
        for label in np.unique(dataset.labels[rows]).tolist()
        if label != UNLABELLED and len(np.unique(units[rows][dataset.labels[rows] == label])) > 1
    ]
    if not dataset.class_names:
        return [], ["Without labels nothing can be said of label errors"]
    small = [name for label, name in enumerate(dataset.class_names) if label not in names]
    skipped = [f"Label errors can't be found in classes of fewer than two different images: {shortened(small)}"]
    if len(names) < 2:
        return [], skipped if small else ["Label errors can't be found where there is only one class"]
    used = rows[np.isin(dataset.labels[rows], names)]
    groups = None if dataset.groups is None else dataset.groups[used]
    labels = np.searchsorted(names, dataset.labels[used])
    part = Part(features[np.isin(rows, used)], labels, dataset.keys[used], np.zeros(len(used), np.int64), groups)
    skipped = skipped if small else []
    try:
        probabilities = held_out_probabilities(part, len(names), seed)
    except ConfigError:
        cause = "images that belong together are of several classes, and heads would lack one"
        return [], [*skipped, f"Label errors can't be found, as {cause}"]
    best = probabilities.argmax(axis=1)
    found = [
        LabelError(
            int(used[row]),
            dataset.class_names[names[best[row]]],
            float(probabilities[row, best[row]]),
            float(probabilities[row, labels[row]]),
        )
        for row in label_errors(part.labels, probabilities)
    ]
    return found, skipped
