"""JSON files that tlpipe wrote, sealed by a digest, so that a changed bit is noticed."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pipeline.util import disk
from pipeline.util.addresses import asking
from pipeline.util.files import MARKER, digest_of, published

T = TypeVar("T")

WRITER, SEAL = "sealed_by", "seal"
"""Fields of a JSON object that tlpipe wrote: who wrote it, and the digest of all else, by which a change is noticed. A
single changed bit can make only one of them unknown, and the other one then tells."""


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with what tells later whether it was changed."""
    body = {WRITER: "tlpipe", **value}
    return {**body, SEAL: digest_of(_canonical(body))}


def unsealed(value: Any) -> dict[str, Any]:
    """A JSON object that `sealed` made, without what it added; one from before there were seals as it is.

    Raises:
        ValueError: If it is no object, or was changed.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if WRITER not in value and SEAL not in value:
        return value
    body = {name: one for name, one in value.items() if name != SEAL}
    if body.pop(WRITER, None) != "tlpipe" or sealed(body)[SEAL] != value.get(SEAL):
        raise ValueError("it was changed after it was written")
    return body


def _canonical(value: Any) -> bytes:
    """A JSON value as bytes that its spaces and the order of its fields don't change."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Publish a sealed JSON object, indented."""
    with published(path) as partial:
        disk.write(partial, json.dumps(sealed(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        OSError: If it can't be read.
        StoreError: If it lies at an address that can't be reached.
        ValueError: If it was changed, isn't a JSON object, or holds text that is no Unicode, which nothing could print.
    """
    with asking(path):
        data = path.read_bytes()
    try:
        value = unsealed(json.loads(data.decode()))
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def decoded(kind: type[T], value: Any) -> T:
    """A dataclass of what was read from JSON, whose every field is of the annotated type.

    Raises:
        ValueError: If a field is missing, or of another type.
        ConfigError: If a value is not legal.
    """
    return msgspec.convert(value, kind)


def is_marked(folder: Path) -> bool:
    """Whether tlpipe wrote a folder; those of before the marker are known by what lies in them."""
    if (folder / MARKER).is_file():
        return True
    before = {"features/*/spec.json": "backbone", "tables/*.json": "spec", "*/run.json": "stage"}
    return any(_has_field(path, name) for pattern, name in before.items() for path in islice(folder.glob(pattern), 1))


def _has_field(path: Path, name: str) -> bool:
    """Whether a file is a JSON object with a field of this name."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and name in value
