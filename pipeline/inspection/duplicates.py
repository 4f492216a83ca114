"""Images that are the same picture: byte for byte, or nearly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig
from pipeline.datasets import Dataset
from pipeline.images import Pixels
from pipeline.inspection.doubts import NEIGHBOURS, unit_length
from pipeline.progress import progress

__all__ = ["PICTURE", "Group", "exact_duplicates", "near_duplicates"]

LEAST_COSINE = 0.9  # of features, for a pair to be looked at
LEAST_CORRELATION = 0.95  # of their pictures
PICTURE = ImageConfig((16, 16), interpolation="bilinear")
"""How pictures are compared."""


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
    unit = unit_length(features[first])
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
