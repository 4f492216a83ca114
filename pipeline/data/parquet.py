"""Parquet files with the pictures inside, as Hugging Face's `datasets` writes them (huggingface.co/docs/datasets)."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipeline.config import Columns
from pipeline.data.dataset import Listing
from pipeline.data.manifest import COMMON_NAMES, check_header, column_of, named_split, no_labels, questioned
from pipeline.data.packed import AT_ONCE, PackedSource, lacking, names_of, splits_of
from pipeline.errors import DataError, ImageError
from pipeline.util.fetching import Held
from pipeline.util.text import counted
from pipeline.util.texts import Texts

if TYPE_CHECKING:
    import pyarrow

GROUPS = AT_ONCE  # row groups held at once: of one file, threads may stand at the end of one and in the next
PICTURES = ("image", "img", "picture", "jpg", "png")

_reading: defaultdict[Path, Lock] = defaultdict(Lock)  # by file; not of a pack, which another process may be sent


class ParquetPack:
    """A Parquet file with a column of pictures, read row group by row group.

    Args:
        held: The file.
        column: Name of the column, as `picture_column` gives it.
    """

    in_parts = False

    def __init__(self, held: Held, column: str) -> None:
        self.path, self.kind = held.path.absolute(), f"parquet {column}"
        self.held, self._column = held, column
        meta = _opened(held).metadata
        self._starts = [0, *accumulate(meta.row_group(number).num_rows for number in range(meta.num_row_groups))]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, place: int, *, known: bool) -> bytes:
        """A picture's bytes; its row group is read in any case."""
        group = bisect_right(self._starts, place) - 1
        with _reading[self.path]:  # else threads would each read the group they all wait for
            pictures = _pictures(self.held, self._column, group)
        try:
            data = pictures[place - self._starts[group]].as_py()
        except IndexError as error:
            raise ImageError(f"{self.path.name} changed since it was listed", lasting=False) from error
        if data is None:
            raise ImageError(
                f"row {place} of {self.path.name} holds no picture, or only its path: bytes must be embedded"
            )
        return bytes(data)


@lru_cache(GROUPS)
def _pictures(held: Held, column: str, group: int) -> pyarrow.ChunkedArray:
    """A row group of pictures."""
    import pyarrow
    from pyarrow import compute, types

    try:
        pictures = _opened(held).read_row_group(group, columns=[column]).column(0)
        return compute.struct_field(pictures, "bytes") if types.is_struct(pictures.type) else pictures
    except (OSError, DataError, IndexError, pyarrow.ArrowException) as error:  # of index, where it was replaced
        raise ImageError(f"{held.path.name} can't be read: {error}", lasting=False) from error


def _opened(held: Held) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return held.opened(parquet.ParquetFile)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{held.path} can't be read as Parquet: {error}") from error


def picture_column(held: Held, columns: Columns) -> str | None:
    """Name of the column of pictures in a Parquet file; None if there is none, as in a table of paths.

    Bytes in a table of paths are taken for pictures only if their column is called like that.

    Raises:
        DataError: If the column that is named isn't there or holds no pictures, or several may be meant.
    """
    from pyarrow import types

    path, schema = held.path, _opened(held).schema_arrow
    found: dict[str, str] = {one.name.lower(): one.name for one in schema if _holds_pictures(one.type)}
    if columns.image_column is not None:
        named = found.get(columns.image_column.strip().lower())
        if named is None:
            has = f"it has {', '.join(found.values())}" if found else "it has none"
            raise DataError(f"{path} has no column of pictures {columns.image_column!r} (--image-column); {has}")
        return named
    usual = [found[name] for name in PICTURES if name in found]
    paths = {one.name.lower() for one in schema if not types.is_nested(one.type)} - set(found)
    if columns.path_column is not None or not found or (not usual and paths & set(COMMON_NAMES["path"])):
        return None
    if len(found) > 1 and not usual:
        raise DataError(f"{path} has several columns of pictures: {', '.join(found.values())}; name it: --image-column")
    return usual[0] if usual else next(iter(found.values()))


def _holds_pictures(kind: pyarrow.DataType) -> bool:
    """Whether a column holds bytes, or structs of bytes."""
    from pyarrow import types

    if types.is_struct(kind) and (place := kind.get_field_index("bytes")) >= 0:
        kind = kind.field(place).type
        if types.is_null(kind):  # paths alone, which reading says
            return True
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(one(kind) for one in kinds)


