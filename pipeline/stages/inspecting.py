"""Inspect: what a dataset holds, and what is wrong with it; by its features, too, once there are any."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import inspection
from pipeline.config import ExtractConfig, SplitConfig
from pipeline.datasets import BUILT_IN, Dataset, open_dataset
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.files import digest_of
from pipeline.inspection import ByFeatures, Group, Inspection, LabelError
from pipeline.memo import Memo
from pipeline.parts import Part
from pipeline.records import TableRecord, load_dataset, plain_name, records
from pipeline.report import Pictures, write_inspection
from pipeline.store import FeatureStore

__all__ = ["inspect"]

log = logging.getLogger("tlpipe")


def inspect(data: str, cache: Path, reports: Path, seed: int = 0) -> Inspection:
    """Look at a dataset, and write a page with pictures of what was found.

    Args:
        data: As for extract.
        cache: The cache folder; the newest pooled features of the same images are used.
        reports: Where the page goes.
        seed: Of the folds of the cross-validation.

    Raises:
        DataError: If the data can't be used.
    """
    start = time.perf_counter()
    opened = open_dataset(data, SplitConfig(), memo=Memo(cache))
    record = _features_of_data(cache, opened.dataset)
    if record is not None and record.config.splits != SplitConfig():
        opened = open_dataset(data, record.config.splits, memo=Memo(cache))  # as they were split for training
    for note in opened.notes:
        log.warning("%s", note)
    facts = inspection.facts_of(opened.source, ExtractConfig.pixel_limit)
    pictures = Pictures(opened.source, opened.dataset.keys)
    exact = inspection.exact_duplicates(opened.dataset.keys)
    by_features = None if record is None else _by_features(opened.dataset, record, cache, pictures, seed)
    # Folders of one name, such as `images`, are told apart by where they lie.
    place = digest_of(os.fsencode(data if data in BUILT_IN else Path(data).expanduser().resolve()))[:4]
    page = reports / f"inspect-{plain_name(opened.dataset.name)}-{place}.html"
    found = Inspection(data, opened, facts, exact, by_features, page, time.perf_counter() - start)
    write_inspection(page, inspection.heading(found), inspection.sections(found), pictures)
    return found


def _features_of_data(cache: Path, dataset: Dataset) -> TableRecord | None:
    """The newest pooled features that cover all images of a dataset, but for unreadable ones."""
    keys = set(dataset.keys.tolist())
    for record in reversed(records(cache)):
        if record.spec.pooling == "none":
            continue
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
    near = inspection.near_duplicates(features, keys, lambda row: pictures.pixels(int(rows[row]), inspection.PICTURE))
    near = [Group(tuple(int(rows[row]) for row in group.rows), group.similarity) for group in near]
    far = [(int(rows[row]), distance) for row, distance in inspection.outliers(features)]
    skipped: list[str] = []
    wrong: list[LabelError] = []
    try:
        wrong = _label_errors(dataset, features, rows, seed)
    except (ConfigError, DataError) as error:
        skipped.append(f"Label errors: {error}")
    return ByFeatures(record, len(rows), near, wrong, far, skipped)


def _label_errors(
    dataset: Dataset, features: NDArray[np.floating], rows: NDArray[np.int64], seed: int
) -> list[LabelError]:
    names, labels = np.unique(dataset.labels[rows], return_inverse=True)
    if len(names) < 2:
        raise DataError("images of two classes or more are needed")
    part = Part(features, labels.astype(np.int64), dataset.keys[rows], np.zeros(len(rows), np.int64))
    probabilities = inspection.held_out_probabilities(part, len(names), seed)
    best = probabilities.argmax(axis=1)
    return [
        LabelError(
            int(rows[row]),
            dataset.class_names[names[best[row]]],
            float(probabilities[row, best[row]]),
            float(probabilities[row, labels[row]]),
        )
        for row in inspection.label_errors(part.labels, probabilities)
    ]
