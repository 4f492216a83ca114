"""What each tab of the page shows: rows of pictures, those first that are worth looking at most, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data import UNLABELLED, Dataset
from pipeline.errors import ConfigError
from pipeline.inspection.doubts import Neighbours, label_errors, outliers
from pipeline.inspection.duplicates import same_pictures
from pipeline.labelling.model import Fit, n_bundles, without_own_label
from pipeline.pages.pictures import Pictures

TABS = ("label", "confirm", "wrong", "errors", "duplicates", "outliers", "class", "like")
ALIKE = 64  # pictures that are shown as alike
MOST_COMPARED = 20_000  # pictures of which all pairs are compared, for duplicates and outliers


class Picked(NamedTuple):
    """A picture of a tab.

    Attributes:
        row: Which.
        why: Why it is shown, in a few words.
        seen: The class that a head sees which was fitted without it; "" where the newest head tells.
        probability: Of that class.
    """

    row: int
    why: str = ""
    seen: str = ""
    probability: float | None = None


Found = list[Picked]


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture as the page shows it.

    Attributes:
        key: Image key.
        path: Where it lies.
        label: Its class so far, or "drop"; "" if it has none.
        predicted: The class that the head sees; "" where it isn't told, so that it leads nobody.
        probability: Of that class.
        why: Why it is shown, in a few words.
    """

    key: str
    path: str
    label: str
    predicted: str = ""
    probability: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of all pictures at one moment.

    Attributes:
        dataset: The pictures.
        features: Of length 1, shape [n, d].
        bundles: What belongs together, shape [n].
        classes: Their names.
        labels: Numbers of classes, or `UNLABELLED`, shape [n].
        dropped: Whether a picture is left out, shape [n].
        drawn: Whether a picture was drawn at random to rate the head, shape [n].
        fit: The newest head; None before there is one.
    """

    dataset: Dataset
    features: NDArray[np.float32]
    bundles: NDArray[np.bytes_]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    dropped: NDArray[np.bool_]
    drawn: NDArray[np.bool_]
    fit: Fit | None

    @property
    def free(self) -> NDArray[np.bool_]:
        """Whether nothing was said of a picture yet, shape [n]."""
        found: NDArray[np.bool_] = (self.labels == UNLABELLED) & ~self.dropped
        return found


def to_label(known: Known, queue: Sequence[int], passed: Collection[int], n: int) -> Found:
    """What a strategy has chosen, and some that were drawn at random; then any, if none of them is left.

    Args:
        known: What is known.
        queue: Rows that were chosen.
        passed: Rows that the page holds already.
        n: Pictures that are wanted.
    """
    free = known.free
    rows = [row for row in queue if free[row] and row not in passed]
    if not rows:
        rest = np.setdiff1d(np.flatnonzero(free), list(passed))
        # By key, as the order of the data is often that of its classes.
        rows = rest[np.argsort(known.dataset.keys[rest])[:n]].tolist()
    return [to_be_labelled(known.drawn, row) for row in rows]


def to_be_labelled(drawn: NDArray[np.bool_], row: int) -> Picked:
    """A picture whose label is asked for."""
    return Picked(row, "drawn at random" if drawn[row] else "")


def to_confirm(known: Known, number: int) -> Found:
    """Pictures without a label that the head is surest are of a class; those that rate it are left out."""
    if known.fit is None or number not in known.fit.classes:
        return []
    column, shares = int(np.searchsorted(known.fit.classes, number)), known.fit.probabilities
    rows = np.flatnonzero(known.free & ~known.drawn & (shares.argmax(axis=1) == column))
    return [Picked(row) for row in rows[np.argsort(-shares[rows, column], kind="stable")].tolist()]


def of_class(known: Known, number: int) -> Found:
    """All of a class, those first that are least like the others."""
    rows = np.flatnonzero(known.labels == number)
    if not len(rows):
        return []
    likeness = known.features[rows] @ known.features[rows].mean(axis=0)
    return [Picked(row) for row in rows[np.argsort(likeness, kind="stable")].tolist()]


def like(known: Known, row: int) -> Found:
    """The pictures that are most like one, which comes first."""
    cosines = known.features @ known.features[row]
    nearest = np.argsort(-cosines, kind="stable")[:ALIKE].tolist()
    others = [one for one in nearest if one != row]  # of which some may be the same to the last bit
    return [Picked(one, f"likeness {cosines[one]:.3f}") for one in (row, *others)]


def wrong(known: Known) -> Found:
    """Labels that heads contradict which were fitted without them, the surest first."""
    classes, rows, shares = _without_own_label(known)
    best = shares.argmax(axis=1)
    places = np.flatnonzero(classes[best] != known.labels[rows])
    places = places[np.argsort(-shares[places, best[places]], kind="stable")]
    return [_doubted(known, classes, int(rows[place]), shares[place]) for place in places.tolist()]


def errors(known: Known) -> Found:
    """Labels that are likely wrong, by confident learning."""
    classes, rows, shares = _without_own_label(known)
    places = label_errors(np.searchsorted(classes, known.labels[rows]), shares) if len(rows) else []
    return [_doubted(known, classes, int(rows[place]), shares[place]) for place in places]


def duplicates(known: Known, pictures: Pictures) -> Found:
    """Different files of one picture, pairs across splits first."""
    groups = sorted(same_pictures(_neighbours(known), pictures), key=lambda group: not group.leaks(known.dataset))
    return [
        Picked(row, f"pair {number}, {known.dataset.splits[row]}")
        for number, group in enumerate(groups, start=1)
        for row in group.rows
    ]


def far_off(known: Known) -> Found:
    """Pictures that are like no others."""
    return [Picked(row, f"distance {distance:.2f}") for row, distance in outliers(_neighbours(known))]


def _without_own_label(known: Known) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]:
    """Classes, labelled rows, and their probabilities by heads that were fitted without them.

    Classes of a single picture, or a single bundle of them, are left out, which can't be learnt without it.
    """
    classes = np.unique(known.labels[known.labels != UNLABELLED])
    classes = classes[n_bundles(known.labels, known.bundles, classes) > 1]
    rows = np.flatnonzero(np.isin(known.labels, classes))
    if len(classes) < 2:
        return classes, rows[:0], np.zeros((0, 1))
    labels = np.where(np.isin(known.labels, classes), known.labels, UNLABELLED)
    return classes, rows, without_own_label(known.features, labels, known.dataset.keys, known.bundles, classes)[rows]


def _doubted(known: Known, classes: NDArray[np.int64], row: int, shares: NDArray[np.floating]) -> Picked:
    best = int(shares.argmax())
    return Picked(row, seen=known.classes[classes[best]], probability=float(shares[best]))


def _neighbours(known: Known) -> Neighbours:
    """The nearest of each picture.

    Raises:
        ConfigError: If there are too many pictures.
    """
    n = len(known.dataset)
    if n > MOST_COMPARED:
        raise ConfigError(f"All pairs of {n:,} pictures would have to be compared; tlpipe inspect does that")
    return Neighbours.of(known.features, known.dataset.keys, np.arange(n))
