"""Files that other programs run: a model from uint8 images to probabilities in five formats, each with its runtime.

What the model knows of itself (class names, preprocessing, provenance) is put where the format has a place for it:

    keras        an entry `tlpipe.json` of the .keras file, which is a zip archive
    savedmodel   assets.extra/tlpipe.json, the folder that the format keeps for its users
    onnx         metadata_props, under `tlpipe`
    openvino     rt_info, under `tlpipe`
    tflite       an entry `tlpipe.json` of a zip archive at the end of the file, as for the format's associated files
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import OnnxGraph
from pipeline.backbones.onnx_graph import FEATURES, IMAGE, session_of
from pipeline.errors import ConfigError
from pipeline.heads import PROBABILITIES
from pipeline.util import machine, runtime
from pipeline.util.options import one_of

if TYPE_CHECKING:
    import keras
    import onnx

METADATA = "tlpipe"
OPSET = 18  # of ONNX; runtimes from 2022 on have it
BATCH = 16

Runtime = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A function from images to probabilities."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A backbone from an ONNX file and what stands on it, which only ONNX can hold as one.

    Attributes:
        graph: From uint8 images to features.
        head: From features to probabilities.
    """

    graph: OnnxGraph
    head: keras.Model


@dataclass(frozen=True, slots=True)
class Format:
    """A format of models.

    Attributes:
        name: On the command line.
        file: What is written, inside the folder of the export; its suffix tells the format.
        packages: Modules that write and run it, beside TensorFlow.
        extra: The extra of tlpipe that brings them; "" where none is needed.
        write: Writes a Keras model and its metadata; that of ONNX writes a `Joined` one, too.
        load: Loads what was written in the format's own runtime.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    extra: str
    write: Callable[[Any, Path, dict[str, Any]], None]
    load: Callable[[Path], Runtime]

    @property
    def suffix(self) -> str:
        """The suffix of its files; empty where a folder is written."""
        return Path(self.file).suffix

    def check(self) -> None:
        """Refuse a format whose libraries are not installed.

        Raises:
            ConfigError: With the extra to install.
        """
        missing = [package for package in self.packages if not runtime.installed(package)]
        if missing:
            raise ConfigError(
                f"--format {self.name} needs {' and '.join(missing)}; install what it needs with: "
                f"pip install 'tlpipe[{self.extra}]'"
            )


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: If there is none, or its libraries are not installed.
    """
    found = FORMATS[one_of("--format", name, tuple(FORMATS))]
    found.check()
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what converters write to standard error, and what they warn of inside themselves."""
    with runtime.quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _add_to_zip(path: Path, metadata: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{METADATA}.json", _text(metadata))


def _text(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, ensure_ascii=False)


@contextmanager
def _saved(model: keras.Model) -> Iterator[str]:
    """The model as a SavedModel in a folder that is gone afterwards; OpenVINO and TFLite start from there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.export(path, format="tf_saved_model", verbose=False)
        yield str(path)


def _write_keras(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    model.save(path)
    _add_to_zip(path, metadata)


def _load_keras(path: Path) -> Runtime:
    model = runtime.keras().models.load_model(path, compile=False, safe_mode=True)
    return lambda images: np.asarray(model.predict(images, batch_size=BATCH, verbose=0))


@_quiet()
def _write_savedmodel(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    model.export(path, format="tf_saved_model", verbose=False)
    extra = path / "assets.extra"
    extra.mkdir(exist_ok=True)
    (extra / f"{METADATA}.json").write_text(_text(metadata), encoding="utf-8")


def _load_savedmodel(path: Path) -> Runtime:
    model = runtime.tensorflow().saved_model.load(str(path))
    return lambda images: np.asarray(model.serve(images))


@_quiet()
def _write_onnx(model: keras.Model | Joined, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    proto = _joined(model) if isinstance(model, Joined) else _from_keras(model, IMAGE, "uint8", OPSET)
    onnx.helper.set_model_props(proto, {METADATA: _text(metadata)})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _from_keras(model: keras.Model, source: str, dtype: str, opset: int) -> onnx.ModelProto:
    """A Keras model to probabilities, under a name for its input, whose type is given."""
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf = runtime.tensorflow()
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), dtype, name=source)]
    serve = tf.function(lambda inputs: model(inputs, training=False), input_signature=signature, autograph=False)
    # Constants that a layer holds, such as the means of Normalization, would else become inputs that nobody gives.
    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())
    inputs, outputs = frozen.inputs[0].name, frozen.outputs[0].name
    graph = frozen.graph.as_graph_def()
    known: dict[str, Any] = {"Erfc": (_write_erfc, [])}
    proto, _ = tf2onnx.convert.from_graph_def(graph, None, [inputs], [outputs], opset=opset, custom_op_handlers=known)
    names = {inputs: source, outputs: PROBABILITIES}
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = names.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    for node in proto.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    return proto


