"""The fast engine for processors: the same Keras graph, converted once and compiled by OpenVINO."""

from __future__ import annotations

import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import OnnxGraph
from pipeline.errors import EngineError, StoppedError, StoreError
from pipeline.extraction.engines.base import padded
from pipeline.util import disk, log, machine, runtime
from pipeline.util.files import digest_of, published_folder
from pipeline.util.sealed import read_json, write_json
from pipeline.util.stopping import stopping

if TYPE_CHECKING:
    import keras
    import openvino

CHECKSUMS = "checksums.json"
FACTS = "facts.json"
ONE_BATCH = "tlpipe_batch_size"  # in a graph that takes one number of images alone

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}  # of what is not in int8

INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
"""Processors with one of these multiply 8-bit numbers several times as fast as floats."""


@cache
def _core() -> Any:
    return runtime.openvino().Core()


def supports(precision: str) -> bool:
    """Whether the processor computes in this precision."""
    if precision == "int8" and not machine.processor_flags() & INT8_FLAGS:
        return False
    name = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16", "int8": "INT8"}[precision]
    return name in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def converted(build: Callable[[], keras.Model | OnnxGraph], folder: Path) -> openvino.Model:
    """The OpenVINO form of a Keras model or an ONNX graph, in float32 and for any batch size that it takes.

    Args:
        build: Gives the model; called only if the folder holds no converted one.
        folder: Where it is kept; named by a digest of all that the graph depends on.

    Raises:
        EngineError: If the conversion fails.
    """
    if (graph := kept(folder)) is not None:
        return graph
    model = build()
    try:
        # OpenVINO would report an interrupt as a graph that it can't convert.
        with stopping() as stop, runtime.quiet_stderr():
            graph = _from_onnx(model) if isinstance(model, OnnxGraph) else _from_keras(model)
    except Exception as error:  # OpenVINO raises many kinds
        other = "onnxruntime" if isinstance(model, OnnxGraph) else "tensorflow"
        lines = str(error).splitlines() or [type(error).__name__]
        cause = next((line.strip("- ") for line in lines if "No conversion rule" in line), lines[0])
        raise EngineError(f"OpenVINO can't convert {model.name}: {cause[:200]}; use --engine {other}") from error
    if stop.signal is not None:
        raise StoppedError("Stopped before the first image. Run the same command to start over.", signal=stop.signal)
    _name_by_place(graph)
    keep(graph, folder)
    return graph


def _name_by_place(graph: openvino.Model) -> None:
    """Name operations by their place in the graph.

    OpenVINO numbers them by all that a process has converted before, and which of two equal rewritings its CPU plugin
    takes hangs on names: the same network would be another graph from time to time.
    """
    for place, node in enumerate(graph.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")


def _from_onnx(model: OnnxGraph) -> openvino.Model:
    graph = _core().read_model(model.proto)
    if model.batch_size:
        graph.set_rt_info(str(model.batch_size), [ONE_BATCH])
    return graph


def _from_keras(model: keras.Model) -> openvino.Model:
    tf = runtime.tensorflow()
    if sys.version_info >= (3, 13):
        _mend_for_new_pythons()
    shape = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.uint8)
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    return runtime.openvino().convert_model(function.get_concrete_function(shape))


def _mend_for_new_pythons() -> None:
    """Let OpenVINO 2026.4 find TensorFlow's version.

    It imports and forgets that name by `exec`, whose names don't outlive it from Python 3.13 on (PEP 667). What it then
    asks is in `sys.modules` in any case, so that nothing needs to be executed.
    """
    for name in ("openvino.frontend.tensorflow.utils", "openvino.tools.ovc.environment_setup_utils"):
        importlib.import_module(name).exec = lambda text: None  # type: ignore[attr-defined]


def keep(graph: openvino.Model, folder: Path, facts: dict[str, Any] | None = None) -> None:
    """Keep a graph, and what is known of it, if it can be: another process may have been faster."""
    with suppress(StoreError), published_folder(folder) as partial:
        runtime.openvino().save_model(graph, disk.change("write", partial / "model.xml"), compress_to_fp16=False)
        if facts is not None:
            write_json(partial / FACTS, facts)
        write_json(partial / CHECKSUMS, _checksums(partial))


def _checksums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CHECKSUMS)
    return {path.name: digest_of(path.read_bytes()) for path in files}


def whole(folder: Path) -> bool:
    """Whether a folder keeps a graph; it is removed if a byte of it has changed."""
    if not folder.is_dir():
        return False
    try:
        if read_json(folder / CHECKSUMS) == _checksums(folder):
            return True
    except (OSError, ValueError) as error:
        log.debug("%s can't be read: %s", folder, error)
    with suppress(OSError):
        disk.remove_tree(folder)
    return False


def kept(folder: Path) -> openvino.Model | None:
    """The graph that a folder keeps; None if there is none that is whole."""
    if whole(folder):
        try:
            return _core().read_model(folder / "model.xml")
        except RuntimeError as error:  # another version of OpenVINO may not read it
            log.debug("%s can't be read: %s", folder, error)
            with suppress(OSError):
                disk.remove_tree(folder)
    return None


class OpenvinoEngine:
    """Runs a converted model on the processor, several batches at a time."""

    def __init__(self, graph: openvino.Model, precision: str, batch_size: int) -> None:
        """Compile the model.

        Args:
            graph: From uint8 [n, height, width, 3] to features.
            precision: "float32", "bfloat16", "float16" or "int8".
            batch_size: Images in a batch, unless the graph takes another number.
        """
        if graph.has_rt_info([ONE_BATCH]):
            batch_size = int(graph.get_rt_info([ONE_BATCH]).astype(str))
        self.batch_size = batch_size
        graph.reshape([batch_size, *list(graph.inputs[0].partial_shape)[1:]])
        # One stream a core, each with its own batch: faster than several cores on one batch, and less bound to the
        # batch size (see tlpipe bench).
        threads = machine.cpu_count()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = _core().compile_model(graph, "CPU", settings)
        self.shape = tuple(compiled.output(0).shape)[1:]
        self._requests = [compiled.create_infer_request() for _ in range(2 * threads)]

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """As `Engine.stream`; two requests for each core keep all cores busy."""
        free = deque(self._requests)
        waiting: deque[tuple[int, Any]] = deque()

        def result() -> NDArray[np.float32]:
            count, request = waiting.popleft()
            request.wait()
            features: NDArray[np.float32] = request.get_output_tensor(0).data[:count].copy()
            free.append(request)
            return features

        try:
            for batch in batches:
                if not free:
                    yield result()
                request = free.popleft()
                request.start_async([padded(batch, self.batch_size)])
                waiting.append((len(batch), request))
            while waiting:
                yield result()
        finally:
            for _, request in waiting:
                request.wait()


def matrix_product(side: int, precision: str) -> Callable[[], Any]:
    """A function that multiplies two square matrices on all cores once, for comparison with a network.

    Args:
        side: Rows and columns.
        precision: "float32" or "bfloat16".
    """
    openvino = runtime.openvino()
    from openvino import opset13 as op

    left = op.parameter([side, side], np.float32)
    right = op.constant(np.random.default_rng(0).standard_normal((side, side), np.float32))
    model = openvino.Model([op.matmul(left, right, transpose_a=False, transpose_b=False)], [left])
    threads = machine.cpu_count()
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    compiled = _core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ones((side, side), np.float32)))
    return lambda: request.infer()
