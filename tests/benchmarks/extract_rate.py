"""`extract` of 5,000 images of 32 px, and of 320x240 JPEGs, to 224 px, against the engine's own rate.

Usage: extract_rate.py [DATA.npz]   (default: 5,000 drawn images)
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import finish, small_set, tlpipe, verdict, write_jpegs

from pipeline.backbones import open_backbone
from pipeline.extraction.engines import call, choose, open_engine

ROUNDS = 3


def engine_rate(folder: Path) -> float:
    """Images per second of the engine alone, on images held in memory."""
    pretrained = open_backbone("densenet121", "random", 0, (224, 224))
    engine = open_engine(choose("auto", "auto"), pretrained.network, "conv5", "avg", folder / "graph")
    images = np.random.default_rng(0).integers(0, 256, (512, 224, 224, 3), np.uint8)
    call(engine, images[:64])
    start = time.perf_counter()
    call(engine, images)
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = Path(sys.argv[1]) if len(sys.argv) > 1 else small_set(folder / "small.npz", 5000)
        jpegs = write_jpegs(folder / "jpegs", 1500)
        ratios: dict[str, list[float]] = {"32-px arrays": [], "320x240 JPEGs": []}
        for number in range(ROUNDS):
            own = engine_rate(folder)
            for what, data in (("32-px arrays", arrays), ("320x240 JPEGs", jpegs)):
                result = tlpipe("extract", data, "--weights", "random", "--cache", folder / f"cache {number} {what}")
                ratios[what].append(result["images_per_second"] / own)
                print(f"{what}: {result['images_per_second']:.0f} images/s, the engine alone {own:.0f}", flush=True)
        for what, least in (("32-px arrays", 0.9), ("320x240 JPEGs", 0.75)):
            ratio = float(np.median(ratios[what]))
            verdict(f"{what}: {ratio:.2f} of the engine's rate (median of {ROUNDS}; at least {least})", ratio >= least)
    finish()


if __name__ == "__main__":
    main()
