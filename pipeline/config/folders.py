"""Where results lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.util.machine import cache_folder
from pipeline.util.options import option


def _cache() -> Path:
    return Path(os.environ.get("TLPIPE_CACHE") or "cache").expanduser()


def user_cache() -> Path:
    """The cache of the Python interface: $TLPIPE_CACHE, else the folder that the platform keeps for caches.

    A notebook is started from anywhere, so that ./cache would be another folder each time.
    """
    named = os.environ.get("TLPIPE_CACHE")
    return Path(named).expanduser() if named else cache_folder()


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders that commands read from and write to."""

    cache: Path = option(_cache(), "Folder of features and datasets; $TLPIPE_CACHE, else ./cache.")
    reports: Path = option(Path("reports"), "Folder of runs.")
