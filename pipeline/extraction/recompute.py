"""Compute stored features again, to see whether this machine and these libraries still give the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import Opened
from pipeline.data.images import Pixels, read_pixels
from pipeline.errors import ImageError
from pipeline.extraction.engines import call
from pipeline.extraction.engines.base import cosines
from pipeline.extraction.plan import open_plan, pinned
from pipeline.store.records import TableRecord

LEAST_SCALE = 1e-12


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Stored features beside those computed again.

    Attributes:
        features_id: Of the features.
        n: Images that were computed again.
        max_difference: Largest difference of a number.
        relative: That difference, by the largest number that is stored.
        cosine: The least cosine of an image's two features.
        engine: What computed them again.
    """

    features_id: str
    n: int
    max_difference: float
    relative: float
    cosine: float
    engine: str


def recompute(record: TableRecord, opened: Opened, cache: Path, n: int) -> Recomputed | None:
    """Compute some rows of features again; nothing is stored.

    Args:
        record: The features.
        opened: Their data, as they are now.
        cache: The cache folder.
        n: Images to compute; those that come first by their keys, which is a random choice, and always the same.

    Returns:
        None if none of the images can be read any more, or has features.

    Raises:
        TlpipeError: If the backbone can't be had any more.
    """
    config = pinned(record.config, record.spec)
    plan = open_plan(config, cache)
    plan.store.open(set_aside=False)
    keys, first = np.unique(opened.dataset.keys, return_index=True)
    there = plan.store.has(keys)
    pixels: list[Pixels] = []
    kept: list[bytes] = []
    for key, index in zip(keys[there].tolist(), first[there].tolist(), strict=True):
        if len(kept) == n:
            break
        try:
            pixels.append(read_pixels(opened.source, index, key, plan.images))
            kept.append(key)
        except ImageError:  # it went away, or changed
            continue
    if not kept:
        return None
    stored = plan.store.read(np.array(kept, keys.dtype)).astype(np.float64).reshape(len(kept), -1)
    found = call(plan.engine(None), np.stack(pixels)).astype(stored.dtype).reshape(len(kept), -1)
    largest = float(np.abs(found - stored).max())
    relative = largest / max(float(np.abs(stored).max()), LEAST_SCALE)
    engine = f"{plan.choice.engine} in {plan.choice.precision}"
    return Recomputed(record.id, len(kept), largest, relative, float(cosines(found, stored).min()), engine)
