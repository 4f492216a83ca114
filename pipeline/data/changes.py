"""Whether a source has changed since a dataset was read from it, by names and times alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import Columns
from pipeline.data import BUILT_IN, KEY_DTYPE, Dataset, FileSource, Listing, is_arrays, list_source
from pipeline.data.corrections import corrected, read_corrections
from pipeline.data.packed import PackedSource, is_pattern, there
from pipeline.errors import DataError
from pipeline.util import remote
from pipeline.util.memo import Memo, Stamp


def changes(data: str, columns: Columns, known: Dataset, carved: Sequence[str], since: float, memo: Memo) -> str:
    """Say in a few words what has changed in a source; "" if nothing has, or nothing can be told without the network.

    No image is read: a file that the memo knows unchanged is, and so is one that was last touched before `since`.

    Args:
        data: What a user named as DATA.
        columns: Which columns of a manifest are read.
        known: What was read from it.
        carved: Splits that the source doesn't have: images of them have another one there, or none.
        since: When that was, seconds since the epoch.
        memo: Where image keys of unchanged files are remembered.
    """
    path = Path(data)
    try:
        if data in BUILT_IN or remote.is_address(data):
            return ""
        if not (is_pattern(data) or there(path)):
            return ""
        if is_arrays(path):
            files = list(path.iterdir()) if path.is_dir() else [path]
            return "its arrays were written again" if any(_touched(file, since) for file in files) else ""
        return _differences(_listed(data, columns, known, memo), known, carved, since, memo)
    except (DataError, OSError):  # features can be trained on all the same
        return "some of its files are gone" if is_pattern(data) else ""


def _listed(data: str, columns: Columns, known: Dataset, memo: Memo) -> Listing:
    """The source as it is now, with its labels corrected as they were; what was left out is no part of it."""
    listing = list_source(data, columns, memo=memo)
    if columns.labels is None:
        return listing
    key_of = dict(zip(known.locations, known.keys.tolist(), strict=True))
    is_known = np.array([location in key_of for location in listing.locations])
    if isinstance(listing.source, FileSource):
        paths = {listing.source.path(row): row for row in np.flatnonzero(~is_known).tolist()}
        stamps = {path: Stamp.of(path) for path in paths if Path(path).is_file()}
        for path, key in memo.recall("image", stamps).items():
            key_of[listing.locations[paths[path]]] = key.encode()
    else:  # the rest of a file that was not written again was left out
        listing = listing.take(np.flatnonzero(is_known))
    keys = np.array([key_of.get(location, b"") for location in listing.locations], KEY_DTYPE)
    listing, stays = corrected(listing, keys, read_corrections(columns.labels), columns.labels)
    return listing.take(np.flatnonzero(stays))


def _differences(listing: Listing, known: Dataset, carved: Sequence[str], since: float, memo: Memo) -> str:
    if isinstance(listing.source, PackedSource):
        if any(_touched(pack.path, since) for pack in listing.source.packs):
            return "its files were written again"
        before, now = set(known.locations), set(listing.locations)
        counts = {"new": len(now - before), "gone": len(before - now)}
        named = [f"{count:,} {what}" for what, count in counts.items() if count]
        return f"of its images {', '.join(named)}" if named else ""
    if not isinstance(listing.source, FileSource):
        return ""
    rows = {location: row for row, location in enumerate(known.locations)}
    paths = [listing.source.path(index) for index in range(len(listing.source))]
    stamps = {path: Stamp.of(path) for path in paths if Path(path).is_file()}
    unchanged = memo.recall("image", stamps)
    counts = dict.fromkeys(("new", "changed", "of another label or split"), 0)
    for location, label, split, path in zip(listing.locations, listing.labels, listing.splits, paths, strict=True):
        row = rows.pop(location, None)
        if row is None:
            counts["new"] += path in stamps and os.access(path, os.R_OK)
        elif label != known.label_name(row) or (split and known.splits[row] not in (split, *carved)):
            counts["of another label or split"] += 1
        elif path in unchanged:
            counts["changed"] += unchanged[path].encode() != known.keys[row]
        else:
            counts["changed"] += path in stamps and _touched(path, since)
    counts["gone"] = len(rows)
    named = [f"{count:,} {what}" for what, count in counts.items() if count]
    return f"of its images {', '.join(named)}" if named else ""


def _touched(path: Path | str, since: float) -> bool:
    """Whether a file was written, renamed or moved after a time."""
    stat = Path(path).stat()
    return max(stat.st_mtime, stat.st_ctime) > since
