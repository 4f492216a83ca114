"""The machine: processors, GPUs, libraries. Heavy libraries are imported here, quietly, and only when asked for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import EngineError, StoppedError

LIBRARIES = (
    "tlpipe",
    "tensorflow",
    "keras",
    "openvino",
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

log = logging.getLogger("tlpipe")


@cache
def cpu_count() -> int:
    """Processors this process may use: in a container its quota, as joblib counts them."""
    from joblib import cpu_count as count

    return int(count())


def memory_limit() -> int:
    """Bytes of memory this process may use, which in a container are fewer than the machine has."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(path.read_text()))
    return min(limits)


def memory_for(given: int | None) -> int:
    """Bytes of features that may be held: as given, else half of the machine's memory."""
    return memory_limit() // 2 if given is None else given


def has_nvidia_gpu() -> bool:
    """Whether the driver shows a GPU, found without importing TensorFlow; CUDA_VISIBLE_DEVICES may hide it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def installed(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def version(package: str) -> str | None:
    """Version of an installed distribution, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux tells of the first processor; nothing elsewhere."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def processor() -> str:
    """Name of the processor, as the system tells it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Names of the processor's instruction sets, as Linux spells them; none elsewhere."""
    return set((_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split())


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


class OneDevice:
    """Training on one device, seen as TensorFlow's strategies are."""

    num_replicas_in_sync = 1

    @staticmethod
    def scope() -> AbstractContextManager[None]:
        """Nothing is changed inside."""
        return nullcontext()


def strategy(devices: Sequence[str] | None = None) -> Any:
    """How training is spread: by TensorFlow over all GPUs, each with a copy of the weights; on JAX it is not.

    Args:
        devices: Names of TensorFlow devices; None for all GPUs.
    """
    if keras().backend.backend() == "jax":
        return OneDevice()
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


def out_of_memory(error: Exception) -> bool:
    """Whether an error of Python's, TensorFlow's or JAX's says that the memory is too small."""
    kind = type(error).__name__
    return kind in ("MemoryError", "ResourceExhaustedError") or "RESOURCE_EXHAUSTED" in str(error)


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
    if backend not in KERAS_BACKENDS:
        raise EngineError(f"KERAS_BACKEND={backend} is none that tlpipe knows; set {' or '.join(KERAS_BACKENDS)}")
    keras_on(backend)
    KERAS_BACKENDS[backend]()
    import keras as module

    return module  # type: ignore[no-any-return]


KERAS_BACKENDS = {"tensorflow": tensorflow, "jax": jax}
"""What Keras can run on here, and how it is imported."""


class Stopping:
    """Whether Ctrl-C or SIGTERM has asked for an end.

    Attributes:
        signal: Number of the signal, None while there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Turn the first Ctrl-C or SIGTERM into a wish that the block can look at; a second one acts as ever.

    Outside the main thread, where Python lets no signal be handled, the wish is never made.
    """
    wish = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        wish.signal = number
        restore()
        log.info("Stopping ...")

    for number in before:
        signal.signal(number, handle)
    try:
        yield wish
    finally:
        restore()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that the block starts not hear Ctrl-C: this one hears it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def keras_home() -> Path:
    """The folder where Keras keeps what it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
