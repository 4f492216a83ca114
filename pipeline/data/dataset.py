"""What a dataset is: rows of image key, label, split and location, and where the pixels can be had."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, ImageError
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo, Stamp
from pipeline.util.progress import progress
from pipeline.util.runtime import cpu_count

SPLITS = ("train", "val", "test")
UNLABELLED = -1
"""The label of an image that has none."""

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


def among(keys: NDArray[np.bytes_], others: NDArray[np.bytes_] | Collection[bytes]) -> NDArray[np.bool_]:
    """Which image keys are among others, shape [n]."""
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    column = others if isinstance(others, np.ndarray) else np.array(list(others), KEY_DTYPE)
    ordered: NDArray[np.bytes_] = np.sort(column)
    nearest = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.equal(ordered[nearest], keys)


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


def printable(path: Path | str) -> str:
    """A path as text that any file or terminal can hold: what is no UTF-8, or would control a terminal, is escaped."""
    text = path if isinstance(path, str) else path.as_posix()
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in ("Cc", "Cs") else one for one in text
    )


def shortened(items: list[str], most: int = 5) -> str:
    """The first few of `items`, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image without features: where it lies and why it can't be read."""

    location: str
    cause: str


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

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image key of every image, or the error that kept it from being read."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """A file's bytes, or an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]."""

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSource:
        """The same source with only these images."""


class FileSource:
    """Images in files.

    Args:
        names: Paths of the files. There may be millions, so that they are held as text.
        folder: Where they begin; "" where the user stands.
    """

    def __init__(self, names: Sequence[str], folder: Path | str = "") -> None:
        self.names = names
        self.folder = folder

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Where an image lies."""
        return os.path.join(self.folder, self.names[index])  # noqa: PTH118, a Path would take ten times the memory

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys; files that the memo knows unchanged are not read, unless `rehash`."""
        keys = np.zeros(len(self), KEY_DTYPE)
        if memo is not None and not rehash:
            for start in range(0, len(self), ASKED):
                paths = [self.path(index) for index in range(start, min(start + ASKED, len(self)))]
                known = memo.recall("image", _stamps(paths))
                keys[start : start + len(paths)] = [known.get(path, "") for path in paths]
        unknown: dict[str, list[int]] = {}
        for index in np.flatnonzero(keys == b"").tolist():
            unknown.setdefault(self.path(index), []).append(index)
        errors: dict[int, ImageError] = {}
        waiting = list(unknown)
        with ThreadPoolExecutor(2 * cpu_count()) as pool, progress("Reading", len(unknown)) as advance:
            for start in range(0, len(waiting), ASKED):
                paths = waiting[start : start + ASKED]
                stamped, stamps = time.time_ns(), _stamps(paths)
                fresh: dict[str, tuple[Stamp, str]] = {}
                for path, key in zip(paths, pool.map(_key_or_error, paths), strict=True):
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
        return FileSource([self.names[index] for index in indices], self.folder)


def _stamps(paths: Iterable[str]) -> dict[str, Stamp]:
    """Stamps of the files that are there; reading one that isn't gives the error, with its cause."""
    found = {}
    for path in paths:
        with suppress(OSError):
            found[path] = Stamp.of(path)
    return found


def _key_or_error(path: str) -> bytes | ImageError:
    try:
        return file_key(read_bytes(Path(path)))
    except ImageError as error:
        return error


class ArraySource:
    """Images in arrays, each [n, h, w] or [n, h, w, channels], which may be mapped from disk."""

    def __init__(
        self, parts: list[tuple[NDArray[Any], float]], indices: Sequence[int] | NDArray[np.int64] | None = None
    ) -> None:
        """Take arrays and the factor that brings each to 0..255."""
        self.parts = parts
        self.starts = np.cumsum([0, *(len(array) for array, _ in parts)]).tolist()
        self.indices = np.arange(self.starts[-1]) if indices is None else np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys, always computed: arrays have no modification time of their own."""
        keys = np.zeros(len(self), KEY_DTYPE)
        for index in range(len(self)):
            keys[index] = array_key(self.read(index))
        return ImageKeys(keys, {})

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels 0..255."""
        position = int(self.indices[index])
        part = bisect_right(self.starts, position) - 1
        array, factor = self.parts[part]
        image = array[position - self.starts[part]]
        pixels: NDArray[np.uint8] = image if image.dtype == np.uint8 else np.rint(image * factor).astype(np.uint8)
        return pixels

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ArraySource:
        """Only these images."""
        return ArraySource(self.parts, self.indices[np.asarray(indices, np.int64)])


