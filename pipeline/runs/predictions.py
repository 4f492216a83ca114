"""What a run folder keeps beside run.json: probabilities of images, and the history of training."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import SPLITS
from pipeline.errors import RunError

PREDICTIONS, HISTORY = "predictions.h5", "history.csv"


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


def write_predictions(folder: Path, class_names: list[str], predictions: Sequence[Predictions]) -> None:
    """Write predictions, and the names of the classes in the order of their probabilities."""
    with h5py.File(folder / PREDICTIONS, "w") as file:
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
    with (folder / HISTORY).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def read_predictions(folder: Path, n_classes: int) -> dict[str, Predictions]:
    """The predictions of a run, by split.

    Args:
        folder: The run folder.
        n_classes: Number of its classes.

    Raises:
        RunError: If they are missing or not what `save_run` wrote.
    """
    path = folder / PREDICTIONS
    try:
        with h5py.File(path, "r") as file:
            splits = [name for name in SPLITS if name in file]
            found = {
                split: Predictions(split, *(file[split][name][:] for name in ("key", "label", "probability")))
                for split in splits
            }
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} can't be read: {error}; make the run again") from error
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
            raise RunError(f"{path} is not what tlpipe wrote: its {part.split} doesn't fit run.json")
    return found


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's history; none where it has none. What was not measured is left out of a row.

    Raises:
        RunError: If it isn't what `save_run` wrote.
    """
    path = folder / HISTORY
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path} is not what tlpipe wrote: {error}") from error
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]
