"""A backbone from an ONNX file: what the file takes and gives, and how pictures are prepared for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backbones.onnx_graph import Entry, OnnxNetwork
from pipeline.backbones.scaling import Scaling, preparation
from pipeline.errors import ConfigError, EndpointError, WeightsError
from pipeline.util import runtime
from pipeline.util.files import digest_of, digest_of_file
from pipeline.util.memo import Memo, Stamp
from pipeline.util.text import did_you_mean, first_line, sides

if TYPE_CHECKING:
    import onnx

SUFFIX = ".onnx"
USUAL_SIZE = (224, 224)  # where neither the file nor a JSON beside it names one


def is_onnx(name: str) -> bool:
    """Whether a backbone is an ONNX file."""
    return name.endswith(SUFFIX)


@dataclass
class OnnxFile:
    """A backbone from an ONNX file, run by OpenVINO or ONNX Runtime; it has no gradients, so it is never trained.

    Attributes:
        name: Of the file, without its suffix.
        path: The file.
        entry: Its input.
        scaling: How RGB 0..255 become what it takes; None where it takes them as they are.
        image_size: (height, width), pixels.
        resize: How pictures are brought to the size, unless options say otherwise.
        interpolation: How pixels are interpolated, unless options say otherwise.
        endpoints: Names of its outputs; the last one is the default endpoint.
        tensors: Names of all its tensors.
        parts: Files beside it that hold its weights.
        memo: Where digests are remembered.
    """

    name: str
    path: Path
    entry: Entry
    scaling: Scaling | None
    image_size: tuple[int, int]
    resize: str
    interpolation: str
    endpoints: tuple[str, ...]
    tensors: frozenset[str]
    parts: tuple[Path, ...]
    memo: Memo | None = None
    row: None = None
    seed: int = 0
    _network: OnnxNetwork | None = field(default=None, repr=False)

    def digest(self) -> str:
        """Digest of the file, of those that hold its weights, and of how pixels are scaled.

        Raises:
            WeightsError: If a file can't be read.
        """
        try:
            found = [_remembered_digest(path, self.memo) for path in (self.path, *self.parts)]
        except OSError as error:
            raise WeightsError(f"{self.path} has weights that can't be read: {error}") from error
        return digest_of(repr((found, self.scaling)).encode())

    def default_endpoint(self) -> str:
        """Name of the last output."""
        return self.endpoints[-1]

    def check_name(self, option: str, name: str) -> None:
        """Refuse a name that no tensor of the file has.

        Args:
            option: Where the name was given.
            name: The name.

        Raises:
            EndpointError: With near names.
        """
        if name in self.tensors:
            return
        legal = f"Its outputs are {', '.join(self.endpoints)}; any tensor's name will do too."
        hints = filter(None, (did_you_mean(name, self.tensors), legal))
        raise EndpointError(f"{option}: {self.path.name} has no tensor {name!r}. {' '.join(hints)}")

    def network(self, policy: str = "float32") -> OnnxNetwork:
        """The graph; the policy is Keras's, and means nothing here."""
        if self._network is None:
            self._network = OnnxNetwork(self.path, self.entry, self.scaling, self.image_size)
        return self._network


def _remembered_digest(path: Path, memo: Memo | None) -> str:
    """Digest of a file's bytes, remembered as long as it looks unchanged."""
    kind, stamped, stamp = "bytes of a network", time.time_ns(), Stamp.of(path)
    known = memo.recall(kind, {path: stamp}).get(path) if memo else None
    if known is None:
        known = digest_of_file(path)
        if memo:
            memo.remember(kind, {path: (stamp, known)}, stamped)
    return known


