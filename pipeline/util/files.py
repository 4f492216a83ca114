"""Files that are there whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pipeline.errors import StoreError, TlpipeError
from pipeline.util.text import first_line

T = TypeVar("T")

PARTIAL_SUFFIX = ".partial"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>
MARKER = ".tlpipe"
"""The file by which a folder that tlpipe wrote is known, whatever it is called: it is never data."""


def flush_to_disk(path: Path) -> None:
    """Make a file's bytes, or a folder's list of names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


def is_remote(path: Path) -> bool:
    """Whether a path lies at an address that fsspec opens, not on this machine."""
    return not isinstance(path, Path)


@contextmanager
def asking(path: Path) -> Iterator[None]:
    """Say in plain words that an address of the cache can't be reached; nothing changes on this machine.

    Raises:
        StoreError: In place of any error but that something isn't there.
    """
    if not is_remote(path):
        yield
        return
    with in_plain_words(path, StoreError, passing=FileNotFoundError):
        yield


@contextmanager
def in_plain_words(
    address: object, kind: type[TlpipeError], done: str = "read", passing: type[Exception] = TlpipeError
) -> Iterator[None]:
    """Say in plain words that an address can't be reached, of which each file system has its own kinds of errors.

    Args:
        address: As the user knows it.
        kind: The error that is raised in place of any other.
        done: What couldn't be done.
        passing: Errors that are raised as they are, beside those of tlpipe.
    """
    try:
        yield
    except (TlpipeError, passing):
        raise
    except Exception as error:
        raise kind(
            f"{address} can't be {done}: {first_line(error)}; check the address, the account, and the network"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in plain words that a disk is full or can't be written.

    Raises:
        StoreError: In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"No space is left for {path.name} in {path.parent}; make room (tlpipe cache gc), "
                "or name another place, such as another --cache or --reports"
            ) from error
        cause = error.strerror or str(error)
        raise StoreError(
            f"{path} can't be written: {cause}; name another place, such as another --cache or --reports"
        ) from error


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`, whole and on disk, only if the block succeeds.

    At an address a file is put whole, which is there at once or not at all.

    Raises:
        StoreError: If the disk is full or can't be written; nothing is left behind.
    """
    if is_remote(path):
        with writing(Path(tempfile.gettempdir()) / path.name), tempfile.TemporaryDirectory(prefix="tlpipe-") as folder:
            yield (written := Path(folder) / path.name)
            with in_plain_words(path, StoreError, "written"):
                path.fs.put_file(str(written), path.path)  # type: ignore[attr-defined]
        return
    partial = _partial_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            flush_to_disk(partial)
            partial.replace(path)
            flush_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path, *, replace: bool = False, last: str = "") -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, with all its files on disk, only if the block succeeds.

    At an address, which has no folders, the file by which a folder is known is put after all others.

    Args:
        path: Where it is published.
        replace: Whether a folder that is there makes room for it.
        last: The name of that file.

    Raises:
        StoreError: If the disk is full or can't be written; nothing is left behind.
    """
    if is_remote(path):
        with writing(Path(tempfile.gettempdir()) / path.name), tempfile.TemporaryDirectory(prefix="tlpipe-") as written:
            yield Path(written)
            with in_plain_words(path, StoreError, "written"):
                _put_folder(Path(written), path, last)
        return
    partial, aside = _partial_name(path), _partial_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                flush_to_disk(file)
            flush_to_disk(partial)
            if replace and path.is_dir():
                _exchange(partial, path, aside)
            else:
                partial.replace(path)
            flush_to_disk(path.parent)
        finally:
            for folder in (partial, aside):
                if folder.exists():
                    shutil.rmtree(folder)


def _put_folder(written: Path, path: Path, last: str) -> None:
    """Put all files of a folder at an address; what was there before, and isn't among them, is removed."""
    fs = path.fs  # type: ignore[attr-defined]
    before = fs.find(path.path)  # type: ignore[attr-defined]
    files = [file for file in written.rglob("*") if file.is_file()]
    put = {f"{path.path}/{file.relative_to(written).as_posix()}": file for file in files}  # type: ignore[attr-defined]
    for name, file in sorted(put.items(), key=lambda pair: pair[1].name == last):
        fs.put_file(str(file), name)
    if gone := [name for name in before if name not in put]:
        fs.rm(gone)


def _exchange(fresh: Path, path: Path, aside: Path) -> None:
    """Let a fresh folder and one that is there change places, so that at no moment there is none.

    Source: renameat2(2) with RENAME_EXCHANGE, of Linux 3.15 and glibc 2.28. Where there is none the old folder is moved
    aside first, and moved back if the fresh one can't take its place.

    Raises:
        OSError: If it can't be done; the old folder is there then.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None and rename(AT_FDCWD, os.fsencode(fresh), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
        return
    path.rename(aside)
    try:
        fresh.replace(path)
    except OSError:
        aside.rename(path)
        raise


def mark_folder(folder: Path) -> None:
    """Leave a file in a folder that tlpipe writes, so that it is not taken for data.

    Raises:
        StoreError: If the folder can't be written.
    """
    marker = folder / MARKER
    with asking(marker):
        is_there = marker.exists()
    if not is_there:
        with published(marker) as partial:
            partial.write_text("tlpipe wrote this folder; it is never read as data.\n", encoding="utf-8")


def is_marked(folder: Path) -> bool:
    """Whether tlpipe wrote a folder; those of before the marker are known by what lies in them."""
    if (folder / MARKER).is_file():
        return True
    before = {"features/*/spec.json": "backbone", "tables/*.json": "spec", "*/run.json": "stage"}
    return any(_has_field(path, name) for pattern, name in before.items() for path in islice(folder.glob(pattern), 1))


def _has_field(path: Path, name: str) -> bool:
    """Whether a file is a JSON object with a field of this name."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and name in value


def digest_of(data: bytes | memoryview) -> str:
    """Digest by which a file's bytes are known: BLAKE2b (RFC 7693), 32 hexadecimal characters."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """As `digest_of`, without holding the file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while some := file.read(2**20):
            digest.update(some)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON."""
    with published(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If it can't be read.
        ValueError: If it isn't JSON, or holds text that is no Unicode, which nothing could print or write.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def decoded(kind: type[T], value: Any) -> T:
    """A dataclass of what was read from JSON, whose every field is of the annotated type.

    Raises:
        ValueError: If a field is missing, or of another type.
        ConfigError: If a value is not legal.
    """
    return msgspec.convert(value, kind)


def matching(folder: Path, pattern: str) -> list[Path]:
    """What is called like a pattern in a folder, by name; nothing, if the folder isn't there.

    Raises:
        StoreError: If it lies at an address that can't be listed.
    """
    try:
        with asking(folder):
            found = sorted(folder.glob(pattern))
            if is_remote(folder) and not found:
                _check_bucket(folder)
            return found
    except FileNotFoundError as error:  # not even the bucket
        raise StoreError(f"{folder} can't be read: {first_line(error)}; check the address") from error


def _check_bucket(folder: Path) -> None:
    """Tell an address where nothing is yet from one that can't be, as some file systems list nothing in both cases.

    Raises:
        FileNotFoundError: If there is no such bucket.
    """
    bucket = folder.path.partition("/")[0]  # type: ignore[attr-defined]
    if bucket and not folder.fs.exists(bucket):  # type: ignore[attr-defined]
        raise FileNotFoundError(f"there is no bucket {bucket}")


def remove(path: Path) -> None:
    """Remove a file or a folder, on this machine or at an address; one that is gone is no error."""
    if is_remote(path):
        with asking(path), suppress(FileNotFoundError):
            path.fs.rm(path.path, recursive=True)  # type: ignore[attr-defined]
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_whole(folder: Path, first: str) -> None:
    """Remove a folder so that at no moment a part of it could be taken for the whole.

    Args:
        folder: The folder, on this machine or at an address.
        first: The file by which it is known, which goes first at an address.

    Raises:
        StoreError: If it can't be removed.
    """
    if is_remote(folder):
        remove(folder / first)
        remove(folder)
        return
    aside = _partial_name(folder)
    try:
        folder.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise StoreError(f"{folder} can't be removed: {error.strerror}") from error


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    if is_remote(folder):
        with asking(folder):
            return int(folder.fs.du(folder.path))  # type: ignore[attr-defined]
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
