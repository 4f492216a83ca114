"""Temperature scaling: probabilities that mean what they say.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fit_temperature", "tempered"]

RANGE = (1e-3, 1e3)
LEAST = 1e-12  # a probability that rounds to 0 has no logarithm


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature by which logits [n, classes] are divided for the lowest log loss, between 0.001 and 1,000."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    wide = logits.astype(np.float64)
    of_label = wide[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(scale * wide, axis=1) - scale * of_label).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def tempered(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Probabilities [n, classes] at another temperature: the softmax of their logarithms divided by it."""
    from scipy.special import softmax

    found: NDArray[np.float64] = softmax(np.log(np.maximum(probabilities, LEAST)) / temperature, axis=1)
    return found
