"""A Ray cluster (ray.io): how it is named, reached, and used for fits that need nothing of each other."""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ConfigError, EngineError
from pipeline.util import machine
from pipeline.util.text import first_line

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
    if on != ON and not on.startswith(f"{ON}://"):
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
