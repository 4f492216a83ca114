"""Temperature scaling: probabilities that mean what they say.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RANGE = (1e-3, 1e3)
LEAST = 1e-12  # a probability that rounds to 0 has no logarithm


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature by which logits [n, classes] are divided for the lowest log loss, between 0.001 and 1,000.

    A share 1 / (n + 2) of each label is spread over all classes, so that a few images that are all told apart don't
    make the classifier certain (Platt 1999, Probabilistic outputs for support vector machines, section 2.2).
    """
    from scipy.optimize import minimize_scalar

    # Less the largest of each row no logit overflows, at any temperature.
    below = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    doubt = 1 / (len(labels) + 2)
    of_label = (1 - doubt) * below[np.arange(len(labels)), labels].mean() + doubt * below.mean()

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.log(np.exp(scale * below).sum(axis=1)).mean() - scale * of_label)

    found = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def logits_of(probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    """Logarithms of probabilities [n, classes], which are logits of which they are the softmax."""
    logits: NDArray[np.floating] = np.log(np.maximum(probabilities, LEAST))
    return logits


def tempered(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Probabilities [n, classes] at another temperature: the softmax of their logarithms divided by it."""
    from scipy.special import softmax

    found: NDArray[np.float64] = softmax(logits_of(probabilities) / temperature, axis=1)
    return found
