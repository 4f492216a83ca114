"""Corrections: labels that a person gave, which overrule those of the data, and pictures that are left out.

They are read from a table (.csv, .tsv or .parquet) with a column `label` and a column `path` or `key`, or from the
`labels.jsonl` that `tlpipe label` writes.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.label import JOURNAL_SUFFIX
from pipeline.data.dataset import Listing, shortened
from pipeline.data.manifest import MANIFEST_SUFFIXES, column_of, read_table
from pipeline.data.source import FileSource
from pipeline.errors import DataError
from pipeline.util import log, remote
from pipeline.util.addresses import is_remote
from pipeline.util.fetching import Held
from pipeline.util.sealed import unsealed
from pipeline.util.text import counted

DROP = "drop"
"""In place of a label: the picture is left out."""

KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person said of a picture.

    Attributes:
        name: The image key, or the path of the picture.
        label: The class, or `DROP`.
        path: The path of a picture whose key is its name; it finds the picture if no other has that key, as after it
            was saved anew.
    """

    name: str
    label: str
    path: str = ""


def read_corrections(place: str) -> list[Correction]:
    """Read corrections, one for each picture that is named; of several, the last one counts.

    Args:
        place: A table or a journal, on this machine or at an address.

    Raises:
        DataError: If it can't be read, or has no corrections.
    """
    path = remote.place(place)
    suffix = path.suffix.lower()
    if suffix not in (*MANIFEST_SUFFIXES, JOURNAL_SUFFIX):
        raise DataError(
            f"{place} is no file of labels; give a {', '.join(MANIFEST_SUFFIXES)} table with the columns path (or key) "
            f"and label, or a {JOURNAL_SUFFIX} file of tlpipe label"
        )
    entries = _of_journal(path) if suffix == JOURNAL_SUFFIX else _of_table(path)
    found: dict[str, Correction] = {}
    for one in entries:
        found.pop(one.name, None)
        if one.label:
            found[one.name] = one
    if not found:
        raise DataError(f"{place} has no labels")
    return list(found.values())


def _of_table(path: Path) -> Iterator[Correction]:
    """What each row says; rows without a label say nothing."""
    table = read_table(path)
    there = {name.lower(): name for name in table}
    label = column_of(path, table, "label", None)
    by = there.get("key") or column_of(path, table, "path", None)
    if label is None or by is None:
        raise DataError(f"{path} has no column label; it has {', '.join(table) or 'none'}")
    for key, name, text in zip(table[by], table[there.get("path", by)], table[label], strict=True):
        if text.strip():
            yield Correction(key.strip() or name.strip(), text.strip(), name.strip())


def _of_journal(path: Path) -> Iterator[Correction]:
    """What each line of a journal says of an image key; the label "" where one was taken back."""
    for line in read_journal(path):
        if "key" not in line and not {"data", "class", "rating"}.isdisjoint(line):  # what is no answer
            continue
        key, label = line.get("key"), line.get("label")
        if not isinstance(key, str) or not KEY.fullmatch(key) or not isinstance(label, str):
            raise DataError(f"{path} is not what tlpipe label writes: {str(line)[:100]}")
        yield Correction(key, label)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a file to which lines of JSON are appended; a last one that was cut off is left out.

    Raises:
        DataError: If it can't be read, or a line was changed.
    """
    try:
        lines = Held(path).opened(Path.read_bytes).split(b"\n")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    if lines.pop():
        log.warning("The last line of %s was cut off as it was written, and is left out", path)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(unsealed(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} can't be read: {error}; correct it, or remove it") from error
    return found


def corrected(
    listing: Listing, keys: NDArray[np.bytes_], corrections: list[Correction], place: str
) -> tuple[Listing, NDArray[np.bool_]]:
    """Lay corrections over the labels of a source.

    A key means every byte-identical picture. A path is that below the data's folder, as in the locations, or leads to
    the picture from the folder of the file of labels.

    Args:
        listing: The pictures of the source that can be opened.
        keys: Their image keys, shape [n].
        corrections: What a person said of them.
        place: Where that was read from.

    Returns:
        The listing with the labels corrected, and a note of what was done; and which pictures are kept, shape [n].

    Raises:
        DataError: If no correction fits a picture, or nothing is left.
    """
    rows_of = _Named(listing, keys, remote.place(place).parent)
    labels = list(listing.labels)
    kept = np.ones(len(labels), np.bool_)
    strangers = []
    for one in corrections:
        rows = rows_of(one.name) or rows_of(one.path)
        if not rows:
            strangers.append(one.name)
        for row in rows:
            labels[row], kept[row] = one.label, one.label != DROP
    if len(strangers) == len(corrections):
        raise DataError(
            f"None of the {counted(len(corrections), 'label')} in {place} is of a picture of {listing.name}: "
            f"{shortened(strangers)}; they are known by image key, or by path below the data's folder"
        )
    if DROP in listing.labels:
        raise DataError(f"{listing.name} has a class {DROP!r}, which in {place} would leave pictures out; rename it")
    if not kept.any():
        raise DataError(f"{place} leaves out all {len(labels):,} pictures of {listing.name}")
    notes = [*listing.notes, _told(listing.labels, labels, kept, place)]
    if strangers:
        notes.append(f"In {place}, {counted(len(strangers), 'label')} of no picture there: {shortened(strangers)}")
    return replace(listing, labels=labels, notes=notes), kept


class _Named:
    """Finds the rows of a listing that a name means."""

    def __init__(self, listing: Listing, keys: NDArray[np.bytes_], folder: Path) -> None:
        self._by_key: dict[str, list[int]] = {}
        for row, key in enumerate(keys.tolist()):
            self._by_key.setdefault(key.decode(), []).append(row)
        self._by_location = {location: row for row, location in enumerate(listing.locations)}
        self._by_path: Mapping[str, int] = {}
        self._folder = folder
        if isinstance(source := listing.source, FileSource) and not is_remote(folder):
            self._by_path = {os.path.abspath(source.path(row)): row for row in range(len(source))}  # noqa: PTH100

    def __call__(self, name: str) -> list[int]:
        if not name:
            return []
        if name in self._by_key:
            return self._by_key[name]
        row = self._by_location.get(name, self._by_location.get(posixpath.normpath(name.replace("\\", "/"))))
        if row is None and self._by_path:
            row = self._by_path.get(os.path.abspath(self._folder / name))  # noqa: PTH100, resolving links would be slow
        return [] if row is None else [row]


def _told(before: list[str], after: list[str], kept: NDArray[np.bool_], place: str) -> str:
    """What corrections have changed, in a sentence."""
    pairs = [pair for pair, stays in zip(zip(before, after, strict=True), kept, strict=True) if stays]
    n_given = sum(not old and bool(new) for old, new in pairs)
    n_changed = sum(bool(old) and old != new for old, new in pairs)
    return (
        f"By {place}, {counted(n_changed, 'label')} changed, {n_given:,} given, "
        f"{counted(int((~kept).sum()), 'picture')} left out"
    )
