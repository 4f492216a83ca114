"""Pictures packed in larger files, many in each: rows of Parquet files, members of tars."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray

from pipeline.data.dataset import printable
from pipeline.data.folder import PACKS, SPLIT_NAMES, files_below, is_image, is_picture
from pipeline.data.source import KEY_DTYPE, ImageKeys, InParts, file_key
from pipeline.errors import DataError, ImageError
from pipeline.util import remote
from pipeline.util.addresses import is_remote
from pipeline.util.fetching import Held
from pipeline.util.memo import Memo, Stamp
from pipeline.util.progress import Advance, progress
from pipeline.util.text import counted

KEY_BYTES = KEY_DTYPE.itemsize
AT_ONCE = 4  # packs that are fetched or read through at a time


class Pack(Protocol):
    """One file that holds many pictures.

    Attributes:
        path: The file.
        kind: What is read of it; the keys of another kind are others.
        held: The file as it was found.
        in_parts: Whether a picture can be fetched alone from an address.
    """

    path: Path
    kind: str
    held: Held
    in_parts: bool

    def __len__(self) -> int:
        """Number of pictures."""

    def read(self, place: int, *, known: bool) -> bytes:
        """A picture's bytes, as a file of it would have them.

        Args:
            place: Which.
            known: Whether its image key is known, with which they are compared.

        Raises:
            ImageError: If there are none, or they can't be read.
        """


class PackedSource(InParts):
    """Images in packs.

    Args:
        packs: The files.
        indices: Which of their pictures are meant, counted through all packs; None for all.
    """

    def __init__(self, packs: Sequence[Pack], indices: Sequence[int] | NDArray[np.int64] | None = None) -> None:
        super().__init__(map(len, packs), indices)
        self.packs = packs

    @property
    def workers(self) -> int:
        """One for each processor; many where single pictures may be fetched, as each is waited for."""
        far = any(pack.in_parts and is_remote(pack.path) for pack in self.packs)
        return remote.READERS // 2 if far else super().workers

    def keys(self, memo: Memo | None, *, rehash: bool) -> ImageKeys:
        """Image keys: the same as of files with the same bytes. Packs that the memo knows unchanged are not read."""
        asked = np.unique(np.searchsorted(self.starts, self.indices, side="right") - 1).tolist()
        packs = [self.packs[number] for number in asked]
        # Those of when they were found: one that was replaced since then is another.
        stamps = {pack.path: pack.held.stamp for pack in packs if pack.held.stamp is not None}
        columns = {} if memo is None or rehash else _remembered(memo, packs, stamps)
        unknown = [pack for pack in packs if pack.path not in columns]
        with ThreadPoolExecutor(AT_ONCE) as pool, progress("Reading", sum(map(len, unknown))) as advance:
            for pack, column in zip(unknown, pool.map(lambda pack: _keys_of(pack, advance), unknown), strict=True):
                columns[pack.path] = column
                if memo is not None and pack.path in stamps:
                    text = "".join(key.decode().ljust(KEY_BYTES) for key in column.tolist())
                    memo.remember(f"pack {pack.kind}", {pack.path: (stamps[pack.path], text)}, pack.held.stamped)
        all_keys = np.zeros(self.starts[-1], KEY_DTYPE)
        for number in asked:
            all_keys[self.starts[number] : self.starts[number + 1]] = columns[self.packs[number].path]
        keys, errors = all_keys[self.indices], {}
        for position in np.flatnonzero(keys == b"").tolist():
            try:
                number, place = self.place(position)
                keys[position] = file_key(self.packs[number].read(place, known=False))
            except ImageError as error:
                errors[position] = error
        return ImageKeys(keys, errors)

    def read(self, index: int) -> bytes:
        """A picture's bytes."""
        number, position = self.place(index)
        return self.packs[number].read(position, known=True)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> PackedSource:
        """Only these images."""
        return PackedSource(self.packs, self.indices[np.asarray(indices, np.int64)])


