"""How good predictions are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["accuracy_interval", "evaluate"]

NORMAL_95 = 1.959964  # two-sided 95 % point of the standard normal distribution


def accuracy_interval(n_right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score (Wilson 1927, JASA 22, p. 209)."""
    if n == 0:
        return (0.0, 1.0)
    share = n_right / n
    z2 = NORMAL_95**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n)) / (1 + z2)
    return (max(0.0, centre - half), min(1.0, centre + half))


def evaluate(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, its 95 % interval, and log loss.

    Args:
        probabilities: Shape [n, classes].
        labels: Class indices, shape [n].

    Returns:
        `n`, `accuracy`, `accuracy_95` (low, high) and `log_loss` (natural logarithm, per image); only `n` if n is 0.
    """
    n = len(labels)
    if n == 0:
        return {"n": 0}
    n_right = int((probabilities.argmax(axis=1) == labels).sum())
    of_label = probabilities[np.arange(n), labels].astype(np.float64)
    return {
        "n": n,
        "accuracy": n_right / n,
        "accuracy_95": list(accuracy_interval(n_right, n)),
        # A probability that rounds to 0 would make one image outweigh all others.
        "log_loss": float(-np.log(np.maximum(of_label, 1e-15)).mean()),
    }
