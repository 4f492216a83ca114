"""The one way by which tlpipe changes what is on disk, so that tests can end the process, or fail, at every change.

What libraries write (HDF5, NumPy, Keras, OpenVINO) is written into temporary files and folders of `files.published`
and `files.published_folder`, and is announced here as one change each.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal


def _nothing(change: str, path: Path) -> None:
    """Nobody wants to know."""


announce: Callable[[str, Path], None] = _nothing
"""Called before each change with what is done to which path; what it raises is as if the disk had failed."""


def change(what: str, path: Path) -> Path:
    """Announce that a library will write a file or a folder.

    Args:
        what: One word: "write".
        path: Where.

    Returns:
        The same path.
    """
    announce(what, path)
    return path


def write(path: Path, data: bytes | memoryview | str) -> None:
    """Write a whole file; text in UTF-8."""
    change("write", path).write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def append(descriptor: int, path: Path, data: bytes) -> None:
    """Write at the end of an open file, and make that outlive a power cut; if it fails, nothing of it is left.

    Args:
        descriptor: Of the file, opened to append.
        path: Where it lies.
        data: What is written.
    """
    size = os.fstat(descriptor).st_size
    try:
        change("append", path)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        change("flush", path)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's list of names, outlive a power cut."""
    descriptor = os.open(change("flush", path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Give a file or folder another name; a file that has it is replaced at the same moment."""
    change("rename", new)
    old.rename(new)


def remove(path: Path) -> None:
    """Remove a file; one that is gone is no error."""
    change("remove", path).unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, file by file; what is gone is no error: two processes may do it at once.

    Of a link to a folder, the link alone is removed.
    """
    if folder.is_symlink():
        return remove(folder)
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in names:
            remove(Path(parent) / name)
        for name in folders:  # links to folders, which a walk doesn't follow
            if (path := Path(parent) / name).is_symlink():
                remove(path)
        with suppress(FileNotFoundError):
            change("remove", Path(parent)).rmdir()


def remove_empty(folder: Path) -> None:
    """Remove a folder if nothing is in it and it can be removed; if not, it stays."""
    with suppress(OSError):
        change("remove", folder).rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that is there is no error."""
    if not folder.is_dir():
        change("make", folder).mkdir(parents=True, exist_ok=True)


class _Database(sqlite3.Connection):
    """A database whose statements, and ends of transactions, are announced."""

    path: Path

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        change("database", self.path)
        return super().execute(*statement)

    def executemany(self, *statement: Any) -> sqlite3.Cursor:
        change("database", self.path)
        return super().executemany(*statement)

    def __exit__(self, *error: Any) -> Literal[False]:
        change("database", self.path)
        return super().__exit__(*error)


def database(path: Path) -> sqlite3.Connection:
    """Open a database of SQLite, which writes by its own journal.

    Raises:
        sqlite3.Error: If it can't be opened.
    """
    found = sqlite3.connect(change("database", path), timeout=20, factory=_Database)
    found.path = path
    return found
