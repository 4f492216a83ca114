"""What is known of files, remembered by path, size and modification time, so that unchanged ones are not read again.

The memo only saves work: losing it costs a re-read, and `--rehash` and `cache verify` don't ask it.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.util import disk
from pipeline.util.local_copies import own_part

P = TypeVar("P", str, Path)

# A file changed twice within one tick of the file system's clock looks unchanged, so young files are not remembered.
YOUNG = 2_000_000_000  # nanoseconds
ASKED = 500  # paths in one question, of the 999 variables that any SQLite takes

TABLE = (
    "CREATE TABLE IF NOT EXISTS checked (kind TEXT, path TEXT, size INTEGER, mtime_ns INTEGER, value TEXT, "
    "sum INTEGER, PRIMARY KEY (kind, path))"
)
INSERT = "INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?, ?, ?)"


def _sum(*row: object) -> int:
    """Of a row, by which a changed bit is noticed: SQLite itself looks at its structure alone."""
    return zlib.crc32(repr(row).encode())


def _name(path: Path | str) -> str:
    # Resolving links would be slow, and is not wanted. A name that is no UTF-8 must not stop SQLite.
    text = str(path)
    name = text if "://" in text else os.path.abspath(path)  # noqa: PTH100
    return name.encode("utf-8", "backslashreplace").decode()


class Stamp(NamedTuple):
    """What tells that a file has not changed.

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last modification, nanoseconds.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path | str | os.stat_result) -> Stamp:
        """The stamp of a file as it is now, or as the file system said that it was."""
        stat = file if isinstance(file, os.stat_result) else os.stat(file)  # noqa: PTH116
        return cls(stat.st_size, stat.st_mtime_ns)


def stats(paths: Iterable[P]) -> dict[P, os.stat_result]:
    """What the file system says of some files; of those that are gone, nothing."""
    found = {}
    for path in paths:
        with suppress(OSError):
            found[path] = os.stat(path)  # noqa: PTH116
    return found


class Memo:
    """Remembers a text for (kind, file) in an SQLite file, which several processes may use at once."""

    def __init__(self, cache: Path) -> None:
        self.path = own_part(cache) / "memo.sqlite"

    def recall(self, kind: str, files: Mapping[P, Stamp]) -> dict[P, str]:
        """Texts of those files that have not changed since they were remembered."""
        named: dict[str, list[P]] = {}
        for path in files:  # one file may be spelled in several ways
            named.setdefault(_name(path), []).append(path)
        return {
            path: value
            for name, size, mtime, value in self._rows(kind, list(named))
            for path in named[name]
            if files[path] == (size, mtime)
        }

    def remember(self, kind: str, texts: Mapping[P, tuple[Stamp, str]], stamped: int) -> None:
        """Remember a text for each file, except for files that had been changed a moment before.

        Args:
            kind: What the texts are.
            texts: Stamp and text of each file.
            stamped: When the stamps were taken, nanoseconds of the wall clock; that is, before the files were read.
        """
        latest = stamped - YOUNG
        rows: list[tuple[str | int, ...]] = []
        for path, (stamp, text) in texts.items():
            if stamp.mtime_ns < latest:
                known: tuple[str | int, ...] = (kind, _name(path), stamp.size, stamp.mtime_ns, text)
                rows.append((*known, _sum(*known)))
        self._write(INSERT, rows)

    def forget(self, kind: str, files: Iterable[P]) -> None:
        """Forget what was remembered of some files."""
        self._write("DELETE FROM checked WHERE kind = ? AND path = ?", [(kind, _name(path)) for path in files])

    def recall_text(self, name: str) -> str | None:
        """What was remembered under a name that stands for no file."""
        return next((value for _, _, _, value in self._rows(name, [""])), None)

    def remember_text(self, name: str, text: str) -> None:
        """Remember a text under a name that stands for no file."""
        self._write(INSERT, [(name, "", 0, 0, text, _sum(name, "", 0, 0, text))])

    def _rows(self, kind: str, names: Sequence[str]) -> Iterator[tuple[str, int, int, str]]:
        """Name, size, time and text of what is remembered of some names."""
        if not names or not self.path.exists():
            return
        try:
            with self._opened() as database:
                for start in range(0, len(names), ASKED):
                    some = names[start : start + ASKED]
                    marks = ", ".join("?" * len(some))
                    for path, size, mtime, text, kept in database.execute(
                        f"SELECT path, size, mtime_ns, value, sum FROM checked WHERE kind = ? AND path IN ({marks})",
                        (kind, *some),
                    ):
                        if kept == _sum(kind, path, size, mtime, text):
                            yield path, size, mtime, text
        except (OSError, sqlite3.Error):  # damaged, busy for long, or on a disk that is full
            return

    def _write(self, statement: str, rows: Sequence[tuple[str | int, ...]]) -> None:
        """Change rows; a damaged memo is started anew."""
        if not rows:
            return
        try:
            disk.make_folder(self.path.parent)
            self._execute(statement, rows)
        except (OSError, sqlite3.OperationalError):  # busy, or a full disk: the digests are only computed again
            return
        except sqlite3.Error:
            with suppress(OSError, sqlite3.Error):  # a cache that can only be read
                disk.remove(self.path)
                self._execute(statement, rows)

    def _execute(self, statement: str, rows: Sequence[tuple[str | int, ...]]) -> None:
        with self._opened() as database, database:
            database.executemany(statement, rows)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(disk.database(self.path)) as database:
                database.execute(TABLE)
                yield database
        except UnicodeDecodeError as error:  # SQLite's own message quotes bytes of a damaged file
            raise sqlite3.DatabaseError(f"{self.path} is damaged") from error
