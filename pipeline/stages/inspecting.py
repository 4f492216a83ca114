"""Inspect: what a dataset holds, and what is wrong with it; by its features, too, once there are any."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import inspection
from pipeline.config import ExtractConfig, SplitConfig
from pipeline.datasets import BUILT_IN, SPLITS, Dataset, Opened, open_dataset
from pipeline.errors import ConfigError, DataError, ImageError, StoreError
from pipeline.files import digest_of
from pipeline.images import Facts
from pipeline.inspection import Group
from pipeline.memo import Memo
from pipeline.parts import Part
from pipeline.records import TableRecord, load_dataset, plain_name, records
from pipeline.report import Figure, Pictures, Section, write_inspection
from pipeline.store import FeatureStore

__all__ = ["Inspection", "inspect"]

IMBALANCE = 1.5  # times as many images in the largest class as in the smallest
SHOWN = 48  # figures in each section of the page; the answer of --json has all

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class LabelError:
    """A label that is hardly right.

    Attributes:
        row: In the dataset.
        suggested: The class it looks like.
        probability: Of that class, by heads that have not seen the image.
        of_label: Of the class that it is labelled as.
    """

    row: int
    suggested: str
    probability: float
    of_label: float


@dataclass(frozen=True, slots=True)
class ByFeatures:
    """What features tell.

    Attributes:
        record: The features.
        n: Images that have features.
        near: Pairs of images that show the same picture.
        label_errors: The likeliest first.
        outliers: Rows and their mean distances to the nearest images, the largest first.
        skipped: What could not be told, and why.
    """

    record: TableRecord
    n: int
    near: list[Group]
    label_errors: list[LabelError]
    outliers: list[tuple[int, float]]
    skipped: list[str]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a dataset.

    Attributes:
        data: As the user named it.
        opened: The dataset, with its splits as extract would carve them.
        facts: Of each image, or why it can't be read.
        exact: Groups of byte-identical images.
        by_features: What features tell; None where there are none yet.
        page: Where the page is.
        seconds: In all.
    """

    data: str
    opened: Opened
    facts: list[Facts | ImageError]
    exact: list[Group]
    by_features: ByFeatures | None
    page: Path
    seconds: float

    @property
    def dataset(self) -> Dataset:
        """The rows."""
        return self.opened.dataset

    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each class by split."""
        found = Counter(zip(self.dataset.labels.tolist(), self.dataset.splits.tolist(), strict=True))
        splits = self.dataset.counts()
        return {
            name: {split: found[(label, split)] for split in splits}
            for label, name in enumerate(self.dataset.class_names)
        }

    def unreadable(self) -> dict[str, str]:
        """Location and cause of each image that can't be read."""
        listed = zip(self.dataset.locations, self.facts, strict=True)
        return {
            **{entry.location: entry.cause for entry in self.opened.unreadable},
            **{location: str(facts) for location, facts in listed if isinstance(facts, ImageError)},
        }

    def formats(self) -> dict[str, int]:
        """Number of images of each format."""
        return _tally(facts.format for facts in self.facts if isinstance(facts, Facts))

    def modes(self) -> dict[str, int]:
        """Number of images of each colour mode."""
        return _tally(facts.mode for facts in self.facts if isinstance(facts, Facts))

    def sizes(self) -> dict[str, list[int]]:
        """Smallest, median and largest width and height, pixels."""
        read = [(facts.width, facts.height) for facts in self.facts if isinstance(facts, Facts)]
        if not read:
            return {}
        low, middle, high = (np.percentile(read, share, axis=0, method="nearest").tolist() for share in (0, 50, 100))
        return {name: [low[axis], middle[axis], high[axis]] for axis, name in enumerate(("width", "height"))}

    def imbalance(self) -> dict[str, Any] | None:
        """The largest and the smallest class of the training images; None where they are about as large."""
        train = {name: counts.get("train", 0) for name, counts in self.counts().items()}
        largest, smallest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
        ratio = train[largest] / max(train[smallest], 1)
        if ratio < IMBALANCE:
            return None
        return {"largest": largest, "smallest": smallest, "ratio": ratio, "option": "--class-weight balanced"}

    def group_json(self, group: Group) -> dict[str, Any]:
        """A group as `--json` prints it."""
        rows = group.rows
        return {
            "paths": [self.dataset.locations[row] for row in rows],
            "splits": [str(self.dataset.splits[row]) for row in rows],
            "labels": [self.dataset.class_names[self.dataset.labels[row]] for row in rows],
            "similarity": group.similarity,
            "leak": group.leaks(self.dataset),
            "different_labels": group.disputed(self.dataset),
        }

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        dataset, found = self.dataset, self.by_features
        value: dict[str, Any] = {
            "data": self.data,
            "n_images": len(dataset) + len(self.opened.unreadable),
            "classes": self.counts(),
            "carved": list(self.opened.carved),
            "sizes": self.sizes(),
            "formats": self.formats(),
            "modes": self.modes(),
            "unreadable": self.unreadable(),
            "duplicates": [self.group_json(group) for group in self.exact],
            "imbalance": self.imbalance(),
            "features": None,
            "near_duplicates": None,
            "label_errors": None,
            "outliers": None,
            "skipped": [] if found is None else found.skipped,
            "page": str(self.page),
            "seconds": self.seconds,
        }
        if found is not None:
            value |= {
                "features": found.record.id,
                "near_duplicates": [self.group_json(group) for group in found.near],
                "label_errors": [
                    {
                        "path": dataset.locations[one.row],
                        "label": dataset.class_names[dataset.labels[one.row]],
                        "suggested": one.suggested,
                        "probability": one.probability,
                        "probability_of_label": one.of_label,
                    }
                    for one in found.label_errors
                ],
                "outliers": [
                    {"path": dataset.locations[row], "distance": distance} for row, distance in found.outliers
                ],
            }
        return value


