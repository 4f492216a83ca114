"""Backbones: which there are, and whether their weights are here."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones import BACKBONES, find_imagenet, presets
from pipeline.extraction.pass_ import PassReport
from pipeline.extraction.plan import Plan
from pipeline.util import machine
from pipeline.util.memo import Memo
from pipeline.util.sealed import decoded

LEAST_TIMED = 64  # images, fewer of which say little of a rate


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast the last extract with a backbone ran on this machine.

    Attributes:
        images_per_second: Of the pass.
        image_size: (height, width), pixels.
        engine: Which.
        precision: In which precision.
        processor: On which processor, as a cache may be shared by several machines.
    """

    images_per_second: float
    image_size: tuple[int, int]
    engine: str
    precision: str
    processor: str

    @classmethod
    def of(cls, plan: Plan, report: PassReport) -> Rate:
        """The rate of a pass on this machine."""
        choice, size = plan.choice, plan.spec.image_size
        return cls(report.images_per_second, size, choice.engine, choice.precision, machine.processor())


def remember_rate(cache: Path, backbone: str, rate: Rate, n: int) -> None:
    """Remember how fast a pass over n images with a backbone, as the user named it, ran; if n is enough to tell."""
    if n >= LEAST_TIMED:
        Memo(cache).remember_text(_question(backbone), json.dumps(asdict(rate)))


def rate_here(memo: Memo, backbone: str) -> Rate | None:
    """How fast the last extract with a backbone ran on this machine; None if nothing is known."""
    with suppress(ValueError):
        if text := memo.recall_text(_question(backbone)):
            return decoded(Rate, json.loads(text))
    return None


def _known_rate(memo: Memo, backbone: str) -> dict[str, Any] | None:
    rate = rate_here(memo, backbone)
    return None if rate is None else asdict(rate)


def _question(backbone: str) -> str:
    return f"rate of {backbone} on {machine.cpu_count()} of {machine.processor()}"


def hub_presets(cache: Path) -> list[dict[str, Any]]:
    """A row for each preset of KerasHub, with how fast it ran here, if it did; none without KerasHub.

    KerasHub is asked once, and its answer remembered in the cache.
    """
    memo = Memo(cache)
    return [row | {"rate": _known_rate(memo, row["name"])} for row in presets(memo)]


def backbones(cache: Path) -> list[dict[str, Any]]:
    """A row for each backbone of the table.

    It has its sizes in pixels, its width, its blocks, where its weights lie, and how fast it ran here, if it did.
    """
    memo = Memo(cache)
    return [
        {
            "name": row.name,
            "native_size": row.native_size,
            "least_size": row.least_size,
            "width": row.width,
            "blocks": [block.name for block in row.blocks],
            "weights": str(path) if (path := find_imagenet(row)) else None,
            "rate": _known_rate(memo, row.name),
        }
        for row in BACKBONES.values()
    ]
