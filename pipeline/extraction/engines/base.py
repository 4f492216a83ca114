"""What an engine is: a compiled graph of one fixed batch shape, uint8 images in, float32 features out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""Keras's dtype policy for each precision, where Keras's own backend computes."""

CPU_BATCH_SIZE = 16  # where Keras's own backend computes on the processor


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine and a precision, resolved for this machine.

    Attributes:
        engine: "tensorflow", "openvino", "jax" or "onnxruntime".
        precision: "float32", "bfloat16", "float16" or "int8"; "auto" where a graph must be measured to tell whether
            int8 is worth it.
        graph: Digest of the graph in int8; "" for other precisions, and where the graph isn't made yet.
    """

    engine: str
    precision: str
    graph: str = ""

    @property
    def spec_precision(self) -> str:
        """What the feature spec holds: engines agree in float32 and share features there, elsewhere they don't."""
        if self.precision == "float32":
            return self.precision
        return "-".join(filter(None, (self.engine, self.precision, self.graph)))


class Engine(Protocol):
    """A compiled graph.

    Attributes:
        batch_size: Images in a batch; the compiled graph never sees another number.
        shape: Shape of one image's features.
    """

    batch_size: int
    shape: tuple[int, ...]

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Compute features of batches, several at a time, and give them in the order of the batches.

        Args:
            batches: Each uint8 [m, height, width, 3] with m up to `batch_size`.

        Returns:
            Each float32 [m, ...].
        """


def padded(batch: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Fill a batch up to `size` images with black ones, so that the graph is never compiled for another shape."""
    if len(batch) == size:
        return batch
    return np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)])


def cosines(found: NDArray[np.floating], expected: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each row with its like, both [n, d], shape [n]; 0 where one of them has no length, or no finite one."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    products = (found * expected).sum(axis=1)
    values: NDArray[np.float64] = np.divide(products, lengths, out=np.zeros(len(found)), where=lengths > 0)
    values[np.isnan(values)] = 0
    return values


def call(engine: Engine, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of images held in memory: uint8 [n, height, width, 3] to float32 [n, ...]."""
    size = engine.batch_size
    return np.concatenate(list(engine.stream(images[at : at + size] for at in range(0, len(images), size))))
