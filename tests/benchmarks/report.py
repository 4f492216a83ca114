"""Pages of 50 runs on 10,000 images: sizes of the pages, and how soon Chromium shows the leaderboard."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import finish, verdict
from PIL import Image

from pipeline import commands
from pipeline.config import ExtractConfig, HeadConfig, SplitConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import started

RUNS, IMAGES = 50, 10_000
MOST_SECONDS, MOST_BYTES = 1.0, 5_000_000


def data_of(folder: Path) -> str:
    """Ten classes of smooth pictures under noise, 96 pixels, which no compression makes small."""
    draw = np.random.default_rng(0)
    images = np.empty((IMAGES, 96, 96, 3), np.uint8)
    for number in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse) + draw.normal(0, 12, (96, 96, 3)) + 10 * (number % 10)
        images[number] = np.clip(noisy, 0, 255)
    np.savez(folder / "pictures.npz", images=images, labels=np.arange(IMAGES) % 10)
    return str(folder / "pictures.npz")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, reports = folder / "cache", folder / "reports"
        config = ExtractConfig(
            data_of(folder), backbone="mobilenet025", weights="random", image_size=(96, 96), splits=SplitConfig(0, 0.7)
        )
        commands.extract(config, cache)
        for number in range(RUNS):
            commands.train_head(HeadConfig("ridge", l2=0.01 * (1 + number)), cache, reports)
        start = time.perf_counter()
        done = commands.report([], cache, reports)
        seconds = time.perf_counter() - start
        pages = [page.stat().st_size for page in done.pages.values()]
        print(f"{len(pages)} pages and their figures in {seconds:.0f} s")
        largest = max(*pages, done.index.stat().st_size)
        verdict(f"the largest page has {largest / 1e6:.2f} MB (at most {MOST_BYTES / 1e6:.0f})", largest < MOST_BYTES)
        with started() as browser:
            for what, page in (("leaderboard", done.index), ("page of a run", next(iter(done.pages.values())))):
                shown = []
                for _ in range(5):
                    tab = browser.new_page()
                    start = time.perf_counter()
                    tab.goto(page.as_uri(), wait_until="load")
                    shown.append(time.perf_counter() - start)
                    tab.close()
                found = float(np.median(shown))
                most = MOST_SECONDS if what == "leaderboard" else np.inf
                verdict(f"the {what} is open after {found:.2f} s (median of 5; at most {most:g})", found < most)
    finish()


if __name__ == "__main__":
    main()
