"""Images of several sources in one row: files and arrays, in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import ImageSource
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

    def keys(self, memo: Memo | None, *, rehash: bool) -> list[bytes | ImageError]:
        """Image keys; each source is asked once, as it may read many at a time."""
        wanted = [sorted({index for own, index in self.places if own == number}) for number in range(len(self.sources))]
        found: dict[tuple[int, int], bytes | ImageError] = {}
        for number, (source, indices) in enumerate(zip(self.sources, wanted, strict=True)):
            keys = source.take(indices).keys(memo, rehash=rehash)
            found |= {(number, index): key for index, key in zip(indices, keys, strict=True)}
        return [found[place] for place in self.places]

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """A file's bytes, or the pixels of an array."""
        number, position = self.places[index]
        return self.sources[number].read(position)

    def take(self, indices: list[int]) -> MixedSource:
        """Only these images."""
        return MixedSource(self.sources, [self.places[index] for index in indices])
