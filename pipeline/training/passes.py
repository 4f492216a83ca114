"""Passes over rows in shuffled batches, inside one graph.

Batches are gathered from a tensor of all features: on two cores that took 0.7 of the time of `keras.Model.fit` at the
same batch size, and it lets many heads share every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.rows import Part
from pipeline.util import runtime


class Passes:
    """Passes over a part in shuffled batches.

    Args:
        step: What is done with a batch: features [b, d] float32, labels [b], views [b]; gives the losses [heads].
        part: The training images; features on disk are read in blocks that hold a random choice of shards.
        batch_size: Images in a step; all images are used, in steps that differ by one image at most.
        seed: Of the order.
        n_heads: Heads that are trained side by side.
    """

    def __init__(
        self, step: Callable[[Any, Any, Any], Any], part: Part, batch_size: int, seed: int, n_heads: int = 1
    ) -> None:
        tf = runtime.tensorflow()
        self.part = part
        self.batch_size = batch_size
        self.generator = np.random.default_rng(seed)
        self._held = self._tensors(np.arange(len(part))) if isinstance(part.features, np.ndarray) else None

        # No AutoGraph: it would read the source, and what it reads with warns on Python 3.13.
        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def run(features: Any, labels: Any, views: Any, order: Any, n_steps: Any) -> Any:
            n = tf.size(order, tf.int64)

            def add_step(number: Any, total: Any) -> tuple[Any, Any]:
                rows = order[number * n // n_steps : (number + 1) * n // n_steps]
                losses = step(tf.gather(features, rows), tf.gather(labels, rows), tf.gather(views, rows))
                return number + 1, total + losses

            start = (tf.constant(0, tf.int64), tf.zeros(n_heads))
            return tf.while_loop(lambda number, _: number < n_steps, add_step, start)[1]

        self._run = run

    def _tensors(self, rows: NDArray[np.int64]) -> tuple[Any, Any, Any]:
        tf, part = runtime.tensorflow(), self.part
        return tf.constant(part.load(rows), tf.float32), tf.constant(part.labels[rows]), tf.constant(part.views[rows])

    def epoch(self) -> NDArray[np.float64]:
        """One pass; the mean losses of its steps, shape [heads]."""
        totals, n_steps = zip(*(self._block(rows) for rows in self.part.blocks(self.generator)), strict=True)
        means: NDArray[np.float64] = np.sum(totals, axis=0) / sum(n_steps)
        return means

    def _block(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
        """Sums of losses and number of steps of some rows, whose tensors are gone before the next are read."""
        tf = runtime.tensorflow()
        n_steps = max(1, round(len(rows) / self.batch_size))
        order = tf.constant(self.generator.permutation(len(rows)))
        total = self._run(*(self._held or self._tensors(rows)), order, tf.constant(n_steps, tf.int64))
        return total.numpy().astype(np.float64), n_steps
