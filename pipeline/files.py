"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["PARTIAL_SUFFIX", "flush_to_disk", "folder_size", "published", "published_folder", "read_json", "write_json"]

PARTIAL_SUFFIX = ".partial"


def flush_to_disk(path: Path) -> None:
    """Make a file's bytes, or a folder's list of names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`, whole and on disk, only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(path)
    try:
        yield partial
        flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, with all its files on disk, only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(path)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            flush_to_disk(file)
        flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.parent)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON."""
    with published(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If it can't be read.
        ValueError: If it isn't JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
