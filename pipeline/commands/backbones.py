"""Backbones: which there are, and whether their weights are here."""

from __future__ import annotations

from typing import Any

from pipeline.backbones import BACKBONES, find_imagenet


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
