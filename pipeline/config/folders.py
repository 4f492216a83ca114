"""Where results lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.util.machine import cache_folder
from pipeline.util.options import option, words_of
from pipeline.util.remote import shared


def user_cache() -> Path:
    """The cache of the Python interface: $TLPIPE_CACHE, else the folder that the platform keeps for caches.

    A notebook is started from anywhere, so that ./cache would be another folder each time.
    """
    named = os.environ.get("TLPIPE_CACHE")
    return shared(named) if named else cache_folder()


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders that commands read from and write to."""

    cache: Path = option(
        os.environ.get("TLPIPE_CACHE") or "cache",
        "Folder of features and datasets, or an address such as s3://bucket/cache; $TLPIPE_CACHE, else ./cache.",
        parse=shared,
    )
    reports: Path = option(Path("reports"), "Folder of runs, or an address such as s3://bucket/reports.", parse=shared)

    def words(self) -> list[str]:
        """What names them on the command line, where they are not those of a command that names none."""
        mine, usual = ({"cache": one.cache, "reports": one.reports} for one in (self, Folders()))
        return words_of(mine, usual)

    def __post_init__(self) -> None:
        """Take text for the place that it means."""
        for name in ("cache", "reports"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, shared(value))
