"""Manifests: a table of paths and labels, perhaps splits, in CSV, TSV or Parquet."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.data.dataset import FileSource, Listing, shortened
from pipeline.data.folder import SPLIT_NAMES
from pipeline.errors import DataError

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
COLUMNS = ("path", "label", "split")


def read_manifest(path: Path) -> Listing:
    """List the images that a manifest names; paths are relative to the manifest's folder.

    Raises:
        DataError: If columns are missing or unknown, a path leaves the folder, files are missing, or one path has
            two labels or two splits.
    """
    columns = _read_columns(path)
    missing = [name for name in ("path", "label") if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    if missing or unknown:
        wrong = f"lacks the column {missing[0]!r}" if missing else f"has the unknown column {unknown[0]!r}"
        raise DataError(f"{path} {wrong}; it has {', '.join(columns) or 'none'}; legal are path, label and split")
    n_rows = len(columns["path"])
    if n_rows == 0:
        raise DataError(f"{path} has a header but no rows")
    splits = [_split(path, row, text) for row, text in enumerate(columns.get("split", [""] * n_rows))]
    rows: dict[str, tuple[str, str]] = {}
    conflicts: list[str] = []
    for name, label, split in zip(columns["path"], columns["label"], splits, strict=True):
        if not name or not label:
            raise DataError(f"{path} has a row without {'path' if not name else 'label'}: {name or label or 'empty'!r}")
        if rows.setdefault(name, (label, split)) != (label, split):
            conflicts.append(f"{name} ({rows[name][0]} and {label})")
    if conflicts:
        raise DataError(
            f"{path} gives {len(conflicts):,} paths twice with different labels or splits: {shortened(conflicts)}; "
            "keep one row of each"
        )
    files = [_inside(path, name) for name in rows]
    absent = [name for name, file in zip(rows, files, strict=True) if not file.is_file()]
    if absent:
        raise DataError(
            f"{path} names {len(absent):,} files that aren't there, of {len(rows):,}: {shortened(absent)}; "
            f"paths are relative to {path.parent}"
        )
    doubles = n_rows - len(rows)
    notes = [f"{doubles:,} rows of {path.name} repeat others and were merged"] if doubles else []
    labels = [label for label, _ in rows.values()]
    return Listing(path.stem, labels, [split for _, split in rows.values()], list(rows), FileSource(files), notes)


def read_paths(path: Path) -> list[Path]:
    """The files that a manifest names, row by row; they need not be there.

    Raises:
        DataError: If there is no column `path`, or a path leaves the folder.
    """
    columns = _read_columns(path)
    if "path" not in columns:
        raise DataError(f"{path} lacks the column 'path'; it has {', '.join(columns) or 'none'}")
    if not all(columns["path"]):
        raise DataError(f"{path} has a row without path; fill it, or take the row away")
    return [_inside(path, name) for name in columns["path"]]


def _split(path: Path, row: int, text: str) -> str:
    name = text.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise DataError(f"{path}, row {row + 1}: the split is {text!r}; it can be {', '.join(SPLIT_NAMES)} or empty")
    return SPLIT_NAMES.get(name, "")


def _inside(manifest: Path, name: str) -> Path:
    """The file that `name` means, which must lie below the manifest's folder."""
    file = manifest.parent / name
    try:
        outside = ".." in Path(name).parts or not file.absolute().is_relative_to(manifest.parent.absolute())
        file.exists()
        file.resolve(strict=False)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a name no file can have
        raise DataError(f"{manifest} names {name!r}, which can't be followed: {error}") from error
    if file.is_symlink() and not file.exists():
        raise DataError(f"{manifest} names {name!r}, a link that leads nowhere or to itself")
    if outside:
        raise DataError(
            f"{manifest} names {name!r}, which leaves the folder {manifest.parent}; "
            "put the manifest in a folder above all its images"
        )
    return file


def _read_columns(path: Path) -> dict[str, list[str]]:
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(f"{path} is empty; its first line names the columns: path, label, and perhaps split")
    header = [name.strip().lower() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number} has {len(row)} values, the header has {len(header)} columns")
    return {name: [row[column] for row in rows[1:]] for column, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    return {
        name.strip().lower(): ["" if value is None else str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }
