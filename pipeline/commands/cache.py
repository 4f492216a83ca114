"""Care of the cache: what is there, whether it is sound, and copies for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.data import open_dataset
from pipeline.errors import ConfigError, StoreError, TlpipeError
from pipeline.extraction.recompute import Recomputed
from pipeline.extraction.recompute import recompute as recompute_rows
from pipeline.store.records import TableRecord, find_record, load_dataset, records
from pipeline.store.shards import Damage, FeatureStore, stores
from pipeline.store.table import load_table
from pipeline.util import log
from pipeline.util.files import folder_size, matching, published
from pipeline.util.memo import Memo


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
