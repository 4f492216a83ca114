"""Many texts in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from pipeline.util.files import digest_of


class Texts(Sequence[str]):
    """Texts that lie one behind the other in one piece of memory.

    A name of 30 characters takes 38 bytes here, where a list of `str` takes 87: there may be millions of them.

    Args:
        texts: The texts; bytes of file names that are no UTF-8 may be in them, as `os.fsdecode` gives them.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._data = bytearray()
        self._ends = array("q")
        for text in texts:
            self._data += text.encode("utf-8", "surrogateescape")
            self._ends.append(len(self._data))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The texts; what is such already is taken as it is, since it never changes."""
        return texts if isinstance(texts, Texts) else cls(texts)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        start = self._ends[place - 1] if place else 0
        return self._data[start : self._ends[place]].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts) and (self._data, self._ends) == (other._data, other._ends)

    __hash__ = None  # type: ignore[assignment]

    def digest(self) -> str:
        """Digest of the texts, 32 hexadecimal characters."""
        return digest_of(self._ends.tobytes() + self._data)
