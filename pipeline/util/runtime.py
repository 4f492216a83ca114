"""Libraries: what is installed, and the heavy ones, which are imported here, quietly, and only when asked for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from pipeline.errors import ConfigError, EngineError, StoppedError, TlpipeError
from pipeline.util import log
from pipeline.util.stopping import stopping

LIBRARIES = (
    "tlpipe",
    "tensorflow",
    "keras",
    "keras-hub",
    "openvino",
    "onnx",
    "onnxruntime",
    "nncf",
    "jax",
    "numpy",
    "h5py",
    "scikit-learn",
    "joblib",
    "pillow",
    "pyarrow",
    "click",
)

NEEDS_TENSORFLOW = "Heads of epochs, OpenVINO's graphs, most exports and TensorBoard need TensorFlow"


def installed(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def version(package: str) -> str | None:
    """Version of an installed distribution, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed."""
    found = {package: version(package) for package in LIBRARIES}
    return {"python": sys.version.split()[0], **{name: text for name, text in found.items() if text}}


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error; show it if the block fails.

    TensorFlow and XLA write a dozen lines at import before any setting of theirs is read.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            log.debug(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def keras_backend() -> str | None:
    """What Keras runs on in this process: as it was imported, or as $KERAS_BACKEND says; None while that is open."""
    if imported := sys.modules.get("keras"):
        return str(imported.config.backend())
    return os.environ.get("KERAS_BACKEND") or None


def check_backend(backend: str | None) -> None:
    """Refuse a backend of Keras that tlpipe doesn't know; None is one that isn't settled yet.

    Raises:
        EngineError: With those that it knows.
    """
    if backend not in (None, *KERAS_BACKENDS):
        raise EngineError(f"tlpipe doesn't support KERAS_BACKEND={backend}; set {' or '.join(KERAS_BACKENDS)}")


def keras_on(backend: str) -> None:
    """Settle what Keras runs on in this process; nothing can change it later.

    Args:
        backend: "tensorflow" or "jax".

    Raises:
        EngineError: If it is settled otherwise.
    """
    settled = keras_backend()
    if settled not in (None, backend):
        raise EngineError(
            f"{NEEDS_TENSORFLOW if backend == 'tensorflow' else '--engine jax needs Keras on JAX'}, and in this "
            f"process Keras runs on {settled}; start again with KERAS_BACKEND={backend}"
        )
    os.environ["KERAS_BACKEND"] = backend  # which processes that this one starts inherit


@cache
def tensorflow() -> ModuleType:
    """Import TensorFlow: quietly, and without it taking all memory of each GPU at once.

    Raises:
        EngineError: If it isn't installed, or Keras runs on something else: what asks for it runs Keras's layers on it.
    """
    if not installed("tensorflow"):
        raise EngineError(f"{NEEDS_TENSORFLOW}, and it isn't installed; install it with: pip install tensorflow")
    keras_on("tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Interrupted while it is imported, TensorFlow would report that it is broken.
    with stopping() as stop, quiet_stderr():
        import tensorflow as tf

        # Features in float32 are shared between machines, so float32 has to mean float32 on recent GPUs as well.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        # Several heads in one process are several graphs; TensorFlow would advise against that at length.
        tf.get_logger().setLevel(logging.ERROR)
        for gpu in tf.config.list_physical_devices("GPU"):
            try:
                tf.config.experimental.set_memory_growth(gpu, True)
            except RuntimeError:  # the caller's program has used the GPU already: its setting stands
                log.debug("Memory growth of %s is left as it is", gpu.name)
    if stop.signal is not None:
        raise StoppedError("Stopped before the work began; run the same command again.", signal=stop.signal)
    return tf  # type: ignore[no-any-return]


@cache
def openvino() -> ModuleType:
    """Import OpenVINO, and keep its converter from reporting each conversion over the network.

    The report would come from a fork of this process, which may never end. OpenVINO does without where the package that
    reports is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as found

    return found  # type: ignore[no-any-return]


def nncf() -> ModuleType:
    """Import NNCF, quietly, and keep it, too, from reporting over the network."""
    openvino()
    kind = logging.getLoggerClass()
    import nncf as found

    logging.setLoggerClass(kind)  # which NNCF changes for all loggers that come after its own
    own = logging.getLogger("nncf")
    own.handlers = []  # of standard output
    own.setLevel(logging.ERROR)
    return found  # type: ignore[no-any-return]


def strategy(devices: Sequence[str] | None = None) -> Any:
    """How training is spread: by TensorFlow over all GPUs, each with a copy of the weights; on JAX it is not.

    Args:
        devices: Names of TensorFlow devices; None for all GPUs.
    """
    if keras().backend.backend() == "jax":
        return SimpleNamespace(num_replicas_in_sync=1, scope=nullcontext)  # as much as is asked of a strategy
    tf = tensorflow()
    names = devices or [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.get_strategy()


def n_devices() -> int:
    """Devices of the kind that Keras's backend prefers."""
    if keras_backend() == "jax":
        return len(jax().devices())
    return max(1, len(tensorflow().config.list_physical_devices("GPU")))


def n_replicas() -> int:
    """Devices that share a batch in the scope of a strategy."""
    if keras_backend() == "jax":
        return 1
    return int(tensorflow().distribute.get_strategy().num_replicas_in_sync)


@contextmanager
def enough_memory(kind: type[TlpipeError], what: str, ways: str) -> Iterator[None]:
    """Say what memory is too little for, and what to try, in place of the errors of Python, TensorFlow and JAX."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ in ("MemoryError", "ResourceExhaustedError") or "RESOURCE_EXHAUSTED" in str(error):
            raise kind(f"Out of memory with {what}; try {ways}") from error
        raise


def limit_threads(n: int) -> None:
    """Let TensorFlow use so many threads for an operation, if it hasn't begun to work yet."""
    with suppress(RuntimeError):
        tensorflow().config.threading.set_intra_op_parallelism_threads(n)


@cache
def jax() -> ModuleType:
    """Import JAX, without it taking most of the memory of each GPU at once.

    Raises:
        EngineError: If it isn't installed.
    """
    if not installed("jax"):
        raise EngineError("Keras is to run on JAX, and it isn't installed; install it with: pip install jax")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with quiet_stderr():
        import jax as found

    return found  # type: ignore[no-any-return]


@cache
def keras() -> ModuleType:
    """Import Keras 3, on JAX if that was settled or TensorFlow isn't installed, else on TensorFlow.

    Raises:
        EngineError: If $KERAS_BACKEND names another backend.
    """
    backend = keras_backend() or ("tensorflow" if installed("tensorflow") or not installed("jax") else "jax")
    check_backend(backend)
    keras_on(backend)
    KERAS_BACKENDS[backend]()
    import keras as module

    return module  # type: ignore[no-any-return]


@cache
def keras_hub() -> ModuleType:
    """Import KerasHub, quietly.

    Raises:
        ConfigError: If it isn't installed.
    """
    if not installed("keras_hub"):
        raise ConfigError("Presets of KerasHub need keras-hub; install it with: pip install 'tlpipe[hub]'")
    keras()
    with quiet_stderr():
        import keras_hub as found

    return found  # type: ignore[no-any-return]


KERAS_BACKENDS = {"tensorflow": tensorflow, "jax": jax}
"""What Keras can run on here, and how it is imported."""


def keras_home() -> Path:
    """The folder where Keras keeps what it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
