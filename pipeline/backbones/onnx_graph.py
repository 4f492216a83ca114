"""The graph of an ONNX file, from uint8 images to features, and what runs it.

What tlpipe puts around the file's own graph (casting, scaling, order of the axes, pooling) is made of operators that
have not changed since opset 7, so that a file of any version can be taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones.scaling import Scaling
from pipeline.backbones.tokens import prefix_of
from pipeline.config import POOLINGS
from pipeline.errors import EndpointError, WeightsError
from pipeline.util.options import one_of
from pipeline.util.text import first_line, sides

if TYPE_CHECKING:
    import onnx

IMAGE, FEATURES = "image", "features"
OWN, FILE = "tlpipe_", "file/"  # what the names of all that is put around the file's graph begin with, and its own


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A graph from uint8 images to features, as bytes that OpenVINO and ONNX Runtime read.

    Attributes:
        name: Of the file it comes from.
        proto: The serialised model, whose input is `image` and whose output is `features`, float32.
        image_size: (height, width), pixels.
        batch_size: Images that the file takes at a time; None for any number.
    """

    name: str
    proto: bytes
    image_size: tuple[int, int]
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """The input of an ONNX file.

    Attributes:
        name: Of its tensor.
        dtype: Its type, as NumPy names it: float32, float16 or uint8.
        channels_first: Whether it is [n, 3, height, width]; else [n, height, width, 3].
        sides: (height, width); None where any will do.
        batch_size: 1 where the file takes one image at a time; None for any number.
    """

    name: str
    dtype: str
    channels_first: bool
    sides: tuple[int | None, int | None]
    batch_size: int | None


