"""Splits that the source doesn't have, carved by image key.

An image goes to a split by a number in 0..1 that its key and the seed alone decide. So byte-identical images never
lie on both sides, images that are added later move none of the old ones, and each class gives about the same share.
The price is that shares are met on average, not exactly. Only where a class would get no image at all in a split,
one is moved there.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SplitConfig
from pipeline.data.dataset import shortened
from pipeline.errors import DataError

LEAST = 3  # a class of fewer distinct images is left to training alone


def carve(
    keys: NDArray[np.bytes_], labels: NDArray[np.int64], splits: NDArray[np.str_], config: SplitConfig
) -> NDArray[np.str_]:
    """Fill in the splits a source doesn't have.

    Args:
        keys: Image keys, shape [n].
        labels: Class indices, shape [n].
        splits: "train", "val", "test", or "" where the source gives none, shape [n].
        config: Shares and seed.

    Returns:
        "train", "val" or "test", shape [n].

    Raises:
        DataError: If `test_from` is "val" and there is no validation set.
    """
    given = set(splits.tolist())
    carved = np.where(splits == "", "train", splits).astype("U5")
    val_fraction = config.val_fraction
    if "test" not in given:
        if config.test_from == "val" and "val" not in given:
            raise DataError("--test-from val needs a validation set in the data, and there is none; leave it out")
        _move(keys, labels, carved, config.test_from, "test", config.test_fraction, config.seed)
        if config.test_from == "train":
            val_fraction /= 1 - config.test_fraction  # a share of what is left
    if "val" not in given:
        _move(keys, labels, carved, "train", "val", val_fraction, config.seed)
    return carved


def _move(
    keys: NDArray[np.bytes_],
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    source: str,
    target: str,
    fraction: float,
    seed: int,
) -> None:
    """Move about `fraction` of the images of split `source` to `target`, in place."""
    if fraction == 0:
        return
    rows = np.flatnonzero(splits == source)
    numbers = np.array([_number(key, f"{target}/{seed}") for key in keys[rows].tolist()])
    drawn = numbers < fraction
    # A twin of an image that the source has put into another split stays where it is.
    elsewhere = np.isin(keys[rows], keys[splits != source])
    classes: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels[rows].tolist()):
        classes[label].append(position)
    sizes = {label: len(set(keys[rows[members]].tolist())) for label, members in classes.items()}
    for label, members in classes.items():
        if sizes[label] >= LEAST and not drawn[members].any():
            drawn |= numbers == numbers[members].min()
    for label, members in classes.items():
        if sizes[label] < LEAST:
            drawn &= ~np.isin(numbers, numbers[members])
    splits[rows[drawn & ~elsewhere]] = target


def _number(key: bytes, salt: str) -> float:
    digest = hashlib.blake2b(key, digest_size=8, salt=hashlib.blake2b(salt.encode(), digest_size=16).digest())
    return int.from_bytes(digest.digest(), "big") / 2**64


def twin_rows(keys: NDArray[np.bytes_]) -> list[list[int]]:
    """Rows of each image that is there more than once, in the order of their first rows."""
    double = {key for key, count in Counter(keys.tolist()).items() if count > 1}
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys.tolist()):
        if key in double:
            groups[key].append(row)
    return list(groups.values())


def twins(
    keys: NDArray[np.bytes_], labels: NDArray[np.int64], splits: NDArray[np.str_], locations: list[str]
) -> list[str]:
    """Name byte-identical images that lie in several splits, or under several labels.

    Returns:
        Sentences for people; none where all is well.
    """
    groups = twin_rows(keys)
    across = [rows for rows in groups if len({splits[row] for row in rows}) > 1]
    disputed = [rows for rows in groups if len({int(labels[row]) for row in rows}) > 1]
    notes = []
    for found, what in ((across, "lie in more than one split"), (disputed, "have more than one label")):
        if found:
            named = shortened([" = ".join(locations[row] for row in rows) for rows in found])
            notes.append(f"{len(found):,} byte-identical images {what}: {named}")
    return notes
