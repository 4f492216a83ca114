"""Which images of a run are worth looking at: confidently wrong, least certain, and some of every confusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.runs.predictions import Predictions

IN_VIEW = 48  # images that are confidently wrong, and as many that are least certain
IN_CELL = 6  # images of each pair of true and predicted class
MOST = 300


@dataclass(frozen=True, slots=True)
class Shown:
    """An image of the gallery.

    Attributes:
        row: In the predictions.
        label: Index of its class.
        predicted: Index of the class that is most probable.
        probability: Of the predicted class.
        of_label: Of the true class.
        wrong: Whether it is among the confidently wrong.
        uncertain: Whether it is among the least certain.
    """

    row: int
    label: int
    predicted: int
    probability: float
    of_label: float
    wrong: bool
    uncertain: bool


def choose(predictions: Predictions) -> list[Shown]:
    """Images of a gallery, the most confident first.

    The most confident mistakes, the least certain answers, and of each cell of the confusion matrix a few: the most
    confident where it is a mistake, the least certain where it is right.
    """
    probabilities, labels = predictions.probabilities, predictions.labels
    predicted = probabilities.argmax(axis=1)
    best = probabilities.max(axis=1)
    right = predicted == labels
    mistakes = np.flatnonzero(~right)
    wrong = mistakes[np.argsort(-best[mistakes], kind="stable")][:IN_VIEW]
    uncertain = np.argsort(best, kind="stable")[:IN_VIEW]
    chosen = dict.fromkeys([*wrong.tolist(), *uncertain.tolist()])
    # A mistake is worse the surer it is, and a right answer the less sure it is.
    order = np.argsort(np.where(right, best, -best), kind="stable")
    for row in _some_of_each(order, labels, predicted):
        if len(chosen) >= MOST:
            break
        chosen[row] = None
    of_view, of_doubt = set(wrong.tolist()), set(uncertain.tolist())
    shown = [
        Shown(
            row,
            int(labels[row]),
            int(predicted[row]),
            float(best[row]),
            float(probabilities[row, labels[row]]),
            row in of_view,
            row in of_doubt,
        )
        for row in chosen
    ]
    return sorted(shown, key=lambda one: -one.probability)


def _some_of_each(order: NDArray[np.int64], labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[int]:
    """Rows in this order, at most a few of each pair of classes, mistakes before right answers."""
    counts: dict[tuple[int, int], int] = {}
    found: list[int] = []
    for row in order.tolist():
        cell = (int(labels[row]), int(predicted[row]))
        counts[cell] = counts.get(cell, 0) + 1
        if counts[cell] <= IN_CELL:
            found.append(row)
    return sorted(found, key=lambda row: labels[row] == predicted[row])
