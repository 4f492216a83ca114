"""`extract` killed with SIGKILL at 20 random moments and started again each time; then two at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import finish, small_set, tlpipe, verdict

from pipeline import load_features
from pipeline.store.shards import stores

KILLS = 20
N = 20_000
LONGEST = 6.0  # seconds until a kill: from the start of Python to a few shards
SMALL = ("--backbone", "mobilenet025", "--weights", "random")


def stored_rows(cache: Path) -> int:
    """Rows in all shards, those that are there twice counted twice."""
    total = 0
    for store in stores(cache):
        store.open()
        total += sum(len(shard.keys) for shard in store.shards)
    return total


def main() -> None:
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_set(folder / "small.npz", N)
        tlpipe("extract", data, *SMALL, "--cache", folder / "whole")
        command = [sys.executable, "-m", "pipeline", "extract", str(data), *SMALL, "--quiet", "--cache"]
        # Its first images convert the network, which takes longer than any of the kills would let it.
        tlpipe("extract", small_set(folder / "first.npz", 64), *SMALL, "--cache", folder / "killed")
        kept = [stored_rows(folder / "killed")]
        for _ in range(KILLS):
            process = subprocess.Popen([*command, str(folder / "killed")], stdout=subprocess.DEVNULL)
            time.sleep(draw.uniform(0.3, LONGEST))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kept.append(stored_rows(folder / "killed"))
        last = tlpipe("extract", data, *SMALL, "--cache", folder / "killed")
        print(f"rows kept after each kill: {kept}; computed in the end: {last['n_computed']}")
        verdict("kills came between shards", len(set(kept)) > 3)
        verdict("rows never got fewer", kept == sorted(kept))
        verdict("no row is stored twice", stored_rows(folder / "killed") == N)
        features = [load_features(cache=folder / cache) for cache in ("whole", "killed")]
        same = all(
            np.array_equal(getattr(features[0], part), getattr(features[1], part)) for part in ("X", "y", "split")
        )
        verdict("after 20 kills: bit for bit the features of an undisturbed run", same)
        pair = [subprocess.Popen([*command, str(folder / "pair")], stdout=subprocess.DEVNULL) for _ in range(2)]
        verdict("two at once: both end well", [process.wait() for process in pair] == [0, 0])
        verdict("and the result is right", np.array_equal(load_features(cache=folder / "pair").X, features[0].X))
    finish()


if __name__ == "__main__":
    main()
