"""Which head gives most in the least time, on drawn features of 10 to 1,000 classes and on features that are there.

python defaults.py                               drawn features alone
python defaults.py CACHE FEATURES [FEATURES]     those of a cache, too
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import best_accuracy, drawn_features, tlpipe

DRAWN = ((20, 20_000, 2.0), (100, 50_000, 1.4), (1_000, 50_000, 1.2))  # classes, images, spread
HEADS = (
    ("logreg",),
    ("ridge",),
    ("linear",),
    ("mlp512-128",),
    ("mlp512-128", "--dropout", 0.2),
    ("mlp512",),
    ("mlp1024",),
    ("mlp1024", "--dropout", 0.2),
    ("mlp1024-512",),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sets = {}
        for n_classes, n, spread in DRAWN:
            name = drawn_features(
                work / "cache", n, n_classes=n_classes, n_val=n * 3 // 20, name=f"{n_classes}", spread=spread
            )
            best = best_accuracy(n_classes, spread)
            sets[f"{n_classes:,} classes, {n:,} images, best {100 * best:.1f} %"] = (work / "cache", name, "val")
        for name in sys.argv[2:]:
            sets[name] = (Path(sys.argv[1]).resolve(), name, "test")
        found: dict[tuple[object, ...], list[str]] = {head: [] for head in HEADS}
        for title, (cache, name, split) in sets.items():
            print(title, flush=True)
            for head, cells in found.items():
                run = tlpipe("train-head", name, "--head", *head, "--cache", cache, cwd=work)
                seconds = run["seconds"]["fit"]
                cells.append(f"{100 * run['metrics'][split]['accuracy']:.1f} ({seconds:.1f} s)")
                print("  ", " ".join(map(str, head)), cells[-1], flush=True)
    print("| head | " + " | ".join(sets) + " |\n| --- |" + " --- |" * len(sets))
    for head, cells in found.items():
        print(f"| {' '.join(map(str, head))} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
