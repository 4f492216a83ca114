"""A Ray cluster (ray.io): how it is named, reached, and used for fits that need nothing of each other."""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import ConfigError, EngineError, TlpipeError
from pipeline.util import machine
from pipeline.util.text import first_line

T = TypeVar("T")

ON = "ray"
ANSWERED = 10.0  # seconds

_reached: list[str] = []  # the cluster that this process is connected to


def check_on(on: str | None) -> None:
    """Refuse what is no cluster, and a cluster without the library.

    Raises:
        ConfigError: In these cases.
    """
    if on is None:
        return
    if on != ON and not re.fullmatch(rf"{ON}://[^/]+:\d+", on):
        raise ConfigError(f"--on is {on!r}; give {ON}, or the address of a cluster: {ON}://host:10001")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError("--on needs Ray; pip install 'tlpipe[ray]'") from error


def connected(on: str) -> Any:
    """Ray, connected to a cluster: that of the address, else of $RAY_ADDRESS, else one that is started here.

    Raises:
        EngineError: If it can't be reached, or has another version of Python or Ray.
    """
    import ray

    address = (os.environ.get("RAY_ADDRESS") or "local") if on == ON else on
    if ray.is_initialized():
        if _reached and _reached[-1] != address:
            raise EngineError(f"This process uses the Ray cluster {_reached[-1]}; use {address} in another")
        return ray
    known: dict[str, Any] = {"address": address}
    if address == "local":
        known |= {"num_cpus": machine.cpu_count(), "include_dashboard": False}
    try:
        _check_answers(address)
        ray.init(logging_level="ERROR", log_to_driver=False, **known)
    except Exception as error:  # of many kinds
        raise EngineError(
            f"The Ray cluster {address} can't be reached: {first_line(error)}; see whether it runs (ray status), and "
            f"has the same versions of Python and Ray as this machine ({platform.python_version()}, {ray.__version__})"
        ) from error
    _reached.append(address)
    return ray


def _check_answers(address: str) -> None:
    """See whether a host of the cluster answers at all, as Ray itself would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=ANSWERED).close()


@dataclass(frozen=True, slots=True)
class Shares:
    """How a cluster is shared out among workers that each fill a GPU or a node.

    Attributes:
        n: Workers that there is room for, one at least.
        gpu: Whether each takes a GPU.
        cpus: Processors that each takes, where it takes no GPU.
    """

    n: int
    gpu: bool
    cpus: int

    @classmethod
    def of(cls, ray: Any, *, use_gpu: bool, cpus: int | None = None) -> Shares:
        """The shares of the cluster that Ray is connected to.

        Args:
            ray: The library, connected.
            use_gpu: Whether a worker takes a GPU, if the cluster has such.
            cpus: Processors of a worker; by default those of the smallest node.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpu = use_gpu and any(node.get("GPU") for node in nodes)
        room = [node.get("GPU" if gpu else "CPU", 0.0) for node in nodes]
        cpus = cpus or max(1, int(min((node["CPU"] for node in nodes if node.get("CPU")), default=1)))
        return cls(max(1, sum(int(free // (1 if gpu else cpus)) for free in room)), gpu, cpus)

    def demands(self) -> dict[str, int]:
        """What a worker asks Ray for."""
        return {"num_cpus": 0, "num_gpus": 1} if self.gpu else {"num_cpus": self.cpus, "num_gpus": 0}


@contextmanager
def spread(on: str | None) -> Iterator[None]:
    """Let joblib send what the block does in parallel to a cluster; without one all stays as it is.

    Raises:
        EngineError: As `connected`.
    """
    if on is None:
        yield
        return
    from joblib import parallel_config
    from ray.util.joblib import register_ray

    ray = connected(on)
    register_ray()
    with parallel_config(backend="ray", n_jobs=max(1, int(ray.cluster_resources().get("CPU", 1)))):
        yield


def each_there(on: str, function: Callable[..., T], each: Sequence[tuple[Any, ...]]) -> list[T | TlpipeError]:
    """Call a function with one set of arguments each on a cluster, where every call has a GPU, or a node, to itself.

    Ray places the calls, and starts one again whose node died.

    Args:
        on: The cluster, as in `connected`.
        function: What is called there.
        each: Its arguments.

    Returns:
        Of each call what it gave, or why it gave nothing.

    Raises:
        EngineError: As `connected`.
    """
    ray = connected(on)
    task = ray.remote(function).options(**Shares.of(ray, use_gpu=True).demands())
    asked = [task.remote(*one) for one in each]
    found: list[T | TlpipeError] = []
    try:
        for one in asked:
            try:
                found.append(ray.get(one))
            except ray.exceptions.RayTaskError as error:
                known = isinstance(error.cause, TlpipeError)
                found.append(error.cause if known else EngineError(f"A node failed: {first_line(error.cause)}"))
            except ray.exceptions.RayError as error:
                found.append(EngineError(f"What ran it on the cluster died: {first_line(error)}"))
    finally:
        for one in asked[len(found) :]:  # after Ctrl-C
            ray.cancel(one, force=True)
    return found