def open_onnx(
    path: Path,
    image_size: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    memo: Memo | None = None,
) -> OnnxFile:
    """Open an ONNX file as a backbone; its weights are read later.

    Args:
        path: The file.
        image_size: (height, width), pixels; None for that of the file, or of the JSON beside it.
        mean: Of RGB, as shares of white; None for that of the JSON beside it.
        std: Likewise, the standard deviation.
        memo: Where digests are remembered.

    Raises:
        ConfigError: If what must be known of its input can't be told, or it takes no images of this size.
        WeightsError: If it can't be read.
    """
    missing = [name for name in ("onnx", "onnxruntime") if not runtime.installed(name)]
    if missing:
        raise ConfigError(
            f"--backbone {path.name} needs {' and '.join(missing)}; install what it needs with: "
            "pip install 'tlpipe[onnx]'"
        )
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise WeightsError(f"{path} can't be read as an ONNX file: {first_line(error)}") from error
    graph = model.graph
    if not graph.node or not graph.output:
        raise WeightsError(f"{path} can't be read as an ONNX file: it holds no graph")
    entry = _entry(path, graph)
    about = preparation(path, mean, std)
    if entry.dtype == "uint8":
        if about.scaling is not None:
            raise ConfigError(f"{path} takes RGB 0..255 and normalises it itself; leave --mean and --std out")
    elif about.scaling is None:
        raise ConfigError(
            f"How {path} wants its pixels scaled can't be told: give --mean and --std, as shares of white "
            f"(of ImageNet --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225), or put {path.stem}.json beside it, "
            "as timm writes it"
        )
    location = {part.value for tensor in graph.initializer for part in tensor.external_data if part.key == "location"}
    weights = {tensor.name for tensor in graph.initializer}
    return OnnxFile(
        name=path.stem,
        path=path,
        entry=entry,
        scaling=about.scaling,
        image_size=_image_size(path, entry, image_size, about.image_size),
        resize=about.resize,
        interpolation=about.interpolation,
        endpoints=tuple(value.name for value in graph.output),
        tensors=frozenset(name for node in graph.node for name in node.output if name) - weights,
        parts=tuple(path.parent / name for name in sorted(location)),
        memo=memo,
    )


def _entry(path: Path, graph: onnx.GraphProto) -> Entry:
    """What an ONNX file takes.

    Raises:
        ConfigError: If that is no batch of images, or its layout can't be told.
    """
    import onnx

    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ConfigError(f"{path} has {len(inputs)} inputs ({names}); a backbone takes images alone")
    (value,) = inputs
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    shown = f"{value.name} [{', '.join('?' if side is None else str(side) for side in shape)}]"
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "nothing"
    if dtype not in ("float32", "float16", "uint8"):
        raise ConfigError(f"{path} takes {shown} in {dtype}, which are no images; float32, float16 or uint8 are")
    if len(shape) != 4:
        raise ConfigError(f"{path} takes {shown}, which are no images: [n, 3, height, width] or [n, height, width, 3]")
    if (shape[1] == 3) == (shape[3] == 3):
        raise ConfigError(
            f"{path} takes {shown}: whether its 3 channels come first or last can't be told. Export it with a fixed "
            "number of channels: [n, 3, height, width] or [n, height, width, 3]"
        )
    if shape[0] not in (None, 0, 1, -1):
        raise ConfigError(
            f"{path} takes {shape[0]} images at a time, no more and no less; export it with a dynamic batch"
        )
    first = shape[1] == 3
    height, width = shape[2:] if first else shape[1:3]
    return Entry(value.name, dtype, first, (height or None, width or None), 1 if shape[0] == 1 else None)


def _image_size(
    path: Path, entry: Entry, asked: tuple[int, int] | None, told: tuple[int, int] | None
) -> tuple[int, int]:
    """The size of the images: that which is asked for, else of the file, else of the JSON, else the usual one."""
    wanted = asked or told or USUAL_SIZE
    height, width = entry.sides
    found = (height or wanted[0], width or wanted[1])
    if asked is not None and asked != found:
        raise ConfigError(f"{path} takes images of {sides(found)} pixels; leave --image-size out")
    return found
