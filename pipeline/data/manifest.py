"""Manifests: a table of paths, perhaps labels, splits and groups, in CSV, TSV or Parquet.

Columns are found by their common names, or by the names that a user gives. All others are carried along as text.
"""

from __future__ import annotations

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Columns
from pipeline.data.dataset import Listing, shortened
from pipeline.data.folder import SPLIT_NAMES
from pipeline.data.mixed import source_of
from pipeline.errors import DataError
from pipeline.util import remote
from pipeline.util.addresses import is_remote
from pipeline.util.fetching import Held
from pipeline.util.text import counted

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
COMMON_NAMES = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "img",
        "img_path",
    ),
    "label": ("label", "class", "target", "labels", "class_name", "category"),
    "split": ("split", "subset", "partition"),
    "group": ("group",),
}
ROW = ("label", "split", "group")
MANY_NUMBERS = 20  # more different ones than that are hardly classes


def read_manifest(path: Path, columns: Columns, *, again: bool = False) -> Listing:
    """List the images that a manifest names; paths are relative to the manifest's folder.

    Without a column of labels, or in rows without one, images are unlabelled.

    Args:
        path: The manifest.
        columns: Names of its columns.
        again: Fetch it again, if it lies at an address.

    Raises:
        DataError: If columns are missing or can't be told apart, a path leaves the folder, files are missing, or one
            path has two labels, splits or groups.
    """
    table = read_table(path, again=again)
    chosen = {kind: column_of(path, table, kind, getattr(columns, f"{kind}_column")) for kind in COMMON_NAMES}
    names = _paths(path, table, chosen["path"])
    empty = [""] * len(names)
    found = [chosen[kind] for kind in ROW]
    labels, splits, groups = (empty if one is None else [text.strip() for text in table[one]] for one in found)
    splits = [named_split(path, row, text) for row, text in enumerate(splits)]
    rows = list(zip(labels, splits, groups, strict=True))
    first = _first_rows(path, names, rows)
    kept = list(first.values())
    doubles = len(names) - len(kept)
    notes = [f"Of {path.name}, {counted(doubles, 'row')} merged with others of the same path"] if doubles else []
    if chosen["label"] is None:
        notes.append(no_labels(path, list(table)))
    labels, splits, groups = ([rows[number][column] for number in kept] for column in range(len(ROW)))
    notes += questioned(path, chosen["label"], [text for text in labels if text])
    others = [name for name in table if name and name not in chosen.values()]
    return Listing(
        name=path.stem,
        labels=labels,
        splits=splits,
        locations=[names[number] for number in kept],
        source=source_of(list(first)),
        notes=notes,
        groups=groups if any(groups) else None,
        others={name: [table[name][number] for number in kept] for name in others},
    )