def _write_erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """1 - erf(x), as which TensorFlow computes GELU; the converter doesn't know it."""
    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    below, above = list(node.input), list(node.output)
    context.remove_node(node.name)
    erf = context.make_node("Erf", below)
    one = context.make_const(f"{name}_one", np.array(1, np.float32))
    context.make_node("Sub", [one.output[0], erf.output[0]], outputs=above, name=name, shapes=[shape], dtypes=[dtype])


def _joined(model: Joined) -> onnx.ModelProto:
    """The graph of an ONNX file and the head above it as one, in the version of the file's operators."""
    import onnx

    below = onnx.load_from_string(model.graph.proto)
    opset = next(one.version for one in below.opset_import if one.domain in ("", "ai.onnx"))
    head = _from_keras(model.head, FEATURES, "float32", min(opset, OPSET))
    if opset > OPSET:
        head = onnx.version_converter.convert_version(head, opset)
    used = {node.domain for node in head.graph.node}
    kept = [one for one in head.opset_import if one.domain in used or one.version == opset]
    del head.opset_import[:]
    head.opset_import.extend(kept)
    head.ir_version = below.ir_version
    head = onnx.compose.add_prefix(head, "head/", rename_outputs=False, rename_inputs=False)
    proto = onnx.compose.merge_models(below, head, io_map=[(FEATURES, FEATURES)])
    if model.graph.batch_size:
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = model.graph.batch_size
    return proto


def _load_onnx(path: Path) -> Runtime:
    session = session_of(path)
    takes_one = session.get_inputs()[0].shape[0] == 1  # as a backbone from an ONNX file may

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches = [images[row : row + 1] for row in range(len(images))] if takes_one else [images]
        return np.concatenate([session.run([PROBABILITIES], {IMAGE: batch})[0] for batch in batches])

    return run


@_quiet()
def _write_openvino(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    openvino = runtime.openvino()
    with _saved(model) as folder:
        graph = openvino.convert_model(folder)
        graph.inputs[0].get_tensor().set_names({"image"})
        graph.outputs[0].get_tensor().set_names({PROBABILITIES})
        graph.set_rt_info(_text(metadata), [METADATA])
        graph.set_rt_info("", ["conversion_parameters", "input_model"])  # else a folder that is gone
        openvino.save_model(graph, path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Runtime:
    openvino = runtime.openvino()
    # On processors with bfloat16 OpenVINO takes it unless it is told; the file itself can't say.
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: np.asarray(model(images)[0])


@_quiet()
def _write_tflite(model: keras.Model, path: Path, metadata: dict[str, Any]) -> None:
    tf = runtime.tensorflow()
    with _saved(model) as folder:
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())
    _add_to_zip(path, metadata)


def _load_tflite(path: Path) -> Runtime:
    from ai_edge_litert.interpreter import Interpreter

    with runtime.quiet_stderr():  # it says there that it is about to be fast
        interpreter = Interpreter(model_path=str(path), num_threads=machine.cpu_count())
        interpreter.allocate_tensors()
    serve = interpreter.get_signature_runner()
    (name,) = serve.get_input_details()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (found,) = serve(**{name: images}).values()
        return np.array(found)

    return run


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("keras", "classifier.keras", (), "", _write_keras, _load_keras),
        Format("savedmodel", "classifier", (), "", _write_savedmodel, _load_savedmodel),
        Format("onnx", "classifier.onnx", ("onnx", "tf2onnx", "onnxruntime"), "onnx", _write_onnx, _load_onnx),
        Format("openvino", "classifier.xml", ("openvino",), "cpu", _write_openvino, _load_openvino),
        Format("tflite", "classifier.tflite", ("ai_edge_litert",), "tflite", _write_tflite, _load_tflite),
    )
}