@dataclass(frozen=True)
class OnnxNetwork:
    """The graph of an ONNX file, with all that is needed to put pixels in and take features out.

    Attributes:
        path: The file.
        entry: Its input.
        scaling: How RGB 0..255 become what it takes; None where it takes them as they are.
        image_size: (height, width), pixels.
    """

    path: Path
    entry: Entry
    scaling: Scaling | None
    image_size: tuple[int, int]

    def features(self, endpoint: str, pooling: str) -> OnnxGraph:
        """The graph of some features.

        Args:
            endpoint: Name of an output, or of any tensor; several, joined by "+", are pooled each and concatenated.
            pooling: "avg" or "max" over height and width or over tokens, "cls", "cls+avg", or "none".

        Raises:
            EndpointError: If an endpoint is unknown, can't be pooled so, or several can't be joined.
            WeightsError: If the file can't be run.
        """
        import onnx

        one_of("--pooling", pooling, POOLINGS)
        names = endpoint.split("+")
        if len(names) > 1 and pooling == "none":
            raise EndpointError(f"--endpoint {endpoint} joins several tensors; that needs --pooling avg, max or cls")
        nodes = _Nodes()
        parts = [part for name in names for part in self._pooled(nodes, name, pooling)]
        shape = self._shape(names[0]) if pooling == "none" else ()
        if len(shape) == 4 and self.entry.channels_first:
            parts = [nodes.add("Transpose", *parts, perm=[0, 2, 3, 1])]
        joined = nodes.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        nodes.add("Cast", joined, to=onnx.TensorProto.FLOAT, output=FEATURES)
        n = self.entry.batch_size or "n"
        known = [n, *(None for _ in shape[1:])] if pooling == "none" else [n, None]
        output = onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, known)
        model = self._around(nodes, [output])
        pruned = onnx.utils.Extractor(model).extract_model([IMAGE], [FEATURES])
        return OnnxGraph(self.path.name, pruned.SerializeToString(), self.image_size, self.entry.batch_size)

    @cached_property
    def _model(self) -> onnx.ModelProto:
        """The file with its weights, also where they lie in files of their own."""
        import onnx

        try:
            model = onnx.load(self.path)
        except Exception as error:  # protobuf and onnx raise many kinds
            raise WeightsError(f"{self.path} can't be read as an ONNX file: {first_line(error)}") from error
        # Its names could be those of what is put around it, as in a file that tlpipe exported.
        return onnx.compose.add_prefix(model, FILE)

    def _around(self, above: _Nodes, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The file's graph between what brings the pixels to its input and what lies above its endpoints."""
        import onnx

        model, entry = onnx.ModelProto(), self.entry
        model.CopyFrom(self._model)
        below = _Nodes("below_")
        tensor = IMAGE
        if self.scaling is not None:
            tensor = below.add("Cast", tensor, to=onnx.TensorProto.FLOAT)
            scale, offset = self.scaling.as_factors()
            tensor = below.add("Mul", tensor, below.constant(np.asarray(scale, np.float32)))
            tensor = below.add("Add", tensor, below.constant(np.asarray(offset, np.float32)))
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(entry.dtype))
        tensor = below.add("Cast", tensor, to=kind)
        if entry.channels_first:
            tensor = below.add("Transpose", tensor, perm=[0, 3, 1, 2])
        below.add("Identity", tensor, output=FILE + entry.name)
        graph = model.graph
        nodes = [*below.nodes, *graph.node, *above.nodes]
        initializers = [*graph.initializer, *below.constants, *above.constants]
        shape = [entry.batch_size or "n", *self.image_size, 3]
        image = onnx.helper.make_tensor_value_info(IMAGE, onnx.TensorProto.UINT8, shape)
        for values in ("node", "initializer", "input", "output", "value_info"):
            graph.ClearField(values)
        graph.node.extend(nodes)
        graph.initializer.extend(initializers)
        graph.input.append(image)
        graph.output.extend(outputs)
        return model

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape of an endpoint for one image: that which it has when it is run, as files declare it rarely."""
        if name not in self._shapes:
            import onnx

            output = onnx.ValueInfoProto(name=FILE + name)
            model = self._around(_Nodes(), [output])
            try:
                session = session_of(model.SerializeToString(), optimised=False)
                (found,) = session.run([FILE + name], {IMAGE: np.zeros((1, *self.image_size, 3), np.uint8)})
            except Exception as error:  # onnxruntime raises many kinds
                raise WeightsError(
                    f"{self.path} can't be run on images of {sides(self.image_size)}: {first_line(error)}"
                ) from error
            self._shapes[name] = np.shape(found)
        return self._shapes[name]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def _pooled(self, nodes: _Nodes, name: str, pooling: str) -> list[str]:
        """Names of the tensors [n, c] that one endpoint gives; without pooling, the endpoint itself."""
        shape, label, name = self._shape(name), name, FILE + name
        if pooling == "none" or len(shape) == 2:
            return [name]
        if len(shape) == 4:
            if "cls" in pooling:
                raise EndpointError(
                    f"--pooling {pooling} needs a class token, and {label} of {self.path.name} is a map with height "
                    "and width; use avg or max"
                )
            if not self.entry.channels_first:
                name = nodes.add("Transpose", name, perm=[0, 3, 1, 2])
            return [_over_positions(nodes, name, pooling)]
        if len(shape) != 3:
            raise EndpointError(f"--endpoint {label} has the shape {list(shape)}, which can't be pooled; take another")
        prefix = prefix_of(shape[1], self.image_size)
        if prefix is None:
            raise EndpointError(
                f"--endpoint {label} has {shape[1]} tokens, which are no grid of patches of {sides(self.image_size)} "
                "pixels, so they can't be told from others; use --pooling none, or another endpoint"
            )
        if "cls" in pooling and not prefix:
            raise EndpointError(f"--pooling {pooling} needs a class token, and {label} has none; use avg or max")
        found = []
        for kind in pooling.split("+"):
            if kind == "cls":
                found.append(nodes.add("Gather", name, nodes.constant(np.array(0)), axis=1))
            else:
                patches = nodes.add("Gather", name, nodes.constant(np.arange(prefix, shape[1])), axis=1)
                patches = nodes.add("Transpose", patches, perm=[0, 2, 1])
                found.append(_over_positions(nodes, patches, kind))
        return found


def _over_positions(nodes: _Nodes, name: str, pooling: str) -> str:
    """A tensor [n, c, ...], pooled over all axes but the first two, [n, c]."""
    kind = {"avg": "GlobalAveragePool", "max": "GlobalMaxPool"}[pooling]
    return nodes.add("Flatten", nodes.add(kind, name), axis=1)


class _Nodes:
    """Operations under names that no file has."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix = OWN + prefix

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operation; the name of its output."""
        import onnx

        name = output or f"{self._prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], f"{self._prefix}{len(self.nodes)}", **attributes))
        return name

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Add an array; its name."""
        import onnx

        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name


def session_of(proto: bytes | Path, *, optimised: bool = True, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the processor.

    Args:
        proto: The serialised model, or its file.
        optimised: Whether its graph is rewritten to run faster, which takes time.
        threads: How many; 0 for one a core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
