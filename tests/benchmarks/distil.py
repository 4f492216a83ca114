"""What a head gains that learns from the answers of two others, too: distillation (Hinton et al. 2015, arXiv:1503.02531).

    python tests/benchmarks/distil.py cifar10.npz

Prints val and test accuracy of the head alone, of its teachers and of the mean of their answers, and of the head that
was taught, in percent; heads with a deviation are means of three seeds.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import extract, load_features
from pipeline.config import HeadConfig
from pipeline.heads import make_head
from pipeline.heads.mlp import MlpHead
from pipeline.store.rows import Part
from pipeline.util import runtime

HEAD, TEACHERS = "mlp512-128", ("mlp512-128", "mlp1024-256")
SEEDS = (0, 1, 2)
TEACHERS_SEED = 10
SHARE = 0.5  # of the loss that compares with the teachers; the labels have the rest
TEMPERATURES = (1.0, 2.0, 4.0)


class Taught(MlpHead):
    """Learns from labels and from the answers of teachers; in its training rows the view is the number of the row.

    Args:
        config: Of the head.
        logits: Logarithms of the teachers' mean answer, shape [rows, classes].
        temperature: By which both sides' logits are divided where they are compared.
    """

    def __init__(self, config: HeadConfig, logits: NDArray[np.float32], temperature: float) -> None:
        super().__init__(config)
        self.logits, self.temperature = logits, temperature

    def _step(self, model: Any, optimizer: Any, train: Part, n_classes: int) -> Any:
        tf, t = runtime.tensorflow(), self.temperature
        answers = tf.nn.softmax(tf.constant(self.logits) / t)

        def step(features: Any, labels: Any, rows: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(features, training=True)
                by_label = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                by_answer = tf.nn.softmax_cross_entropy_with_logits(tf.gather(answers, rows), logits / t)
                # The square keeps the gradients of both of one size, whatever the temperature.
                value = tf.reduce_mean((1 - SHARE) * by_label + SHARE * t**2 * by_answer)
            optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
            return value

        return step


def accuracy(shares: NDArray[np.float64], part: Part) -> float:
    """Percent of images whose class was found."""
    return 100 * float((shares.argmax(axis=1) == part.labels).mean())


def main(data: str) -> None:
    """Print the table."""
    features = load_features(extract(data))
    n, n_classes = len(features.y), len(features.class_names)
    whole = Part(features.X, features.y, np.array([f"{row:032x}" for row in range(n)], "S32"), np.arange(n))
    train, val, test = (whole.select(np.flatnonzero(features.split == split)) for split in ("train", "val", "test"))
    train = Part(train.features, train.labels, train.keys, np.arange(len(train)))

    def fitted(head: Any) -> Any:
        head.fit(train, val, n_classes)
        return head

    def row(name: str, *found: Any) -> None:
        """Print means and deviations of some heads, or of what they answer for (val, test)."""
        cells = []
        for place, part in enumerate((val, test)):
            answers = [one[place] if isinstance(one, tuple) else one.predict_proba(part.array()) for one in found]
            values = [accuracy(shares, part) for shares in answers]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    print(f"{data}: {len(train):,} train, {len(val):,} val, {len(test):,} test\n")
    print("| head | val | test |\n| --- | --- | --- |")
    row(f"{HEAD} alone", *(fitted(make_head(HeadConfig(HEAD, seed=seed))[0]) for seed in SEEDS))
    teachers = [fitted(make_head(HeadConfig(name, seed=TEACHERS_SEED))[0]) for name in TEACHERS]
    for name, teacher in zip(TEACHERS, teachers, strict=True):
        row(f"teacher {name}", teacher)
    means = [np.mean([one.predict_proba(part.array()) for one in teachers], axis=0) for part in (train, val, test)]
    row("mean of the teachers", (means[1], means[2]))
    logits = np.log(np.maximum(means[0], 1e-12)).astype(np.float32)
    for temperature in TEMPERATURES:
        configs = [make_head(HeadConfig(HEAD, seed=seed))[1] for seed in SEEDS]
        row(
            f"{HEAD} taught, temperature {temperature:g}",
            *(fitted(Taught(one, logits, temperature)) for one in configs),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
