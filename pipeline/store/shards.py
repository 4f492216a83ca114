"""The features on disk: immutable shards, one folder for each feature spec.

A shard is made whole in memory, written under a temporary name, flushed to disk, reopened and verified, and only
then given its name. HDF5 promises nothing about a file that was open for writing when a process died, so HDF5 itself
never writes to the disk here; and a shard that has its name is never opened for writing again.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.config import FeatureSpec
from pipeline.data import KEY_DTYPE
from pipeline.errors import ConfigError, StoreError
from pipeline.util.files import decoded, mark_folder, publish_checked, published, read_checked, read_json, write_json
from pipeline.util.runtime import cpu_count

DAMAGED_SUFFIX = ".damaged"

log = logging.getLogger("tlpipe")


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


@dataclass(frozen=True, slots=True)
class Damage:
    """A shard that doesn't hold what was written, and why."""

    path: Path
    cause: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An image that could not be read.

    Attributes:
        key: Image key.
        location: Where it lay when it was tried.
        cause: What was wrong with it.
        reader: Library and limits that failed; others may not.
    """

    key: str
    location: str
    cause: str
    reader: str


class FeatureStore:
    """All features of one spec in one cache."""

    def __init__(self, cache: Path, spec: FeatureSpec) -> None:
        self.cache = cache
        self.spec = spec
        self.digest = spec.digest()
        self.folder = cache / "features" / self.digest
        self.shards: list[Shard] = []
        self._keys: NDArray[np.bytes_] = np.zeros(0, KEY_DTYPE)
        self._places: NDArray[np.int64] = np.zeros((0, 2), np.int64)

    # Reading

    def open(self, *, set_aside: bool = True) -> list[Damage]:
        """Look at all shards and verify them; rows of damaged ones count as missing.

        Args:
            set_aside: Rename damaged shards, so that they are not looked at again.

        Returns:
            The damaged shards.
        """
        self.shards = []
        return self.refresh(set_aside=set_aside)

    def refresh(self, *, set_aside: bool = True) -> list[Damage]:
        """As `open`, but what was verified before is not read again: a published file is never written to."""
        damaged: list[Damage] = []
        if set_aside and self.folder.is_dir():
            with suppress(StoreError):  # a cache that can only be read
                self._write_spec()
        known = {shard.path: shard for shard in self.shards}
        paths = self._paths()
        self.shards = [known[path] for path in paths if path in known]
        for path, found in self._verified([path for path in paths if path not in known]):
            if isinstance(found, Shard):
                self.shards.append(found)
            else:
                damaged.append(Damage(path, found))
                if set_aside:
                    # Another process may have been faster, or the cache is one that can only be read.
                    with suppress(OSError):
                        path.replace(path.with_name(path.name + DAMAGED_SUFFIX))
        self._index()
        return damaged

    def verify(self) -> list[Damage]:
        """Name the shards that don't hold what was written; nothing is moved."""
        return [Damage(path, found) for path, found in self._verified(self._paths()) if isinstance(found, str)]

    def _paths(self) -> list[Path]:
        return sorted((self.folder / "shards").glob("*.h5"))

    def _verified(self, paths: Sequence[Path]) -> Iterable[tuple[Path, Shard | str]]:
        with ThreadPoolExecutor(cpu_count()) as pool:
            return list(zip(paths, pool.map(self._check, paths), strict=True))

    def _check(self, path: Path) -> Shard | str:
        """Read a shard's keys; the cause if it doesn't hold what was written."""
        try:
            data = read_checked(path)
            if data is None:
                return "differs from its checksum: bytes were changed after it was written"
            with h5py.File(io.BytesIO(data), "r") as file:
                keys, shape = file["key"][:], file["features"].shape
                spec = file.attrs["spec"]
                written_by = json.loads(file.attrs.get("written_by", "{}"))
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            return f"can't be read: {str(error).splitlines()[0]}"
        if spec != self.digest:
            return "belongs to another spec"
        if len(keys) != shape[0]:
            return f"has {len(keys)} keys for {shape[0]} rows"
        return Shard(path, keys.astype(KEY_DTYPE), shape[1:], written_by)

    def _index(self) -> None:
        """Sort all row keys; the first shard that has a row wins, as all copies of a row are alike."""
        if not self.shards:
            self._keys, self._places = np.zeros(0, KEY_DTYPE), np.zeros((0, 2), np.int64)
            return
        keys = np.concatenate([shard.keys for shard in self.shards])
        places = np.concatenate(
            [
                np.stack([np.full(len(shard.keys), number), np.arange(len(shard.keys))], axis=1)
                for number, shard in enumerate(self.shards)
            ]
        )
        self._keys, first = np.unique(keys, return_index=True)
        self._places = places[first]

    def __len__(self) -> int:
        """Number of distinct rows."""
        return len(self._keys)

    def has(self, keys: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Which row keys are stored, shape [n]."""
        if not len(self._keys):
            return np.zeros(len(keys), np.bool_)
        positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.equal(self._keys[positions], keys)

    def places(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Where rows are stored: number of the shard and row in it, shape [n, 2].

        Raises:
            StoreError: If a row is missing.
        """
        stored = self.has(keys)
        if not stored.all():
            raise StoreError(f"{int((~stored).sum()):,} rows are not in {self.folder}; run tlpipe extract again")
        return self._places[np.searchsorted(self._keys, keys)]

    def read(self, keys: NDArray[np.bytes_]) -> NDArray[np.floating]:
        """Features of stored rows, in the order of `keys`, shape [n, d] or [n, h, w, c], as on disk.

        Raises:
            StoreError: If a row is missing, or a shard went away.
        """
        return self.read_at(self.places(keys))

    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row's features.

        Raises:
            StoreError: If there is no row.
        """
        if not self.shards:
            raise StoreError(f"There are no rows in {self.folder}; run tlpipe extract")
        return self.shards[0].row_shape

    def read_at(self, places: NDArray[np.int64]) -> NDArray[np.floating]:
        """Features of the rows at some places, in their order, each shard opened once.

        Raises:
            StoreError: If a shard went away.
        """
        features = np.empty((len(places), *self.row_shape()), self.spec.dtype)
        order = np.argsort(places[:, 0], kind="stable")
        numbers, starts = np.unique(places[order, 0], return_index=True)
        for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
            inside = places[rows, 1]
            first = inside.min()
            features[rows] = self._read_shard(number, slice(first, inside.max() + 1))[inside - first]
        return features

    def _read_shard(self, number: int, rows: slice) -> NDArray[np.floating]:
        path = self.shards[number].path
        try:
            with h5py.File(path, "r") as file:
                features: NDArray[np.floating] = file["features"][rows]
        except (OSError, KeyError) as error:
            raise StoreError(f"{path} can't be read: {error}; run tlpipe extract again") from error
        return features

    # Writing

    def append(
        self, keys: Sequence[bytes], features: NDArray[np.floating], written_by: Mapping[str, str] | None = None
    ) -> Shard:
        """Publish rows as a new shard.

        Args:
            keys: Row keys, length n.
            features: Shape [n, d] or [n, h, w, c], of the spec's dtype.
            written_by: What computed them: versions, engine, precision, processor.

        Raises:
            StoreError: If the disk is full or can't be written; nothing is left behind.
        """
        self._write_spec()
        column = np.array(keys, KEY_DTYPE)
        path = publish_checked(
            self.folder / "shards", self._shard_bytes(column, features, dict(written_by or {})), ".h5"
        )
        shard = Shard(path, column, features.shape[1:], dict(written_by or {}))
        self.shards.append(shard)
        return shard

    def free_space(self) -> int:
        """Bytes that are free where the shards go.

        Raises:
            StoreError: If nothing can be written there.
        """
        self._write_spec()
        return shutil.disk_usage(self.folder).free

    def _shard_bytes(
        self, keys: NDArray[np.bytes_], features: NDArray[np.floating], written_by: dict[str, str]
    ) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_dataset("key", data=keys)
            file.create_dataset("features", data=features)
            file.attrs["spec"] = self.digest
            file.attrs["written_by"] = json.dumps(written_by, sort_keys=True)
        return buffer.getvalue()

    def _write_spec(self) -> None:
        """Say in a readable file what these features are."""
        path = self.folder / "spec.json"
        with suppress(OSError, ValueError):
            if read_json(path) == self.spec.to_json():
                return
        mark_folder(self.cache)
        write_json(path, self.spec.to_json())

    # Quarantine

    @property
    def _quarantine_path(self) -> Path:
        return self.folder / "quarantine.jsonl"

    def quarantined(self) -> dict[bytes, Quarantined]:
        """Images that could not be read, by image key."""
        found = {}
        with suppress(FileNotFoundError):
            for line in self._quarantine_path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = decoded(Quarantined, json.loads(line))
                except (ValueError, TypeError):
                    log.warning("A line of %s can't be read and is left aside", self._quarantine_path)
                else:
                    found[entry.key.encode()] = entry
        return found

    def quarantine(self, entries: Iterable[Quarantined]) -> None:
        """Add to the list. Two processes may overwrite each other's lines, which costs a second look at an image."""
        fresh = {entry.key.encode(): entry for entry in entries}
        if not fresh:
            return
        self._write_spec()
        lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in {**self.quarantined(), **fresh}.values()]
        with published(self._quarantine_path) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def stores(cache: Path) -> list[FeatureStore]:
    """All feature stores of a cache whose spec can be read, not opened yet."""
    found = []
    for path in sorted((cache / "features").glob("*/spec.json")):
        try:
            store = FeatureStore(cache, decoded(FeatureSpec, read_json(path)))
        except (OSError, ValueError, ConfigError) as error:
            log.warning("%s can't be read and is left aside: %s", path, error)
            continue
        if store.folder == path.parent:
            found.append(store)
        else:
            log.warning("%s describes other features than its folder's name says, and is left aside", path)
    return found
