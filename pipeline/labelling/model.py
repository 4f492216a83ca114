"""The head behind the page: fitted in a moment, and rated by pictures that were drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HEAD_DEFAULTS, HeadConfig
from pipeline.data import UNLABELLED, Dataset
from pipeline.evaluation.metrics import accuracy_interval
from pipeline.heads import Head
from pipeline.heads.ridge import fit_without
from pipeline.store.rows import HeldFeatures, Part

HEAD = HeadConfig("ridge").resolved(HEAD_DEFAULTS["ridge"])  # in closed form
FOLDS = 5
ENOUGH = 200  # pictures rated at once, in place of in folds
ROWS = 8192  # pictures that are asked about at a time
LEAST_RATED = 5  # fewer tell nothing
FLATTEST = -0.01  # power of the number of labels; an error that falls more slowly gains no point in a lifetime
LAW_POINTS, LAW_STEP, POINT = 4, 0.75, 0.01  # ratings of a law, shares of labels between them, and what is to be gained
LEAST_FOR_LAW = 30  # pictures that rate; an error on fewer is too uncertain to be drawn out


@dataclass(frozen=True, slots=True)
class Rating:
    """How good the head is on pictures like those that have no label yet.

    Attributes:
        n_labels: Labels that there were.
        n: Pictures that rated it, all drawn at random.
        accuracy: Share of them that a head called rightly which was fitted without them.
        low: Lower end of its 95 % interval.
        high: Upper end.
        features: Digest of the feature spec; "" where it was not told.
    """

    n_labels: int
    n: int
    accuracy: float
    low: float
    high: float
    features: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """A head that was fitted on the labels so far.

    Attributes:
        classes: Numbers of the classes that have labels, in the order of the probabilities.
        probabilities: Of all pictures, shape [n, c].
        rating: None where there are too few pictures to tell.
        seconds: Until it was fitted and rated.
        number: One more with each fit of a labelling.
    """

    classes: NDArray[np.int64]
    probabilities: NDArray[np.floating]
    rating: Rating | None = None
    seconds: float = 0.0
    number: int = 0


def fit(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    keys: NDArray[np.bytes_],
    bundles: NDArray[np.bytes_],
    drawn: NDArray[np.bool_],
) -> Fit | None:
    """Fit a head on all labels, and rate it; None while there are not two classes.

    It is rated by the labelled pictures that were drawn at random, which a strategy never chose. Each is called by a
    head that was fitted without it and all that belong to it: in five folds, or, where there are many, at once. As
    pictures that belong together are mostly right or wrong together, the interval counts bundles.

    Args:
        features: Of length 1, shape [n, d].
        labels: Numbers of classes, or `UNLABELLED`, shape [n].
        keys: Image keys, shape [n].
        bundles: As `bundles_of` has them, shape [n].
        drawn: Whether a picture was drawn at random, shape [n].
    """
    known = np.flatnonzero(labels != UNLABELLED)
    classes = np.unique(labels[known])
    if len(classes) < 2:
        return None
    own, rates = bundles[known], drawn[known]
    names = np.unique(own[rates])  # sorted by keys, that is in no order, so that no fold has a class of its own
    at_once = len(names) >= ENOUGH and 2 * np.isin(own, names).sum() <= len(known)  # so that enough are left
    parts = [names] if at_once else np.array_split(names, FOLDS) if len(names) >= LEAST_RATED else []
    held = [np.flatnonzero(np.isin(own, part)) for part in parts]
    heads = _without(features, labels, keys, known, classes, [known[:0], *held])
    probabilities = _asked(next(heads), features, np.arange(len(features)))
    right = 0
    for head, places in zip(heads, held, strict=True):
        rated = known[places[rates[places]]]
        right += int((classes[_asked(head, features, rated).argmax(axis=1)] == labels[rated]).sum())
    if not held:
        return Fit(classes, probabilities)
    accuracy = right / int(rates.sum())
    low, high = accuracy_interval(round(accuracy * len(names)), len(names))
    return Fit(classes, probabilities, Rating(len(known), int(rates.sum()), accuracy, low, high))


def bundles_of(dataset: Dataset) -> NDArray[np.bytes_]:
    """The least key of the pictures that belong together with each one, which is its own if there are no groups."""
    if dataset.groups is None:
        return dataset.keys
    order = np.lexsort((dataset.keys, dataset.groups))
    numbers, first = np.unique(dataset.groups[order], return_index=True)
    least: NDArray[np.bytes_] = dataset.keys[order[first]][np.searchsorted(numbers, dataset.groups)]
    return least


def n_bundles(labels: NDArray[np.int64], bundles: NDArray[np.bytes_], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many bundles each class has pictures in, shape [c]."""
    return np.array([len(np.unique(bundles[labels == one])) for one in classes.tolist()], np.int64)


