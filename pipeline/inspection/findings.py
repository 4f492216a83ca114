"""What an inspection found, as it is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import UNLABELLED, Dataset, ImageSource, Opened, images
from pipeline.data.images import Facts
from pipeline.errors import ImageError
from pipeline.inspection.duplicates import Group
from pipeline.store.records import TableRecord
from pipeline.util import machine
from pipeline.util.progress import progress

NO_LABEL = "(no label)"
IMBALANCE = 1.5  # times as many images in the largest class as in the smallest


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
        names = dict(enumerate(self.dataset.class_names))
        if (self.dataset.labels == UNLABELLED).any():
            names[UNLABELLED] = NO_LABEL
        return {name: {split: found[(label, split)] for split in splits} for label, name in names.items()}

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
        train = {name: counts.get("train", 0) for name, counts in self.counts().items() if name != NO_LABEL}
        if not train:
            return None
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
            "labels": [self.dataset.label_name(row) for row in rows],
            "similarity": group.similarity,
            "leak": group.leaks(self.dataset),
            "different_labels": group.disputed(self.dataset),
        }

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        dataset, found = self.dataset, self.by_features
        return {
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
            "features": found and found.record.id,
            "near_duplicates": found and [self.group_json(group) for group in found.near],
            "label_errors": found
            and [
                {
                    "path": dataset.locations[one.row],
                    "label": dataset.label_name(one.row),
                    "suggested": one.suggested,
                    "probability": one.probability,
                    "probability_of_label": one.of_label,
                }
                for one in found.label_errors
            ],
            "outliers": found
            and [{"path": dataset.locations[row], "distance": distance} for row, distance in found.outliers],
            "skipped": [] if found is None else found.skipped,
            "page": str(self.page),
            "seconds": self.seconds,
        }


def _tally(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def facts_of(source: ImageSource, pixel_limit: int) -> list[Facts | ImageError]:
    """What each image says of itself, or why it can't be read; all are decoded to their end."""

    def describe(index: int) -> Facts | ImageError:
        try:
            return images.describe(source.read(index), pixel_limit)
        except ImageError as error:
            return error

    found = []
    with ThreadPoolExecutor(machine.cpu_count()) as pool, progress("Reading", len(source)) as advance:
        for facts in pool.map(describe, range(len(source))):
            found.append(facts)
            advance(1)
    return found
