"""Engines: which one runs on this machine, and in which precision."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import Network, OnnxGraph, OnnxNetwork
from pipeline.config import ENGINES, PRECISIONS, SPEC_VERSION, FeatureSpec
from pipeline.data.images import Pixels
from pipeline.errors import EngineError
from pipeline.extraction.engines import verdict
from pipeline.extraction.engines.base import POLICIES, Engine, EngineChoice, call
from pipeline.extraction.engines.pictures import crops
from pipeline.util import log, machine, runtime
from pipeline.util.files import digest_of
from pipeline.util.local_copies import own_part
from pipeline.util.memo import Memo
from pipeline.util.options import one_of

__all__ = [
    "Engine",
    "EngineChoice",
    "OpenedBy",
    "call",
    "choose",
    "for_graph",
    "graph_folder",
    "in_place_of_openvino",
    "judge",
    "open_engine",
]

if TYPE_CHECKING:
    import openvino

    from pipeline.extraction.engines import quantize

# Measured on two cores with AMX, DenseNet121 at 224 px, bfloat16: 205 to 228 images per second for 1 to 16 in a batch.
# Small networks want more than 1 or 2, as each batch costs a call.
OPENVINO_BATCH_SIZE = 8
GPU_BATCH_SIZE = 128
NAMED_BY_PLACE = "names by place"  # of operations; graphs of before had other names in each process


def graph_folder(cache: Path, spec: FeatureSpec) -> Path:
    """Where the converted graph of some features is kept: it depends on neither the resize nor the precision."""
    graph = (SPEC_VERSION, spec.backbone, spec.weights_digest, spec.endpoint, spec.pooling, *spec.image_size)
    made_by = (runtime.version("keras"), runtime.version("openvino"), NAMED_BY_PLACE)
    return own_part(cache) / "graphs" / digest_of(repr((graph, made_by)).encode())


OpenedBy = Callable[[str], Network | OnnxNetwork]
"""Gives the backbone as a graph for a Keras dtype policy, which means nothing to one from an ONNX file."""


def choose(engine: str, precision: str, *, onnx: bool = False) -> EngineChoice:
    """Resolve `auto` for this machine, on a processor without importing TensorFlow.

    Args:
        engine: As in `ExtractConfig`.
        precision: As in `ExtractConfig`.
        onnx: Whether the backbone is an ONNX file, which OpenVINO and ONNX Runtime run, and Keras is not asked.

    Raises:
        ConfigError: For an unknown name.
        EngineError: If the engine isn't installed, doesn't have the precision here, or needs Keras on another backend
            than it runs on in this process.
    """
    one_of("--engine", engine, ENGINES)
    one_of("--precision", precision, PRECISIONS)
    in_int8 = precision == "int8"
    if onnx:
        return _of_onnx(engine, precision)
    if engine == "onnxruntime":
        raise EngineError("--engine onnxruntime runs ONNX files, and this backbone isn't one; leave it out")
    on_gpu = machine.has_nvidia_gpu()
    if engine == "auto":
        engine = "openvino" if in_int8 else _for_this_machine(on_gpu=on_gpu)
    if engine == "jax":
        return _on_jax(precision)
    if runtime.keras_backend() == "jax":
        raise EngineError(
            f"{'--precision int8' if in_int8 else f'--engine {engine}'} takes its graph from Keras on TensorFlow, and "
            "in this process Keras runs on JAX; leave it out, or unset KERAS_BACKEND"
        )
    if engine == "tensorflow":
        if not runtime.installed("tensorflow"):
            raise EngineError("--engine tensorflow needs TensorFlow; install it with: pip install tensorflow")
        if in_int8:
            raise EngineError("--engine tensorflow doesn't compute in int8; leave it out, as OpenVINO does")
        if precision == "float16" and not on_gpu:
            raise EngineError("--engine tensorflow computes in float16 on a GPU, and there is none here")
        return EngineChoice(engine, precision if precision != "auto" else "float16" if on_gpu else "float32")
    return _on_openvino(precision)


def _of_onnx(engine: str, precision: str) -> EngineChoice:
    """The choice for an ONNX file."""
    if engine not in ("auto", "openvino", "onnxruntime"):
        raise EngineError(f"--engine {engine} doesn't run ONNX files; leave it out, or take openvino or onnxruntime")
    if engine == "onnxruntime" or (
        engine == "auto" and precision in ("auto", "float32") and not runtime.installed("openvino")
    ):
        if precision not in ("auto", "float32"):
            raise EngineError(f"--engine onnxruntime doesn't compute in {precision}; leave it out, as OpenVINO does")
        return EngineChoice("onnxruntime", "float32")
    return _on_openvino(precision)


def _on_openvino(precision: str) -> EngineChoice:
    """The choice where OpenVINO computes."""
    engine, in_int8 = "openvino", precision == "int8"
    if not runtime.installed("openvino"):
        what = "--precision int8" if in_int8 else "--engine openvino"
        raise EngineError(f"{what} needs OpenVINO; install it with: pip install openvino")
    if in_int8:  # on any processor, if not on each as fast
        if not runtime.installed("nncf"):
            raise EngineError("--precision int8 needs NNCF; install it with: pip install nncf")
        return EngineChoice(engine, precision)
    from pipeline.extraction.engines import openvino

    if precision == "auto":
        if openvino.supports("bfloat16"):
            return EngineChoice(engine, "bfloat16")
        worth_a_try = openvino.supports("int8") and runtime.installed("nncf")
        return EngineChoice(engine, "auto" if worth_a_try else "float32")
    if not openvino.supports(precision):
        raise EngineError(f"This processor doesn't compute in {precision}; use --precision float32 or auto")
    return EngineChoice(engine, precision)


def _for_this_machine(*, on_gpu: bool) -> str:
    """The engine that `auto` stands for."""
    settled = runtime.keras_backend()
    if settled == "jax" or (runtime.installed("jax") and not runtime.installed("tensorflow")):
        return "jax"
    if on_gpu:
        return "jax" if settled is None and _jax_alone_sees_gpus() else "tensorflow"
    return "openvino" if runtime.installed("openvino") else "tensorflow"


def _jax_alone_sees_gpus() -> bool:
    """Whether JAX can use a GPU here and TensorFlow can't, or isn't there."""
    if not runtime.installed("jax") or runtime.jax().default_backend() != "gpu":
        return False
    return not (runtime.installed("tensorflow") and _tensorflow_sees_gpus())


@cache
def _tensorflow_sees_gpus() -> bool:
    """Asked in a process of its own: TensorFlow imports Keras, which then could run on JAX no more."""
    code = "import sys, tensorflow; sys.exit(not tensorflow.config.list_physical_devices('GPU'))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def _on_jax(precision: str) -> EngineChoice:
    if not runtime.installed("jax"):
        raise EngineError(
            "--engine jax needs JAX; install it with: pip install jax, or for a GPU: pip install jax[cuda12]"
        )
    if runtime.keras_backend() is not None:
        runtime.keras_on("jax")
    on_cpu = runtime.jax().default_backend() == "cpu"
    if precision == "int8" or (precision == "float16" and on_cpu):
        raise EngineError(f"--engine jax doesn't compute in {precision} here; use --precision auto")
    return EngineChoice("jax", precision if precision != "auto" else "float32" if on_cpu else "bfloat16")


def in_place_of_openvino(
    precision: str, network: OpenedBy, endpoint: str, pooling: str, graph: Path, memo: Memo | None
) -> EngineChoice | None:
    """What `auto` takes for a graph that OpenVINO can't convert, such as Swin's; None for one that it can.

    Args:
        precision: As in `ExtractConfig`.
        network: As in `open_engine`, and so are endpoint, pooling and graph.
        endpoint: As in the feature spec.
        pooling: As in the feature spec.
        graph: Where a converted graph is kept.
        memo: Where the answer is remembered, so that the network is loaded for it once.

    Raises:
        EngineError: If what is left doesn't compute in this precision.
    """
    question = f"what runs the graph {graph.name} in place of OpenVINO"
    other = memo.recall_text(question) if memo else None
    if other is None:
        other = ""
        try:
            _in_float32(network, endpoint, pooling, graph)
        except EngineError as error:
            other = "onnxruntime" if _is_onnx(network) else "tensorflow"
            log.info("%s, as --engine auto does now", error)
        if memo:
            memo.remember_text(question, other)
    return choose(other, precision, onnx=other == "onnxruntime") if other else None


def for_graph(choice: EngineChoice, network: OpenedBy, endpoint: str, pooling: str, graph: Path) -> EngineChoice:
    """The choice for a graph: whether int8 is worth it, and in int8 the digest of the graph, made if it isn't kept yet.

    Arguments and errors as in `open_engine`.
    """
    if choice.precision not in ("auto", "int8"):
        return choice
    from pipeline.extraction.engines import quantize

    if choice.precision == "auto":
        if not quantize.is_worth_it(lambda: _in_float32(network, endpoint, pooling, graph), graph):
            return replace(choice, precision="float32")
        choice = replace(choice, precision="int8")
    found = quantize.facts(graph / "int8")
    if found is None:
        _, found = _in_int8(network, endpoint, pooling, graph)
    return replace(choice, graph=found.digest)


def _in_float32(network: OpenedBy, endpoint: str, pooling: str, graph: Path) -> openvino.Model:
    """The graph as it is converted, or kept."""
    from pipeline.extraction.engines import openvino

    return openvino.converted(lambda: network("float32").features(endpoint, pooling), graph)


def _in_int8(network: OpenedBy, endpoint: str, pooling: str, graph: Path) -> tuple[openvino.Model, quantize.Quantized]:
    """The graph in int8, made of the one in float32 if it is not kept yet."""
    from pipeline.extraction.engines import quantize

    return quantize.quantized(lambda: _in_float32(network, endpoint, pooling, graph), graph / "int8")


def open_engine(
    choice: EngineChoice,
    network: OpenedBy,
    endpoint: str,
    pooling: str,
    graph: Path,
    batch_size: int | None = None,
) -> Engine:
    """Compile the graph of some features.

    Args:
        choice: Engine and precision.
        network: Gives the backbone; not called where a converted graph lies in `graph`.
        endpoint: As in the feature spec.
        pooling: As in the feature spec.
        graph: Where a converted graph is kept, named by a digest of all it depends on.
        batch_size: Images in a batch; by default what did best. TensorFlow and JAX take a fixed number on processors.

    Raises:
        EngineError: If the engine can't run the graph, or not in this precision, or gives wrong features here.
    """
    engine = _compiled(choice, network, endpoint, pooling, graph, batch_size)
    if not _is_reference(choice):
        onnx = partial(_is_onnx, network)
        verdict.prove(engine, choice, lambda: reference(network, endpoint, pooling), graph, onnx)
    return engine


def judge(choice: EngineChoice, network: OpenedBy, endpoint: str, pooling: str, graph: Path) -> verdict.Verdict:
    """How near an engine comes to the reference in a graph; arguments and errors as in `open_engine`."""
    engine = _compiled(choice, network, endpoint, pooling, graph, None)
    return verdict.judged(engine, choice, lambda: reference(network, endpoint, pooling))


def _is_onnx(network: OpenedBy) -> bool:
    return isinstance(network("float32"), OnnxNetwork)


def _is_reference(choice: EngineChoice) -> bool:
    """Whether this is what all are compared with: Keras's own backend, or ONNX Runtime, in float32 on the processor."""
    if choice.precision != "float32" or choice.engine == "openvino":
        return False
    if choice.engine == "onnxruntime":
        return True
    if choice.engine == "jax":
        return bool(runtime.jax().default_backend() == "cpu")
    return not machine.has_nvidia_gpu()


