"""The TensorFlow engine: the Keras graph as one function of fixed batch shape, with one replica on each GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError
from pipeline.extraction.engines.base import CPU_BATCH_SIZE, padded
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras


class TensorflowEngine:
    """Runs a Keras model on all GPUs, or on the processor."""

    def __init__(self, model: keras.Model, batch_size: int, devices: list[str] | None = None) -> None:
        """Compile the model.

        Args:
            model: From uint8 [n, height, width, 3] to features.
            batch_size: Images in a batch on a GPU.
            devices: Names of TensorFlow devices; by default all GPUs, else the processor.
        """
        tf = runtime.tensorflow()
        self.devices = devices or [gpu.name for gpu in tf.config.list_logical_devices("GPU")] or ["/CPU:0"]
        # On the processor another batch size picks other kernels, whose sums differ in the last bits.
        self.batch_size = batch_size if "GPU" in self.devices[0] else CPU_BATCH_SIZE
        self.shape = tuple(model.outputs[0].shape[1:])
        self.traces = 0
        self._replicas = [self._compiled(model, device) for device in self.devices]

    def _compiled(self, model: keras.Model, device: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """Compile a copy of the model whose variables lie on `device`."""
        tf = runtime.tensorflow()
        with tf.device(device):
            replica = model
            if len(self.devices) > 1:
                replica = runtime.keras().models.clone_model(model)
                replica.set_weights(model.get_weights())

            def forward(images: Any) -> Any:
                self.traces += 1
                return replica(images, training=False)

            shape = tf.TensorSpec((self.batch_size, *model.inputs[0].shape[1:]), tf.uint8)
            compiled = tf.function(forward, autograph=False).get_concrete_function(shape)

        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            with tf.device(device):
                features: NDArray[np.float32] = compiled(tf.constant(batch)).numpy()
            return features

        self._run(run, np.zeros(shape.shape, np.uint8))
        return run

    def _run(self, replica: Callable[..., NDArray[np.float32]], batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.batch_size
        with runtime.enough_memory(EngineError, f"{size} images in a batch", f"--batch-size {size // 2 or 1}"):
            return replica(batch)

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """As `Engine.stream`; each replica works on every n-th batch, with one batch waiting."""
        waiting: deque[tuple[int, Future[NDArray[np.float32]]]] = deque()
        pools = [ThreadPoolExecutor(1) for _ in self._replicas]
        try:
            for number, batch in enumerate(batches):
                turn = number % len(pools)
                future = pools[turn].submit(self._run, self._replicas[turn], padded(batch, self.batch_size))
                waiting.append((len(batch), future))
                if len(waiting) > 2 * len(pools):
                    count, future = waiting.popleft()
                    yield future.result()[:count]
            while waiting:
                count, future = waiting.popleft()
                yield future.result()[:count]
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)
