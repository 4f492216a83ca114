"""Parquet files with the pictures inside, as Hugging Face's `datasets` writes them (huggingface.co/docs/datasets)."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipeline.config import Columns
from pipeline.data.dataset import Listing, printable
from pipeline.data.manifest import check_header, column_of, named_split, no_labels, questioned
from pipeline.data.packed import PackedSource, split_of_file
from pipeline.errors import DataError, ImageError
from pipeline.util.memo import Stamp
from pipeline.util.texts import Texts

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
GROUPS = 4  # row groups held at once: threads that read ahead may stand at the end of one and in the next
PICTURES = ("image", "img", "picture", "jpg", "png")

_reading = Lock()


class ParquetPack:
    """A Parquet file with a column of pictures, read row group by row group.

    Args:
        path: The file.
        inside: Name of the binary column, as `picture_column` gives it: `image`, or `image.bytes` of a struct.
    """

    def __init__(self, path: Path, inside: str) -> None:
        self.path, self.kind = path, f"parquet {inside}"
        self._inside = inside
        self._stamp = Stamp.of(path)
        meta = _opened(path).metadata
        self._starts = [0, *accumulate(meta.row_group(number).num_rows for number in range(meta.num_row_groups))]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, place: int) -> bytes:
        """A picture's bytes."""
        group = bisect_right(self._starts, place) - 1
        with _reading:  # else threads would each read the group they all wait for
            pictures = _pictures(self.path, self._stamp, self._inside, group)
        data = pictures[place - self._starts[group]].as_py()
        if data is None:
            raise ImageError(f"row {place} of {self.path.name} holds no picture")
        return bytes(data)


@lru_cache(GROUPS)
def _pictures(path: Path, stamp: Stamp, inside: str, group: int) -> pyarrow.ChunkedArray:
    """A row group of pictures; the stamp tells it from that of another file that had the same path."""
    import pyarrow
    from pyarrow import compute

    try:
        column = _opened(path).read_row_group(group, columns=[inside]).column(0)
    except (OSError, DataError, pyarrow.ArrowException) as error:
        raise ImageError(f"{path.name} can't be read: {error}", lasting=False) from error
    return compute.struct_field(column, "bytes") if inside.endswith(".bytes") else column


def _opened(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error


def picture_column(path: Path, columns: Columns) -> str | None:
    """Name of the binary column of pictures in a Parquet file; None if there is none, as in a table of paths.

    Raises:
        DataError: If the column that is named isn't there or holds no pictures, or several may be meant.
    """
    from pyarrow import types

    schema = _opened(path).schema_arrow
    found: dict[str, str] = {}
    for one in schema:
        if types.is_binary(one.type) or types.is_large_binary(one.type):
            found[one.name] = one.name
        elif types.is_struct(one.type) and one.type.get_field_index("bytes") >= 0:
            found[one.name] = f"{one.name}.bytes"
    if columns.image_column is not None:
        if columns.image_column not in found:
            raise DataError(
                f"{path} has no column of pictures {columns.image_column!r} (--image-column); "
                + (f"it has {', '.join(found)}" if found else "it has none")
            )
        return found[columns.image_column]
    if columns.path_column is not None or not found:
        return None
    usual = [name for name in PICTURES if name in found]
    if len(found) > 1 and not usual:
        raise DataError(f"{path} has several columns of pictures: {', '.join(found)}; name it: --image-column")
    return found[usual[0] if usual else next(iter(found))]


def read_parquet(files: Sequence[Path], name: str, columns: Columns) -> Listing:
    """List the pictures in Parquet files; each gives the split of its name, if there is no column of splits.

    Args:
        files: The files.
        name: Short name for people.
        columns: Names of their columns.

    Raises:
        DataError: If a file can't be read, or lacks a column that the first one has.
    """
    inside = picture_column(files[0], columns)
    if inside is None:
        raise DataError(
            f"{files[0]} has no column of pictures; give one file with a column of paths, or --image-column"
        )
    table: dict[str, list[str]] = {}
    packs: list[ParquetPack] = []
    splits, locations = list[str](), list[str]()
    for file in files:
        if picture_column(file, columns) != inside:
            raise DataError(f"{file} has no column of pictures like that of {files[0]}; give files of one kind")
        found = _texts(file)
        if packs and set(found) != set(table):
            differing = sorted(set(found) ^ set(table))
            raise DataError(f"{file} and {files[0]} differ in the column {differing[0]!r}; give files of one kind")
        for column, texts in found.items():
            table.setdefault(column, []).extend(texts)
        packs.append(ParquetPack(file, inside))
        splits += [split_of_file(file)] * len(packs[-1])
        locations += [f"{printable(file.name)}[{row}]" for row in range(len(packs[-1]))]
    if not splits:
        raise DataError(f"{name} has no rows")
    label, split, group = (
        column_of(files[0], table, kind, getattr(columns, f"{kind}_column")) for kind in ("label", "split", "group")
    )
    if split is not None:
        splits = [named_split(files[0], row, text) for row, text in enumerate(table[split])]
    labels = table[label] if label is not None else [""] * len(splits)
    groups = table[group] if group is not None else []
    notes = [] if label is not None else [no_labels(files[0], list(table))]
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


def _texts(path: Path) -> dict[str, list[str]]:
    """The columns of a Parquet file that hold one value a row, as text; numbers of classes as the names of these."""
    import pyarrow
    from pyarrow import types

    file = _opened(path)
    plain = [
        one.name
        for one in file.schema_arrow
        if not (types.is_nested(one.type) or types.is_binary(one.type) or types.is_large_binary(one.type))
    ]
    check_header(path, plain)
    try:
        table = file.read(columns=plain)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    names = _class_names(file.schema_arrow.metadata or {})
    found = {}
    for column in plain:
        values = table.column(column).to_pylist()
        known = dict(enumerate(names.get(column, ())))
        # Where labels are numbers of names, -1 stands for none.
        unnamed = (None, -1) if known else (None,)
        texts = {value: "" if value in unnamed else known.get(value, str(value)) for value in set(values)}
        found[column] = [texts[value] for value in values]
    return found


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes that the numbers of a column stand for, as the schema tells them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {column: one["names"] for column, one in features.items() if one.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):  # not written by that library, or damaged
        return {}
    return {
        column: names
        for column, names in found.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }
