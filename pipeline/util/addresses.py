"""Paths at addresses that fsspec opens: telling them apart, errors in plain words, and what is put and removed there.

At an address nothing is renamed, and there are no folders: a file is put whole, and a folder is known by one of its
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import StoreError, TlpipeError
from pipeline.util.text import first_line

WITH_BUCKETS = ("s3", "s3a", "gs", "gcs")


def is_remote(path: Path) -> bool:
    """Whether a path lies at an address that fsspec opens, not on this machine."""
    return not isinstance(path, Path)


@contextmanager
def asking(path: Path) -> Iterator[None]:
    """Say in plain words that an address of the cache can't be reached; nothing changes on this machine.

    Raises:
        StoreError: In place of any error but that something isn't there.
    """
    if not is_remote(path):
        yield
        return
    with in_plain_words(path, StoreError, passing=FileNotFoundError):
        yield


@contextmanager
def in_plain_words(
    address: object, kind: type[TlpipeError], done: str = "read", passing: type[Exception] = TlpipeError
) -> Iterator[None]:
    """Say in plain words that an address can't be reached, of which each file system has its own kinds of errors.

    Args:
        address: As the user knows it.
        kind: The error that is raised in place of any other.
        done: What couldn't be done.
        passing: Errors that are raised as they are, beside those of tlpipe.
    """
    try:
        yield
    except (TlpipeError, passing):
        raise
    except Exception as error:
        raise kind(
            f"{address} can't be {done}: {first_line(error)}; check the address, the account, and the network"
        ) from error


def check_bucket(folder: Path) -> None:
    """Tell an address where nothing is yet from one that can't be, as some file systems list nothing in both cases.

    Raises:
        FileNotFoundError: If there is no such bucket.
    """
    bucket = folder.path.partition("/")[0]  # type: ignore[attr-defined]
    if folder.protocol in WITH_BUCKETS and bucket and not folder.fs.exists(bucket):  # type: ignore[attr-defined]
        raise FileNotFoundError(f"there is no bucket {bucket}")


def remove_all(place: Path, names: Iterable[str]) -> None:
    """Remove files at an address by their whole names, in which nothing stands for a pattern."""
    for name in names:
        with suppress(FileNotFoundError):
            place.fs.rm_file(name)  # type: ignore[attr-defined]


def put_folder(written: Path, path: Path, last: str) -> None:
    """Put all files of a folder at an address; what was there before is removed first.

    The file by which the folder is known is the first that goes and the last that comes, so that parts of two folders
    are never taken for one. If a file can't be put, none stays.
    """
    fs = path.fs  # type: ignore[attr-defined]
    files = [file for file in written.rglob("*") if file.is_file()]
    put = {f"{path.path}/{file.relative_to(written).as_posix()}": file for file in files}  # type: ignore[attr-defined]
    remove_all(path, sorted(fs.find(path.path), key=lambda name: not name.endswith(f"/{last}")))  # type: ignore[attr-defined]
    try:
        for name, file in sorted(put.items(), key=lambda pair: pair[1].name == last):
            fs.put_file(str(file), name)
    except Exception:
        with suppress(Exception):
            remove_all(path, put)
        raise