def read_parquet(held: Sequence[Held], name: str, columns: Columns) -> Listing:
    """List the pictures in Parquet files; without a column of splits, the names of files and folders tell them.

    Args:
        held: The files.
        name: Short name for people.
        columns: Names of their columns.

    Raises:
        DataError: If a file can't be read, or lacks a column that the first one has.
    """
    if columns.label_key is not None:
        raise DataError(f"{name} is of Parquet files, which have columns; --label-key is for tars")
    files = [one.path for one in held]
    pictures = picture_column(held[0], columns)
    if pictures is None:
        raise DataError(
            f"{files[0]} has no column of pictures; give one file with a column of paths, or --image-column"
        )
    table: dict[str, list[str]] = {}
    packs: list[ParquetPack] = []
    splits, locations = list[str](), list[str]()

    def read(one: Held) -> dict[str, list[str]]:
        if picture_column(one, columns) != pictures:
            raise DataError(f"{one.path} has no column of pictures like that of {files[0]}; give files of one kind")
        found = _texts(one)
        one.check()
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        columns_of = list(pool.map(read, held))
    for one, called, of_file, found in zip(held, names_of(files), splits_of(files), columns_of, strict=True):
        file = one.path
        if packs and set(found) != set(table):
            differing = sorted(set(found) ^ set(table))
            raise DataError(f"{file} and {files[0]} differ in the column {differing[0]!r}; give files of one kind")
        for column, texts in found.items():
            table.setdefault(column, []).extend(texts)
        packs.append(ParquetPack(one, pictures))
        splits += _splits_of(file, found, columns) or [of_file] * len(packs[-1])
        locations += [f"{called}[{row}]" for row in range(len(packs[-1]))]
    if not splits:
        raise DataError(f"{name} has no rows")
    label, split, group = (
        column_of(files[0], table, kind, getattr(columns, f"{kind}_column")) for kind in ("label", "split", "group")
    )
    labels = table[label] if label is not None else [""] * len(splits)
    groups = table[group] if group is not None else []
    notes = lacking(files) if label is not None else [*lacking(files), no_labels(files[0], list(table))]
    return Listing(
        name=name,
        labels=labels,
        splits=splits,
        locations=Texts(locations),
        source=PackedSource(packs),
        notes=notes + questioned(files[0], label, [text for text in labels if text]),
        groups=groups if any(groups) else None,
        others={column: texts for column, texts in table.items() if column not in (label, split, group)},
    )


def _splits_of(file: Path, table: dict[str, list[str]], columns: Columns) -> list[str]:
    """The split of each of a file's rows, from its column; nothing if it has none."""
    split = column_of(file, table, "split", columns.split_column)
    return [] if split is None else [named_split(file, row, text) for row, text in enumerate(table[split])]


def _texts(held: Held) -> dict[str, list[str]]:
    """The columns of a Parquet file that hold one value a row, as text; numbers of classes as the names of these."""
    import pyarrow

    path, file = held.path, _opened(held)
    plain = [one.name for one in file.schema_arrow if _is_plain(one.type)]
    check_header(path, plain)
    try:
        values = {column: file.read(columns=[column]).column(0).to_pylist() for column in plain}
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    names = _class_names(file.schema_arrow.metadata or {})
    found = {}
    for column, rows in values.items():
        known = dict(enumerate(names.get(column, ())))
        if beyond := [row for row, value in enumerate(rows) if known and not _is_named(value, known)]:
            raise DataError(
                f"{path}, row {beyond[0]}: {column!r} is {rows[beyond[0]]}, and the schema names {len(known)} classes, "
                f"0 to {len(known) - 1}, or -1 for none; correct {counted(len(beyond), 'row')}, or name another column"
            )
        found[column] = [_text(value, known) for value in rows]
    return found


def _is_named(value: Any, names: dict[int, str]) -> bool:
    """Whether a number has a name, or stands for none."""
    return value is None or value == -1 or value in names


def _text(value: Any, names: dict[int, str]) -> str:
    """A value as text; "" of none: of null, of what is no number, and of -1 where numbers stand for names."""
    if value is None or value != value or (names and value == -1):
        return ""
    return names.get(value, str(value)).strip()


def _is_plain(kind: pyarrow.DataType) -> bool:
    """Whether a column holds one text, number, date or truth value a row."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType) or types.is_nested(kind):
        return False
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    return "binary" not in str(kind)


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes that the numbers of a column stand for, as the schema tells them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {column: one["names"] for column, one in features.items() if one.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not written by that library, or damaged
        return {}
    return {
        column: names
        for column, names in found.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }
