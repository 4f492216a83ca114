"""Local copies of what lies at addresses, in a folder of bounded size from which the least recently used go first.

Copies can be removed at any time: they are then fetched again. Beside them lies what of a cache or of runs at an
address only this machine needs: memo, graphs, and the checkpoints that `finetune --resume` goes on from.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from pipeline.errors import ConfigError
from pipeline.util import disk
from pipeline.util.addresses import is_remote
from pipeline.util.files import PARTIAL_SUFFIX, digest_of, is_abandoned, partial_name, published
from pipeline.util.machine import cache_folder

GIGABYTES = 50.0  # unless $TLPIPE_LOCAL_CACHE_GB says otherwise
CHECKED = 20  # times the size is looked at while as much as fits is written
STILL = 3600.0  # seconds after which nobody is writing what did not grow: of other machines nothing else tells it
LEFT = 0.9  # of the size, once there was more: looking is slow, so it must not be needed at once again

_lock = Lock()
_fetching: defaultdict[Path, Lock] = defaultdict(Lock)
_written: dict[Path, float] = {}  # bytes since the folder was last looked at


def folder() -> Path:
    """Where local copies lie: $TLPIPE_LOCAL_CACHE, else below the folder that the platform keeps for caches."""
    named = os.environ.get("TLPIPE_LOCAL_CACHE")
    return Path(named).expanduser() if named else cache_folder() / "local"


def own_part(place: Path) -> Path:
    """The folder of this machine for what a cache, or a folder of runs, holds that no other machine needs.

    That is the place itself, unless it is at an address.
    """
    return folder() / "own" / digest_of(str(place).encode()) if is_remote(place) else place


def most_bytes() -> float:
    """Bytes that local copies may take.

    Raises:
        ConfigError: If $TLPIPE_LOCAL_CACHE_GB is no number above 0.
    """
    given = os.environ.get("TLPIPE_LOCAL_CACHE_GB") or str(GIGABYTES)
    try:
        number = float(given)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise ConfigError(f"$TLPIPE_LOCAL_CACHE_GB is {given!r}; give a number of gigabytes above 0, such as 50")
    return number * 1e9


def local_copy(name: str, fetch: Callable[[Path], object], suffix: str = "") -> Path:
    """The local copy of a file, which is fetched if there is none.

    Args:
        name: What the file is, and of which state: of another state there is another copy.
        fetch: Writes the file at a path.
        suffix: Of the copy's name.

    Raises:
        StoreError: If the disk is full or can't be written.
    """
    path = _path(digest_of(name.encode()), suffix)
    with _fetching[path]:  # threads that want the same file wait for one of them
        if not _used(path):
            with published(path) as partial:
                fetch(partial)
                size = partial.stat().st_size
            _used(path)  # now, not when it began to arrive
            _count(path, size)
    return path


def copy_here(name: str, suffix: str = "") -> Path | None:
    """The local copy of a file, as `local_copy` names it; None if there is none now."""
    path = _path(digest_of(name.encode()), suffix)
    return path if _used(path) else None


def forget(name: str, suffix: str = "") -> None:
    """Remove the local copy of a file, as `local_copy` names it, so that it is fetched again."""
    with suppress(OSError):
        disk.remove(_path(digest_of(name.encode()), suffix))


def kept(key: str) -> bytes | None:
    """Bytes that were kept under their digest; None if they aren't there, or changed."""
    path = _path(key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if digest_of(data) != key:
        return None
    _used(path)
    return data


def keep(data: bytes, key: str) -> None:
    """Keep bytes under their digest; not on a disk that is full."""
    path = _path(key)
    partial = partial_name(path)
    with suppress(OSError):
        disk.make_folder(path.parent)
        try:
            disk.write(partial, data)  # not flushed: `kept` looks whether it is whole
            disk.rename(partial, path)
        except OSError:
            disk.remove(partial)
            raise
        _count(path, len(data))


def _path(digest: str, suffix: str = "") -> Path:
    return folder() / "copies" / digest[:2] / f"{digest}{suffix}"


def _used(path: Path) -> bool:
    """Mark a copy as used now; False if there is none."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def _count(path: Path, size: int) -> None:
    """Remove what was not used for longest, now and then, if there is more than may be; not what just came."""
    root, most = folder() / "copies", most_bytes()
    with _lock:
        _written[root] = _written.get(root, most) + size
        if _written[root] < most / CHECKED:
            return
        _written[root] = 0.0
        found = sorted(_copies(root))
        total = sum(size for _, size, _ in found)
        if total > most:
            for _, size, other in found:
                if total <= LEFT * most:
                    break
                if other != str(path):
                    with suppress(OSError):
                        disk.remove(Path(other))
                    total -= size


def _copies(root: Path) -> Iterator[tuple[float, int, str]]:
    """When each copy was last used, its bytes, and its path; of what is being written, only what nobody writes now."""
    with os.scandir(root) as folders:
        for one in folders:
            if one.is_dir():
                with os.scandir(one) as files:
                    for file in files:
                        with suppress(FileNotFoundError):
                            stat = file.stat()
                            being_written = file.name.endswith(PARTIAL_SUFFIX) and stat.st_mtime > time.time() - STILL
                            if not being_written or is_abandoned(Path(file.path)):
                                yield stat.st_mtime, stat.st_size, file.path
