"""What a power cut takes of what a process has changed and not flushed."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Named:
    """A name that was given, and that the folder's list of names may lack after a power cut.

    Attributes:
        new: The name.
        old: The name before; None of a file that was made.
        kept: Another name of the file that had it; None if there was none.
        exchanged: Whether what had the name got the old one.
    """

    new: Path
    old: Path | None
    kept: Path | None = None
    exchanged: bool = False

    def undo(self) -> None:
        """Take it back."""
        if not os.path.lexists(self.new):
            return
        if self.exchanged and self.old is not None:
            aside = self.new.with_name(f"{self.new.name} aside")
            self.new.rename(aside)
            self.old.rename(self.new)
            aside.rename(self.old)
        elif self.old is not None and self.old.parent.is_dir():
            self.new.rename(self.old)
        else:  # a file that was made, or whose old folder is gone
            self.new.unlink()
        if self.kept is not None:
            self.kept.rename(self.new)


class Unflushed:
    """Bytes that were written, and names that were given, since they were last flushed.

    Folders that were made, and what was removed, count as on disk at once. What SQLite writes counts as never flushed.

    Args:
        folder: An empty folder for other names of files that are replaced.

    Attributes:
        old: The name of what is renamed next.
    """

    def __init__(self, folder: Path) -> None:
        self.old = Path()
        self._folder = folder
        self._safe: dict[int, int] = {}  # bytes that were flushed, by inode, as files get other names
        self._names: list[Named] = []
        self._last = ("", Path())  # what was announced, and is done by now
        self._before: os.stat_result | None = None  # of the file that it changes
        self._kept: Path | None = None  # another name of a file that it replaces

    def before(self, change: str, path: Path) -> None:
        """Note what a change will do; the one before is done."""
        self.look()
        self._last = (change, path.absolute())
        self._before, self._kept = path.stat() if path.is_file() else None, None
        if change == "rename" and self._before:
            self._kept = self._folder / uuid.uuid4().hex
            os.link(path, self._kept)

    def look(self) -> None:
        """See what the last change has done."""
        (change, path), before = self._last, self._before
        if change == "flush":
            self._safe.pop(path.stat().st_ino, None)
            self._names = [one for one in self._names if one.new.parent != path]
        elif change == "remove" and before:
            self._safe.pop(before.st_ino, None)
        elif change in ("write", "database"):
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            self._safe.update((file.stat().st_ino, 0) for file in files)
        elif change == "append" and path.is_file():
            self._safe.setdefault(path.stat().st_ino, before.st_size if before else 0)
            if not before:
                self._names.append(Named(path, None))
        elif change == "rename":
            self._names.append(Named(path, self.old, self._kept))
        elif change == "exchange":
            self._names.append(Named(path, self.old, exchanged=True))
        self._last = ("", Path())

    def cut(self, *, names: bool) -> None:
        """Take half of the bytes that were not flushed, below the working folder, and perhaps the names that were not."""
        for path in Path.cwd().rglob("*"):
            if path.is_file() and (inode := path.stat().st_ino) in self._safe:
                size = path.stat().st_size
                os.truncate(path, (min(self._safe[inode], size) + size) // 2)
        if names:
            for one in reversed(self._names):
                one.undo()
