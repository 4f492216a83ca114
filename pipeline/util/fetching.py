"""Reading files at addresses that fsspec opens, many at a time; what was read is kept on this machine."""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.errors import DataError
from pipeline.util.addresses import is_remote
from pipeline.util.files import digest_of
from pipeline.util.local_copies import copy_here, forget, keep, kept, local_copy
from pipeline.util.memo import YOUNG
from pipeline.util.remote import READERS, forget_lists, joined, path_in, reaching, turn
from pipeline.util.stamps import size_of, stamp_of

MANY = 1024  # files that are asked for as one list, if they are small
MANY_BYTES = 64 * 2**20
WEB = ("http", "https")
AGAIN = 3  # times that a copy is fetched again whose room others took

T = TypeVar("T")

_PROCESS = uuid.uuid4().hex


def read(folder: Path, name: str, key: str = "") -> bytes:
    """Read a file at an address; what was read is kept on this machine, as long as there is room.

    Args:
        folder: Where its name begins.
        name: The file.
        key: Digest of what it held when it was first read; a local copy of that will do. "" if it isn't known.

    Raises:
        DataError: If it can't be read.
    """
    if key and (data := kept(key)) is not None:
        return data
    answer: bytes | Exception
    with reaching(joined(folder, name)):
        try:  # without a start its size would be asked for
            with turn(folder):
                answer = folder.fs.cat_file(path_in(folder, name), start=0)  # type: ignore[attr-defined]
        except OSError as error:
            answer = error
    return _arrived(folder, name, answer)


