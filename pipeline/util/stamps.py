"""Stamps of files, here and at addresses: what file systems say of them that tells whether they have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.util.addresses import is_remote
from pipeline.util.files import digest_of
from pipeline.util.memo import Stamp
from pipeline.util.remote import READERS, listed, path_in, reaching, turn

TAGS = ("ETag", "etag", "blob_id", "md5Hash", "CRC")
"""What tells a file's content from another: what S3, Google, the Hugging Face Hub and zip files call it."""
TIMES = ("LastModified", "Last-Modified", "mtime", "updated", "modified", "created")
FEW = 8  # files of a folder that are asked for one by one, sooner than the folder's whole list


def stamps_of(folder: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """Stamps of files below a folder at an address; none of those that are gone, or of which nothing tells a change."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    found: dict[str, Stamp] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for above, some in by_folder.items():
            infos: Mapping[str, dict[str, Any] | None] = {}
            if len(some) > FEW:
                with suppress(DataError):  # web servers often list nothing
                    infos = listed(folder / above if above else folder)
            asked = [name for name in some if name.rpartition("/")[2] not in infos]
            each = dict(zip(asked, pool.map(lambda name: _info(folder, name), asked), strict=True))
            for name in some:
                info = each[name] if name in each else infos[name.rpartition("/")[2]]
                if info is not None and (stamp := _stamp(info)):
                    found[name] = stamp
    return found


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of one file, on this machine or at an address; None if it is gone, or nothing tells a change."""
    if not is_remote(path):
        return Stamp.of(path) if path.is_file() else None
    info = _info(path, "")
    return None if info is None else _stamp(info)


def _info(folder: Path, name: str) -> dict[str, Any] | None:
    try:
        with turn(folder):
            return folder.fs.info(path_in(folder, name))  # type: ignore[attr-defined, no-any-return]
    except Exception:  # reading it gives the error, with its cause
        return None


def size_of(folder: Path, name: str) -> int | None:
    """Bytes of a file at an address; None if nothing tells."""
    info = _info(folder, name)
    return None if info is None else info.get("size")


def _stamp(info: Mapping[str, Any]) -> Stamp | None:
    """A stamp of what a file system says: by the entity tag where there is one, else by size and time.

    A tag stands for a time before all times, as it is never too young to tell a change.
    """
    size = int(info.get("size") or 0)
    for name in TAGS:
        if info.get(name):
            return Stamp(size, -int(digest_of(str(info[name]).encode())[:15], 16))
    when = _changed(info)
    return None if when is None else Stamp(size, int(when * 1e9))


def _changed(info: Mapping[str, Any]) -> float | None:
    """When a file was last changed, seconds; None if nothing tells."""
    when = next((info[name] for name in TIMES if info.get(name)), None)
    if isinstance(when, str):
        with suppress(ValueError):  # as the web has it
            when = parsedate_to_datetime(when)
    if isinstance(when, datetime):
        return when.timestamp()
    return float(when) if isinstance(when, (int, float)) else None


def unfinished(folder: Path, known_by: str, since: float) -> list[Path]:
    """Folders in one at an address that lack the file by which they are known, and were not changed lately.

    Args:
        folder: The folder.
        known_by: The name of that file.
        since: Seconds of the wall clock; what was changed later may be being written.
    """
    with reaching(folder):
        found: dict[str, dict[str, Any]] = folder.fs.find(folder.path, detail=True)  # type: ignore[attr-defined]
    own = folder.path.rstrip("/") + "/"  # type: ignore[attr-defined]
    inside: dict[str, dict[str, float]] = {}
    for path, info in found.items():
        name, below, rest = path.removeprefix(own).partition("/")
        if below and not name.startswith("."):
            inside.setdefault(name, {})[rest] = _changed(info) or since + 1
    return [
        folder / name for name, files in sorted(inside.items()) if known_by not in files and max(files.values()) < since
    ]
