"""Two classifiers on the same images: the difference of their accuracies, image by image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more accurate one classifier is than another on the same images.

    Attributes:
        n: Images.
        accuracy: Of the first.
        accuracy_other: Of the second.
        difference: Of the two, from -1 to 1.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Of McNemar's exact test that both are right equally often.
    """

    n: int
    accuracy: float
    accuracy_other: float
    difference: float
    low: float
    high: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)


def paired_difference(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> Difference:
    """Compare two classifiers on the same images.

    Only images on which one is right and the other wrong tell them apart. Of m such images the first is right on b; the
    difference is (2 b / m - 1) m / n, and its interval that of the share b / m (Wilson 1927, JASA 22, p. 209).

    Args:
        right: Whether the first is right on each image, shape [n], n above 0.
        other: Whether the second is, on the same images.

    Source: McNemar 1947, Psychometrika 12, p. 153.
    """
    from scipy.stats import binomtest

    n, first, m = len(right), int((right & ~other).sum()), int((right != other).sum())
    low = high = 0.0
    p_value = 1.0
    if m:
        test = binomtest(first, m)
        interval = test.proportion_ci(method="wilson")
        low, high, p_value = (2 * interval.low - 1) * m / n, (2 * interval.high - 1) * m / n, test.pvalue
    difference = (2 * first - m) / n
    return Difference(n, float(right.mean()), float(other.mean()), difference, float(low), float(high), float(p_value))
