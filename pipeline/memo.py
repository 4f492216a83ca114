"""Digests remembered by a file's path, size and modification time, so that unchanged files are not read again.

The memo only saves work: losing it costs a re-read, and it is never the only witness of what a file holds.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

__all__ = ["Memo", "Stamp"]

# A file changed twice within one tick of the file system's clock looks unchanged, so young files are not remembered.
YOUNG = 2_000_000_000  # nanoseconds


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
            row = known.get(os.path.abspath(path))  # noqa: PTH100  # resolving links is slow, and not wanted
            if row and row[0] == stamp:
                found[path] = row[1]
        return found

    def remember(self, kind: str, texts: Mapping[Path, tuple[Stamp, str]]) -> None:
        """Remember a text for each file, except for files that were changed a moment ago."""
        latest = time.time_ns() - YOUNG
        self._write(
            [
                (kind, os.path.abspath(path), *stamp, text)  # noqa: PTH100
                for path, (stamp, text) in texts.items()
                if stamp.mtime_ns < latest
            ]
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._insert(rows)
        except sqlite3.OperationalError:  # busy, or the disk is full: the digests are only computed again
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
