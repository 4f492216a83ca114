"""Images of several sources in one row: files and arrays, in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source import KEY_DTYPE, ImageKeys, ImageSource
from pipeline.errors import ImageError
from pipeline.util.memo import Memo


class MixedSource:
    """Images that lie in several sources.

    Args:
        sources: Where they lie.
        places: Of each image: which source, and the position in it.
    """

    def __init__(self, sources: Sequence[ImageSource], places: Sequence[tuple[int, int]]) -> None:
        self.sources = sources
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys; each source is asked once, as it may read many at a time."""
        keys = np.zeros(len(self), KEY_DTYPE)
        errors: dict[int, ImageError] = {}
        for number, source in enumerate(self.sources):
            rows = [row for row, (own, _) in enumerate(self.places) if own == number]
            found = source.take([self.places[row][1] for row in rows]).keys(memo, rehash=rehash)
            keys[rows] = found.column
            errors |= {rows[position]: error for position, error in found.errors.items()}
        return ImageKeys(keys, errors)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """A file's bytes, or the pixels of an array."""
        number, position = self.places[index]
        return self.sources[number].read(position)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> MixedSource:
        """Only these images."""
        return MixedSource(self.sources, [self.places[index] for index in indices])
