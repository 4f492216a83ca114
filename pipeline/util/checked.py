"""Files whose names end in the digest of what they hold, so that a single changed bit is noticed.

A parser must not see damaged bytes: HDF5 may hang or crash on them. At an address such a file is read through a local
copy, which can never be an older one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pipeline.errors import DataError, StoreError
from pipeline.util import disk
from pipeline.util.addresses import asking, is_remote
from pipeline.util.fetching import fetch
from pipeline.util.files import digest_of, digest_of_file, published
from pipeline.util.local_copies import local_copy

_seen: dict[Path, tuple[int, int]] = {}  # inode and size of the local copies that this process found sound


class _ChangedError(StoreError):
    """A file at an address holds something else than was written."""


def publish_checked(folder: Path, data: bytes | memoryview, suffix: str, prefix: str = "") -> Path:
    """Publish bytes under a name that ends in their digest, so that `read_checked` can tell whether they are sound.

    What is there already, and sound, is left as it is.

    Raises:
        StoreError: If the disk is full or can't be written, or gives back other bytes.
    """
    digest = digest_of(data)
    path = folder / f"{prefix}{digest}{suffix}"
    if is_sound(path):
        return path
    with published(path) as partial:
        disk.write(partial, data)
        if digest_of_file(partial) != digest:
            raise StoreError(f"{path} reads otherwise than it was written; is the disk failing?")
    if is_remote(path):  # who writes a file will likely read it
        with suppress(StoreError):
            local_copy(str(path), lambda copy: disk.write(copy, data), suffix)
    return path


def is_sound(path: Path) -> bool:
    """Whether a file is there and holds what `publish_checked` wrote.

    Raises:
        StoreError: If it lies at an address and can't be had from there.
    """
    if is_remote(path):
        with asking(path), suppress(_ChangedError):
            return path.exists() and bool(here(path))
        return False
    try:
        return path.stem.endswith(digest_of_file(path))
    except OSError:
        return False


def read_checked(path: Path) -> bytes | None:
    """The bytes that `publish_checked` wrote; None if a single one has changed.

    Raises:
        OSError: If the file can't be read.
        StoreError: If it lies at an address and can't be had from there.
    """
    try:
        data = here(path).read_bytes()
    except _ChangedError:
        return None
    return data if path.stem.endswith(digest_of(data)) else None


def here(path: Path) -> Path:
    """A file that `publish_checked` wrote, where libraries can open it: itself, or a sound local copy.

    Raises:
        StoreError: If it can't be had from its address as it was written.
    """
    if not is_remote(path):
        return path
    for _ in range(2):  # a copy that was damaged on this machine is fetched again
        try:
            copy = local_copy(str(path), lambda file: fetch(path, file), path.suffix)
            stat = copy.stat()
            if _seen.get(copy) == (stat.st_ino, stat.st_size) or path.stem.endswith(digest_of_file(copy)):
                _seen[copy] = (stat.st_ino, stat.st_size)
                return copy
            disk.remove(copy)
        except DataError as error:
            raise StoreError(str(error)) from error
        except FileNotFoundError:  # another process took its room
            continue
    raise _ChangedError(f"{path} was changed after it was written; run tlpipe extract again")
