"""What commands cost as the cache grows: seconds and peak memory at 10,000, 100,000 and 1,000,000 rows of 1,024.

Rows are drawn numbers under the keys of images that are there: of arrays of 8 pixels, and of files of a few bytes.
Files are read once before the first extract of them, as reading what was just written takes a system the longer the
more it is. Arrays are mapped, so that their pixels count as memory of the process; they are taken off.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, measured, small_images, small_set, verdict
from PIL import Image

SIZES = (10_000, 100_000, 1_000_000)
OPTIONS = ("--backbone", "mobilenet", "--weights", "random", "--image-size", "32", "--precision", "float32")
LABELS = 10
PIXEL_BYTES = 8 * 8 * 3


def spent(*arguments: object, cwd: Path, times: int = 1) -> tuple[float, int, dict[str, Any]]:
    """Least seconds of a command, its peak memory in bytes, and its answer."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        answer, memory = measured(*arguments, cwd=cwd)
        found.append((time.perf_counter() - start, memory, answer))
    return min(found, key=lambda one: one[0])


def store_drawn(cache: Path, data: Path) -> None:
    """Store drawn rows under the keys of some images, as the options above would name them."""
    from pipeline.config import ExtractConfig
    from pipeline.data import open_labelled
    from pipeline.extraction.pass_ import SHARD_ROWS
    from pipeline.extraction.plan import open_plan

    config = ExtractConfig(backbone="mobilenet", weights="random", image_size=(32, 32), precision="float32")
    store = open_plan(config, cache).store
    keys = open_labelled(str(data)).dataset.keys.tolist()
    draw = np.random.default_rng(0)
    block = draw.standard_normal((SHARD_ROWS, 1024), np.float32)
    for start in range(0, len(keys), SHARD_ROWS):
        some = keys[start : start + SHARD_ROWS]
        store.append(some, block[: len(some)] + draw.standard_normal(1024, np.float32))


def write_arrays(folder: Path, n: int) -> Path:
    """`train_images.npy` and labels: pictures of 8 pixels, no two alike."""
    folder.mkdir()
    images = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), np.uint8)
    np.save(folder / "train_images.npy", images)
    np.save(folder / "train_labels.npy", np.arange(n) % LABELS)
    return folder


def write_files(folder: Path, n: int) -> Path:
    """A folder of files that hold their own number, and nothing that could be decoded."""
    for label in range(LABELS):
        (folder / f"class {label}").mkdir(parents=True)
    long_ago = time.time() - 3600
    for number in range(n):
        path = folder / f"class {number % LABELS}" / f"picture {number:07d}.jpg"
        path.write_bytes(b"%d" % number)
        os.utime(path, (long_ago, long_ago))
    return folder


def read_once(folder: Path) -> None:
    """Read all files below a folder."""
    for path in folder.rglob("*.jpg"):
        path.read_bytes()


def picture(folder: Path, number: int) -> Path:
    """A picture that was never seen."""
    path = folder / f"new {number}.png"
    Image.fromarray(small_images(1, seed=10_000 + number)[0]).save(path)
    return path


def costs(folder: Path, n: int) -> dict[str, tuple[float, int]]:
    """Seconds and peak bytes of each command with `n` rows in the cache, or with none but those of a small head."""
    spent("extract", small_set(folder / "small.npz", 200), *OPTIONS, cwd=folder)
    run = spent("train-head", "--head", "ridge", cwd=folder)[2]["run"]
    found: dict[str, tuple[float, int]] = {}

    def note(name: str, *arguments: object, times: int = 1) -> dict[str, Any]:
        seconds, memory, answer = spent(*arguments, cwd=folder, times=times)
        found[name] = (seconds, memory)
        print(f"  {n:>9,}  {name:<28} {seconds:7.2f} s  {memory / 1e6:7.0f} MB", flush=True)
        return answer

    if n:
        # A process starts with the memory that its parent holds, so that this one must not hold the rows.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            arrays = pool.submit(write_arrays, folder / "arrays", n).result()
            files = pool.submit(write_files, folder / "files", n).result()
            pool.submit(store_drawn, folder / "cache of arrays", arrays).result()
            pool.submit(store_drawn, folder / "cache", files).result()
            pool.submit(read_once, files).result()
        for data, options in ((arrays, ("--cache", "cache of arrays")), (files, ())):
            answer = note(f"first extract of {data.name}", "extract", data, *OPTIONS, *options)
            verdict(f"extract of {n:,} {data.name} computes nothing", answer["n_computed"] == 0)
            note(f"extract of {data.name}", "extract", data, *OPTIONS, *options, times=3)
        shutil.rmtree(folder / "cache of arrays")
        note("train-head ridge", "train-head", "--head", "ridge", "--memory", "1GB")
        note("train-head linear, 2 epochs", "train-head", "--head", "linear", "--epochs", 2, "--memory", "1GB")
        note("cache ls", "cache", "ls", times=3)
    known = picture(folder, 0)
    spent("predict", run, known, cwd=folder)
    note("predict of one cached", "predict", run, known, times=3)
    news = iter(range(1, 10))
    new = min(spent("predict", run, picture(folder, next(news)), cwd=folder)[:2] for _ in range(3))
    found["predict of one new"] = new
    print(f"  {n:>9,}  {'predict of one new':<28} {new[0]:7.2f} s  {new[1] / 1e6:7.0f} MB", flush=True)
    return found


def main() -> None:
    sizes = [int(word.replace(",", "")) for word in sys.argv[1:]] or list(SIZES)
    found: dict[int, dict[str, tuple[float, int]]] = {}
    for n in (0, *sizes):
        with tempfile.TemporaryDirectory() as name:
            found[n] = costs(Path(name), n)
            shutil.rmtree(name, ignore_errors=True)
    print("\n| command | " + " | ".join(f"{n:,}" for n in found) + " |\n| --- |" + " --- |" * len(found))
    for command in found[sizes[-1]]:
        cells = [found[n].get(command) for n in found]
        print(f"| {command} | " + " | ".join(f"{c[0]:.2f} s, {c[1] / 1e6:.0f} MB" if c else "" for c in cells) + " |")
    for n in sizes:
        for command in ("predict of one new", "predict of one cached"):
            times = found[n][command][0] / found[0][command][0]
            verdict(f"{command} with {n:,} rows: {times:.2f} times as long as with none (1.2)", times <= 1.2)
    for before, after in pairwise(sizes):
        for command, (seconds, memory) in found[after].items():
            if command.startswith("predict"):
                continue
            more = after - before
            slope = (seconds - found[before][command][0]) / more * 1e5
            room = (memory - found[before][command][1]) / more
            if command.endswith("of arrays"):
                room -= PIXEL_BYTES
            text = f"{command}, {before:,} to {after:,}: {slope:.2f} s a 100,000, {room:.0f} bytes a row"
            limited = command in ("extract of files", "extract of arrays")
            verdict(text, not limited or (slope < 2 and room < 300))
            ratio = (seconds / found[before][command][0]) / (after / before)
            verdict(f"{command}, {before:,} to {after:,}: not worse than linear ({ratio:.2f})", ratio < 1.2)
    finish()


if __name__ == "__main__":
    main()
