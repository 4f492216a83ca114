"""Care of the cache: what is there, whether it is sound, what nothing needs, and copies for other programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.data import open_dataset
from pipeline.data.augment import Augment
from pipeline.errors import ConfigError, StoreError, TlpipeError
from pipeline.extraction.engines import graph_folder
from pipeline.extraction.recompute import Recomputed
from pipeline.extraction.recompute import recompute as recompute_rows
from pipeline.finetuning import FOLDER
from pipeline.runs.find import all_runs
from pipeline.runs.folder import RUN, RUNS
from pipeline.runs.run import CurveRun, RatedRun
from pipeline.store.records import TableRecord, find_record, load_dataset, records
from pipeline.store.shard import SoundShards
from pipeline.store.shards import DAMAGED_SUFFIX, Damage, FeatureStore, stores
from pipeline.store.table import load_table, row_keys
from pipeline.store.uses import uses
from pipeline.util import log
from pipeline.util.addresses import asking, is_remote
from pipeline.util.files import PARTIAL_SUFFIX, folder_size, is_abandoned, matching, published, remove
from pipeline.util.local_copies import own_part
from pipeline.util.memo import Memo
from pipeline.util.remote import shared, unfinished
from pipeline.util.sealed import is_marked

ABANDONED = 24 * 3600  # seconds after which a file that was never finished is no one's any more
LEFT = 7 * ABANDONED


def ls(cache: Path, *, writers: bool = False) -> list[dict[str, Any]]:
    """List the features in a cache, the oldest first: what they are, of what, how large, how old.

    Several tables may share the bytes of one store.

    Args:
        cache: The cache folder.
        writers: Whether to read from the shards what computed them.
    """
    rows = []
    written_by: dict[str, list[dict[str, str]]] = {}  # by the digest of the store
    for record in records(cache):
        store = FeatureStore(cache, record.spec)
        row = {
            "features_id": record.id,
            "created": record.created,
            "complete": record.complete,
            "made_by": record.made_by,
            "data": record.config.data,
            "images": _image_count(cache, record),
            "views": record.config.views,
            "augment": record.config.augment,
            "bytes": folder_size(store.folder) if store.folder.is_dir() else 0,
            "store": store.digest,
            "spec": record.spec.to_json(),
        }
        if writers:
            if store.digest not in written_by:
                store.open(set_aside=False)
                known = {json.dumps(shard.written_by, sort_keys=True) for shard in store.shards if shard.written_by}
                written_by[store.digest] = [json.loads(text) for text in sorted(known)]
            row["written_by"] = written_by[store.digest]
        rows.append(row)
    return rows


def _image_count(cache: Path, record: TableRecord) -> int | None:
    try:
        return len(load_dataset(cache, record.dataset))
    except StoreError as error:
        log.warning("%s", error)
        return None


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found when a cache was read from end to end.

    Attributes:
        n_files: Files that were looked at.
        damaged: Those that don't hold what was written.
        recomputed: Features that were computed again; empty unless that was asked for.
    """

    n_files: int
    damaged: list[Damage]
    recomputed: list[Recomputed]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "n_files": self.n_files,
            "damaged": [{"path": str(item.path), "cause": item.cause} for item in self.damaged],
            "recomputed": [asdict(item) for item in self.recomputed],
        }


def verify(cache: Path, recompute: int = 0) -> Verified:
    """Read all shards, datasets and tables, and compare the checksums of shards and datasets.

    Args:
        cache: The cache folder.
        recompute: Images of each set of features that are computed again and compared with what is stored.

    Raises:
        ConfigError: If the number is below 0.
    """
    if recompute < 0:
        raise ConfigError(f"--recompute is {recompute}; give 0 or more images")
    n_files, damaged = _verified_files(cache)
    return Verified(n_files, damaged, _recomputed(cache, recompute) if recompute else [])


def _recomputed(cache: Path, n: int) -> list[Recomputed]:
    """Some images of each set of features, computed again; a set whose data or backbone is gone is named."""
    found = []
    for record in records(cache):
        if not record.complete:
            continue
        try:
            opened = open_dataset(
                record.config.data, record.config.splits, columns=record.config.columns, memo=Memo(cache)
            )
            one = recompute_rows(record, opened, cache, n)
        except TlpipeError as error:
            log.warning("%s can't be computed again: %s", record.id, error)
            continue
        if one is None:
            log.warning("%s can't be computed again: none of its images is there any more", record.id)
        else:
            found.append(one)
    return found


