"""What of a cache and of runs no data and no run needs any more."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.augment import Augment
from pipeline.errors import StoreError
from pipeline.extraction.engines import graph_folder
from pipeline.finetuning import FOLDER
from pipeline.runs.find import all_runs
from pipeline.runs.folder import RUN, RUNS
from pipeline.runs.run import CurveRun, RatedRun
from pipeline.store.records import TableRecord, load_dataset, records
from pipeline.store.shard import SoundShards
from pipeline.store.shards import DAMAGED_SUFFIX, FeatureStore, stores
from pipeline.store.table import row_keys
from pipeline.store.uses import uses
from pipeline.util import log
from pipeline.util.addresses import asking, is_remote
from pipeline.util.files import PARTIAL_SUFFIX, folder_size, is_abandoned, matching, remove, size_of
from pipeline.util.local_copies import own_part
from pipeline.util.remote import shared
from pipeline.util.sealed import is_marked
from pipeline.util.stamps import unfinished

ABANDONED = 24 * 3600  # seconds after which a file that was never finished is no one's any more
LEFT = 7 * ABANDONED


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
    return in_question and max(map(_changed, files)) > time.time() - ABANDONED


def _changed(path: Path) -> float:
    """When a file or folder was changed last, seconds of the wall clock; just now, if it has gone meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


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
    return [path for path in sorted(paths) if _changed(path) < time.time() - seconds]


def _needless(path: Path, cause: str) -> Needless:
    return Needless(path, cause, folder_size(path) if path.is_dir() else size_of(path))


def _remove(cache: Path, found: list[Needless]) -> None:
    """Remove what was found, and forget the shards among it."""
    SoundShards(cache).forget(path for item in found for path in (item.path, *item.path.rglob("*.h5")))
    for item in found:
        remove(item.path)
