"""The journal of a labelling: every answer is a line, on disk before the next picture is shown."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.corrections import KEY, read_journal
from pipeline.errors import DataError, StoreError
from pipeline.labelling.model import Rating
from pipeline.store.records import now
from pipeline.util import disk
from pipeline.util.files import writing
from pipeline.util.sealed import WRITER, decoded, sealed
from pipeline.util.text import counted

BEGINNING = f'{{"{WRITER}": "tlpipe"'.encode()
"""Of every line that is written."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person said of a picture, or took back.

    Attributes:
        key: Image key.
        path: Where the picture lies, for people.
        label: The class, or "drop"; "" where nothing is said of it any more.
        who: Name of the user.
        when: Time, ISO 8601, UTC.
        shown: Why and how the picture was shown.
        undoes: Whether an earlier answer is taken back by this one.
    """

    key: str
    path: str
    label: str
    who: str = ""
    when: str = field(default_factory=now)
    shown: dict[str, str | float | bool] = field(default_factory=dict)
    undoes: bool = False


class Journal:
    """A file of answers that only grows; while it is open, no other process may write to it.

    Args:
        path: The file; it need not be there.
        data: Place of the data that is labelled.

    Attributes:
        answers: All of them, the oldest first.
        classes: Classes that were named by the user, in that order.
        ratings: What heads were worth on the way.

    Raises:
        DataError: If it can't be read, is no journal, a line was changed, or it is of other data.
        StoreError: If it can't be written, or another process has it open.
    """

    def __init__(self, path: Path, data: str) -> None:
        self.path, self._data = path, data
        self.answers: list[Answer] = []
        self.classes: list[str] = []
        self.ratings: list[Rating] = []
        with writing(path):
            disk.make_folder(path.parent)
            self._is_new = not path.exists()
            disk.change("append", path)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._is_new = False  # both have found that there was none
            raise StoreError(
                f"{self.path} is being written by another tlpipe label; use its page, or name another file: --labels"
            ) from error
        if not self._is_in_place():  # another one that had no line has just ended
            raise StoreError(f"{self.path} was removed just now; start tlpipe label again")
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if not whole and not (content.startswith(BEGINNING) or BEGINNING.startswith(content)):
            raise DataError(f"{self.path} is no journal of tlpipe label; name another file: --labels")
        for number, line in enumerate(read_journal(self.path), start=1):
            self._replay(line, number)
        with writing(self.path):
            disk.change("append", self.path)
            os.ftruncate(self._file, whole)  # a last line that was cut off would make the next one unreadable
        self._size = whole

    def _replay(self, line: dict[str, Any], number: int) -> None:
        if number == 1 and "data" in line:
            if line["data"] != self._data:
                raise DataError(
                    f"{self.path} holds labels of {line['data']}, not of {self._data}; name another file: --labels"
                )
        elif isinstance(line.get("class"), str):
            self.classes.append(line["class"])
        else:
            try:
                if "rating" in line:
                    self.ratings.append(decoded(Rating, line["rating"]))
                    return
                answer = decoded(Answer, line)
            except ValueError as error:
                raise DataError(f"{self.path}, line {number} is not what tlpipe label writes: {error}") from error
            if not KEY.fullmatch(answer.key):
                raise DataError(f"{self.path}, line {number} names no image key: {answer.key[:100]!r}")
            self.answers.append(answer)

    def append(self, answers: Sequence[Answer]) -> None:
        """Write answers, all of which are on disk when this returns.

        Raises:
            StoreError: If they are not; none of them counts then.
        """
        self._append([asdict(answer) for answer in answers])
        self.answers += answers

    def name_class(self, name: str) -> None:
        """Write that there is a class.

        Raises:
            StoreError: If it can't be written.
        """
        self._append([{"class": name, "when": now()}])
        self.classes.append(name)

    def rate(self, rating: Rating) -> None:
        """Write what a head is worth.

        Raises:
            StoreError: If it can't be written.
        """
        self._append([{"rating": asdict(rating), "when": now()}])
        self.ratings.append(rating)

    def _is_in_place(self) -> bool:
        """Whether the open file still has its name."""
        return self.path.exists() and os.path.samestat(os.fstat(self._file), self.path.stat())

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        with writing(self.path):
            if not self._is_in_place():
                raise StoreError(
                    f"{self.path} was moved, removed or replaced, so nothing more is written to it; "
                    "put it back, end tlpipe label and start it again"
                )
            if os.fstat(self._file).st_size > self._size:  # what failed was cut off, and could not be removed then
                disk.change("append", self.path)
                os.ftruncate(self._file, self._size)
            if not self._size:
                disk.flush(self.path.parent)  # before the first line, which would stay if this failed
                lines = [{"data": self._data, "when": now()}, *lines]
            disk.append(self._file, self.path, "".join(map(_line, lines)).encode())
            self._size = os.fstat(self._file).st_size

    def __str__(self) -> str:
        return f"{self.path}: {counted(len(self.answers), 'answer')}"

    def close(self) -> None:
        """Let others write to the file; one that was made here and has no line is removed."""
        if self._file >= 0:
            if self._is_new and not os.fstat(self._file).st_size and self._is_in_place():
                disk.remove(self.path)
            os.close(self._file)
        self._file = -1


def _line(value: dict[str, Any]) -> str:
    return json.dumps(sealed(value), ensure_ascii=False) + "\n"