def _verified_files(cache: Path) -> tuple[int, list[Damage]]:
    n_files = 0
    damaged: list[Damage] = []
    sound = {store.folder: store for store in stores(cache)}
    for folder in matching(cache / "features", "[!.]*"):
        shards = matching(folder / "shards", "*.h5")
        n_files += len(shards)
        if folder in sound:
            damaged += sound[folder].verify()
        elif shards or (folder / "spec.json").exists():  # else a process ended before it wrote anything there
            damaged.append(Damage(folder / "spec.json", "is missing, or not what the folder's name says"))
    readable = {record.id for record in records(cache)}
    for path in matching(cache / "tables", "*.json"):
        n_files += 1
        if path.stem not in readable:
            damaged.append(Damage(path, "can't be read"))
    for path in matching(cache / "datasets", "*.h5"):
        n_files += 1
        try:
            load_dataset(cache, path.stem.partition("-")[0])
        except StoreError as error:
            damaged.append(Damage(path, str(error)))
    return n_files, damaged


@dataclass(frozen=True, slots=True)
class Needless:
    """A file or folder that can go, and why."""

    path: Path
    cause: str
    size: int


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cache can do without.

    Attributes:
        found: What no data and no run needs.
        away: Reports folders that used the cache and are not there now; nothing of theirs is among it.
        removed: Whether it was removed.
    """

    found: list[Needless]
    away: list[str]
    removed: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(item.size for item in self.found)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "removed": self.removed,
            "bytes": self.size,
            "items": [{"path": str(item.path), "cause": item.cause, "bytes": item.size} for item in self.found],
            "reports_away": self.away,
        }


def gc(cache: Path, reports: Path, *, delete: bool = False) -> Cleaned:
    """Find what no data and no run needs, and remove it if that is asked for.

    Runs are those of the reports folder, and of all others that the cache remembers. A table is needed if it is the
    newest of its data with its options, or if a run was trained on it; a dataset, shard or graph is needed if a needed
    table uses it. Shards and graphs younger than a day are kept in any case: a process may be using them.

    Args:
        cache: The cache folder.
        reports: The reports folder.
        delete: Whether to remove it.

    Raises:
        StoreError: If a table can't be read: what it needs can't be told.
        RunError: The same, for a run.
    """
    in_use, away = _in_use(cache, reports)
    found = _found(cache, reports, in_use)
    if delete:
        _remove(cache, found)
    return Cleaned(found, away, delete)


def _in_use(cache: Path, reports: Path) -> tuple[set[str], list[str]]:
    """Ids of features that runs need, and the reports folders that are not there to be asked."""
    folders = {reports.resolve(): set[str]()}
    in_use: set[str] = set()
    away = []
    for use in uses(cache):
        if use.is_here():
            folders.setdefault(shared(use.reports), set()).add(use.features)
        else:
            in_use.add(use.features)
            away.append(f"{use.machine}:{use.reports}")
    for folder, features in folders.items():
        # The place of another disk is an empty folder while the disk is away; the folder that was named is what it is.
        with asking(folder):
            is_there = is_marked(folder) or (folder == reports.resolve() and folder.is_dir())
        if is_there:
            found = [run for run in all_runs(folder, strict=True) if isinstance(run, (RatedRun, CurveRun))]
            in_use.update(name for run in found for name in run.features.split(","))
        elif features:
            in_use |= features
            away.append(str(folder))
    return in_use, sorted(set(away))


def _found(cache: Path, reports: Path, in_use: set[str]) -> list[Needless]:
    saved = matching(cache / "datasets", "*.h5")  # before the records: one that is saved now has its record already
    known = records(cache, strict=True)
    newest = {(record.config, record.spec, record.complete): record for record in known}
    needed = [record for record in known if record.id in in_use or record in newest.values()]
    found = []
    for record in known:
        if record not in needed:
            path = cache / "tables" / f"{record.id}.json"
            found.append(_needless(path, "a newer extract of the same data took its place"))
    datasets = {record.dataset for record in needed}
    for path in saved:
        if path.stem.partition("-")[0] not in datasets:
            found.append(_needless(path, "no features belong to it any more"))
    for store in stores(cache):
        found += _needless_of_store(cache, store, [record for record in needed if record.spec == store.spec])
    graphs = {graph_folder(cache, record.spec) for record in needed}
    for path in matching(own_part(cache) / "graphs", "[!.]*"):
        if path not in graphs:
            found.append(_needless(path, "no features that are needed were computed with it"))
    found = [item for item in found if not _young(item.path)]
    left = [path for place in (cache, reports) for path in matching(place, f"**/.*{PARTIAL_SUFFIX}")]
    left = sorted({*filter(is_abandoned, left), *_older(ABANDONED, left)})
    found += [_needless(path, "was never finished") for path in left if not any(one in path.parents for one in left)]
    found += [_needless(path, "is damaged, and was set aside") for path in matching(cache, f"**/*{DAMAGED_SUFFIX}")]
    if is_remote(reports):
        halves = unfinished(reports, RUN, time.time() - ABANDONED)
        found += [Needless(path, "is a run that was never put whole", folder_size(path)) for path in halves]
        kept = {path.parent.name for path in matching(reports, f"*/{RUN}")}
        copies = sorted((own_part(reports) / RUNS).glob("*"))
        found += [_needless(path, "is a copy of a run that is gone") for path in copies if path.name not in kept]
    why = "a fine-tuning that was interrupted over a week ago could be resumed from it"
    return found + [_needless(path, why) for path in _older(LEFT, (own_part(reports) / FOLDER).glob("*"))]


def _young(path: Path) -> bool:
    """Whether a shard, a store or a graph was written within a day."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    in_question = (path.suffix == ".h5" and path.parent.name == "shards") or path.is_dir()
    return in_question and max(file.stat().st_mtime for file in files) > time.time() - ABANDONED


