"""Sources: where the pixels of images come from, and the keys that their content gives them."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, ImageError
from pipeline.util import fetching, remote
from pipeline.util.files import digest_of
from pipeline.util.machine import cpu_count
from pipeline.util.memo import Memo, Stamp, stats
from pipeline.util.progress import progress
from pipeline.util.stamps import stamps_of
from pipeline.util.texts import Texts

ASKED = 10_000  # files at a time whose keys are asked of the memo

KEY_DTYPE = np.dtype("S32")
"""An image key: 16 bytes of BLAKE2b (RFC 7693) in hexadecimal."""


def file_key(data: bytes) -> bytes:
    """Image key of a file's bytes."""
    return digest_of(data).encode()


def array_key(array: NDArray[Any]) -> bytes:
    """Image key of an array: of its bytes, shape and dtype."""
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16, person=b"array")
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest().encode()


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        ImageError: If it can't be read now; not lasting, as the cause may pass.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device might never end
            raise ImageError("not a regular file", lasting=False)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(error.strerror or str(error), lasting=False) from error


def _key_or_error(path: str) -> bytes | ImageError:
    try:
        return file_key(read_bytes(Path(path)))
    except ImageError as error:
        return error


@dataclass(frozen=True, slots=True, eq=False)
class ImageKeys:
    """The keys of a source's images.

    Attributes:
        column: Image key of each, empty of one that can't be read, shape [n].
        errors: Why an image can't be read, by position.
    """

    column: NDArray[np.bytes_]
    errors: dict[int, ImageError]

    def readable(self) -> NDArray[np.int64]:
        """Positions of the images that have a key."""
        return np.setdiff1d(np.arange(len(self.column)), list(self.errors))


class ImageSource(Protocol):
    """Where the pixels of a listing's images come from, by position in the listing."""

    def __len__(self) -> int: ...

    @property
    def workers(self) -> int:
        """Threads that read it best."""

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image key of every image, or the error that kept it from being read."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """A file's bytes, or an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]."""

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSource:
        """The same source with only these images."""


class FileSource:
    """Images in files.

    Args:
        names: Paths of the files.
        folder: Where they begin; "" where the user stands.
    """

    def __init__(self, names: Sequence[str], folder: Path | str = "") -> None:
        self.names = Texts.of(names)
        self.folder = folder

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Where an image lies."""
        return os.path.join(self.folder, self.names[index])  # noqa: PTH118, a Path would take ten times the memory

    @property
    def workers(self) -> int:
        """One for each processor."""
        return cpu_count()

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys; files that the memo knows unchanged are not read, unless `rehash`."""
        keys = np.zeros(len(self), KEY_DTYPE)
        if memo is not None and not rehash:
            for start in range(0, len(self), ASKED):
                paths = [self.path(index) for index in range(start, min(start + ASKED, len(self)))]
                known = memo.recall("image", self._stamps(paths))
                keys[start : start + len(paths)] = [known.get(path, "") for path in paths]
        unknown: dict[str, list[int]] = {}
        for index in np.flatnonzero(keys == b"").tolist():
            unknown.setdefault(self.path(index), []).append(index)
        errors: dict[int, ImageError] = {}
        waiting = list(unknown)
        with progress("Reading", len(unknown)) as advance:
            for start in range(0, len(waiting), ASKED):
                paths = waiting[start : start + ASKED]
                stamped, stamps = time.time_ns(), self._stamps(paths)
                fresh: dict[str, tuple[Stamp, str]] = {}
                for path, key in zip(paths, self._read_keys(paths), strict=True):
                    if isinstance(key, ImageError):
                        errors |= dict.fromkeys(unknown[path], key)
                    else:
                        keys[unknown[path]] = key
                        if path in stamps:
                            fresh[path] = (stamps[path], key.decode())
                    advance(1)
                if memo is not None:
                    memo.remember("image", fresh, stamped)
        return ImageKeys(keys, errors)

    def read(self, index: int) -> bytes:
        """A file's bytes."""
        return read_bytes(Path(self.path(index)))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> FileSource:
        """Only these files."""
        return FileSource(Texts(self.names[index] for index in indices), self.folder)

    def _stamps(self, paths: Sequence[str]) -> dict[str, Stamp]:
        """Stamps of the files that are there; reading one that isn't gives the error, with its cause."""
        return {path: Stamp.of(stat) for path, stat in stats(paths).items()}

    def _read_keys(self, paths: Sequence[str]) -> Iterator[bytes | ImageError]:
        with ThreadPoolExecutor(2 * self.workers) as pool:
            yield from pool.map(_key_or_error, paths)


