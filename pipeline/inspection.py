"""What is wrong with a dataset: duplicates, labels that are hardly right, images that are like no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import images, runtime
from pipeline.config import ImageConfig
from pipeline.datasets import Dataset, ImageSource
from pipeline.errors import ImageError
from pipeline.heads import HeadConfig, make_head
from pipeline.images import Facts, Pixels
from pipeline.parts import Part
from pipeline.progress import progress
from pipeline.selection.folds import folds

__all__ = [
    "Group",
    "exact_duplicates",
    "facts_of",
    "held_out_probabilities",
    "label_errors",
    "near_duplicates",
    "outliers",
]

FOLDS = 5
NEIGHBOURS = 5
LEAST_COSINE = 0.9  # of features, for a pair to be looked at
LEAST_CORRELATION = 0.95  # of their pictures
PICTURE = ImageConfig((16, 16), interpolation="bilinear")


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are the same picture.

    Attributes:
        rows: Their rows in the dataset.
        similarity: Cosine of their features; 1 of byte-identical files.
    """

    rows: tuple[int, ...]
    similarity: float = 1.0

    def leaks(self, dataset: Dataset) -> bool:
        """Whether they lie in different splits."""
        return len({dataset.splits[row] for row in self.rows}) > 1

    def disputed(self, dataset: Dataset) -> bool:
        """Whether they have different labels."""
        return len({int(dataset.labels[row]) for row in self.rows}) > 1


def facts_of(source: ImageSource, pixel_limit: int) -> list[Facts | ImageError]:
    """What each image says of itself, or why it can't be read; all are decoded to their end."""

    def describe(index: int) -> Facts | ImageError:
        try:
            return images.describe(source.read(index), pixel_limit)
        except ImageError as error:
            return error

    found = []
    with (
        images.reading(pixel_limit),
        ThreadPoolExecutor(runtime.cpu_count()) as pool,
        progress("Reading", len(source)) as advance,
    ):
        for facts in pool.map(describe, range(len(source))):
            found.append(facts)
            advance(1)
    return found


def exact_duplicates(keys: NDArray[np.bytes_]) -> list[Group]:
    """Groups of images with the same key, in the order of their first rows."""
    double = {key for key, count in Counter(keys.tolist()).items() if count > 1}
    groups: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys.tolist()):
        if key in double:
            groups.setdefault(key, []).append(row)
    return [Group(tuple(rows)) for rows in groups.values()]


def near_duplicates(
    features: NDArray[np.floating], keys: NDArray[np.bytes_], picture: Callable[[int], Pixels]
) -> list[Group]:
    """Pairs of images that differ in their bytes and show the same picture, the most similar first.

    Features propose, pictures decide: of each image the five nearest by the cosine of features are compared at 16 x 16
    pixels, as they are and mirrored. Cosines alone differ too much between backbones.

    Args:
        features: Shape [n, d].
        keys: Image keys, shape [n].
        picture: Pixels [h, w, 3] of the image of a row.
    """
    from sklearn.neighbors import NearestNeighbors

    _, first = np.unique(keys, return_index=True)  # byte-identical images would hide all others
    unit = _unit(features[first])
    n_neighbours = min(NEIGHBOURS + 1, len(first))
    distances, nearest = NearestNeighbors(n_neighbors=n_neighbours).fit(unit).kneighbors(unit)
    cosines = 1 - distances**2 / 2  # of vectors of length 1
    pairs: dict[tuple[int, int], float] = {}
    for row, (others, values) in enumerate(zip(nearest.tolist(), cosines.tolist(), strict=True)):
        for other, cosine in zip(others, values, strict=True):
            if other != row and cosine >= LEAST_COSINE:
                pair = sorted((int(first[row]), int(first[other])))
                pairs[(pair[0], pair[1])] = min(cosine, 1.0)
    grey: dict[int, NDArray[np.floating]] = {}
    found = []
    with progress("Comparing", len(pairs), "pairs") as advance:
        for (one, other), cosine in pairs.items():
            for row in (one, other):
                if row not in grey:
                    grey[row] = picture(row).mean(axis=2)
            if max(_correlation(grey[one], view) for view in (grey[other], grey[other][:, ::-1])) >= LEAST_CORRELATION:
                found.append(Group((one, other), cosine))
            advance(1)
    return sorted(found, key=lambda group: -group.similarity)


def _correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Of two pictures; -1 where one of them is of one colour, which is like nothing."""
    one, other = one - one.mean(), other - other.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / lengths if lengths > 0 else -1.0


def _unit(features: NDArray[np.floating]) -> NDArray[np.float32]:
    from sklearn.preprocessing import normalize

    unit: NDArray[np.float32] = normalize(features.astype(np.float32))
    return unit


def held_out_probabilities(part: Part, n_classes: int, seed: int) -> NDArray[np.floating]:
    """Probabilities [n, classes] of images by logistic regressions that were fitted without them.

    Args:
        part: Rows of view 0.
        n_classes: Number of classes.
        seed: Of the folds.

    Raises:
        ConfigError: If a class has fewer than two different images.
    """
    fewest = min(len(np.unique(part.keys[part.labels == label])) for label in np.unique(part.labels))
    probabilities = np.zeros((len(part), n_classes))
    turns = folds(part, np.arange(len(part)), max(2, min(FOLDS, fewest)), 0, seed)
    nothing = part.select(np.zeros(0, np.int64))
    with progress("Cross-validating", len(turns), "folds") as advance:
        for turn in turns:
            head, _ = make_head(HeadConfig("logreg", seed=seed))
            head.fit(turn.train(0), nothing, n_classes)
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


def outliers(features: NDArray[np.floating]) -> list[tuple[int, float]]:
    """Rows that are like no others, with the mean distance of their features to the five nearest, the largest first.

    Features are brought to length 1. What lies more than 1.5 interquartile ranges above the upper quartile of these
    distances is taken for an outlier (Tukey 1977, Exploratory data analysis, section 2D).

    Source: Ramaswamy et al. 2000, Efficient algorithms for mining outliers from large data sets, SIGMOD, p. 427.
    """
    from sklearn.neighbors import NearestNeighbors

    # A byte-identical image would make its twin one of many.
    unit, first = np.unique(_unit(features), axis=0, return_index=True)
    n_neighbours = min(NEIGHBOURS, len(unit) - 1)
    if n_neighbours < 1:
        return []
    distances, _ = NearestNeighbors(n_neighbors=n_neighbours).fit(unit).kneighbors()
    means = distances.mean(axis=1)
    lower, upper = np.percentile(means, [25, 75])
    far = np.flatnonzero(means > upper + 1.5 * (upper - lower))
    found = [(int(first[row]), float(means[row])) for row in far.tolist()]
    return sorted(found, key=lambda pair: -pair[1])