def _tally(names: Any) -> dict[str, int]:
    return dict(Counter(names).most_common())


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
    write_inspection(page, _heading(found), _sections(found), pictures)
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


def _heading(found: Inspection) -> dict[str, Any]:
    """What the page shows before the pictures."""
    by = found.by_features
    facts = [
        ("Images", f"{len(found.dataset):,} in {len(found.dataset.class_names):,} classes"),
        ("Width", " / ".join(f"{value:,}" for value in found.sizes().get("width", [])) + " px (least, median, most)"),
        ("Height", " / ".join(f"{value:,}" for value in found.sizes().get("height", [])) + " px"),
        ("Formats", ", ".join(f"{name} {count:,}" for name, count in found.formats().items())),
        ("Colour modes", ", ".join(f"{name} {count:,}" for name, count in found.modes().items())),
        ("Features", by.record.id if by else f"none yet; tlpipe extract {found.data} makes some"),
    ]
    if uneven := found.imbalance():
        facts.append(
            (
                "Imbalance",
                f"{uneven['largest']} has {uneven['ratio']:.1f} times as many training images as {uneven['smallest']}; "
                f"train with {uneven['option']}",
            )
        )
    splits = [split for split in SPLITS if split in found.dataset.counts()]
    rows = [[name, *(counts[split] for split in splits)] for name, counts in found.counts().items()]
    return {
        "name": found.dataset.name,
        "facts": facts,
        "columns": ["class", *splits],
        "rows": rows,
        "unreadable": found.unreadable(),
        "notes": by.skipped if by else [],
    }


def _sections(found: Inspection) -> list[Section]:
    dataset = found.dataset

    def figure(row: int, text: str) -> Figure:
        return Figure(row, dataset.locations[row], text)

    def pairs(groups: list[Group]) -> list[Figure]:
        return [
            figure(row, f"{number}. {dataset.splits[row]}, {dataset.class_names[dataset.labels[row]]}")
            for number, group in enumerate(groups, start=1)
            for row in group.rows
        ]

    sections = [Section("Byte-identical images", "The numbers tell what belongs together.", pairs(found.exact))]
    by = found.by_features
    if by is not None:
        # Leaks first: they make figures on val and test too good.
        near = sorted(by.near, key=lambda group: not group.leaks(dataset))
        sections += [
            Section("Near duplicates", "Different files of one picture; pairs across splits first.", pairs(near)),
            Section(
                "Likely label errors",
                "Labels that logistic regressions, fitted without the image, do not believe (confident learning).",
                [
                    figure(
                        one.row,
                        f"labelled {dataset.class_names[dataset.labels[one.row]]}, looks like {one.suggested} "
                        f"({100 * one.probability:.0f} %)",
                    )
                    for one in by.label_errors
                ],
            ),
            Section(
                "Outliers",
                "Images that are far from all others; some may not belong here.",
                [
                    figure(row, f"{dataset.class_names[dataset.labels[row]]}, distance {distance:.2f}")
                    for row, distance in by.outliers
                ],
            ),
        ]
    return [section.first(SHOWN) for section in sections]
