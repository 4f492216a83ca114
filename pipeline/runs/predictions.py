"""What a run folder keeps beside run.json: probabilities, the history of training, and which images were seen."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import SPLITS
from pipeline.errors import DataError, RunError
from pipeline.util import disk
from pipeline.util.addresses import is_remote
from pipeline.util.archives import arrays_of
from pipeline.util.fetching import read
from pipeline.util.files import digest_of

KEY_BYTES = 16
PREDICTIONS, HISTORY, SEEN = "predictions.h5", "history.csv", "seen.npz"
READ_AS_BYTES = (PREDICTIONS, HISTORY, SEEN)
"""Files that are read whole, and compared with the digest in run.json, before anything parses them."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Probabilities of the images of one split.

    Attributes:
        split: "train", "val" or "test".
        keys: Image keys, shape [n].
        labels: Class indices, shape [n].
        probabilities: Shape [n, classes].
    """

    split: str
    keys: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.floating]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image is labelled rightly, shape [n]."""
        found: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.labels
        return found


def both_right(one: Predictions, other: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each image that two classifiers were asked about is labelled rightly, by the one and by the other.

    Images are told apart by their keys, so that byte-identical ones count once; both arrays have the shape [shared].
    """
    _, rows, others = np.intersect1d(one.keys, other.keys, return_indices=True)
    return one.right[rows], other.right[others]


def write_predictions(folder: Path, class_names: list[str], predictions: Sequence[Predictions]) -> None:
    """Write predictions, and the names of the classes in the order of their probabilities."""
    with h5py.File(disk.change("write", folder / PREDICTIONS), "w") as file:
        file.create_dataset("class_names", data=class_names, dtype=h5py.string_dtype())
        for part in predictions:
            group = file.create_group(part.split)
            group.create_dataset("key", data=part.keys)
            group.create_dataset("label", data=part.labels)
            group.create_dataset("probability", data=part.probabilities.astype(np.float32))


def write_history(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """Write a row for each epoch, or for each setting that was tried; no file if there are none."""
    if not history:
        return
    with disk.change("write", folder / HISTORY).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def write_seen(folder: Path, seen: Mapping[str, NDArray[np.bytes_]]) -> None:
    """Write the image keys [n] of each split, 16 bytes an image, so that a run knows them without any cache."""
    arrays: dict[str, Any] = {split: _packed(keys) for split, keys in seen.items()}
    np.savez(disk.change("write", folder / SEEN), **arrays)


def _packed(keys: NDArray[np.bytes_]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(b"".join(keys.tolist()).decode()), np.uint8).reshape(len(keys), KEY_BYTES)


def read_seen(folder: Path, files: Mapping[str, str]) -> dict[bytes, set[str]] | None:
    """The splits of each image that a run was trained with, by image key; None of a run before version 0.2.

    Args:
        folder: The run folder.
        files: Digests of its files, as run.json names them.

    Raises:
        RunError: If they are not what `save_run` wrote.
    """
    if SEEN not in files:
        return None
    try:
        found: dict[bytes, set[str]] = {}
        with arrays_of(io.BytesIO(_read(folder / SEEN, files))) as file:
            for split in file.files:
                for key in file[split]:
                    found.setdefault(key.tobytes().hex().encode(), set()).add(split)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / SEEN} can't be read: {error}; make the run again") from error
    return found


def _read(path: Path, files: Mapping[str, str]) -> bytes:
    """The bytes of a file, if they are those that run.json knows; a `ValueError` if not."""
    digest = files.get(path.name, "")
    try:
        data = read(path.parent, path.name, digest) if is_remote(path) else path.read_bytes()
    except DataError as error:
        raise RunError(str(error)) from error
    if digest not in ("", digest_of(data)):
        raise ValueError("it was changed after it was written")
    return data


def read_predictions(folder: Path, n_classes: int, files: Mapping[str, str]) -> dict[str, Predictions]:
    """The predictions of a run, by split.

    Args:
        folder: The run folder.
        n_classes: Number of its classes.
        files: Digests of its files, as run.json names them.

    Raises:
        RunError: If they are missing or not what `save_run` wrote.
    """
    path = folder / PREDICTIONS
    try:
        with h5py.File(io.BytesIO(_read(path, files)), "r") as file:
            splits = [name for name in SPLITS if name in file]
            found = {
                split: Predictions(split, *(file[split][name][:] for name in ("key", "label", "probability")))
                for split in splits
            }
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path} can't be read: {str(error).splitlines()[0]}; make the run again") from error
    for part in found.values():
        n, wanted = len(part.keys), (len(part.keys), n_classes)
        kinds = (part.keys.dtype.kind, part.labels.dtype.kind, part.probabilities.dtype.kind)
        if (
            kinds != ("S", "i", "f")
            or part.keys.ndim != 1
            or part.labels.shape != (n,)
            or part.probabilities.shape != wanted
            or not n
            or not ((part.labels >= 0) & (part.labels < wanted[1])).all()
            or not ((part.probabilities >= 0) & (part.probabilities <= 1)).all()
        ):
            raise RunError(f"{path}: its {part.split} doesn't fit run.json; make the run again")
    return found


def read_history(folder: Path, files: Mapping[str, str]) -> list[dict[str, float]]:
    """The rows of a run's history; none where it has none. What was not measured is left out of a row.

    Args:
        folder: The run folder.
        files: Digests of its files, as run.json names them.

    Raises:
        RunError: If it isn't what `save_run` wrote.
    """
    path = folder / HISTORY
    if HISTORY not in files and not path.is_file():
        return []
    try:
        lines = io.StringIO(_read(path, files).decode(), newline="")
        rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(lines)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path} can't be read: {error}; make the run again") from error
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]