def reference(network: OpenedBy, endpoint: str, pooling: str) -> tuple[Pixels, NDArray[np.floating]]:
    """A few fixed pictures, and their features by Keras, or of an ONNX file by ONNX Runtime, in float32.

    Arguments as in `open_engine`.
    """
    model = network("float32").features(endpoint, pooling)
    if isinstance(model, OnnxGraph):
        from pipeline.extraction.engines.onnxruntime import OnnxruntimeEngine

        pictures = crops(verdict.N_PICTURES, model.image_size, seed=2, varied=False)
        return pictures, call(OnnxruntimeEngine(model, verdict.N_PICTURES), pictures)
    pictures = crops(verdict.N_PICTURES, model.inputs[0].shape[1:3], seed=2, varied=False)
    if runtime.keras_backend() == "jax":
        from pipeline.extraction.engines import jax

        processor = runtime.jax().devices("cpu")[:1]
        return pictures, call(jax.JaxEngine(model, "float32", verdict.N_PICTURES, processor), pictures)
    tf = runtime.tensorflow()
    with tf.device("/CPU:0"):  # one by one, as what each layer gives is held until the last
        rows = [model(pictures[row : row + 1], training=False).numpy() for row in range(len(pictures))]
    return pictures, np.concatenate(rows)


def _compiled(
    choice: EngineChoice, network: OpenedBy, endpoint: str, pooling: str, graph: Path, batch_size: int | None
) -> Engine:
    """As `open_engine`, before it is known whether the features are right."""
    if choice.engine == "openvino":
        from pipeline.extraction.engines import openvino

        if choice.precision == "int8":
            model, _ = _in_int8(network, endpoint, pooling, graph)
            if not openvino.supports("int8"):
                log.warning("This processor has no instructions for int8 (VNNI); it is no faster here than float32")
        else:
            model = _in_float32(network, endpoint, pooling, graph)
        return openvino.OpenvinoEngine(model, choice.precision, batch_size or OPENVINO_BATCH_SIZE)
    model = network(POLICIES[choice.precision]).features(endpoint, pooling)
    if isinstance(model, OnnxGraph):
        from pipeline.extraction.engines.onnxruntime import OnnxruntimeEngine

        return OnnxruntimeEngine(model, batch_size or OPENVINO_BATCH_SIZE)
    if choice.engine == "jax":
        from pipeline.extraction.engines import jax

        return jax.JaxEngine(model, choice.precision, batch_size or GPU_BATCH_SIZE)
    from pipeline.extraction.engines import tensorflow

    if choice.precision == "float16" and not runtime.tensorflow().config.list_physical_devices("GPU"):
        raise EngineError(
            "float16 needs a GPU, and TensorFlow can use none here; install its libraries with "
            "pip install 'tensorflow[and-cuda]', or use --engine openvino, or --precision float32"
        )
    return tensorflow.TensorflowEngine(model, batch_size or GPU_BATCH_SIZE)