def _remembered(memo: Memo, packs: Sequence[Pack], stamps: dict[Path, Stamp]) -> dict[Path, NDArray[np.bytes_]]:
    """Image keys of the packs that have not changed since they were read; empty of what could not be read then."""
    found = {}
    for pack in packs:
        if pack.path in stamps:
            text = memo.recall(f"pack {pack.kind}", {pack.path: stamps[pack.path]}).get(pack.path, "")
            if len(text) == KEY_BYTES * len(pack) and text.isascii():
                found[pack.path] = np.char.strip(np.frombuffer(text.encode(), KEY_DTYPE)).astype(KEY_DTYPE)
    return found


def _keys_of(pack: Pack, advance: Advance) -> NDArray[np.bytes_]:
    """Image keys of a whole pack, empty of what can't be read."""
    keys = np.zeros(len(pack), KEY_DTYPE)
    for place in range(len(pack)):
        with suppress(ImageError):  # asked again when all keys are there, for its cause
            keys[place] = file_key(pack.read(place, known=False))
        advance(1)
    pack.held.check()
    return keys


def held_files(files: Sequence[Path], *, again: bool) -> list[Held]:
    """Files as they are found now; those at addresses are asked for at the same time, and fetched `again` if wanted."""
    with ThreadPoolExecutor(remote.READERS) as pool:
        return list(pool.map(partial(Held, again=again), files))


def names_of(files: Sequence[Path]) -> list[str]:
    """What packs are called where their pictures are named: by name, or by path where two have the same name."""
    for names in ([file.name for file in files], ["/".join(parts) for parts in _apart(files)]):
        if len(set(names)) == len(names):
            return list(map(printable, names))
    return [printable(str(file)) for file in files]


def _apart(files: Sequence[Path]) -> list[list[str]]:
    """Each file's folders and name, from the folder that all share; inside of the zip file in which it lies."""
    paths = [file.as_posix().partition("::")[0] if is_remote(file) else file.as_posix() for file in files]
    parts = [path.split("/") for path in paths]
    shared = next((level for level, some in enumerate(zip(*parts, strict=False)) if len(set(some)) > 1), -1)
    return [some[shared:] for some in parts]


def lacking(files: Sequence[Path]) -> list[str]:
    """Say which are not there of packs whose names tell how many there should be, as in train-00000-of-00005."""
    found: dict[tuple[str, int], dict[Path, set[int]]] = {}
    for file in files:
        # What stands behind the number, if anything, differs by file: a digest.
        if match := re.fullmatch(r"(.*?)(\d+)-of-(\d+)(-\w+)?(\..*)?", file.name):
            name = f"{match[1]}*-of-{match[3]}{'-*' if match[4] else ''}{match[5] or ''}"
            found.setdefault((name, int(match[3])), {}).setdefault(file.parent, set()).add(int(match[2]))
    notes = []
    for (name, n), by_folder in found.items():
        together = set().union(*by_folder.values())
        named = {name: together}
        if len(together) < sum(map(len, by_folder.values())):  # several folders have files of the same number
            named = {str(folder / name): numbers for folder, numbers in by_folder.items()}
        notes += [
            f"Of {one}, {counted(n - len(numbers), 'file')} of {n:,} not there"
            for one, numbers in named.items()
            if len(numbers) < n
        ]
    return notes


def splits_of(files: Sequence[Path]) -> list[str]:
    """The split that each file's name tells, such as `val` of `validation-00000-of-00005.parquet`, or else its folder.

    Folders above that which all files share tell nothing; where nothing does, the split is "".
    """
    return [_split_of(file.stem, parts[:-1]) for file, parts in zip(files, _apart(files), strict=True)]


def _split_of(name: str, folders: Sequence[str]) -> str:
    words = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES}
    if len(words) == 1:
        return words.pop()
    named = [SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES]
    return named[-1] if named else ""


