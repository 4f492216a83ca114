"""What the benchmarks share: a command line to measure, and a verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def tlpipe(*arguments: object, cwd: Path | None = None) -> dict[str, Any]:
    """Run `tlpipe ... --json`; the answer, with the seconds of the whole process as `wall`."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), "--json", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=cwd, check=True)
    return {**json.loads(done.stdout), "wall": time.perf_counter() - start}


def small_images(n: int, seed: int = 0) -> np.ndarray:
    """Distinct 32-pixel images, smooth enough to be pictures."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (n, 8, 8, 3), np.uint8)
    return np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)


def small_set(path: Path, n: int) -> Path:
    """An `.npz` of two classes."""
    np.savez(path, x_train=small_images(n), y_train=np.arange(n) % 2)
    return path


def verdict(text: str, holds: bool) -> None:
    """Print a line; remember failure for the exit status."""
    print(("ok     " if holds else "FAILS  ") + text, flush=True)
    if not holds:
        os.environ["BENCHMARK_FAILED"] = "1"


def finish() -> None:
    """Exit with 1 if any verdict failed."""
    sys.exit("BENCHMARK_FAILED" in os.environ)
