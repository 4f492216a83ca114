"""The care of the cache as functions under one name, as `tlpipe cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.api.options import Place, folders_of, joined
from pipeline.api.results import Extracted
from pipeline.commands import cache as commands
from pipeline.commands import gc as needless
from pipeline.commands.cache import Verified
from pipeline.commands.gc import Cleaned
from pipeline.store.records import TableRecord
from pipeline.util.remote import of_this_machine


class Cache:
    """What is on disk, as `tlpipe cache` looks after it."""

    @staticmethod
    def ls(*, verbose: bool = False, cache: Place = None) -> list[dict[str, Any]]:
        """List the features in the cache, with their size and date.

        Args:
            verbose: Whether to tell what computed them as well.
            cache: The cache folder.
        """
        return commands.ls(folders_of(cache, None).cache, writers=verbose)

    @staticmethod
    def verify(*, recompute: int = 0, cache: Place = None) -> Verified:
        """Check all features and datasets in the cache for damage, by their checksums.

        Args:
            recompute: Number of images of each set of features to compute again and compare.
            cache: The cache folder.

        Raises:
            ConfigError: If the number is below 0.
        """
        return commands.verify(folders_of(cache, None).cache, recompute)

    @staticmethod
    def gc(*, delete: bool = False, cache: Place = None, reports: Place = None) -> Cleaned:
        """List files that no dataset and no run needs.

        Args:
            delete: Whether to remove them.
            cache: The cache folder.
            reports: A reports folder that uses the cache; the cache remembers the others.

        Raises:
            StoreError: If a record can't be read, so that it is unknown what it needs.
            RunError: If a run can't be read, so that it is unknown what it needs.
        """
        at = folders_of(cache, reports)
        return needless.gc(at.cache, at.reports, delete=delete)

    @staticmethod
    def export(target: str | Path, features: str | Extracted | None = None, *, cache: Place = None) -> TableRecord:
        """Write features to one plain HDF5 or NumPy file, as arrays features, labels, split, paths and class_names.

        Args:
            target: File to write, which ends in .h5 or .npz.
            features: What `extract` returned, or a features id; None for the newest.
            cache: The cache folder; None for that of the features, else the usual one.

        Raises:
            ConfigError: For another suffix, or if the file is there already.
            StoreError: If there are no such features.
        """
        return commands.export(folders_of(cache, None, features).cache, joined(features), of_this_machine(str(target)))


cache = Cache()
