"""Backbones: which there are, and whether their weights are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.backbones import BACKBONES, find_imagenet, presets
from pipeline.util.memo import Memo


def hub_presets(cache: Path) -> list[dict[str, Any]]:
    """A row for each preset of KerasHub, which is asked once, and then remembered in the cache; none without it."""
    return presets(Memo(cache))


def backbones() -> list[dict[str, Any]]:
    """A row for each backbone of the table: its sizes in pixels, its width, its blocks, and where its weights lie."""
    return [
        {
            "name": row.name,
            "native_size": row.native_size,
            "least_size": row.least_size,
            "width": row.width,
            "blocks": [block.name for block in row.blocks],
            "weights": str(path) if (path := find_imagenet(row)) else None,
        }
        for row in BACKBONES.values()
    ]
