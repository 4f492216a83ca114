"""Images that lie in several places: the source of each place, and one of all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source import KEY_DTYPE, FileSource, ImageKeys, ImageSource, RemoteSource
from pipeline.errors import DataError, ImageError
from pipeline.util import remote
from pipeline.util.memo import Memo


def source_of(files: Sequence[str]) -> ImageSource:
    """The images in some files, on this machine and at addresses."""
    roots: dict[str, list[str]] = {"": []} if not files else {}
    places: list[tuple[int, int]] = []
    numbers: dict[str, int] = {}
    for file in files:
        root, name = remote.divided(file) if remote.is_address(file) else ("", file)
        names = roots.setdefault(root, [])
        places.append((numbers.setdefault(root, len(numbers)), len(names)))
        names.append(name)
    sources = [_remote_source(names, root) if root else FileSource(names) for root, names in roots.items()]
    return sources[0] if len(sources) == 1 else MixedSource(sources, places)


def _remote_source(names: Sequence[str], root: str) -> ImageSource:
    remote.check_address(root)
    try:
        folder = remote.place(root)
    except DataError as error:
        return UnreachableSource(len(names), str(error))
    remote.forget_lists(folder)
    return RemoteSource(names, folder)


class UnreachableSource:
    """Images at an address that can't be reached, none of which can be read now.

    Args:
        n: Number of images.
        cause: Why not.
    """

    workers = 1

    def __init__(self, n: int, cause: str) -> None:
        self._n, self._cause = n, cause

    def __len__(self) -> int:
        return self._n

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """An error for every image."""
        error = ImageError(self._cause, lasting=False)
        return ImageKeys(np.zeros(self._n, KEY_DTYPE), dict.fromkeys(range(self._n), error))

    def read(self, index: int) -> bytes:
        """Raise why it can't be read."""
        raise ImageError(self._cause, lasting=False)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> UnreachableSource:
        """Only these images."""
        return UnreachableSource(len(indices), self._cause)


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

    @property
    def workers(self) -> int:
        """As many as any of the sources wants."""
        return max(source.workers for source in self.sources)

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys; each source is asked once, as it may read many at a time."""
        keys = np.zeros(len(self), KEY_DTYPE)
        errors: dict[int, ImageError] = {}
        rows_of: list[list[int]] = [[] for _ in self.sources]
        for row, (number, _) in enumerate(self.places):
            rows_of[number].append(row)
        for rows, source in zip(rows_of, self.sources, strict=True):
            positions = [self.places[row][1] for row in rows]
            # A source that is asked itself remembers its keys, by which it finds what it fetched.
            part = source if positions == list(range(len(source))) else source.take(positions)
            found = part.keys(memo, rehash=rehash)
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