class RemoteSource(FileSource):
    """Images in files at an address, of which many are asked for at a time.

    Args:
        names: Paths of the files, from the folder.
        root: The folder, as `remote.place` gives it.
        keys: Image keys, where they are known: a local copy of what has such a key is not fetched again.
    """

    def __init__(self, names: Sequence[str], root: Path, keys: NDArray[np.bytes_] | None = None) -> None:
        super().__init__(names, str(root).rstrip("/"))
        self._root = root
        self._keys = np.zeros(len(self), KEY_DTYPE) if keys is None else keys
        self._known: dict[str, Stamp] = {}

    @property
    def workers(self) -> int:
        """Half of the requests that are made at a time, as each is waited for."""
        return remote.READERS // 2

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """As of files, by what the file system at the address says of them."""
        # Of all at once: a folder is listed once, however many of its files are asked for at a time.
        self._known = stamps_of(self._root, self.names)
        found = super().keys(memo, rehash=rehash)
        self._keys, self._known = found.column, {}
        return found

    def read(self, index: int) -> bytes:
        """A file's bytes."""
        try:
            return fetching.read(self._root, self.names[index], self._keys[index].decode())
        except DataError as error:
            raise ImageError(str(error), lasting=False) from error

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> RemoteSource:
        """Only these files."""
        rows = np.asarray(indices, np.int64)
        return RemoteSource(Texts(self.names[row] for row in rows.tolist()), self._root, self._keys[rows])

    def path(self, index: int) -> str:
        """Where an image lies."""
        return f"{self.folder}/{self.names[index]}"

    def _name(self, path: str) -> str:
        return path[len(str(self.folder)) + 1 :]

    def _stamps(self, paths: Sequence[str]) -> dict[str, Stamp]:
        return {path: self._known[name] for path in paths if (name := self._name(path)) in self._known}

    def _read_keys(self, paths: Sequence[str]) -> Iterator[bytes | ImageError]:
        names = [self._name(path) for path in paths]
        sizes = [self._known[name].size if name in self._known else 0 for name in names]
        for data in fetching.read_many(self._root, names, sizes):
            yield file_key(data) if isinstance(data, bytes) else ImageError(str(data), lasting=False)


class InParts:
    """Images that lie in parts, each of which holds many, counted through all of them.

    Args:
        sizes: Number of images in each part.
        indices: Which of them are meant; None for all.
    """

    def __init__(self, sizes: Iterable[int], indices: Sequence[int] | NDArray[np.int64] | None) -> None:
        self.starts = np.cumsum([0, *sizes]).tolist()
        self.indices = np.arange(self.starts[-1]) if indices is None else np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def workers(self) -> int:
        """One for each processor."""
        return cpu_count()

    def place(self, index: int) -> tuple[int, int]:
        """The part that an image lies in, and its position there."""
        position = int(self.indices[index])
        part = bisect_right(self.starts, position) - 1
        return part, position - self.starts[part]


class ArraySource(InParts):
    """Images in arrays, each [n, h, w] or [n, h, w, channels], which may be mapped from disk."""

    def __init__(
        self, parts: list[tuple[NDArray[Any], float]], indices: Sequence[int] | NDArray[np.int64] | None = None
    ) -> None:
        """Take arrays and the factor that brings each to 0..255."""
        super().__init__((len(array) for array, _ in parts), indices)
        self.parts = parts

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys, always computed: arrays have no modification time of their own."""
        keys = np.zeros(len(self), KEY_DTYPE)
        for index in range(len(self)):
            keys[index] = array_key(self.read(index))
        return ImageKeys(keys, {})

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels 0..255."""
        part, position = self.place(index)
        array, factor = self.parts[part]
        image = array[position]
        pixels: NDArray[np.uint8] = image if image.dtype == np.uint8 else np.rint(image * factor).astype(np.uint8)
        return pixels

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ArraySource:
        """Only these images."""
        return ArraySource(self.parts, self.indices[np.asarray(indices, np.int64)])
