"""Which pictures to label next: accuracy on held-out images after so many labels, by query strategy, means of draws.

    python tests/benchmarks/queries.py alien-predator cifar10-5k.npz

The labels are those of the data. A strategy is named `start/then`: how pictures are chosen until there are ten labels for
each class, and after that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from pipeline import extract, load_features
from pipeline.config import HeadConfig
from pipeline.heads import make_head
from pipeline.labelling.queries import STRATEGIES, Pool
from pipeline.store.rows import Part, nothing

SIZES = (20, 50, 100, 200, 500)
PER_CLASS, DRAWS = 10, 5
TRIED = (
    "random/random",
    "coreset/coreset",
    "typiclust/typiclust",
    "random/margin",
    "coreset/margin",
    "typiclust/margin",
    "typiclust/entropy",
    "typiclust/badge",
)
HEAD = "ridge"


def batch(n: int) -> int:
    """Pictures that are asked about between two fits."""
    return 20 if n < 20 else 10 if n < 100 else 50


def curve(
    name: str, pool: Part, test: Part, n_classes: int, seed: int, head_name: str = HEAD
) -> Iterator[tuple[int, float]]:
    """Accuracy on `test` after each of `SIZES` labels."""
    start, then = (STRATEGIES[one] for one in name.split("/"))
    features: NDArray[np.float32] = normalize(pool.array().astype(np.float32))
    random = np.random.default_rng(seed)
    # Draws differ by a tenth of the pictures that are never asked about, as some strategies draw nothing at random.
    left_out = random.random(len(pool)) < 0.1
    labelled = np.zeros(len(pool), np.bool_)
    probabilities = None
    while (n := int(labelled.sum())) < SIZES[-1]:
        choose = start if n < PER_CLASS * n_classes else then
        wanted = min(batch(n), next(size for size in SIZES if size > n) - n)
        view = Pool(features, labelled, ~labelled & ~left_out, probabilities, random)
        rows = choose(view, wanted)
        if not len(rows):
            return
        labelled[rows] = True
        known = np.unique(pool.labels[labelled])
        accuracy = 0.0
        if len(known) > 1:
            train = pool.select(np.flatnonzero(labelled))
            few = Part(train.features, np.searchsorted(known, train.labels), train.keys, train.views)
            head, _ = make_head(HeadConfig(head_name))
            head.fit(few, nothing(few), len(known))
            accuracy = float((known[head.predict_proba(test.array()).argmax(axis=1)] == test.labels).mean())
            probabilities = np.zeros((len(pool), n_classes))
            probabilities[:, known] = head.predict_proba(pool.array())
        if int(labelled.sum()) in SIZES:
            yield int(labelled.sum()), accuracy


def main(*data: str) -> None:
    """Print a table for each data set."""
    for one in data:
        features = load_features(extract(one))
        keys = np.array([f"{row:032x}" for row in range(len(features.y))], "S32")
        whole = Part(features.X, features.y, keys, np.zeros(len(keys), np.int64))
        held = features.split == "test" if one.endswith(".npz") else features.split != "train"
        pool, test = (whole.select(np.flatnonzero(mask)) for mask in (~held, held))
        print(f"\n{one}: {len(pool):,} to label, {len(test):,} held out, head {HEAD}\n")
        print(f"| strategy | {' | '.join(map(str, SIZES))} |\n| --- |{' --- |' * len(SIZES)}")
        for name in TRIED:
            found: dict[int, list[float]] = {}
            for seed in range(DRAWS):
                for n, accuracy in curve(name, pool, test, len(features.class_names), seed):
                    found.setdefault(n, []).append(100 * accuracy)
            cells = [f"{np.mean(found[n]):.1f} ± {np.std(found[n], ddof=1):.1f}" if n in found else "" for n in SIZES]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
