"""Planted label errors: the share of them among the first hundred that are shown, and accuracy before and after.

    python tests/benchmarks/planted.py alien-predator cifar10-5k.npz

Five per cent of the labels of the training images are wrong: any other class, or the class that is confused with it
most. A person looks at the first hundred of the tab "Label errors", and corrects those that are wrong.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import extract, load_features
from pipeline.data import ArraySource, Dataset
from pipeline.heads import make_head
from pipeline.labelling.journal import Journal
from pipeline.labelling.model import HEAD
from pipeline.labelling.session import Session
from pipeline.pages.pictures import Pictures
from pipeline.store.rows import Part, nothing

SHARE, LOOKED_AT, DRAWS = 0.05, 100, 5


def part_of(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Part:
    """A part of images of their own."""
    keys = np.array([f"{row:032x}" for row in range(len(labels))], "S32")
    return Part(features, labels, keys, np.zeros(len(labels), np.int64))


def accuracy(train: Part, test: Part, n_classes: int) -> float:
    """Of a head on the test images."""
    head, _ = make_head(HEAD)
    head.fit(train, nothing(train), n_classes)
    return float((head.predict_proba(test.array()).argmax(axis=1) == test.labels).mean())


def most_confused(train: Part, test: Part, n_classes: int) -> NDArray[np.int64]:
    """The class that each class is taken for most often."""
    head, _ = make_head(HEAD)
    head.fit(train, nothing(train), n_classes)
    found = head.predict_proba(test.array())
    mean = np.stack([found[test.labels == label].mean(axis=0) for label in range(n_classes)])
    np.fill_diagonal(mean, -1)
    nearest: NDArray[np.int64] = mean.argmax(axis=1)
    return nearest


def corrected(features: NDArray[np.float32], wrong: NDArray[np.int64], truth: NDArray[np.int64], names: Any) -> Any:
    """Labels after a person has looked at the first hundred, and how many of these were wrong."""
    keys = part_of(features, wrong).keys
    splits, paths = np.full(len(keys), "train"), [str(row) for row in range(len(keys))]
    dataset = Dataset("planted", keys, wrong, splits, paths, tuple(names))
    pictures = Pictures(ArraySource([(np.zeros((len(keys), 2, 2, 3), np.uint8), 1.0)]), keys, 10**6)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(dataset, features, pictures, Journal(Path(folder) / "labels.jsonl", "planted"))
        session.settle()
        shown = [int(one.path) for one in session.show("errors", LOOKED_AT)]
        session.answer([(keys[row].decode(), names[truth[row]]) for row in shown], {"tab": "errors"})
        labels = session._labels.copy()
        session.close()
    return labels, int((wrong[shown] != truth[shown]).sum())


def main(*data: str) -> None:
    """Print a row for each data set and kind of error."""
    print(
        "| data | errors | planted | in the first 100 | share found | accuracy, planted | corrected | without errors |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in data:
        found = load_features(extract(one))
        held = found.split == "test" if one.endswith(".npz") else found.split != "train"
        train, test = part_of(found.X[~held], found.y[~held]), part_of(found.X[held], found.y[held])
        n_classes = len(found.class_names)
        confused = most_confused(train, test, n_classes)
        clean = accuracy(train, test, n_classes)
        for kind in ("uniform", "confused"):
            rows = []
            for seed in range(DRAWS):
                random = np.random.default_rng(seed)
                chosen = random.permutation(len(train))[: round(SHARE * len(train))]
                wrong = train.labels.copy()
                shift = random.integers(1, n_classes, len(chosen))
                wrong[chosen] = confused[wrong[chosen]] if kind == "confused" else (wrong[chosen] + shift) % n_classes
                labels, n = corrected(train.array(), wrong, train.labels, found.class_names)
                before, after = (accuracy(replace(train, labels=one), test, n_classes) for one in (wrong, labels))
                rows.append((len(chosen), n, n / len(chosen), before, after))
            planted, n, share, before, after = np.mean(rows, axis=0)
            cells = [f"{planted:.0f}", f"{n:.0f}", *(f"{100 * value:.1f} %" for value in (share, before, after, clean))]
            print(f"| {Path(one).stem} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