def read_many(folder: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[bytes | DataError]:
    """Read files at an address; like `read`, but many of them at a time, which needs less of the processor.

    Args:
        folder: Where their names begin.
        names: The files.
        sizes: Bytes of each; 0 where they aren't known, which counts as large.

    Yields:
        What each holds, or why it can't be read.
    """

    def one(name: str) -> bytes | DataError:
        try:
            return read(folder, name)
        except DataError as error:
            return error

    for some in _lists(names, sizes):
        if not folder.fs.async_impl:  # type: ignore[attr-defined]
            with ThreadPoolExecutor(READERS) as pool:
                yield from pool.map(one, some)
            continue
        with reaching(folder):
            answers = folder.fs.cat_ranges(  # type: ignore[attr-defined]
                [path_in(folder, name) for name in some],
                starts=[0] * len(some),
                ends=[None] * len(some),
                batch_size=READERS,
                on_error="return",
            )
        for name, data in zip(some, answers, strict=True):
            try:
                yield _arrived(folder, name, data)
            except DataError as error:
                yield error


def _lists(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    """Names in lists that are short enough for what they name to be held in memory."""
    some: list[str] = []
    total = 0
    for name, known in zip(names, sizes, strict=True):
        size = known or MANY_BYTES // READERS
        if some and (len(some) == MANY or total + size > MANY_BYTES):
            yield some
            some, total = [], 0
        some.append(name)
        total += size
    if some:
        yield some


def _arrived(folder: Path, name: str, answer: bytes | Exception) -> bytes:
    """What a file at an address holds, which is kept on this machine.

    Raises:
        DataError: If the answer is an error.
    """
    # Of nothing there is no range; S3 has the same number for much else.
    if isinstance(answer, OSError) and answer.errno == errno.EINVAL and size_of(folder, name) == 0:
        answer = b""
    with reaching(joined(folder, name)):
        if isinstance(answer, Exception):
            raise answer
    data = bytes(answer)
    keep(data, digest_of(data))
    return data


class Held:
    """A file that is read as one of this machine: itself, or a local copy of what lay at an address when it was named.

    Args:
        path: The file.
        again: Fetch it again, whatever copy there is.

    Attributes:
        path: The file.
        stamp: Its stamp; None where nothing tells a change.
        stamped: When that was asked for, nanoseconds of the wall clock.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self.path = path
        self.stamped = time.time_ns()
        self.stamp = stamp_of(path)
        self._state = f"{path} {self.stamp}"
        if self.stamp is None or self.stamp.mtime_ns >= self.stamped - YOUNG:
            # What nothing tells a change of is fetched by each process; so is what may change again unnoticed.
            self._state += f" {_PROCESS}"
        if again:
            forget(self._state, path.suffix)
        self._was_here = False
        self._in_parts = True

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent, on whose machine there was no copy yet."""
        return self.__dict__ | {"_was_here": False}

    def file(self) -> Path:
        """Where the file can be opened now; fetched again, if others took its room.

        Raises:
            DataError: If it can't be read.
            StoreError: If there is no room for a copy.
        """
        if not is_remote(self.path):
            return self.path
        found = local_copy(self._state, self._fetch, self.path.suffix)
        self._was_here = True
        return found

    def opened(self, opening: Callable[[Path], T]) -> T:
        """What opening the file gives; it is fetched again where others took the room of the copy just before.

        Args:
            opening: Is given where the file can be opened now.

        Raises:
            DataError: If it can't be read.
            StoreError: If there is no room for a copy.
        """
        for _ in range(AGAIN if is_remote(self.path) else 0):
            with suppress(FileNotFoundError):
                return opening(self.file())
        return opening(self.file())

    def part(self, start: int, length: int, *, known: bool) -> bytes:
        """Some bytes of the file.

        Args:
            start: Where they begin.
            length: How many.
            known: Whether a digest of them is known, with which they are compared. They may then be fetched alone,
                where there was too little room for the copy, although another file may have taken its place meanwhile.

        Raises:
            DataError: If it can't be read.
            StoreError: If there is no room for a copy.
        """
        if not length:  # an empty range can't be requested
            return b""
        read_there = partial(bytes_at, start=start, length=length)
        if not (known and self._was_here and self._in_parts):
            return self.opened(read_there)
        if copy := copy_here(self._state, self.path.suffix):
            with suppress(FileNotFoundError):
                return read_there(copy)
        try:
            with reaching(self.path), turn(self.path):
                data = self._part_there(start, length)
        except DataError:
            forget_lists(self.path)
            if self.stamp is not None and stamp_of(self.path) not in (None, self.stamp):
                self._changed()
            raise
        if data is None:
            self._in_parts = False
            return self.opened(read_there)
        return data

    def check(self) -> None:
        """Refuse a file of this machine that has changed since it was named; of another there is a copy.

        Raises:
            DataError: If it has changed.
        """
        if not is_remote(self.path) and stamp_of(self.path) != self.stamp:
            self._changed()

    def _part_there(self, start: int, length: int) -> bytes | None:
        """Some bytes of what lies at the address; None from a web server that ignores ranges and sends the whole."""
        fs, path = self.path.fs, self.path.path  # type: ignore[attr-defined]
        if self.path.protocol not in WEB:  # type: ignore[attr-defined]
            return bytes(fs.cat_file(path, start=start, end=start + length))
        # An open file notices before it reads the whole, however large that is.
        with fs.open(path, size=self.stamp.size if self.stamp else None, cache_type="none") as file:
            file.seek(start)
            try:
                return bytes(file.read(length))
            except ValueError:
                return None

    def _fetch(self, file: Path) -> None:
        fetch(self.path, file)
        forget_lists(self.path)
        if self.stamp is not None and stamp_of(self.path) != self.stamp:
            self._changed()

    def _changed(self) -> NoReturn:
        raise DataError(f"{self.path} changed while it was read; run the same command again")


def bytes_at(file: Path, start: int, length: int) -> bytes:
    """Some bytes of a file of this machine; fewer, if it ends before."""
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(length)


def fetch(path: Path, file: Path) -> None:
    """Copy what lies at an address into a file of this machine.

    Raises:
        DataError: If it can't be read.
    """
    with reaching(path), turn(path):
        path.fs.get_file(path.path, str(file))  # type: ignore[attr-defined]
