"""Which features a head is fitted on and rated by: options, the table, and what is refused or said of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TrainingOptions
from pipeline.data import shortened
from pipeline.data.changes import changes
from pipeline.errors import CacheMismatchError, ConfigError, DataError
from pipeline.runs.describe import notes_on_backbones, of_backbones
from pipeline.selection.folds import Round, folds
from pipeline.store.records import TableRecord, find_records, load_dataset
from pipeline.store.table import FeatureTable, load_table
from pipeline.util import log, machine
from pipeline.util.memo import Memo
from pipeline.util.text import counted, sides


def open_table(cache: Path, options: TrainingOptions, views: int | None, what: str) -> FeatureTable:
    """The table that a user means, and a line about it; features that can't be trained on are refused."""
    records = find_records(cache, options.features)
    for record in records:
        if record.spec.pooling == "none":
            raise CacheMismatchError(
                f"A head takes pooled features [n, d], {record.id} keeps height and width (pooling 'none'). "
                f"Make some with: {record.config.command(pooling='avg')}"
            )
    _warn_of_changes(cache, records[0])
    views = min(record.config.views for record in records) if views is None else views
    most = max(views, options.averaged)
    for record in records:
        size = sides(record.spec.image_size)
        log.info(
            "%s on %s (%s %s, %s px, %s)",
            what,
            record.id,
            record.spec.backbone,
            record.spec.endpoint,
            size,
            counted(most, "view"),
        )
    # A fold takes its validation images from the training images, and the other way round.
    wanted = (most, most) if options.cv else (views, options.averaged)
    table = load_table(cache, records, wanted[0], test_views=wanted[1], memory=machine.memory_for(options.memory))
    if table.missing:
        log.warning("Left out as unreadable: %s of %s", counted(table.missing, "image"), records[0].name)
    _check_trainable(table)
    return table


def _warn_of_changes(cache: Path, record: TableRecord) -> None:
    """Say if the data are no longer what they were when the features were extracted."""
    config, since = record.config, datetime.fromisoformat(record.created).timestamp()
    dataset = load_dataset(cache, record.dataset)
    if what := changes(config.data, config.columns, dataset, record.carved, since, Memo(cache)):
        log.warning(
            "%s has changed since %s was extracted: %s. Bring it up to date: %s",
            config.data,
            record.id,
            what,
            config.command(),
        )


def _check_trainable(table: FeatureTable) -> None:
    """Refuse data without training images of a class; say where there are few."""
    name, n_classes = table.records[0].name, len(table.class_names)
    in_view = table.views == 0
    counts = {
        split: np.bincount(table.labels[in_view & (table.splits == split)], minlength=n_classes)
        for split in ("train", "val")
    }
    absent = [table.class_names[label] for label in np.flatnonzero(counts["train"] == 0)]
    if absent:
        raise DataError(
            f"{name} has no training images of the class {shortened(absent)}; "
            "add some, or carve smaller splits (--val-fraction, --test-fraction)"
        )
    if counts["train"].sum() < 2 * n_classes:
        log.warning(
            "There are fewer than two training images per class (%s for %s); expect poor results",
            counted(int(counts["train"].sum()), "image"),
            counted(n_classes, "class", "classes"),
        )
    unseen = [table.class_names[label] for label in np.flatnonzero(counts["val"] == 0)]
    if unseen and counts["val"].sum():
        log.warning("No validation images of the class %s, so it has no say in what is chosen", shortened(unseen))


def notes_on_rating(table: FeatureTable, split: str) -> list[str]:
    """What flatters figures on a split whatever the head is fitted on, in sentences."""
    rows = table.rows(split)
    notes = notes_on_backbones(table)
    if known := known_to_backbones(table, rows):
        notes.append(f"The fine-tuned backbone was fitted on, or chosen by, {known:,} of the {split} images")
    if twins := int(np.isin(table.keys[rows], table.keys[table.splits == "train"]).sum()):
        notes.append(f"{counted(twins, 'image')} of {split} are the same as training images")
    return notes


def known_to_backbones(table: FeatureTable, rows: NDArray[np.int64]) -> int:
    """How many rows are of images that a fine-tuned backbone was fitted on, or chosen by."""
    seen = set().union(*of_backbones(table).values())
    return int(np.isin(table.keys[rows], np.array(sorted(seen), table.keys.dtype)).sum())


def is_carved(table: FeatureTable) -> bool:
    """Whether the validation images were carved from the training images, so that a final head may have both."""
    return all("val" in record.carved for record in table.records)


def rounds_of(table: FeatureTable, options: TrainingOptions, seed: int) -> list[Round]:
    """What heads are fitted on and rated by: folds where there is a cross-validation, else val; once for each seed.

    Raises:
        ConfigError: If folds would rate images that a fine-tuned backbone has seen.
        DataError: If there are neither folds nor val.
    """
    pool = table.all()
    offsets = range(options.seeds)
    if options.cv:
        used = (table.splits == "train") | ((table.splits == "val") & is_carved(table))
        rows = np.flatnonzero(used)
        if known_to_backbones(table, rows):
            raise ConfigError(
                f"--cv {options.cv} would rate images that the fine-tuned backbone was fitted on or chosen by; leave "
                "--cv out"
            )
        if notes := notes_on_backbones(table):
            raise ConfigError(
                f"--cv {options.cv} might rate images that the backbone was fitted on: {notes[0]}; leave it out"
            )
        found = [folds(pool, rows, options.cv, options.averaged, seed + offset) for offset in offsets]
        return [replace(turn, seed=offset) for offset, turns in zip(offsets, found, strict=True) for turn in turns]
    vals = [np.flatnonzero((table.splits == "val") & (table.views == view)) for view in range(options.averaged + 1)]
    if not len(vals[0]):
        raise DataError(
            f"{table.records[0].name} has no validation images to choose by; give --cv 5, or carve some "
            "(--val-fraction)"
        )
    return [Round(pool, np.flatnonzero(table.splits == "train"), vals, offset) for offset in offsets]
