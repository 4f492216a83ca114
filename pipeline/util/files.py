"""Files that are there whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import StoreError
from pipeline.util import disk
from pipeline.util.addresses import asking, check_bucket, in_plain_words, is_remote, put_folder, remove_all
from pipeline.util.text import first_line

PARTIAL_SUFFIX = ".partial"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of <fcntl.h> and <linux/fs.h>
MARKER = ".tlpipe"
"""The file by which a folder that tlpipe wrote is known, whatever it is called: it is never data."""


class _Processes(NamedTuple):
    """Where the number of a process means something, each a short digest.

    Attributes:
        machine: Told from others that share a folder with it.
        start: Of the system; after the next one none of its processes is there.
        numbers: Containers count their processes apart.
    """

    machine: str
    start: str
    numbers: str


@cache
def _processes() -> _Processes:
    """Those of this process. A machine of which no more is known than a name, as others may have it, is one a start."""
    named, boot, space = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    start = boot.read_text(encoding="utf-8") if boot.is_file() else ""
    machine = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
    numbers = str(space.readlink()) if space.is_symlink() else ""
    texts = (f"{platform.node()} {machine or start}", start, numbers)
    return _Processes(*(digest_of(text.encode())[:6] for text in texts))


def partial_name(path: Path) -> Path:
    """A name beside a path for what is to become it, by which its process is known."""
    process = "-".join((*_processes(), str(os.getpid()), uuid.uuid4().hex[:8]))
    return path.with_name(f".{path.name}.{process}{PARTIAL_SUFFIX}")


def is_abandoned(path: Path) -> bool:
    """Whether a temporary file or folder belongs to a process of this machine that is gone.

    Nobody knows of one of another machine or container, or of an older version, in whose names less is told.
    """
    digest = "([0-9a-f]{6})"
    found = re.search(rf"\.{digest}-{digest}-{digest}-(\d+)-[0-9a-f]{{8}}{re.escape(PARTIAL_SUFFIX)}$", path.name)
    here = _processes()
    if found is None or found[1] != here.machine:
        return False
    if found[2] != here.start:  # the machine was started anew since
        return True
    if found[3] != here.numbers:
        return False
    try:
        os.kill(int(found[4]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is there, and somebody else's; or no process could have this number
        return False
    return False


_looked_through: set[Path] = set()


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes that are gone left in a folder, the first time that this process writes there."""
    if folder in _looked_through:
        return
    _looked_through.add(folder)
    with suppress(OSError, StoreError):  # a folder that can only be written to, or not at all
        with os.scandir(folder) as found:
            left = [Path(entry.path) for entry in found if entry.name.endswith(PARTIAL_SUFFIX)]
        for path in filter(is_abandoned, left):
            remove(path)


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
    partial = partial_name(path)
    with writing(path):
        disk.make_folder(path.parent)
        _remove_abandoned(path.parent)
        try:
            yield disk.change("write", partial)
            disk.flush(partial)
            disk.rename(partial, path)
            disk.flush(path.parent)
        finally:
            if partial.exists():
                disk.remove(partial)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which is removed in the end; what other processes left there is, too."""
    _remove_abandoned(path.parent)
    partial = partial_name(path)
    disk.make_folder(partial)
    try:
        yield partial
    finally:
        if partial.exists():
            disk.remove_tree(partial)


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
                put_folder(Path(written), path, last)
        return
    with writing(path):
        disk.make_folder(path.parent)
        with temporary_folder(path) as partial:
            yield partial
            for file in partial.rglob("*"):
                if not file.is_symlink():  # a link is part of its folder
                    disk.flush(file)
            disk.flush(partial)
            if replace and path.is_dir():
                _exchange(partial, path)
            else:
                disk.rename(partial, path)
            disk.flush(path.parent)


def _exchange(fresh: Path, path: Path) -> None:
    """Let a fresh folder and one that is there change places, so that at no moment there is none.

    Source: renameat2(2) with RENAME_EXCHANGE, of Linux 3.15 and glibc 2.28. Where there is none the old folder is moved
    aside first, and moved back if the fresh one can't take its place.

    Raises:
        OSError: If it can't be done; the old folder is there then.
    """
    disk.change("exchange", path)
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None and rename(AT_FDCWD, os.fsencode(fresh), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
        return
    with temporary_folder(path) as aside:
        disk.rename(path, aside / path.name)
        try:
            disk.rename(fresh, path)
        except OSError:
            disk.rename(aside / path.name, path)
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
            disk.write(partial, "tlpipe wrote this folder; it is never read as data.\n")


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


def is_as_written(path: Path, digest: str) -> bool:
    """Whether a file has the digest that was noted when it was written; "" where none was."""
    return digest in ("", digest_of_file(path))


def matching(folder: Path, pattern: str) -> list[Path]:
    """What is called like a pattern in a folder, by name; nothing, if the folder isn't there.

    Raises:
        StoreError: If it lies at an address that can't be listed.
    """
    try:
        with asking(folder):
            found = sorted(folder.glob(pattern))
            if is_remote(folder) and not found:
                check_bucket(folder)
            return found
    except FileNotFoundError as error:  # not even the bucket
        raise StoreError(f"{folder} can't be read: {first_line(error)}; check the address") from error


def remove(path: Path) -> None:
    """Remove a file or a folder, on this machine or at an address; one that is gone is no error.

    Raises:
        StoreError: If it can't be removed.
    """
    if is_remote(path):
        with in_plain_words(path, StoreError, "removed", passing=FileNotFoundError), suppress(FileNotFoundError):
            remove_all(path, path.fs.find(path.path))  # type: ignore[attr-defined]
        return
    try:
        if path.is_dir() and not path.is_symlink():
            disk.remove_tree(path)
        else:
            disk.remove(path)
    except OSError as error:
        raise StoreError(f"{path} can't be removed: {error.strerror or error}") from error


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
    aside = partial_name(folder)
    try:
        disk.rename(folder, aside)
        disk.flush(folder.parent)  # before any file of it is gone
        disk.remove_tree(aside)
    except OSError as error:
        raise StoreError(f"{folder} can't be removed: {error.strerror}") from error


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    if is_remote(folder):
        with asking(folder):
            return int(folder.fs.du(folder.path))  # type: ignore[attr-defined]
    return sum(size_of(file) for file in folder.rglob("*") if file.is_file())


def size_of(file: Path) -> int:
    """Bytes of a file; 0 of one that has gone meanwhile."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
