"""Batches of rows for a Keras model: read in threads ahead of the step, in blocks where the rows lie on disk."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.rows import Part, StoredFeatures
from pipeline.util import runtime

AHEAD = 4  # batches that wait for the step
WORKERS = 2  # with one, Keras reads through tf.data's tuning, whose end can take as long as the whole pass

Prepare = Callable[[int, NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
"""From the number of a batch, its inputs and its targets to what the step takes; called in the threads that read."""


class Batches:
    """One pass over rows.

    Args:
        part: The rows.
        targets: What the loss compares with, one for each row.
        batch_size: Rows in a batch.
        generator: Draws the order; None to take the rows as they come.
        full: Whether the last batch is filled up with some that were there before; else it may hold fewer.
        prepare: What is done with a batch; None for nothing.

    Attributes:
        order: Rows in the order in which they are read.
    """

    def __init__(
        self,
        part: Part,
        targets: NDArray[Any],
        batch_size: int,
        generator: np.random.Generator | None,
        *,
        full: bool = False,
        prepare: Prepare | None = None,
    ) -> None:
        self.part = part
        self.prepare = prepare
        self.targets = targets
        self.batch_size = batch_size
        found = list(part.blocks(generator))
        self.blocks = [generator.permutation(block) for block in found] if generator else found
        if full:
            missing = -len(part) % batch_size
            self.blocks[-1] = np.concatenate([self.blocks[-1], np.resize(self.blocks[-1], missing)])
        self.ends = np.cumsum([len(block) for block in self.blocks])
        self.order = np.concatenate(self.blocks)
        self._held: tuple[int, NDArray[Any]] | None = None
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        start = number * self.batch_size
        rows = self.order[start : start + self.batch_size]
        if isinstance(self.part.features, StoredFeatures):  # read fastest in blocks
            with self._turn:
                inputs = self._from_blocks(start, start + len(rows))
        else:
            inputs = self.part.load(rows)
        targets = self.targets[rows]
        if self.prepare:
            inputs, targets = self.prepare(number, inputs, targets)
        # Keras would turn a float16 array into float32 as a whole, before the first batch.
        return inputs.astype(np.float32) if inputs.dtype == np.float16 else inputs, targets

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
                self._held = (block, self.part.load(self.blocks[block]))
            offset = int(self.ends[block]) - len(self.blocks[block])
            stop = min(end, int(self.ends[block]))
            parts.append(self._held[1][start - offset : stop - offset])
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@contextmanager
def batches(
    part: Part,
    targets: NDArray[Any],
    batch_size: int,
    generator: np.random.Generator | None,
    prepare: Prepare | None = None,
) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Keras's data set of one pass, read in threads ahead of the step, and the rows in its order.

    Where several devices share a batch, all are full: Keras can give a device no empty part, and takes the mean of each
    part for itself, however large. Arguments as in `Batches`.

    Raises:
        Exception: What went wrong while reading, which Keras and its backend would hide in errors of their own.
    """
    one_pass = Batches(part, targets, batch_size, generator, full=runtime.n_replicas() > 1, prepare=prepare)
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
        workers = WORKERS if isinstance(part.features, np.ndarray) else part.features.workers
        if runtime.n_replicas() > 1:
            workers = 1  # Keras reads a batch, begins anew, and would give what several threads had read ahead first
        waiting = AHEAD if prepare else AHEAD + workers  # what is prepared may be much larger than what was read
        yield DataSet(workers=workers, max_queue_size=waiting), one_pass.order
    except Exception as error:
        if failed:
            raise failed[0] from error
        raise
    finally:
        one_pass.release()  # Keras's cycles would keep it for a while


def predict_logits(model: Any, part: Part, batch_size: int) -> NDArray[np.floating]:
    """Logits [n, k] of rows, in their order."""
    with batches(part, part.labels, batch_size, None) as (data, order):
        logits: NDArray[np.floating] = model.predict(data, verbose=0)
    found = np.empty((len(part), logits.shape[1]), logits.dtype)
    found[order] = logits
    return found