def without_own_label(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    keys: NDArray[np.bytes_],
    bundles: NDArray[np.bytes_],
    classes: NDArray[np.int64],
) -> NDArray[np.floating]:
    """Probabilities [n, c] of labelled pictures, by heads of folds that were fitted without them; NaN of others.

    Args:
        features: Of length 1, shape [n, d].
        labels: Numbers of classes, or `UNLABELLED`, shape [n].
        keys: Image keys, shape [n].
        bundles: As `bundles_of` has them, shape [n].
        classes: All numbers that there are, each in two bundles at least, shape [c].
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    known = np.flatnonzero(labels != UNLABELLED)
    found = np.full((len(features), len(classes)), np.nan)
    k = min(FOLDS, int(n_bundles(labels, bundles, classes).min()))
    if len(np.unique(bundles[known])) < len(known):
        rounds = StratifiedGroupKFold(k, shuffle=True, random_state=0).split(known, labels[known], bundles[known])
    else:  # many times as fast
        rounds = StratifiedKFold(k, shuffle=True, random_state=0).split(known, labels[known])
    held = [places for _, places in rounds]
    for head, places in zip(_without(features, labels, keys, known, classes, held), held, strict=True):
        found[known[places]] = _asked(head, features, known[places])
    return found


def _without(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    keys: NDArray[np.bytes_],
    known: NDArray[np.int64],
    classes: NDArray[np.int64],
    held: Sequence[NDArray[np.int64]],
) -> Iterator[Head]:
    """Heads that were fitted on the labelled pictures but for those that are held, by their places among them."""
    numbers = np.searchsorted(classes, labels[known])
    part = Part(HeldFeatures(features, known), numbers, keys[known], np.zeros(len(known), np.int64))
    return fit_without(HEAD, part, len(classes), held)


def _asked(head: Head, features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.floating]:
    """Probabilities [rows, c] by a head."""
    # Heads prepare a copy of what they are asked about, and there may be much of it.
    blocks = [head.predict_proba(features[rows[start : start + ROWS]]) for start in range(0, len(rows), ROWS)]
    return np.concatenate(blocks)


def growth(ratings: Sequence[Rating], features: str) -> list[Rating]:
    """Ratings of heads on the same features, by ever more labels: none that labels since taken back have gained."""
    found: list[Rating] = []
    for one in ratings:
        if one.features != features:
            continue
        while found and found[-1].n_labels >= one.n_labels:
            found.pop()
        found.append(one)
    return found


def labels_for_a_point(history: Sequence[Rating]) -> int | None:
    """How many more labels would gain a point, by a power law of the error.

    It is laid through ratings at ever smaller numbers of labels, each a fraction of the one before, as neighbours tell
    nearly the same. None where the error can't be said to fall.

    Source: Hestness et al. 2017, arXiv:1712.00409, section 3.
    """
    chosen: list[Rating] = []
    for one in reversed(history):
        if one.n < LEAST_FOR_LAW or one.accuracy >= 1:
            break
        if not chosen or one.n_labels <= LAW_STEP * chosen[-1].n_labels:
            chosen.append(one)
    if len(chosen) < LAW_POINTS:
        return None
    labels, errors = np.array([(one.n_labels, 1 - one.accuracy) for one in chosen]).T
    (slope, height), covariance = np.polyfit(np.log(labels), np.log(errors), 1, cov="unscaled")
    # The logarithm of an error e that was found on n pictures has the variance (1 - e) / (e n).
    noise = max((1 - error) / (error * one.n) for error, one in zip(errors.tolist(), chosen, strict=True))
    uncertain = float(np.sqrt(covariance[0, 0] * noise))
    now = float(np.exp(height + slope * np.log(labels[0])))
    if slope + 2 * uncertain > FLATTEST or now <= POINT:
        return None
    # Laws that look steep by chance are told more often than flat ones, so the flatter end is taken.
    growth = float((1 - POINT / now) ** (1 / (slope + uncertain)))
    return max(1, round(float(labels[0]) * (growth - 1)))