def parts_of(data: str) -> list[str]:
    """The parts of a list that is joined by commas; commas in braces join nothing."""
    return [part for part in re.split(r",(?![^{]*\})", data) if part]


def there(path: Path) -> bool:
    """Whether a path exists; a list of files may be longer than any path can be.

    Raises:
        DataError: If it lies at an address that can't be reached.
    """
    if is_remote(path):
        with remote.reaching(path), remote.turn(path):
            return bool(path.exists())
    try:
        return path.expanduser().exists()
    except OSError:
        return False


def is_pattern(data: str) -> bool:
    """Whether a list or a pattern of files is meant."""
    if remote.is_address(data):  # other signs stand in addresses themselves
        return re.search(r"[{*]|,[a-z0-9+.-]+://", data) is not None
    return bool(re.search(r"[,{*?\[]", data)) and not there(Path(data))


def files_meant(data: str) -> list[Path]:
    """The files that a list or a pattern means, such as `a.tar,b.tar`, `shard-{000..009}.tar` or `data/*.parquet`.

    Raises:
        DataError: If one of them isn't there, or they are of several kinds.
    """
    try:
        named = [one for part in parts_of(data) for one in ([part] if _is_file_name(part) else braceexpand(part))]
    except ValueError as error:
        raise DataError(f"{data}: {error}; braces stand around what varies: shard-{{000..009}}.tar") from error
    with ThreadPoolExecutor(remote.READERS) as pool:
        places = [remote.place(one) for one in named]
        for place in filter(is_remote, places):
            remote.forget_lists(place)
        files = list(dict.fromkeys(file for some in pool.map(_matching, places) for file in some))
        are_there = list(pool.map(_is_file, files))
    if absent := [str(file) for file, is_there in zip(files, are_there, strict=True) if not is_there]:
        raise DataError(
            f"{data} names {absent[0]!r}, which is no file that is there ({len(absent):,} of {len(files):,} files)"
        )
    if len(kinds := {file.suffix.lower() for file in files}) > 1:
        raise DataError(f"{data} names files of several kinds: {', '.join(sorted(kinds))}; give those of one")
    return files


def _is_file_name(part: str) -> bool:
    """Whether a part is the name of a file as it is, braces and stars and all."""
    return not remote.is_address(part) and there(Path(part))


def _is_file(path: Path) -> bool:
    with remote.reaching(path), remote.turn(path):
        return path.is_file()


def _matching(path: Path) -> list[Path]:
    if not re.search(r"[*?\[]", path.name) or there(path):
        return [path]
    with remote.reaching(path.parent), remote.turn(path):
        found = sorted(file for file in path.parent.glob(path.name) if not file.name.startswith("."))
    if not found:
        raise DataError(f"No file is called like {path}")
    return found


def files_in(folder: Path) -> list[Path]:
    """The packs in a folder and below it, by their names; none where pictures lie there as files.

    Where files without any suffix lie in folders, these may be pictures: only packs that lie in none are then meant.

    Raises:
        DataError: If there are packs of several kinds, or one is no file.
    """
    found: list[Path] = []
    in_folders = True
    for name in files_below(folder):
        if is_picture(name):
            return []
        if name.lower().endswith(PACKS):
            found.append(folder / name)
        elif "/" in name and is_image(name):
            in_folders = False
    found = [path for path in found if in_folders or path.parent in (folder, folder / "data")]
    if odd := [path for path in found if not is_remote(path) and not path.is_file()]:
        raise DataError(f"{odd[0]} is a link that leads nowhere, or no regular file; take it away")
    if len(kinds := {file.suffix.lower() for file in found}) > 1:
        one = min(found, key=lambda file: file.suffix.lower())
        raise DataError(
            f"{folder} holds files of several kinds: {', '.join(sorted(kinds))}; name those of one: "
            f"{one.parent}/*{one.suffix}"
        )
    return found