def _first_rows(path: Path, names: list[str], rows: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """The number of the first row of each file; further ones must say the same of it.

    Raises:
        DataError: If they don't, a path leaves the folder, or files are missing.
    """
    first: dict[str, int] = {}
    conflicts = []
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        before = rows[first.setdefault(_inside(path, name), number)]
        if before != row:
            one, other = next(pair for pair in zip(before, row, strict=True) if pair[0] != pair[1])
            conflicts.append(f"{name} ({one} and {other})")
    if conflicts:
        raise DataError(
            f"{path} gives {counted(len(conflicts), 'path')} twice with different labels, splits or groups: "
            f"{shortened(conflicts)}; keep one row of each"
        )
    # What is gone at an address is found when it is read: to ask for each would take as long.
    if absent := [
        names[row] for file, row in first.items() if not remote.is_address(file) and not Path(file).is_file()
    ]:
        raise DataError(
            f"{path} names {counted(len(absent), 'file')} not there, of {len(first):,}: {shortened(absent)}; "
            f"paths are relative to {path.parent}"
        )
    return first


def read_paths(path: Path, column: str | None = None) -> list[str]:
    """The files that a manifest names, row by row; they need not be there.

    Args:
        path: The manifest.
        column: Its column of paths; None for the common names.

    Raises:
        DataError: If there is no column of paths, or a path leaves the folder.
    """
    table = read_table(path)
    return [_inside(path, name) for name in _paths(path, table, column_of(path, table, "path", column))]


def column_of(path: Path, table: Mapping[str, Any], kind: str, given: str | None) -> str | None:
    """The name of a column of a manifest; None if there is none and it may be missing.

    Raises:
        DataError: If it isn't there, or several may be meant.
    """
    there = {name.lower(): name for name in table}
    if given is not None:
        if given.strip().lower() not in there:
            raise DataError(f"{path} has no column {given!r} (--{kind}-column); it has {', '.join(table) or 'none'}")
        return there[given.strip().lower()]
    found = [there[name] for name in COMMON_NAMES[kind] if name in there]
    if len(found) > 1 and found[0].lower() != kind:
        raise DataError(
            f"{path} has several columns that may be the {kind}: {', '.join(found)}; name it: --{kind}-column"
        )
    if not found and kind == "path":
        raise DataError(
            f"{path} lacks a column of paths ({', '.join(COMMON_NAMES['path'])}); it has {', '.join(table) or 'none'}. "
            "Name it: --path-column NAME"
        )
    return found[0] if found else None


def no_labels(path: Path, columns: list[str]) -> str:
    """Say that there is no column of labels, and which there are."""
    return (
        f"{path.name} has no column of labels ({', '.join(COMMON_NAMES['label'])}); "
        f"it has {', '.join(columns) or 'no other column'}. "
        "If one of them holds the labels, name it: --label-column NAME"
    )


def _paths(path: Path, table: dict[str, list[str]], column: str | None) -> list[str]:
    names = [name.strip() for name in table[column or "path"]]
    if not names:
        raise DataError(f"{path} has a header but no rows")
    if not all(names):
        raise DataError(f"{path} has a row without path, row {names.index('') + 1}; fill it, or take the row away")
    return names


def questioned(path: Path, column: str | None, labels: list[str]) -> list[str]:
    """Doubt whether a column of many different numbers holds classes."""
    different = sorted(set(labels))
    try:
        numbers = sorted({float(label) for label in different})
    except ValueError:
        return []
    many = len(numbers) > MANY_NUMBERS or not all(number.is_integer() for number in numbers)
    # Numbers from 0 or 1 without a gap, each of several pictures, are how classes are often written.
    counted = numbers[:1] in ([0.0], [1.0]) and numbers == [numbers[0] + step for step in range(len(numbers))]
    if not many or (counted and len(labels) >= 2 * len(numbers)):
        return []
    return [
        f"The labels of {path.name} look like numbers, not classes: {column!r} has {len(different):,} different ones "
        f"in {len(labels):,} rows, such as {shortened(different, 3)}. Another column is named by --label-column NAME"
    ]


def named_split(path: Path, row: int, text: str) -> str:
    """The split that a row names; "" for none."""
    name = text.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise DataError(f"{path}, row {row + 1}: the split is {text!r}; it can be {', '.join(SPLIT_NAMES)} or empty")
    return SPLIT_NAMES.get(name, "")


def _inside(manifest: Path, name: str) -> str:
    """The file that `name` means, which must be an address, or lie below the manifest's folder; `a/../b` is `b`.

    A chain, such as zip://a.png::some.zip, is held to that by its end, which is what lies somewhere: all before it must
    be archives.
    """
    folder = manifest.parent
    if remote.is_address(name):
        *within, end = name.split("::")
        if within:
            remote.check_address(name)
        strange = [link for link in within if not remote.ARCHIVE.match(link)]
        strange += [end] if remote.LED_ASTRAY.match(end) else []
        if strange:
            raise DataError(
                f"{manifest} names {name!r}; {strange[0].partition(':')[0]} may lead to any file of this machine, so "
                "a table can't name it. Copy these pictures into the folder"
            )
        if remote.is_address(end) and not remote.HERE.match(end):
            return name
        if within:
            inside = _inside(manifest, end)
            return "::".join([*within, inside if remote.is_address(inside) else str(Path(inside).absolute())])
        name = str(remote.place(name))
    outside = (
        f"{manifest} names {name!r}, which leaves the folder {folder}; "
        "put the manifest in a folder above all its images"
    )
    if is_remote(manifest):
        below = posixpath.normpath(name)
        if below.startswith(("/", "../")) or below == "..":
            raise DataError(outside)
        return str(folder / below)
    try:
        (folder / name).exists()  # before it is simplified, as names that no file can have would be cut off
        file = Path(os.path.normpath(folder / name))
        leaves = not file.absolute().is_relative_to(Path(os.path.normpath(folder.absolute())))
        file.exists()
        leaves = leaves or not file.resolve(strict=False).is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a name no file can have
        raise DataError(f"{manifest} names {name!r}, which can't be followed: {error}") from error
    if file.is_symlink() and not file.exists():
        raise DataError(f"{manifest} names {name!r}, a link that leads nowhere or to itself")
    if leaves:
        raise DataError(outside)
    return str(file)


def read_table(path: Path, *, again: bool = False) -> dict[str, list[str]]:
    """The columns of a table, by the names in its header, all as text.

    Args:
        path: A .csv, .tsv or .parquet file.
        again: Fetch it again, if it lies at an address.

    Raises:
        DataError: If it can't be read, or its rows don't fit its header.
    """
    held = Held(path, again=again)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(held)

    def read(here: Path) -> tuple[str, list[list[str]]]:
        with here.open(newline="", encoding="utf-8-sig") as file:
            delimiter = _delimiter(path, file.readline())
            file.seek(0)
            return delimiter, list(csv.reader(file, delimiter=delimiter, strict=True))

    try:
        delimiter, rows = held.opened(read)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(f"{path} is empty; its first line names the columns: path, and perhaps label, split and group")
    header = [name.strip() for name in rows[0]]
    check_header(path, header)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {number} has {counted(len(row), 'value')}, the header {counted(len(header), 'column')}, "
                f"told apart by {delimiter!r}"
            )
    return {name: [row[column] for row in rows[1:]] for column, name in enumerate(header)}


def check_header(path: Path, header: list[str]) -> None:
    """Refuse two columns of one name, in capitals or not."""
    twice = [name for name, count in Counter(name.lower() for name in header).items() if name and count > 1]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}; rename one of them")


def _delimiter(path: Path, header: str) -> str:
    """What separates the columns: what stands most often in the first line, else what the suffix says."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return max((usual, ",", ";", "\t"), key=header.count)


def _read_parquet(held: Held) -> dict[str, list[str]]:
    import pyarrow
    from pyarrow import parquet

    path = held.path
    try:
        table = held.opened(parquet.read_table)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    table = table.drop_columns([one.name for one in table.schema if "binary" in str(one.type)])  # bytes are no text
    header = [name.strip() for name in table.column_names]
    check_header(path, header)
    texts = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return dict(zip(header, texts, strict=True))
