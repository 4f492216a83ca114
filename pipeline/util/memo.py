"""Digests remembered by a file's path, size and modification time, so that unchanged files are not read again.

The memo only saves work: losing it costs a re-read, and it is never the only witness of what a file holds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

# A file changed twice within one tick of the file system's clock looks unchanged, so young files are not remembered.
YOUNG = 2_000_000_000  # nanoseconds


def _name(path: Path) -> str:
    # Resolving links would be slow, and is not wanted. A name that is no UTF-8 must not stop SQLite.
    return os.path.abspath(path).encode("utf-8", "backslashreplace").decode()  # noqa: PTH100


class Stamp(NamedTuple):
    """What tells that a file has not changed.

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last modification, nanoseconds.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns)


class Memo:
    """Remembers a text for (kind, file) in an SQLite file, which several processes may use at once."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / "memo.sqlite"

    def recall(self, kind: str, files: Mapping[Path, Stamp]) -> dict[Path, str]:
        """Texts of those files that have not changed since they were remembered."""
        known = {path: (Stamp(size, mtime), value) for path, size, mtime, value in self._rows(kind)}
        found = {}
        for path, stamp in files.items():
            row = known.get(_name(path))
            if row and row[0] == stamp:
                found[path] = row[1]
        return found

    def remember(self, kind: str, texts: Mapping[Path, tuple[Stamp, str]], stamped: int) -> None:
        """Remember a text for each file, except for files that had been changed a moment before.

        Args:
            kind: What the texts are.
            texts: Stamp and text of each file.
            stamped: When the stamps were taken, nanoseconds of the wall clock; that is, before the files were read.
        """
        latest = stamped - YOUNG
        self._write(
            [(kind, _name(path), *stamp, text) for path, (stamp, text) in texts.items() if stamp.mtime_ns < latest]
        )

    def recall_text(self, name: str) -> str | None:
        """What was remembered under a name that stands for no file."""
        return next((value for _, _, _, value in self._rows(name)), None)

    def remember_text(self, name: str, text: str) -> None:
        """Remember a text under a name that stands for no file."""
        self._write([(name, "", 0, 0, text)])

    def _rows(self, kind: str) -> list[tuple[str, int, int, str]]:
        if not self.path.exists():
            return []
        try:
            with closing(self._open()) as database:
                return database.execute(
                    "SELECT path, size, mtime_ns, value FROM memo WHERE kind = ?", (kind,)
                ).fetchall()
        except sqlite3.DatabaseError:  # damaged, or busy for long
            return []

    def _write(self, rows: list[tuple[str, str, int, int, str]]) -> None:
        """Add rows; a damaged memo is started anew."""
        if not rows:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._insert(rows)
        except (OSError, sqlite3.OperationalError):  # busy, or a full disk: the digests are only computed again
            return
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)
            self._insert(rows)

    def _insert(self, rows: list[tuple[str, str, int, int, str]]) -> None:
        with closing(self._open()) as database, database:
            database.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?, ?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=20)
        database.execute(
            "CREATE TABLE IF NOT EXISTS memo (kind TEXT, path TEXT, size INTEGER, mtime_ns INTEGER, value TEXT, "
            "PRIMARY KEY (kind, path))"
        )
        return database
