"""Two classifiers on the same images: the difference of their accuracies, image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import accuracy_interval


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


def paired_difference(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> Difference:
    """Compare two classifiers on the same images.

    The interval is Newcombe's hybrid score interval: Wilson's intervals of both accuracies, put together with the
    correlation of their answers. The test is McNemar's, exact: of the images on which one is right and the other wrong,
    each should be right on half.

    Args:
        right: Whether the first is right on each image, shape [n], n above 0.
        other: Whether the second is, on the same images.

    Source: Newcombe 1998, Statistics in Medicine 17, p. 2635, method 10; McNemar 1947, Psychometrika 12, p. 153.
    """
    from scipy.stats import binomtest

    n, both, neither = len(right), int((right & other).sum()), int((~right & ~other).sum())
    first, second = int((right & ~other).sum()), int((~right & other).sum())
    accuracy, accuracy_other = (both + first) / n, (both + second) / n
    low, high = accuracy_interval(both + first, n)
    low_other, high_other = accuracy_interval(both + second, n)
    phi = _correlation(both, first, second, neither)
    below = _joined(accuracy - low, high_other - accuracy_other, phi)
    above = _joined(high - accuracy, accuracy_other - low_other, phi)
    difference = accuracy - accuracy_other
    p_value = binomtest(first, first + second).pvalue if first + second else 1.0
    return Difference(n, accuracy, accuracy_other, difference, difference - below, difference + above, float(p_value))


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Newcombe's phi of a table of right answers, corrected for continuity where it is positive."""
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not product:
        return 0.0
    n, odds = both + first + second + neither, both * neither - first * second
    corrected = max(odds - n / 2, 0.0) if odds > 0 else odds
    return float(corrected / math.sqrt(product))


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))
