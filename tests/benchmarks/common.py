"""What the benchmarks share: a command line to measure, and a verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def tlpipe(*arguments: object, cwd: Path | None = None) -> dict[str, Any]:
    """Run `tlpipe ... --json`; the answer, with the seconds of the whole process as `wall`."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), "--json", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=cwd, check=True)
    return {**json.loads(done.stdout), "wall": time.perf_counter() - start}


def measured(*arguments: object, cwd: Path) -> tuple[dict[str, Any], int]:
    """Answer of `tlpipe ... --json`, and the largest resident memory of the process, bytes."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), "--json", "--quiet"]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{command} failed")
        out.seek(0)
        return json.load(out), usage.ru_maxrss * 1024


def small_images(n: int, seed: int = 0) -> np.ndarray:
    """Distinct 32-pixel images, smooth enough to be pictures."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (n, 8, 8, 3), np.uint8)
    return np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)


def small_set(path: Path, n: int) -> Path:
    """An `.npz` of two classes."""
    np.savez(path, x_train=small_images(n), y_train=np.arange(n) % 2)
    return path


def write_jpegs(folder: Path, n: int) -> Path:
    """Pictures of 320x240 with detail at all scales, of two classes."""
    draw = np.random.default_rng(0)
    for number in range(n):
        layers = [draw.integers(0, 256, (24 * s // 2, 32 * s // 2, 3), np.uint8) for s in (1, 4)]
        images = [Image.fromarray(layer).resize((320, 240), Image.Resampling.BICUBIC) for layer in layers]
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(images[0], images[1], 0.3).save(path, quality=90)
    return folder


CLOUD = 32  # directions in which drawn classes lie apart


def best_accuracy(n_classes: int, spread: float, n: int = 20_000) -> float:
    """Accuracy of who knows where the drawn classes lie: the nearest one is meant (about, by `n` draws)."""
    draw = np.random.default_rng(0)
    centres = draw.normal(0, 1.0, (n_classes, CLOUD))
    labels = draw.integers(0, n_classes, n)
    points = centres[labels] + draw.normal(0, spread, (n, CLOUD))
    distances = (centres**2).sum(axis=1) - 2 * points @ centres.T
    return float((distances.argmin(axis=1) == labels).mean())


def drawn_features(
    cache: Path, n: int, width: int = 1024, n_classes: int = 10, *, n_val: int, name: str, spread: float = 2.4
) -> str:
    """Write a table of drawn features, in shards sorted by class as a folder of images gives; its features id.

    Classes are clouds in 32 directions under noise in all, with a curve in them that no linear head can follow.
    """
    from pipeline.config import ExtractConfig, FeatureSpec
    from pipeline.data import Dataset
    from pipeline.extraction.pass_ import SHARD_ROWS
    from pipeline.store.records import TableRecord, now, save_dataset, save_record
    from pipeline.store.shards import FeatureStore

    draw = np.random.default_rng(0)
    spec = FeatureSpec(name, "0" * 32, None, "drawn", "avg", (224, 224), "stretch", "bicubic", "float32", "float32")
    store = FeatureStore(cache, spec)
    labels = np.sort(np.arange(n) % n_classes)
    centres = draw.normal(0, 1.0, (n_classes, CLOUD))
    mixing = draw.normal(0, 1, (2 * CLOUD, width)).astype(np.float32) / np.sqrt(CLOUD, dtype=np.float32)
    keys = np.array([f"{row:032d}" for row in range(n)], "S32")
    for start in range(0, n, SHARD_ROWS):
        rows = slice(start, min(start + SHARD_ROWS, n))
        inner = centres[labels[rows]] + draw.normal(0, spread, (rows.stop - start, CLOUD))
        inner = np.concatenate([inner, np.abs(inner)], axis=1).astype(np.float32)
        noise = draw.standard_normal((rows.stop - start, width), np.float32)
        store.append(keys[rows].tolist(), np.maximum(inner @ mixing + noise, 0))
    splits = np.full(n, "train", "U5")
    splits[draw.permutation(n)[:n_val]] = "val"
    locations = tuple(f"{row}.png" for row in range(n))
    dataset = Dataset(name, keys, labels, splits, locations, tuple(f"class {number}" for number in range(n_classes)))
    save_dataset(cache, dataset)
    save_record(cache, TableRecord(name, now(), spec, dataset.id, name, ("test",), ExtractConfig(name)))
    return name


def verdict(text: str, holds: bool) -> None:
    """Print a line; remember failure for the exit status."""
    print(("ok     " if holds else "FAILS  ") + text, flush=True)
    if not holds:
        os.environ["BENCHMARK_FAILED"] = "1"


def finish() -> None:
    """Exit with 1 if any verdict failed."""
    sys.exit("BENCHMARK_FAILED" in os.environ)
