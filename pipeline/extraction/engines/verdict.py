"""Verdicts: whether an engine computes a graph rightly on this machine, asked once, before the first image.

A driver that is broken, a kernel that was compiled wrongly or a GPU that was never seen before would fill the cache
with nonsense. So the features of a few fixed pictures are compared with those of Keras itself, on the backend it
has here, computed in float32 on the processor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import Pixels
from pipeline.errors import EngineError, StoreError
from pipeline.extraction.engines.base import Engine, EngineChoice, call
from pipeline.util import log, machine, runtime
from pipeline.util.checked import publish_checked, read_checked
from pipeline.util.sealed import decoded

N_PICTURES = 4
MOST = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.3, "int8": 0.3}
"""The largest relative difference of the features in each precision. Fourteen networks of the table reached 0.000003 in
float32 and 0.1 in bfloat16; int8 has a bound of its own on cosines, which lets 0.25 pass."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How near the features of an engine come to those of Keras in float32.

    Attributes:
        engine: Which.
        precision: In which precision.
        device: Name of the processor or the GPU.
        versions: Of the libraries that decide.
        difference: Length of the difference, as a share of the length of the features.
    """

    engine: str
    precision: str
    device: str
    versions: dict[str, str]
    difference: float

    @property
    def most(self) -> float:
        """The largest difference that is right."""
        return MOST[self.precision]

    @property
    def holds(self) -> bool:
        """Whether they come near enough; what is no number doesn't."""
        return self.difference <= self.most


def judged(
    engine: Engine, choice: EngineChoice, reference: Callable[[], tuple[Pixels, NDArray[np.floating]]]
) -> Verdict:
    """Compare an engine with Keras in float32 on the processor.

    Args:
        engine: The compiled graph.
        choice: Which engine it is.
        reference: Gives pictures, uint8 [n, height, width, 3], and their features in float32.

    Raises:
        EngineError: If those features are no finite numbers.
    """
    pictures, expected = reference()
    if not np.isfinite(expected).all():
        raise EngineError(
            "The network gives features of ordinary pictures that are no finite numbers, whatever computes it; check "
            "its weights, and of an ONNX file how its pixels are scaled (--mean, --std)"
        )
    wide = expected.astype(np.float64)
    difference = float(np.linalg.norm(call(engine, pictures) - wide) / max(np.linalg.norm(wide), np.finfo(float).tiny))
    return Verdict(choice.engine, choice.precision, _device(choice), _versions(choice), difference)


def prove(
    engine: Engine,
    choice: EngineChoice,
    reference: Callable[[], tuple[Pixels, NDArray[np.floating]]],
    folder: Path,
    onnx: Callable[[], bool] = lambda: False,
) -> None:
    """Refuse an engine that computes a graph wrongly here; a verdict of this machine and these versions is kept.

    Arguments as in `judged`, and:
        folder: Where the graph is kept.
        onnx: Tells whether the backbone is an ONNX file, which other engines run.

    Raises:
        EngineError: If the features are too far from those of Keras in float32.
    """
    name = "-".join(filter(None, (choice.engine, choice.precision, choice.graph)))
    here = (choice.engine, choice.precision, _device(choice), _versions(choice))
    known = [_read(path) for path in (folder / "verdicts").glob(f"{name}.*.json")]
    if any(one and one.holds and (one.engine, one.precision, one.device, one.versions) == here for one in known):
        return
    found = judged(engine, choice, reference)
    log.debug("%s", found)
    if not found.holds:
        raise EngineError(
            f"{choice.engine} in {choice.precision} computes this network wrongly on {found.device}: its features are "
            f"{found.difference:.2g} of their length away from the reference in float32, and at most "
            f"{found.most:g} is right; nothing was computed. Take {_advice(choice, onnx=onnx())}"
        )
    with suppress(StoreError):  # of a cache that can only be read: asked again the next time
        publish_checked(folder / "verdicts", json.dumps(asdict(found)).encode(), ".json", f"{name}.")


def _read(path: Path) -> Verdict | None:
    """A verdict that was kept; None if a byte of it has changed."""
    with suppress(OSError, ValueError):
        if (data := read_checked(path)) is not None:
            return decoded(Verdict, json.loads(data))
    return None


def _device(choice: EngineChoice) -> str:
    if choice.engine == "jax":
        kinds = {device.device_kind for device in runtime.jax().devices() if device.platform != "cpu"}
        return ", ".join(sorted(kinds)) or machine.processor()
    if choice.engine == "tensorflow" and machine.has_nvidia_gpu():
        tf = runtime.tensorflow()
        names = {
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")
        }
        return ", ".join(sorted(names)) or machine.processor()
    return machine.processor()


def _versions(choice: EngineChoice) -> dict[str, str]:
    return {name: runtime.version(name) or "" for name in ("keras", choice.engine)}


def _advice(choice: EngineChoice, *, onnx: bool) -> str:
    """What to take in place of an engine."""
    if choice.precision != "float32":
        return "--precision float32, and report the versions that tlpipe doctor prints"
    plain = "onnxruntime" if onnx else "tensorflow"
    other = plain if choice.engine == "openvino" else "openvino"
    without = "KERAS_BACKEND=tensorflow with " if choice.engine == "jax" else ""
    return f"{without}--engine {other}, and report the versions that tlpipe doctor prints"
