"""The care of the cache as functions under one name, as `tlpipe cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.api.options import Place, folders_of, joined
from pipeline.api.results import Extracted
from pipeline.commands.cache import Needless, collect, describe, remove
from pipeline.commands.cache import export as export_features
from pipeline.commands.cache import verify as verify_cache
from pipeline.store.records import TableRecord
from pipeline.store.shards import Damage


class Cache:
    """What is on disk, as `tlpipe cache` looks after it; functions, under one name."""

    @staticmethod
    def ls(*, cache: Place = None) -> list[dict[str, Any]]:
        """List the features in the cache: what they are, of what, how large, how old."""
        return describe(folders_of(cache, None).cache)

    @staticmethod
    def verify(*, cache: Place = None) -> tuple[int, list[Damage]]:
        """Compare the checksums of all shards and datasets: how many files there are, and which are damaged."""
        return verify_cache(folders_of(cache, None).cache)

    @staticmethod
    def gc(*, delete: bool = False, cache: Place = None, reports: Place = None) -> list[Needless]:
        """List what no dataset and no run needs; with `delete`, remove it."""
        at = folders_of(cache, reports)
        found = collect(at.cache, at.reports)
        if delete:
            remove(found)
        return found

    @staticmethod
    def export(target: str | Path, features: str | Extracted | None = None, *, cache: Place = None) -> TableRecord:
        """Write one plain HDF5 or NumPy file: features, labels, split, paths, class_names.

        Args:
            target: File to write: .h5 or .npz.
            features: What `extract` returned, or a features id; None for the newest.
            cache: The cache folder.
        """
        return export_features(folders_of(cache, None, features).cache, joined(features), Path(target))


cache = Cache()
