"""What the machine lets this process use."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import joblib
import pytest

from pipeline.util import machine, runtime

ROOT = Path(__file__).parent.parent


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


COUNTED = """
import resource
import psutil
from pipeline.util import machine

size = 48 * 2**20  # glibc learns to keep up to 32 MiB by itself

def pages(times):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

print(pages(8))
with machine.freed_memory_kept():
    pages(1)
    print(pages(8))
    held = psutil.Process().memory_info().rss
print((held - psutil.Process().memory_info().rss) / size)
print(pages(8))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept_in_the_block_and_given_back_at_its_end() -> None:
    """Told by the pages that the system clears for a new process, which are those of arrays that it never had before."""
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True, cwd=ROOT)
    before, inside, given_back, after = map(float, done.stdout.split())
    assert before >= 8 * 24  # 2 MiB a page, if not less
    assert inside < 0.1 * before
    assert given_back > 0.9
    assert after > 0.9 * before
