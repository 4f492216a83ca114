"""Images that can't be read: which, why, and what becomes of the data without them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Dataset, Opened, shortened
from pipeline.data.dataset import among
from pipeline.errors import DataError, QuarantineError
from pipeline.util import log
from pipeline.util.text import counted

NAMED_AT_MOST = 10  # on the terminal; the answer of --json lists all


def warn_unreadable(unreadable: Mapping[str, str], n: int) -> None:
    """Name the first images that can't be read, with the cause, and count them.

    Args:
        unreadable: Location and cause of each.
        n: Images there are, readable or not.
    """
    if not unreadable:
        return
    lines = [f"{location}: {cause}" for location, cause in unreadable.items()]
    log.warning("%s of %s can't be read:", f"{len(lines):,}", counted(n, "image"))
    for line in lines[:NAMED_AT_MOST]:
        log.warning("  %s", line)
    if len(lines) > NAMED_AT_MOST:
        log.warning("  and %s more; --json lists all of them", f"{len(lines) - NAMED_AT_MOST:,}")


def unreadable_of(opened: Opened, refused: Mapping[bytes, str]) -> dict[str, str]:
    """Location and cause of every image that can't be read, opened or not."""
    dataset = opened.dataset
    found = {entry.location: entry.cause for entry in opened.unreadable}
    for row in np.flatnonzero(among(dataset.keys, refused)).tolist():
        found[dataset.locations[row]] = refused[bytes(dataset.keys[row])]
    return found


def check_readable(
    opened: Opened, refused: Mapping[bytes, str], unreadable: Mapping[str, str], *, whole: bool, strict: bool
) -> None:
    """Name what could not be read; refuse it if that is wanted, and data of which a class is gone.

    Args:
        opened: The data.
        refused: Cause by image key, of images that could be opened.
        unreadable: Location and cause, of all.
        whole: Whether these are all images, not a part, of which nothing follows for a class.
        strict: Whether everything must be readable.

    Raises:
        DataError: If nothing of a class can be read.
        QuarantineError: If `strict`.
    """
    if not unreadable:
        return
    dataset = opened.dataset
    n_images = len(dataset) + len(opened.unreadable)
    warn_unreadable(unreadable, n_images)
    readable = np.array([key not in refused for key in dataset.keys.tolist()])
    if whole:
        _check_classes(dataset, readable, unreadable)
    if strict:
        first = next(iter(unreadable))
        raise QuarantineError(
            f"--strict: {len(unreadable):,} of {n_images:,} images can't be read "
            f"({first}: {unreadable[first]}); all others are stored. Repair or remove them, or leave --strict out"
        )


def _check_classes(dataset: Dataset, readable: NDArray[np.bool_], unreadable: Mapping[str, str]) -> None:
    """Refuse data of which a class is gone."""
    if not readable.any():
        location, cause = next(iter(unreadable.items()))
        raise DataError(f"None of the {len(unreadable):,} images of {dataset.name} can be read; {location}: {cause}")
    left = set(dataset.labels[readable].tolist())
    gone = [name for label, name in enumerate(dataset.class_names) if label not in left]
    if gone:
        raise DataError(
            f"No image of the class {shortened(gone)} can be read; repair the files, or take the class away"
        )
