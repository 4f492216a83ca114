"""What is trained on: labelled inputs that are read as they are needed, and their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig
from pipeline.data import Dataset, ImageSource
from pipeline.data.pixels import read_pixels
from pipeline.errors import DataError, ImageError
from pipeline.store.rows import StoredFeatures
from pipeline.store.table import FeatureTable
from pipeline.util import runtime

Rows = NDArray[np.int64]

AHEAD = 4  # batches that wait for the step


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled inputs of one split.

    Attributes:
        labels: Class indices, shape [n]; where images are mixed, shares of classes, shape [n, logits].
        keys: Image keys, shape [n].
        read: Some of the inputs, float [m, ...], or uint8 [m, height, width, 3].
        blocks: All rows, as many at a time as are read together; None where any row is read as fast as any other.
        workers: Threads that read.
    """

    labels: NDArray[Any]
    keys: NDArray[np.bytes_]
    read: Callable[[Rows], NDArray[Any]]
    blocks: Callable[[np.random.Generator | None], Sequence[Rows]] | None = None
    workers: int = 1

    def __len__(self) -> int:
        return len(self.labels)


def rows_of(table: FeatureTable, split: str) -> Examples:
    """The rows of one split of a table, none of which is copied: of `train` all views, else the images themselves."""
    rows = table.rows(split)
    labels, keys, features = table.labels[rows], table.keys[rows], table.features
    if isinstance(features, StoredFeatures):
        stored = features.take(rows)
        return Examples(labels, keys, stored.read, lambda generator: list(stored.blocks(generator)))
    return Examples(labels, keys, lambda some: features[rows[some]])


def indices_of(dataset: Dataset, keys: NDArray[np.bytes_]) -> Rows:
    """Positions in a dataset of the images with some keys."""
    known, first = np.unique(dataset.keys, return_index=True)
    return first[np.searchsorted(known, keys)]


def images_of(
    table: FeatureTable, split: str, dataset: Dataset, source: ImageSource, config: ImageConfig, workers: int
) -> Examples:
    """The images of one split of a table, decoded when they are read.

    Args:
        table: The table, of the images themselves, without views.
        split: The split.
        dataset: The dataset that the table was extracted from, as it is now.
        source: Its images.
        config: How files become pixels.
        workers: Decoding threads.
    """
    rows = table.rows(split)
    indices = indices_of(dataset, table.keys[rows])

    def read(some: Rows) -> NDArray[np.uint8]:
        pixels = np.empty((len(some), *config.image_size, 3), np.uint8)
        for number, index in enumerate(indices[some].tolist()):
            key, location = bytes(dataset.keys[index]), dataset.locations[index]
            try:
                pixels[number] = read_pixels(source, index, key, config)
            except ImageError as error:
                raise DataError(
                    f"{location} could be read when its features were computed, and can't be now: {error}; mend it, "
                    "or run tlpipe extract again"
                ) from error
        return pixels

    return Examples(table.labels[rows], table.keys[rows], read, workers=workers)


class Batches:
    """One pass over examples.

    Args:
        examples: The examples.
        batch_size: Examples in a batch.
        generator: Draws the order; None to take the rows as they come.
        full: Whether the last batch is filled up with some that were there before; else it may hold fewer.

    Attributes:
        order: Rows in the order in which they are read.
    """

    def __init__(
        self, examples: Examples, batch_size: int, generator: np.random.Generator | None, *, full: bool = False
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        found = examples.blocks(generator) if examples.blocks else [np.arange(len(examples))]
        self.blocks = [generator.permutation(block) for block in found] if generator else list(found)
        if full:
            missing = -len(examples) % batch_size
            self.blocks[-1] = np.concatenate([self.blocks[-1], np.resize(self.blocks[-1], missing)])
        self.ends = np.cumsum([len(block) for block in self.blocks])
        self.order = np.concatenate(self.blocks)
        self._held: tuple[int, NDArray[Any]] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        start = number * self.batch_size
        rows = self.order[start : start + self.batch_size]
        inputs = self._from_blocks(start, start + len(rows)) if self.examples.blocks else self.examples.read(rows)
        # Keras would turn a float16 array into float32 as a whole, before the first batch.
        return inputs.astype(np.float32) if inputs.dtype == np.float16 else inputs, self.examples.labels[rows]

    def release(self) -> None:
        """Let go of the block that is held."""
        self._held = None

    def _from_blocks(self, start: int, end: int) -> NDArray[Any]:
        """Inputs from `start` to `end` in the order of reading; the block they lie in is read once, as a whole."""
        parts = []
        while start < end:
            block = int(np.searchsorted(self.ends, start, side="right"))
            if self._held is None or self._held[0] != block:
                self._held = None  # so that only one is held at a time
                self._held = (block, self.examples.read(self.blocks[block]))
            offset = int(self.ends[block]) - len(self.blocks[block])
            stop = min(end, int(self.ends[block]))
            parts.append(self._held[1][start - offset : stop - offset])
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@contextmanager
def batches(examples: Examples, batch_size: int, generator: np.random.Generator | None) -> Iterator[tuple[Any, Rows]]:
    """Keras's data set of one pass, read in threads ahead of the step, and the rows in its order.

    Where several devices share a batch, all are full: Keras can give a device no empty part, and takes the mean of each
    part for itself, however large.

    Args:
        examples: The examples.
        batch_size: Examples in a batch.
        generator: Draws the order; None to take the rows as they come.

    Raises:
        Exception: What went wrong while reading, which TensorFlow would hide in an error of its own.
    """
    several = runtime.tensorflow().distribute.get_strategy().num_replicas_in_sync > 1
    one_pass = Batches(examples, batch_size, generator, full=several)
    failed: list[Exception] = []

    class DataSet(runtime.keras().utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(one_pass)

        def __getitem__(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
            try:
                return one_pass[number]
            except Exception as error:
                failed.append(error)
                raise

    try:
        yield DataSet(workers=examples.workers, max_queue_size=AHEAD + examples.workers), one_pass.order
    except Exception as error:
        if failed:
            raise failed[0] from error
        raise
    finally:
        one_pass.release()  # Keras's cycles would keep it for a while


def predict(model: Any, examples: Examples, batch_size: int) -> NDArray[np.floating]:
    """Logits [n, k] of examples, in their order."""
    with batches(examples, batch_size, None) as (data, order):
        logits: NDArray[np.floating] = model.predict(data, verbose=0)
    found = np.empty((len(examples), logits.shape[1]), logits.dtype)
    found[order] = logits
    return found
