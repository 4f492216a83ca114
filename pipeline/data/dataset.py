"""What a dataset is: rows of image key, label, split and location, and where the pixels can be had."""

from __future__ import annotations

import hashlib
import stat
import time
import unicodedata
from collections import Counter
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


def printable(path: Path | str) -> str:
    """A path as text that any file or terminal can hold: what is no UTF-8, or would control a terminal, is escaped."""
    text = path if isinstance(path, str) else path.as_posix()
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


class ImageSource(Protocol):
    """Where the pixels of a listing's images come from, by position in the listing."""

    def __len__(self) -> int: ...

    def keys(self, memo: Memo | None, *, rehash: bool) -> list[bytes | ImageError]:
        """Image key of every image, or the error that kept it from being read."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """A file's bytes, or an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]."""

    def take(self, indices: list[int]) -> ImageSource:
        """The same source with only these images."""


class FileSource:
    """Images in files."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def keys(self, memo: Memo | None, *, rehash: bool) -> list[bytes | ImageError]:
        """Image keys; files that the memo knows unchanged are not read, unless `rehash`."""
        stamped = time.time_ns()
        stamps: dict[Path, Stamp] = {}
        for path in self.paths:
            with suppress(OSError):  # reading it gives the error, with its cause
                stamps[path] = Stamp.of(path)
        known = {} if memo is None or rehash else memo.recall("image", stamps)
        unknown = [path for path in dict.fromkeys(self.paths) if path not in known]

        def compute(path: Path) -> bytes | ImageError:
            try:
                return file_key(read_bytes(path))
            except ImageError as error:
                return error

        computed: dict[Path, bytes | ImageError] = {}
        with ThreadPoolExecutor(2 * cpu_count()) as pool, progress("Reading", len(unknown)) as advance:
            for path, key in zip(unknown, pool.map(compute, unknown), strict=True):
                computed[path] = key
                advance(1)
        if memo is not None:
            keyed = {path: key.decode() for path, key in computed.items() if isinstance(key, bytes)}
            memo.remember(
                "image", {path: (stamps[path], key) for path, key in keyed.items() if path in stamps}, stamped
            )
        return [known[path].encode() if path in known else computed[path] for path in self.paths]

    def read(self, index: int) -> bytes:
        """A file's bytes."""
        return read_bytes(self.paths[index])

    def take(self, indices: list[int]) -> FileSource:
        """Only these files."""
        return FileSource([self.paths[index] for index in indices])


class ArraySource:
    """Images in arrays, each [n, h, w] or [n, h, w, channels], which may be mapped from disk."""

    def __init__(self, parts: list[tuple[NDArray[Any], float]], indices: list[int] | None = None) -> None:
        """Take arrays and the factor that brings each to 0..255."""
        self.parts = parts
        self.starts = np.cumsum([0, *(len(array) for array, _ in parts)])
        self.indices = list(range(int(self.starts[-1]))) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self, memo: Memo | None, *, rehash: bool) -> list[bytes | ImageError]:
        """Image keys, always computed: arrays have no modification time of their own."""
        return [array_key(self.read(index)) for index in range(len(self))]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Pixels 0..255."""
        position = self.indices[index]
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        array, factor = self.parts[part]
        image = array[position - self.starts[part]]
        pixels: NDArray[np.uint8] = image if image.dtype == np.uint8 else np.rint(image * factor).astype(np.uint8)
        return pixels

    def take(self, indices: list[int]) -> ArraySource:
        """Only these images."""
        return ArraySource(self.parts, [self.indices[index] for index in indices])


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
