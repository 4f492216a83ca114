"""How fast this machine runs a backbone: Keras's own predict against the engines, in turns, in one run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import open_keras
from pipeline.errors import EngineError
from pipeline.extraction.engines import EngineChoice, call, open_engine, quantize
from pipeline.extraction.engines.turns import turns
from pipeline.util import log, machine, runtime

if TYPE_CHECKING:
    import keras

OPENVINO_BATCHES = (1, 2, 4, 8)
MATRIX_SIDE = 2048


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of running the backbone.

    Attributes:
        name: What ran.
        precision: "float32", "bfloat16", "float16" or "int8".
        batch_size: Images in a batch.
        images_per_second: Median over the rounds.
        times_predict: Rate by that of Keras's predict.
        share_of_matrix_rate: Operations a second by those of one large matrix product in the same precision; None
            where that could not be measured.
        mean_cosine: Of the features in int8 with those in float32, over pictures; None for other precisions.
    """

    name: str
    precision: str
    batch_size: int
    images_per_second: float
    times_predict: float
    share_of_matrix_rate: float | None
    mean_cosine: float | None = None


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What the machine does.

    Attributes:
        backbone: Name of the backbone.
        image_size: (height, width), pixels.
        multiply_adds: Of one image, in convolutions and dense layers.
        matrix_rate: Operations a second of a large matrix product, by precision.
        measured: All ways, Keras's predict first.
    """

    backbone: str
    image_size: tuple[int, int]
    multiply_adds: int
    matrix_rate: dict[str, float]
    measured: list[Measured]


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of one image in a model's convolutions and dense layers; all else is small beside them."""
    layers = runtime.keras().layers
    total = 0
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)):
            positions = math.prod(layer.output.shape[1:3])
            kernels = [weight for weight in layer.weights if len(weight.shape) == 4]
            total += positions * sum(math.prod(kernel.shape) for kernel in kernels)
        elif isinstance(layer, layers.Dense):
            positions = math.prod(layer.output.shape[1:-1])
            total += positions * math.prod(layer.kernel.shape)
    return total


def bench(backbone: str, image_size: tuple[int, int] | None, seconds: float) -> BenchResult:
    """Measure all engines on random weights and random images, which run as fast as any.

    Args:
        backbone: Name in the table.
        image_size: (height, width), pixels; None for the native size.
        seconds: Least time of one turn.
    """
    pretrained = open_keras(backbone, "random", 0, image_size)
    row = pretrained.row
    endpoint = pretrained.default_endpoint()
    features = pretrained.network().features(endpoint, "avg")
    images = np.random.default_rng(0).integers(0, 256, (64, *pretrained.image_size, 3), np.uint8)
    ways: dict[tuple[str, str, int], Callable[[], Any]] = {}
    matrices: dict[str, Callable[[], Any]] = {}
    ways["keras predict", "float32", 32] = lambda: features.predict(_batches(images, 32), verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph"
        for choice, batch_size in _choices():
            try:
                engine = open_engine(choice, pretrained.network, endpoint, "avg", graph, batch_size)
            except EngineError as error:
                if choice.precision != "int8":
                    raise
                log.warning("%s", error)
                break  # int8 comes last
            ways[choice.engine, choice.precision, engine.batch_size] = partial(call, engine, images)
        quantized = quantize.facts(graph / "int8")
        for precision in sorted({precision for _, precision, _ in ways} - {"int8"}):
            if runtime.installed("openvino"):
                from pipeline.extraction.engines.openvino import matrix_product

                matrices[precision] = matrix_product(MATRIX_SIDE, precision)
        rates = turns({**ways, **matrices}, seconds, len(images))
    operations = 2 * multiply_adds(features)
    matrix_rate = {name: rates[name] / len(images) * 2 * MATRIX_SIDE**3 for name in matrices}
    predict = rates["keras predict", "float32", 32]
    measured = [
        Measured(
            *way,
            rates[way],
            rates[way] / predict,
            _share(rates[way] * operations, matrix_rate.get(way[1])),
            quantized.mean_cosine if quantized and way[1] == "int8" else None,
        )
        for way in ways
    ]
    return BenchResult(row.name if row else backbone, pretrained.image_size, operations // 2, matrix_rate, measured)


def _batches(images: NDArray[np.uint8], size: int) -> keras.utils.PyDataset:
    """The images as Keras reads them best; of an array, tf.data's tuning may take as long to end as a short pass."""

    class Batches(runtime.keras().utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(images) // size

        def __getitem__(self, number: int) -> tuple[NDArray[np.uint8]]:
            return (images[number * size : (number + 1) * size],)

    return Batches(workers=2)


def _share(operations: float, matrix_rate: float | None) -> float | None:
    # The matrix product runs on the processor, with which a GPU can't be compared.
    return None if matrix_rate is None or machine.has_nvidia_gpu() else operations / matrix_rate


def _choices() -> list[tuple[EngineChoice, int | None]]:
    if runtime.keras_backend() == "jax":
        on_cpu = runtime.jax().default_backend() == "cpu"
        return [(EngineChoice("jax", one), None) for one in (("float32",) if on_cpu else ("float32", "bfloat16"))]
    choices: list[tuple[EngineChoice, int | None]] = [(EngineChoice("tensorflow", "float32"), None)]
    if machine.has_nvidia_gpu():
        choices.append((EngineChoice("tensorflow", "float16"), None))
    if runtime.installed("openvino"):
        from pipeline.extraction.engines.openvino import supports

        precisions = ("float32", "bfloat16", *(["int8"] if runtime.installed("nncf") else []))
        for precision in precisions:
            if supports(precision):
                choices += [(EngineChoice("openvino", precision), size) for size in OPENVINO_BATCHES]
    return choices
