"""`predict` of 500 JPEGs against `extract` of the same files, in turns, each into a cache without them.

The rate is that of the pass; the seconds are those of the whole call, with all that is before and after it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from common import finish, verdict, write_jpegs

from pipeline import commands
from pipeline.config import ExtractConfig, HeadConfig

ROUNDS = 5
LEAST = 0.9


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, reports = folder / "cache", folder / "reports"
        data = str(write_jpegs(folder / "jpegs", 500))
        config = ExtractConfig(data, weights="random")
        commands.extract(config, cache)  # from here on the network is converted and the files are known
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        rates, seconds = [], []
        for _ in range(ROUNDS):
            found = []
            for what in ("extract", "predict"):
                shutil.rmtree(cache / "features")
                start = time.perf_counter()
                if what == "extract":
                    rate = commands.extract(config, cache).images_per_second
                else:
                    rate = commands.predict(run.id, [data], cache, reports).images_per_second
                found.append((rate, time.perf_counter() - start))
            (extract, extract_seconds), (predict, predict_seconds) = found
            print(
                f"extract {extract:.0f} images/s, {extract_seconds:.2f} s; predict {predict:.0f}, {predict_seconds:.2f} s"
            )
            rates.append(predict / extract)
            seconds.append(extract_seconds / predict_seconds)
        for what, ratios in (
            ("of extract's rate", rates),
            ("of extract's rate by the seconds of the whole call", seconds),
        ):
            ratio = float(np.median(ratios))
            verdict(f"predict runs at {ratio:.2f} {what} (median of {ROUNDS}; at least {LEAST})", ratio >= LEAST)
    finish()


if __name__ == "__main__":
    main()
