"""Images that are the same picture: byte for byte, or nearly."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig
from pipeline.data import Dataset, twin_rows
from pipeline.data.images import Pixels
from pipeline.errors import ImageError
from pipeline.inspection.doubts import Neighbours
from pipeline.pages.pictures import Pictures
from pipeline.util.machine import cpu_count
from pipeline.util.progress import progress

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
    return [Group(tuple(rows)) for rows in twin_rows(keys)]


def near_duplicates(neighbours: Neighbours, picture: Callable[[int], Pixels]) -> list[Group]:
    """Pairs of images that differ in their bytes and show the same picture, the most similar first.

    Features propose, pictures decide: of each image the nearest by the cosine of features are compared at 16 x 16
    pixels, as they are and mirrored. Cosines alone differ too much between backbones.

    Args:
        neighbours: The nearest images of each.
        picture: Pixels [h, w, 3] of the image of a row; raises `ImageError` if it can't be read any more.
    """
    cosines = 1 - neighbours.distances**2 / 2  # of vectors of length 1
    pairs: dict[tuple[int, int], float] = {}
    for row, position in np.argwhere(cosines >= LEAST_COSINE).tolist():
        other = int(neighbours.nearest[row, position])
        one, two = sorted((int(neighbours.rows[row]), int(neighbours.rows[other])))
        pairs[one, two] = min(float(cosines[row, position]), 1.0)
    rows = sorted({row for pair in pairs for row in pair})
    with ThreadPoolExecutor(cpu_count()) as pool, progress("Comparing", len(rows)) as advance:
        grey: dict[int, NDArray[np.floating]] = {}
        for row, found in zip(rows, pool.map(lambda row: _grey(picture, row), rows), strict=True):
            if found is not None:
                grey[row] = found
            advance(1)
    groups = [
        Group((one, two), cosine)
        for (one, two), cosine in pairs.items()
        if one in grey
        and two in grey
        and max(_correlation(grey[one], view) for view in (grey[two], grey[two][:, ::-1])) >= LEAST_CORRELATION
    ]
    return sorted(groups, key=lambda group: -group.similarity)


def same_pictures(neighbours: Neighbours, pictures: Pictures) -> list[Group]:
    """Near duplicates in a dataset, as `near_duplicates` finds them in its pictures."""
    return near_duplicates(neighbours, lambda row: pictures.pixels(row, PICTURE))


def _grey(picture: Callable[[int], Pixels], row: int) -> NDArray[np.floating] | None:
    try:
        grey: NDArray[np.floating] = picture(row).mean(axis=2)
    except ImageError:  # it changed since its features were computed
        return None
    return grey


def _correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """The correlation of two pictures; -1 where one of them is of one colour, which is like nothing."""
    one, other = one - one.mean(), other - other.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / lengths if lengths > 0 else -1.0
