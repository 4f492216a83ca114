"""The machine: its processors, GPUs and memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
DEFAULT_TRIM_THRESHOLD, DEFAULT_TOP_PAD, DEFAULT_MMAP_MAX = 128 * 1024, 128 * 1024, 65536  # as mallopt(3) gives them


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


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep the memory that the block frees for what it asks for next, and give it back at the end.

    By default a large array goes back to the system as soon as it is freed. A step of training frees and asks for
    hundreds, and the system has to clear each page of them again. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)  # all from the heap
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the largest of an int
    libc.mallopt(M_TOP_PAD, 64 * 2**20)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        libc.mallopt(M_TOP_PAD, DEFAULT_TOP_PAD)
        libc.malloc_trim(0)


def cache_folder() -> Path:
    """Where the platform keeps what programs cache for a user, and there tlpipe's folder."""
    home = Path.home()
    by_platform = {"win32": ("LOCALAPPDATA", home / "AppData" / "Local"), "darwin": ("", home / "Library" / "Caches")}
    variable, usual = by_platform.get(sys.platform, ("XDG_CACHE_HOME", home / ".cache"))
    return Path(os.environ.get(variable) or usual) / "tlpipe"


def has_nvidia_gpu() -> bool:
    """Whether the driver shows a GPU, found without importing TensorFlow; CUDA_VISIBLE_DEVICES may hide it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


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


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
