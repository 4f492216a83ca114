"""What the machine lets this process use."""

from __future__ import annotations

import ctypes
import resource

import joblib
import psutil
import pytest

from pipeline.util import machine, runtime


def test_processors_are_counted_with_a_containers_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib reads the quota of the control group; a quota of one and a half processors counts as two."""
    machine.cpu_count.cache_clear()
    assert machine.cpu_count() == joblib.cpu_count()
    machine.cpu_count.cache_clear()
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    assert machine.cpu_count() == 1
    machine.cpu_count.cache_clear()


def test_versions_and_processor_have_names() -> None:
    assert {"tlpipe", "python", "numpy"} <= set(runtime.versions())
    assert machine.processor()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept_in_the_block_and_given_back_at_its_end() -> None:
    """Told by the pages that the system clears for a process, which are those of arrays that it never had before."""

    size = 48 * 2**20  # glibc learns to keep up to 32 MiB by itself

    def pages(times: int) -> int:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            b"x" * size
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

    before = pages(8)
    assert before >= 8 * size // 2**21  # however large the pages are
    with machine.freed_memory_kept():
        pages(1)
        assert pages(8) < 0.1 * before
        held = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < held - 0.9 * size
    assert pages(8) > 0.9 * before