def _needless_of_store(cache: Path, store: FeatureStore, needed: list[TableRecord]) -> list[Needless]:
    if not needed:
        return [_needless(store.folder, "no features of any data use it")]
    wanted: set[bytes] = set()
    for record in needed:
        try:
            keys = load_dataset(cache, record.dataset).keys
        except StoreError as error:  # what it needs can't be told, so all is kept
            log.warning("%s", error)
            return []
        augment = Augment.parse(record.config.augment) if record.config.augment else None
        for view in range(record.config.views + 1):
            wanted.update(row_keys(keys, augment, view).tolist())
    store.verify()  # only a shard that is sound now makes others needless
    store.open(set_aside=False)
    found = []
    for shard in store.shards:
        # A row may lie in several shards, if processes computed it at the same time; one of them is enough.
        rows = wanted.intersection(shard.keys.tolist())
        if rows:
            wanted -= rows
        else:
            found.append(_needless(shard.path, "none of its rows are needed, or all lie in other shards"))
    return found


def _older(seconds: float, paths: Iterable[Path]) -> list[Path]:
    return [path for path in sorted(paths) if path.stat().st_mtime < time.time() - seconds]


def _needless(path: Path, cause: str) -> Needless:
    return Needless(path, cause, folder_size(path) if path.is_dir() else path.stat().st_size)


def _remove(cache: Path, found: list[Needless]) -> None:
    """Remove what was found, and forget the shards among it."""
    SoundShards(cache).forget(path for item in found for path in (item.path, *item.path.rglob("*.h5")))
    for item in found:
        remove(item.path)


def export(cache: Path, reference: str | None, target: Path) -> TableRecord:
    """Write one plain file of a table, for people who just want arrays.

    It holds `features` [n, ...], `labels` [n] as indices into `class_names` (-1 of an image without a label), `split`,
    `paths` and `class_names`; with views also `view` [n]; and each further column of a manifest as `column_NAME` [n].

    Args:
        cache: The cache folder.
        reference: Features id, or a part of one; None for the newest.
        target: A file that ends in .h5, .hdf5 or .npz.

    Raises:
        ConfigError: For another suffix, or if the file is there already.
    """
    suffix = target.suffix.lower()
    if suffix not in (".h5", ".hdf5", ".npz"):
        raise ConfigError(f"{target} ends in {suffix or 'nothing'!r}; export to a file that ends in .h5 or .npz")
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another name, or remove it")
    record = find_record(cache, reference)
    table = load_table(cache, [record], labelled=False)
    columns: dict[str, Any] = {"features": table.array(), "labels": table.labels}
    if table.views.any():
        columns["view"] = table.views
    texts = {"split": table.splits.tolist(), "paths": list(table.locations), "class_names": list(table.class_names)}
    for name, column in table.others.items():
        plain = f"column_{name.replace('/', '_')}"  # a file of arrays would take a slash for a folder
        if plain in texts:
            raise ConfigError(f"Two columns of the manifest would be {plain} in {target.name}; rename one of them")
        texts[plain] = list(column)
    with published(target) as partial:
        if suffix == ".npz":
            with partial.open("wb") as file:
                columns |= {name: np.array(values) for name, values in texts.items()}
                np.savez(file, **columns)
        else:
            with h5py.File(partial, "w") as file:
                for name, array in columns.items():
                    file.create_dataset(name, data=array)
                for name, values in texts.items():
                    file.create_dataset(name, data=values, dtype=h5py.string_dtype())
    return record
