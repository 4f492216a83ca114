"""int8 for processors: what multiplies takes 8-bit numbers, all else stays in float32; checked before it is used."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import Pixels
from pipeline.errors import EngineError, StoppedError, StoreError
from pipeline.extraction.engines.base import call, cosines
from pipeline.extraction.engines.openvino import FACTS, OpenvinoEngine, keep, kept, whole
from pipeline.extraction.engines.pictures import crops
from pipeline.extraction.engines.turns import turns
from pipeline.util import log, machine, runtime
from pipeline.util.files import digest_of
from pipeline.util.sealed import read_json, write_json
from pipeline.util.stopping import stopping

if TYPE_CHECKING:
    import openvino

VERSION = 1
"""Raised when the same graph comes out otherwise than before."""

MULTIPLYING = ("Convolution", "GroupConvolution", "MatMul")
BATCH_SIZE = 8
N_CALIBRATION = 96
N_CHECK = 32
LEAST_MEAN_COSINE = 0.995
LEAST_COSINE = 0.97
STEPS = 16  # of a doubling, to which ranges are rounded: fine enough to cost nothing, coarse beside rounding errors
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the layers, put back into float32 one after the other
LEAST_GAIN = 1.5  # times the rate of float32, for int8 to be taken where nobody asked for it
TURN = 1.0  # seconds of each of the turns that measure it


@dataclass(frozen=True, slots=True)
class Quantized:
    """What is known of a graph in int8.

    Attributes:
        digest: Of all ranges; 12 hexadecimal characters.
        n_int8: Layers that compute in int8.
        n_layers: Layers that multiply.
        mean_cosine: Of its features with those in float32, over pictures that did not calibrate it.
        least_cosine: The lowest of them.
    """

    digest: str
    n_int8: int
    n_layers: int
    mean_cosine: float
    least_cosine: float

    @property
    def holds(self) -> bool:
        """Whether its features are near enough to those in float32."""
        return self.mean_cosine >= LEAST_MEAN_COSINE and self.least_cosine >= LEAST_COSINE


def quantized(
    build: Callable[[], openvino.Model], folder: Path, *, quick: bool = False
) -> tuple[openvino.Model, Quantized]:
    """A graph in int8, made of the one in float32, and what is known of it.

    Of every layer that multiplies the inputs (one range a layer) and the weights (one a channel) become 8-bit numbers;
    sums, means and joints stay in float32, as one range can't serve joined channels of very different size. The first
    layer stays in float32. If features come out too far from those in float32, so do grouped convolutions, which gain
    little, and then the layers whose inputs cost most for their work.

    Ranges are means over fixed pictures, rounded, so that the same graph comes out on every machine and for all data.

    Args:
        build: Gives the graph in float32, from uint8 [n, height, width, 3] to features; called only if the folder holds
            no result.
        folder: Where the result is kept; named by a digest of all that the graph depends on.
        quick: Whether it is given up before layers are tried one by one, which takes minutes for large networks.

    Raises:
        EngineError: If the features are too far from those in float32.
        StoppedError: After Ctrl-C or SIGTERM.
    """
    if (known := kept(folder)) is not None and (facts_known := _read_facts(folder)) is not None:
        return known, facts_known
    graph = build()
    if not _layers(graph):
        raise EngineError("Nothing below this endpoint is multiplied by weights, so there is nothing to gain by int8")
    calibration = crops(N_CALIBRATION, _size(graph), seed=0, varied=True)
    check = crops(N_CHECK, _size(graph), seed=1, varied=False)
    reference = _features(graph, check)
    log.info("Converting the network to int8, which is needed only once")
    found = None
    with stopping() as stop:
        for in_float32, made in _attempts(graph, check, reference, calibration, quick=quick):
            if stop.signal is not None:
                raise StoppedError(
                    "Stopped before the first image. Run the same command to start over.", signal=stop.signal
                )
            found = _judged(made, check, reference, len(_layers(graph)) - len(in_float32), len(_layers(graph)))
            log.debug("In int8 but for %s: %s", ", ".join(in_float32), found)
            if found.holds:
                keep(made, folder, {"version": VERSION, **asdict(found)})
                return made, found
    figures = "" if found is None else f" ({found.mean_cosine:.3f} on average, {found.least_cosine:.3f} at least)"
    raise EngineError(
        f"In int8 the features of this backbone come too far from those in float32: their cosine{figures} stays below "
        f"{LEAST_MEAN_COSINE} or {LEAST_COSINE} however many layers are left in float32; use --precision float32"
    )


def is_worth_it(build: Callable[[], openvino.Model], folder: Path) -> bool:
    """Whether a graph holds in int8, and is much faster there on this machine: measured once, and remembered.

    Args:
        build: Gives the graph in float32.
        folder: Where that one is kept.

    Raises:
        StoppedError: After Ctrl-C or SIGTERM.
    """
    path = folder / "gain" / "gain.json"
    here = [machine.processor(), machine.cpu_count(), runtime.version("openvino"), VERSION]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what can't be read is measured again
        known = read_json(path)
        if known["machine"] == here:
            return bool(float(known["gain"]) >= LEAST_GAIN)
    graph = build()
    try:
        made, _ = quantized(lambda: graph, folder / "int8", quick=True)
    except EngineError as error:
        log.debug("%s", error)
        gain = 0.0
    else:
        images = np.random.default_rng(0).integers(
            0, 256, (BATCH_SIZE * machine.cpu_count(), *_size(graph), 3), np.uint8
        )
        rates = turns({"int8": _caller(made, images), "float32": _caller(graph, images)}, TURN, len(images))
        gain = rates["int8"] / rates["float32"]
    if gain >= LEAST_GAIN:
        log.info(
            "int8 runs at %.1f times the rate of float32 here, so it is taken; --precision float32 avoids it", gain
        )
    elif gain:
        log.info("int8 runs at only %.1f times the rate of float32 here, so float32 is taken", gain)
    with contextlib.suppress(StoreError):
        write_json(path, {"machine": here, "gain": gain})
    return gain >= LEAST_GAIN


def _caller(graph: openvino.Model, images: Pixels) -> Callable[[], Any]:
    engine = OpenvinoEngine(graph.clone(), "float32", BATCH_SIZE)
    return lambda: call(engine, images)


def _size(graph: openvino.Model) -> tuple[int, int]:
    """Height and width of the images that a graph takes, pixels."""
    height, width = (side.get_length() for side in list(graph.inputs[0].partial_shape)[1:3])
    return height, width


def facts(folder: Path) -> Quantized | None:
    """What is known of the graph that a folder keeps; None if there is none, or not a whole one of this version."""
    return _read_facts(folder) if whole(folder) else None


def _read_facts(folder: Path) -> Quantized | None:
    """What is known of a whole graph; None if it is of another version."""
    found = read_json(folder / FACTS)
    return Quantized(**found) if found.pop("version", None) == VERSION else None


def _features(graph: openvino.Model, pictures: Pixels) -> NDArray[np.floating]:
    """Features of pictures, flat; in double precision, as squares of those of random weights would be too small."""
    features = call(OpenvinoEngine(graph.clone(), "float32", BATCH_SIZE), pictures)
    return features.reshape(len(pictures), -1).astype(np.float64)


def _layers(graph: openvino.Model) -> list[Any]:
    """The operations that multiply by weights, from the image upwards."""
    return [node for node in graph.get_ordered_ops() if node.get_type_name() in MULTIPLYING]


def _attempts(
    graph: openvino.Model, check: Pixels, reference: NDArray[np.floating], calibration: Pixels, *, quick: bool
) -> Iterator[tuple[list[str], openvino.Model]]:
    """Graphs in int8, each with the names of its layers that stay in float32: few at first, then more and more."""
    names = [layer.get_friendly_name() for layer in _layers(graph)]
    grouped = [layer.get_friendly_name() for layer in _layers(graph) if layer.get_type_name() == "GroupConvolution"]
    least = names[:1]
    made = _quantize(graph, calibration, least)
    yield least, made
    most = list(dict.fromkeys(least + grouped))
    if grouped:
        yield most, _quantize(graph, calibration, most)
    if quick:
        return
    ranked = [name for name in _by_cost(made, check, reference) if name not in most]
    for share in SHARES:
        in_float32 = most + ranked[: math.ceil(share * len(ranked))]
        yield in_float32, _quantize(graph, calibration, in_float32)


def _by_cost(made: openvino.Model, check: Pixels, reference: NDArray[np.floating]) -> list[str]:
    """Names of layers: first those whose input costs the features most, if it is in 8 bits, for their multiply-adds."""
    some = slice(0, 8)
    before = cosines(_features(made, check[some]), reference[some]).mean()
    gains = {}
    for number, layer in enumerate(_layers(made)):
        other = made.clone()
        into = _layers(other)[number].input(0)
        source = into.get_source_output().get_node()
        if source.get_type_name() != "FakeQuantize":
            continue  # it stays in float32
        into.replace_source_output(source.input(0).get_source_output())
        gained = cosines(_features(other, check[some]), reference[some]).mean() - before
        positions = math.prod(side.get_length() for side in list(layer.output(0).partial_shape)[1:])
        work = positions * math.prod(layer.input(1).get_partial_shape().to_shape()[1:])
        gains[layer.get_friendly_name()] = gained / work
    return sorted(gains, key=lambda name: -gains[name])


def _quantize(graph: openvino.Model, calibration: Pixels, in_float32: list[str]) -> openvino.Model:
    """The graph in int8 by NNCF, with ranges that are the same on every machine.

    Raises:
        EngineError: If NNCF can't.
    """
    nncf = runtime.nncf()
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    one = graph.clone()
    one.reshape([1, *list(graph.inputs[0].partial_shape)[1:]])
    left = sorted({node.get_type_name() for node in one.get_ops()} - set(MULTIPLYING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where NNCF draws its progress
            made = nncf.quantize(
                one,
                nncf.Dataset(list(calibration[:, None])),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calibration),
                ignored_scope=nncf.IgnoredScope(types=left, names=in_float32, validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    activations_range_estimator_params=RangeEstimatorParametersSet.MEAN_MINMAX,
                ),
            )
    except Exception as error:  # NNCF raises many kinds
        raise EngineError(
            f"NNCF can't bring this network to int8: {str(error).splitlines()[0][:200]}; use --precision float32"
        ) from error
    for node in _rounding(made):
        low, high = _bounds(node)
        # Twice: what is rounded to 8 bits comes out in the same range.
        for at, bounds in enumerate(_rounded(low, high, node.get_levels()) * 2, start=1):
            constant = runtime.openvino().opset13.constant(bounds)
            node.input(at).replace_source_output(constant.output(0))
    return made


def _rounding(graph: openvino.Model) -> list[Any]:
    """The operations that round inputs to 8 bits, from the image upwards."""
    return [node for node in graph.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]


def _bounds(node: Any) -> list[NDArray[np.float32]]:
    """The lower and the upper end of the range of an operation that rounds; of grouped convolutions one a channel."""
    return [node.input(at).get_source_output().get_node().get_data() for at in (1, 2)]


def _rounded(
    low: NDArray[np.float32], high: NDArray[np.float32], levels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ranges whose steps are roots of powers of two, and which hold 0 exactly.

    Processors add in different orders, so that ranges differ in their last digits; rounded, they don't.
    """
    step = (high.astype(np.float64) - low) / (levels - 1)
    varies = step > 0
    step = 2 ** (np.round(STEPS * np.log2(np.where(varies, step, 1))) / STEPS)
    below = np.round(-low / step)
    ends = (np.where(varies, -below * step, low), np.where(varies, (levels - 1 - below) * step, high))
    return ends[0].astype(np.float32), ends[1].astype(np.float32)


def _judged(
    graph: openvino.Model, check: Pixels, reference: NDArray[np.floating], n_int8: int, n_layers: int
) -> Quantized:
    """What there is to know of a graph in int8."""
    found = cosines(_features(graph, check), reference)
    bounds = [ends.tobytes().hex() for node in _rounding(graph) for ends in _bounds(node)]
    digest = digest_of(repr((VERSION, runtime.version("nncf"), bounds)).encode())[:12]
    return Quantized(digest, n_int8, n_layers, round(float(found.mean()), 5), round(float(found.min()), 5))
