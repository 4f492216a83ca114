"""The engine for GPUs and TPUs where Keras runs on JAX: the Keras graph as one XLA program of fixed batch shape."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError
from pipeline.extraction.engines.base import CPU_BATCH_SIZE, padded
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

AHEAD = 2  # batches that the devices are given before the first of them is fetched


class JaxEngine:
    """Runs a Keras model on all devices that JAX has of its fastest kind, each with an equal share of every batch."""

    def __init__(
        self, model: keras.Model, precision: str, batch_size: int, devices: Sequence[Any] | None = None
    ) -> None:
        """Compile the model.

        Args:
            model: From uint8 [n, height, width, 3] to features, built under the dtype policy of the precision.
            precision: "float32", "bfloat16" or "float16".
            batch_size: Images in a batch of one device; the processor always takes the same.
            devices: JAX's devices; by default all of the kind that JAX prefers.

        Raises:
            EngineError: If the memory of a device is too small.
        """
        jax = runtime.jax()
        found = list(devices or jax.devices())
        # On the processor another batch size picks other kernels, whose sums differ in the last bits.
        self.batch_size = len(found) * (CPU_BATCH_SIZE if found[0].platform == "cpu" else batch_size)
        self.shape = tuple(model.outputs[0].shape[1:])
        mesh = jax.sharding.Mesh(np.array(found), ("images",))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._shares = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("images"))
        variables = ([one.value for one in part] for part in (model.trainable_variables, model.non_trainable_variables))

        def forward(weights: Any, images: Any) -> Any:
            return model.stateless_call(*weights, images, training=False)[0]

        images = jax.ShapeDtypeStruct((self.batch_size, *model.inputs[0].shape[1:]), np.uint8, sharding=self._shares)
        # GPUs and TPUs would round the factors of products in float32, to 11 bits and to 8.
        exact = "highest" if precision == "float32" else None
        with self._enough_memory(), jax.default_matmul_precision(exact):
            # A copy: Keras gives its own arrays away in `predict` and `fit`.
            self._weights = jax.device_put(tuple(variables), everywhere, may_alias=False)
            lowered = jax.jit(forward, out_shardings=self._shares).lower(self._weights, images)
            self._run = lowered.compile()  # which refuses another shape, so that nothing is ever traced again

    def _enough_memory(self) -> AbstractContextManager[None]:
        n = self._shares.num_devices
        size, each = self.batch_size // n, f" on each of {n} devices" if n > 1 else ""
        return runtime.enough_memory(EngineError, f"{size} images in a batch{each}", f"a --batch-size below {size}")

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """As `Engine.stream`; JAX works on what it was given while the next batch is decoded."""
        jax = runtime.jax()
        waiting: deque[tuple[int, Any]] = deque()

        def result() -> NDArray[np.float32]:
            count, features = waiting.popleft()
            found: NDArray[np.float32] = np.asarray(features)[:count]
            return found

        with self._enough_memory():
            for batch in batches:
                images = jax.device_put(padded(batch, self.batch_size), self._shares)
                features = self._run(self._weights, images)
                features.copy_to_host_async()
                waiting.append((len(batch), features))
                if len(waiting) > AHEAD:
                    yield result()
            while waiting:
                yield result()
