"""The features on disk: immutable shards, one folder for each feature spec.

A shard is made whole in memory, written under a temporary name, flushed to disk, reopened and verified, and only
then given its name. HDF5 promises nothing about a file that was open for writing when a process died, so HDF5 itself
never writes to the disk here; and a shard that has its name is never opened for writing again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.config import FeatureSpec
from pipeline.data import KEY_DTYPE, in_order
from pipeline.errors import ConfigError, StoreError
from pipeline.store.shard import Shard, SoundShards, shard_bytes, states, verified
from pipeline.util import disk, log
from pipeline.util.addresses import asking, is_remote
from pipeline.util.checked import here, publish_checked
from pipeline.util.files import mark_folder, matching, published
from pipeline.util.machine import cpu_count
from pipeline.util.sealed import decoded, read_json, sealed, unsealed, write_json

DAMAGED_SUFFIX = ".damaged"
FEW = 8  # keys that are sooner compared with each stored one than each stored one is looked up among them


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
        self._sound = SoundShards(cache)

    # Reading

    def open(self, *, set_aside: bool = True) -> list[Damage]:
        """Look at all shards; rows of damaged ones count as missing.

        A shard is read whole, and verified, once. That it is sound is then remembered, as long as its file has the same
        path, size, inode and times.

        Args:
            set_aside: Rename damaged shards, so that they are not looked at again.

        Returns:
            The damaged shards.
        """
        self.shards = []
        return self.refresh(set_aside=set_aside)

    def refresh(self, *, set_aside: bool = True) -> list[Damage]:
        """As `open`, but shards that are open are not looked at again: a published file is never written to."""
        damaged: list[Damage] = []
        with asking(self.folder), suppress(StoreError):  # a cache that can only be read
            if set_aside and self.folder.is_dir():
                self._write_spec()
        paths = self.shard_paths()
        known = {shard.path: shard for shard in self.shards}
        known |= self._sound.recall(path for path in paths if path not in known)
        self.shards = [known[path] for path in paths if path in known]
        unknown = [path for path in paths if path not in known]
        stamped, before = time.time_ns(), states(unknown)
        fresh: list[Shard] = []
        for path, found in self._verified(unknown):
            if isinstance(found, Shard):
                fresh.append(found)
            else:
                damaged.append(Damage(path, found))
                if set_aside:
                    # Another process may have been faster, or the cache is one that can only be read.
                    with suppress(OSError):
                        disk.rename(path, path.with_name(path.name + DAMAGED_SUFFIX))
        self._sound.remember(fresh, before, stamped)
        # In the same order whatever is remembered, so that of a row that lies in several shards the same one is read.
        self.shards = sorted([*self.shards, *fresh], key=lambda shard: shard.path)
        return damaged

    def verify(self) -> list[Damage]:
        """Read all shards, whatever is remembered, and name those that don't hold what was written; none is moved."""
        damaged = [Damage(path, found) for path, found in self._verified(self.shard_paths()) if isinstance(found, str)]
        self._sound.forget(damage.path for damage in damaged)
        return damaged

    def shard_paths(self) -> list[Path]:
        """All shards, sound or not, in the order of their names."""
        return matching(self.folder / "shards", "*.h5")

    def _verified(self, paths: Sequence[Path]) -> list[tuple[Path, Shard | str]]:
        with ThreadPoolExecutor(cpu_count()) as pool:
            return list(zip(paths, pool.map(lambda path: verified(path, self.digest), paths), strict=True))

    def __len__(self) -> int:
        """Number of distinct rows."""
        return len(np.unique(np.concatenate([np.zeros(0, KEY_DTYPE), *(shard.keys for shard in self.shards)])))

    def _matches(self, ordered: NDArray[np.bytes_]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Look for sorted keys in all shards, the last one first.

        What is asked for is sorted, not what is stored: few rows of a large store are found in the time that it takes
        to look at each of its keys once.

        Returns:
            Of each shard its number, positions of keys that it has, of equal ones at least the first, and the rows they
            are in.
        """
        for number, shard in reversed(list(enumerate(self.shards))) if len(ordered) else ():
            if len(ordered) <= FEW:
                found = [np.flatnonzero(shard.keys == key) for key in ordered]
                yield number, np.repeat(np.arange(len(ordered)), list(map(len, found))), np.concatenate(found)
                continue
            nearest = np.minimum(np.searchsorted(ordered, shard.keys), len(ordered) - 1)
            rows = np.flatnonzero(ordered[nearest] == shard.keys)
            yield number, nearest[rows], rows

    def has(self, keys: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Which row keys are stored, shape [n]."""
        order, begins = in_order(keys)
        stored = np.zeros(len(keys), np.bool_)
        for _, positions, _ in self._matches(keys[order]):
            stored[positions] = True
        # Of equal keys the first was found, and the others are where that is.
        if not begins.all():
            stored = stored[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
        found = np.empty(len(keys), np.bool_)
        found[order] = stored
        return found

    def places(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Where rows are stored: number of the shard and row in it, shape [n, 2].

        Raises:
            StoreError: If a row is missing.
        """
        wanted, inverse = np.unique(keys, return_inverse=True)
        found = np.full((len(wanted), 2), -1)
        for number, positions, rows in self._matches(wanted):
            found[positions, 0] = number  # the first shard that has a row wins, as all copies of a row are alike
            found[positions, 1] = rows
        places = found[inverse]
        if missing := int((places[:, 0] < 0).sum()):
            raise StoreError(f"{missing:,} rows are not in {self.folder}; run tlpipe extract again")
        return places

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
            with h5py.File(here(path), "r") as file:
                features: NDArray[np.floating] = file["features"][rows]
            if len(features) < rows.stop - rows.start:
                raise ValueError(f"it has no row {rows.stop - 1}")
        except (OSError, KeyError, RuntimeError, TypeError, ValueError, StoreError) as error:  # h5py raises all of them
            self._sound.forget([path])
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
        by = dict(written_by or {})
        path = publish_checked(self.folder / "shards", shard_bytes(self.spec, column, features, by), ".h5")
        shard = Shard(path, column, features.shape[1:], by)
        self.shards.append(shard)
        return shard

    def free_space(self) -> float:
        """Bytes that are free where the shards go; at an address nothing tells, and none is the limit.

        Raises:
            StoreError: If nothing can be written there.
        """
        self._write_spec()
        return math.inf if is_remote(self.folder) else shutil.disk_usage(self.folder).free

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
        with suppress(FileNotFoundError), asking(self._quarantine_path):
            for line in self._quarantine_path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = decoded(Quarantined, unsealed(json.loads(line)))
                except (ValueError, TypeError, RecursionError):  # the image is tried again
                    log.warning("A line of %s can't be read and is skipped", self._quarantine_path)
                else:
                    found[entry.key.encode()] = entry
        return found

    def quarantine(self, entries: Iterable[Quarantined]) -> None:
        """Add to the list. Two processes may overwrite each other's lines, which costs a second look at an image."""
        fresh = {entry.key.encode(): entry for entry in entries}
        if not fresh:
            return
        self._write_spec()
        entries = {**self.quarantined(), **fresh}.values()
        lines = [json.dumps(sealed(asdict(entry)), ensure_ascii=False) for entry in entries]
        with published(self._quarantine_path) as partial:
            disk.write(partial, "\n".join(lines) + "\n")


def stores(cache: Path) -> list[FeatureStore]:
    """All feature stores of a cache whose spec can be read, not opened yet."""
    found = []
    for path in matching(cache / "features", "*/spec.json"):
        try:
            store = FeatureStore(cache, decoded(FeatureSpec, read_json(path)))
        except (OSError, ValueError, ConfigError) as error:
            log.warning("%s can't be read and is skipped: %s", path, error)
            continue
        if store.folder == path.parent:
            found.append(store)
        else:
            log.warning("%s describes other features than its folder's name says, and is skipped", path)
    return found
