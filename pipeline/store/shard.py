"""One shard: an immutable HDF5 file of features, how it is written, verified, and remembered to be sound."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.config import FeatureSpec
from pipeline.data import KEY_DTYPE
from pipeline.util.addresses import is_remote
from pipeline.util.checked import read_checked
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo, Stamp, stats
from pipeline.util.sealed import decoded
from pipeline.util.stamps import stamps_of
from pipeline.util.text import first_line

ASKED = 256  # shards at a time whose keys are asked of the memo


@dataclass(frozen=True, slots=True)
class Shard:
    """One immutable file of features.

    Attributes:
        path: The file.
        keys: Row keys, shape [n]: image keys, or keys of their views.
        row_shape: Shape of one row's features.
        written_by: Versions of what computed it, engine, precision and processor; empty until version 0.1.
    """

    path: Path
    keys: NDArray[np.bytes_]
    row_shape: tuple[int, ...]
    written_by: dict[str, str] = field(default_factory=dict)


def shard_bytes(
    spec: FeatureSpec, keys: NDArray[np.bytes_], features: NDArray[np.floating], written_by: Mapping[str, str]
) -> bytes:
    """The file of some rows."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("key", data=keys)
        file.create_dataset("features", data=features)
        file.attrs["spec"] = spec.digest()
        file.attrs["written_by"] = json.dumps(written_by, sort_keys=True)
    return buffer.getvalue()


def verified(path: Path, digest: str) -> Shard | str:
    """Read a whole shard of the spec of this digest; the cause if it doesn't hold what was written.

    Raises:
        StoreError: If it lies at an address and can't be had from there, which says nothing of what it holds.
    """
    try:
        data = read_checked(path)
        if data is None:
            return "differs from its checksum: bytes were changed after it was written"
        with h5py.File(io.BytesIO(data), "r") as file:
            keys, features = file["key"][:], file["features"]
            if keys.dtype.kind != "S" or keys.ndim != 1 or features.dtype.kind != "f" or features.ndim < 2:
                raise ValueError("it holds no rows of features by key")
            shape, spec = features.shape, file.attrs["spec"]
            written_by = json.loads(file.attrs.get("written_by", "{}"))
    except (OSError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # h5py raises all of them
        return f"can't be read: {first_line(error)}"
    if not isinstance(spec, str) or spec != digest:
        return "belongs to another spec"
    if not isinstance(written_by, dict):
        return "doesn't say what it was written by"
    if len(keys) != shape[0]:
        return f"has {len(keys)} keys for {shape[0]} rows"
    return Shard(path, keys.astype(KEY_DTYPE), shape[1:], written_by)


class State(NamedTuple):
    """What tells a shard from another one of the same name.

    Attributes:
        stamp: Size and time, or what stands for it at an address.
        inode: Of its file; 0 at an address.
        changed_ns: When the file was last changed in any way, nanoseconds; 0 at an address.
    """

    stamp: Stamp
    inode: int = 0
    changed_ns: int = 0


def states(paths: Iterable[Path]) -> dict[Path, State]:
    """The states of those of some shards that are there."""
    paths = list(paths)
    if not paths or not is_remote(paths[0]):
        return {path: State(Stamp.of(stat), stat.st_ino, stat.st_ctime_ns) for path, stat in stats(paths).items()}
    found = stamps_of(paths[0].parent, [path.name for path in paths])
    return {path: State(found[path.name]) for path in paths if path.name in found}


@dataclass(frozen=True, slots=True)
class _Sound:
    """What is remembered of a shard beside its keys.

    Attributes:
        inode: Of the file: another one of the same name, size and time has another.
        changed_ns: When the file was last changed in any way, nanoseconds; no program can set this time.
        keys: Digest of the keys.
        row_shape: As in `Shard`.
        written_by: As in `Shard`.
    """

    inode: int
    changed_ns: int
    keys: str
    row_shape: tuple[int, ...]
    written_by: dict[str, str]


class SoundShards:
    """Remembers the shards that were verified, so that each is read whole only once."""

    KIND = "shard"

    def __init__(self, cache: Path) -> None:
        self._memo = Memo(cache)

    def recall(self, paths: Iterable[Path]) -> dict[Path, Shard]:
        """Those of some shards that were verified, and whose files are still the same."""
        now, found = states(paths), {}
        there = list(now)
        for start in range(0, len(there), ASKED):
            stamps = {path: now[path].stamp for path in there[start : start + ASKED]}
            for path, text in self._memo.recall(self.KIND, stamps).items():
                header, _, keys = text.encode("latin-1").partition(b"\n")
                with suppress(ValueError):
                    known, state = decoded(_Sound, json.loads(header)), now[path]
                    if (known.inode, known.changed_ns, known.keys) == (state.inode, state.changed_ns, digest_of(keys)):
                        found[path] = Shard(path, np.frombuffer(keys, KEY_DTYPE), known.row_shape, known.written_by)
        return found

    def remember(self, shards: Sequence[Shard], before: Mapping[Path, State], stamped: int) -> None:
        """Remember shards that were verified.

        Args:
            shards: What they hold.
            before: What the file system said of them before they were read.
            stamped: When that was, nanoseconds of the wall clock.
        """
        texts = {}
        for shard in shards:
            if state := before.get(shard.path):
                keys = shard.keys.tobytes()
                known = _Sound(state.inode, state.changed_ns, digest_of(keys), shard.row_shape, shard.written_by)
                text = f"{json.dumps(asdict(known))}\n{keys.decode('latin-1')}"
                texts[shard.path] = (state.stamp, text)
        self._memo.remember(self.KIND, texts, stamped)

    def forget(self, paths: Iterable[Path]) -> None:
        """Have some shards verified again when they are next read."""
        self._memo.forget(self.KIND, paths)
