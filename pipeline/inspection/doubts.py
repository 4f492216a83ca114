"""Images that features raise doubts about: labels that are hardly right, pictures that are like no others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.heads import make_head
from pipeline.selection.folds import fewest_bundles, folds
from pipeline.store.rows import Part, nothing
from pipeline.util.progress import progress

FOLDS = 5
NEIGHBOURS = 5  # of each image


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest images of each by the features, brought to length 1; of byte-identical images the first alone.

    Attributes:
        rows: Of the images in the dataset, shape [n].
        nearest: Positions in `rows` of the nearest others, the nearest first, shape [n, k].
        distances: To them, shape [n, k].
    """

    rows: NDArray[np.int64]
    nearest: NDArray[np.int64]
    distances: NDArray[np.floating]

    @classmethod
    def of(cls, features: NDArray[np.floating], keys: NDArray[np.bytes_], rows: NDArray[np.int64]) -> Neighbours:
        """Find the five nearest of each image.

        Args:
            features: Shape [n, d].
            keys: Image keys, shape [n].
            rows: Of the images in the dataset, shape [n].
        """
        from sklearn.neighbors import NearestNeighbors
        from sklearn.preprocessing import normalize

        # A byte-identical image would hide all others, and make its twin one of many.
        _, first = np.unique(keys, return_index=True)
        n_neighbours = min(NEIGHBOURS, len(first) - 1)
        if n_neighbours < 1:
            return cls(rows[first], np.zeros((len(first), 0), np.int64), np.zeros((len(first), 0)))
        unit = normalize(features[first].astype(np.float32), copy=False)
        distances, nearest = NearestNeighbors(n_neighbors=n_neighbours).fit(unit).kneighbors()
        return cls(rows[first], nearest, distances)


def held_out_probabilities(part: Part, n_classes: int, seed: int) -> NDArray[np.floating]:
    """Probabilities [n, classes] of images by logistic regressions that were fitted without them.

    Args:
        part: Rows of view 0.
        n_classes: Number of classes.
        seed: Of the folds.

    Raises:
        ConfigError: If a class has fewer than two different images, or groups of them, or if groups of several classes
            can't be divided into folds.
    """
    probabilities, rows = np.zeros((len(part), n_classes)), np.arange(len(part))
    turns = folds(part, rows, max(2, min(FOLDS, fewest_bundles(part, rows))), 0, seed)
    with progress("Cross-validating", len(turns), "folds") as advance:
        for turn in turns:
            head, _ = make_head(HeadConfig("logreg", seed=seed))
            head.fit(turn.train(0), nothing(part), n_classes)
            probabilities[turn.val_rows[0]] = head.predict_proba(part.load(turn.val_rows[0]))
            advance(1)
    return probabilities


def label_errors(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> list[int]:
    """Rows whose label is likely wrong, the likeliest first, by confident learning.

    Args:
        labels: Class indices, shape [n]; every class has images.
        probabilities: Of heads that have not seen the image, shape [n, classes].

    Source: Northcutt et al. 2021, arXiv:1911.00068.
    """
    from cleanlab.filter import find_label_issues

    found = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(row) for row in found]


def outliers(neighbours: Neighbours) -> list[tuple[int, float]]:
    """Rows that are like no others, with the mean distance of their features to the nearest, the largest first.

    What lies more than 1.5 interquartile ranges above the upper quartile of these distances is taken for an outlier
    (Tukey 1977, Exploratory data analysis, section 2D).

    Source: Ramaswamy et al. 2000, Efficient algorithms for mining outliers from large data sets, SIGMOD, p. 427.
    """
    if not neighbours.distances.size:
        return []
    means = neighbours.distances.mean(axis=1)
    lower, upper = np.percentile(means, [25, 75])
    far = np.flatnonzero(means > upper + 1.5 * (upper - lower))
    found = [(int(neighbours.rows[row]), float(means[row])) for row in far.tolist()]
    return sorted(found, key=lambda pair: -pair[1])
