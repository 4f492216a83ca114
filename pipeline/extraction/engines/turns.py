"""How fast engines run beside each other: they take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from pipeline.util.progress import progress

ROUNDS = 3  # each engine has a turn in each, so that a machine that changes its speed changes it for all


def turns(ways: dict[Any, Callable[[], Any]], seconds: float, n_images: int) -> dict[Any, float]:
    """Images per second of each way: the median over rounds in which all take turns, after one turn not counted."""
    for way in ways.values():
        way()
    rates: dict[Any, list[float]] = {name: [] for name in ways}
    with progress("Measuring", ROUNDS * len(ways), "turns") as advance:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                n_calls = 0
                while (elapsed := time.perf_counter() - start) < seconds or n_calls == 0:
                    way()
                    n_calls += 1
                rates[name].append(n_calls * n_images / elapsed)
                advance(1)
    return {name: statistics.median(values) for name, values in rates.items()}
