"""Planted label errors: the share of them among the first hundred that are shown, and accuracy before and after.

    python tests/benchmarks/planted.py alien-predator cifar10-5k.npz

Five per cent of the labels of the training images are wrong: any other class, or the class that is confused with it
most. A person, played by a script in headless Chromium, looks at the first hundred of the tab "Label errors", and gives
each the right label.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import labelling
import numpy as np
from numpy.typing import NDArray

from pipeline import extract, load_features
from pipeline.heads import make_head
from pipeline.labelling.model import HEAD
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


def corrected(
    chromium: Any, features: NDArray[np.float32], wrong: NDArray[np.int64], truth: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Labels after a person has looked at the first hundred, and how many of these were wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labelling.write(folder, features, truth, given=wrong)
        with labelling.served(folder, "chosen", 0) as (address, process):
            labelling.settled(process)
            page = chromium.new_page()
            page.goto(address)  # it opens at the label errors, as all pictures have labels
            shown = page.locator("#grid [role=option]")
            shown.first.wait_for()
            for looked_at in range(LOOKED_AT):
                if looked_at + 1 == shown.count():
                    if page.locator("#more").is_hidden():  # it is the last one that there is
                        break
                    page.wait_for_function(
                        "n => document.querySelectorAll('#grid [role=option]').length > n", arg=looked_at + 1
                    )
                labelling.answer(page, labelling.named)
            page.close()
        given = labelling.answers(folder)
    labels = wrong.copy()
    labels[list(given)] = list(given.values())
    return labels, int((labels != wrong).sum())


def rows(chromium: Any, data: str) -> None:
    """Print a row for each kind of error."""
    found = load_features(extract(data))
    held = found.split == "test" if data.endswith(".npz") else found.split != "train"
    train, test = part_of(found.X[~held], found.y[~held]), part_of(found.X[held], found.y[held])
    n_classes = len(found.class_names)
    confused = most_confused(train, test, n_classes)
    clean = accuracy(train, test, n_classes)
    for kind in ("uniform", "confused"):
        each = []
        for seed in range(DRAWS):
            random = np.random.default_rng(seed)
            chosen = random.permutation(len(train))[: round(SHARE * len(train))]
            wrong = train.labels.copy()
            shift = random.integers(1, n_classes, len(chosen))
            wrong[chosen] = confused[wrong[chosen]] if kind == "confused" else (wrong[chosen] + shift) % n_classes
            labels, n = corrected(chromium, train.array(), wrong, train.labels)
            before, after = (accuracy(replace(train, labels=one), test, n_classes) for one in (wrong, labels))
            each.append((len(chosen), n, n / len(chosen), before, after))
        planted, n, share, before, after = np.mean(each, axis=0)
        cells = [f"{planted:.0f}", f"{n:.0f}", *(f"{100 * value:.1f} %" for value in (share, before, after, clean))]
        print(f"| {Path(data).stem} | {kind} | {' | '.join(cells)} |", flush=True)


def main(*data: str) -> None:
    """Print the table."""
    print(
        "| data | errors | planted | in the first 100 | share found | accuracy, planted | corrected | without errors |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with labelling.started() as chromium:
        for one in data:
            rows(chromium, one)


if __name__ == "__main__":
    main(*sys.argv[1:])
