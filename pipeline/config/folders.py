"""Where results lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.util.options import option


def _cache() -> Path:
    return Path(os.environ.get("TLPIPE_CACHE") or "cache")


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders that commands read from and write to.

    Attributes:
        cache: Features and datasets.
        reports: Runs and pages.
    """

    cache: Path = option(_cache(), "Folder of features and datasets; $TLPIPE_CACHE, else ./cache.")
    reports: Path = option(Path("reports"), "Folder of runs.")