@dataclass(frozen=True, slots=True)
class Listing:
    """What a reader found.

    Attributes:
        name: Short name for people.
        labels: Class name of each image; "" of one without a label.
        splits: Split of each image; "" where the source gives none.
        locations: Where each image lies, for people: a path below the data folder, or `x_train[17]`.
        source: Where the pixels come from, in the same order.
        notes: What a user should know: files left aside, doubles merged.
        groups: Name of the group of each image that no split may part, "" for none; None if there are no groups.
        others: Further columns that the source has, text by name.
    """

    name: str
    labels: list[str]
    splits: list[str]
    locations: list[str]
    source: ImageSource
    notes: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    others: dict[str, list[str]] = field(default_factory=dict)

    def take(self, indices: NDArray[np.int64]) -> Listing:
        """Only these images."""

        def some(column: list[str]) -> list[str]:
            return [column[index] for index in indices]

        return replace(
            self,
            labels=some(self.labels),
            splits=some(self.splits),
            locations=some(self.locations),
            source=self.source.take(indices),
            groups=self.groups and some(self.groups),
            others={name: some(texts) for name, texts in self.others.items()},
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of (image key, label, split, location) and the class names; no pixels.

    Attributes:
        name: Short name for people.
        keys: Image keys, shape [n].
        labels: Index into `class_names`, or `UNLABELLED`, shape [n].
        splits: "train", "val" or "test", shape [n].
        locations: Where each image lies, shape [n].
        class_names: Sorted; there may be one, or none.
        groups: Rows of the same number must not be parted by a split, shape [n]; byte-identical images always have the
            same. None if these are all that belong together.
        others: Further columns that the source has, text of shape [n] by name. Nothing depends on them.
    """

    name: str
    keys: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    locations: tuple[str, ...]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def id(self) -> str:
        """Digest of the rows and class names, without locations and further columns; 32 hexadecimal characters.

        Groups are part of it only where there are any, so that ids of before there were groups stay what they were.
        """
        digest = hashlib.blake2b("\0".join(self.class_names).encode(), digest_size=16)
        for column in (self.keys.astype(KEY_DTYPE), self.labels.astype("<i8"), self.splits.astype("S5")):
            digest.update(column.tobytes())
        if self.groups is not None:
            digest.update(b"groups" + self.groups.astype("<i8").tobytes())
        return digest.hexdigest()

    def label_name(self, row: int) -> str:
        """The class name of a row; "" if it has no label."""
        label = int(self.labels[row])
        return self.class_names[label] if label != UNLABELLED else ""

    def without(self, dropped: NDArray[np.bool_]) -> Dataset:
        """The same dataset less some rows, given by a mask of shape [n]; the class names stay."""
        kept = ~dropped
        return replace(
            self,
            keys=self.keys[kept],
            labels=self.labels[kept],
            splits=self.splits[kept],
            locations=tuple(compress(self.locations, kept)),
            groups=None if self.groups is None else self.groups[kept],
            others={name: tuple(compress(texts, kept)) for name, texts in self.others.items()},
        )

    def counts(self) -> dict[str, int]:
        """Images per split, of those splits that have any."""
        found = Counter(self.splits.tolist())
        return {split: found[split] for split in SPLITS if found[split]}


@dataclass(frozen=True, slots=True, eq=False)
class KnownSplits:
    """How images were split before.

    Attributes:
        keys: Image keys, shape [n].
        splits: "train", "val" or "test", or "" of images that were not drawn, as they had no label, shape [n].
        groups: As in `Dataset`, where these are to be kept together.
    """

    keys: NDArray[np.bytes_]
    splits: NDArray[np.str_]
    groups: NDArray[np.int64] | None


def check_classes(name: str, class_names: tuple[str, ...]) -> None:
    """Refuse data that no classifier can be trained on.

    Raises:
        DataError: If there are fewer than two classes.
    """
    if len(class_names) < 2:
        found = f"only one class, {class_names[0]!r}" if class_names else "no classes"
        raise DataError(
            f"{name} has {found}; a classifier needs two or more (a folder for each class, "
            "or a column `label` with two or more values)"
        )
