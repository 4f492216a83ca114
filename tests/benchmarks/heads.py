"""Heads on 50,000 drawn features [1024] of 10 classes: mlp against plain Keras, many heads against one, scikit-learn."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import drawn_features, finish, tlpipe, verdict

N, N_VAL, LOGREG_L2 = 50_000, 7_500, 0.01

PLAIN = """
import json, sys, time
from pathlib import Path
import keras
from pipeline import load_features

features = load_features(sys.argv[1], cache=sys.argv[2])
train, val = features.split == "train", features.split == "val"
x, y, x_val, y_val = features.X[train], features.y[train], features.X[val], features.y[val]
keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([
    layers.Dense(512, activation="relu"), layers.Dropout(0.5),
    layers.Dense(128, activation="relu"), layers.Dropout(0.5), layers.Dense(10),
])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
start = time.perf_counter()
history = model.fit(x, y, epochs=5, validation_data=(x_val, y_val), verbose=0).history
print(json.dumps({"seconds": time.perf_counter() - start, "accuracy": history["val_accuracy"][-1]}))
"""

SCIKIT = """
import json, sys, time
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from pipeline import load_features

features = load_features(sys.argv[1], cache=sys.argv[2])
train, val = features.split == "train", features.split == "val"
x, y, x_val, y_val = features.X[train], features.y[train], features.X[val], features.y[val]
start = time.perf_counter()
scaler = StandardScaler().fit(x)
model = LogisticRegression(C=1 / (len(y) * float(sys.argv[3])), max_iter=1000).fit(scaler.transform(x), y)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "accuracy": float(model.score(scaler.transform(x_val), y_val))}))
"""


def script(code: str, *arguments: object) -> dict[str, float]:
    """What a script prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def many_classes(work: Path, n: int, n_classes: int, *, spread: float, most: float) -> None:
    """logreg with its penalties, and fitted again on train and val, against scikit-learn with the penalty it found."""
    name = drawn_features(work / "cache", n, n_classes=n_classes, n_val=n * 3 // 20, name=f"{n_classes}", spread=spread)
    ours = tlpipe("train-head", name, "--head", "logreg", cwd=work)
    seconds = ours["seconds"]["fit"]
    text = f"logreg of {n_classes:,} classes on {n:,} images, all penalties: {seconds:.1f} s (under {most:g})"
    verdict(text, seconds < most)
    if n_classes > 100:  # scikit-learn by itself would take most of an hour
        return
    reference = script(SCIKIT, name, work / "cache", ours["chosen"]["l2"])
    difference = ours["metrics"]["val"]["accuracy"] - reference["accuracy"]
    text = f"scikit-learn with one of them: {reference['seconds']:.1f} s, {seconds / reference['seconds']:.2f} of it (at most 1)"
    verdict(text, seconds <= reference["seconds"])
    verdict(f"and {100 * difference:+.2f} points apart (at most 0.2)", abs(difference) <= 0.002)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        name = drawn_features(work / "cache", N, n_val=N_VAL, name="drawn")

        plain = script(PLAIN, name, work / "cache")
        mlp = tlpipe("train-head", "--head", "mlp512-128", "--epochs", 10, cwd=work)
        with (work / "reports" / mlp["run"] / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        reached = [float(row["seconds"]) for row in rows if float(row["val_accuracy"]) >= plain["accuracy"]]
        print(f"plain Keras, batch 32, 5 epochs: {plain['seconds']:.1f} s, validation accuracy {plain['accuracy']:.4f}")
        ratio = reached[0] / plain["seconds"] if reached else float("inf")
        verdict(f"mlp512-128 reaches it in {ratio:.2f} of that time (at most 0.3)", ratio <= 0.3)
        ratio = float(rows[-1]["seconds"]) / plain["seconds"]
        best = max(float(row["val_accuracy"]) for row in rows)
        verdict(f"10 epochs take {ratio:.2f} of it (at most 0.75), to {best:.4f}", ratio <= 0.75)
        around = mlp["wall"] - mlp["seconds"]["fit"]
        verdict(f"all around the fit: {around:.1f} s (under 10)", around < 10)

        one = tlpipe("train-head", "--head", "linear", cwd=work)
        many = tlpipe("sweep", "--head", "linear", "--grid", "full", cwd=work)
        ratio = many["seconds"]["search"] / one["seconds"]["fit"]
        text = f"{len(many['candidates'])} linear heads: {many['seconds']['search']:.1f} s, one: {one['seconds']['fit']:.1f} s"
        verdict(f"{text}, {ratio:.2f} times (at most 4)", ratio <= 4 and len(many["candidates"]) == 48)

        one = tlpipe("train-head", "--head", "ridge", "--l2", 0.1, cwd=work)
        many = tlpipe("train-head", "--head", "ridge", cwd=work)
        ratio = many["seconds"]["fit"] / one["seconds"]["fit"]
        text = f"ridge with 40 penalties: {many['seconds']['fit']:.1f} s, with one: {one['seconds']['fit']:.1f} s"
        verdict(f"{text}, {ratio:.2f} times (under 1.5)", ratio < 1.5)

        reference = script(SCIKIT, name, work / "cache", LOGREG_L2)
        ours = tlpipe("train-head", "--head", "logreg", "--l2", LOGREG_L2, cwd=work)
        ratio = ours["seconds"]["fit"] / reference["seconds"]
        difference = abs(ours["metrics"]["val"]["accuracy"] - reference["accuracy"])
        text = f"logreg: {ours['seconds']['fit']:.1f} s, scikit-learn itself {reference['seconds']:.1f} s"
        verdict(f"{text}, {ratio:.2f} of it (at most 1.1)", ratio <= 1.1)
        verdict(f"and {100 * difference:.2f} points apart (at most 0.1)", difference <= 0.001)

        many_classes(work, N, 100, spread=1.4, most=30)
        many_classes(work, 100_000, 1_000, spread=1.2, most=300)

        name = drawn_features(work / "cache", 5_000, n_val=750, name="small")
        for head in ("logreg", "ridge", "knn20", "centroid"):
            start = time.perf_counter()
            found = tlpipe("train-head", name, "--head", head, cwd=work)
            around = time.perf_counter() - start - found["seconds"]["fit"]
            verdict(f"{head} on 5,000 images: all around the fit {around:.2f} s (under 2.5)", around < 2.5)
    finish()


if __name__ == "__main__":
    main()
