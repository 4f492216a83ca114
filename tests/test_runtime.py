"""What the machine lets this process use."""

from __future__ import annotations

import joblib
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
