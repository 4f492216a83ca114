"""How good predictions are, by scikit-learn's metrics where it has them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
TOP = 5  # labels that count for top-5 accuracy, where there are more than twice as many classes
LEAST_PROBABILITY = 1e-15  # one that rounds to 0 would make one image outweigh all others


def scores(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and log loss (natural logarithm, per image): what heads are chosen by.

    Args:
        probabilities: Shape [n, classes], n above 0.
        labels: Class indices, shape [n].
    """
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "log_loss": float(0.0 - np.log(np.maximum(of_label, LEAST_PROBABILITY)).mean()),
    }


def accuracy_interval(n_right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which grows with the number of right ones and never leaves 0..1.

    Source: Wilson 1927, JASA 22, p. 209; recommended by Brown et al. 2001, Statistical Science 16, p. 101.
    """
    from scipy.stats import binomtest

    if n == 0:
        return (0.0, 1.0)
    interval = binomtest(n_right, n).proportion_ci(method="wilson")
    return (float(interval.low), float(interval.high))


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Expected calibration error: mean difference between confidence and accuracy, over 15 bins of equal width.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    return sum(one["n"] * abs(one["accuracy"] - one["confidence"]) for one in reliability(probabilities, labels)) / len(
        labels
    )


def reliability(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> list[dict[str, float]]:
    """Confidence, which is the probability of the predicted class, and accuracy, in 15 bins of equal width.

    Returns:
        `low`, `high`, `n`, mean `confidence` and `accuracy` of each bin that has images.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for number in range(BINS)
        if (inside := bins == number).any()
    ]


def evaluate(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """All that is known of predictions.

    Args:
        probabilities: Shape [n, classes].
        labels: Class indices, shape [n].
        class_names: In the order of the indices.

    Returns:
        Only `n` if it is 0, else also `accuracy`, `accuracy_95` (low, high), `balanced_accuracy` and `macro_f1` (over
        the classes that have images), `log_loss`, `roc_auc` (of two classes, or the mean of one against the rest;
        None where a class has no images), `top_5_accuracy` (more than 10 classes only), `ece`, `per_class`
        (`precision`, `recall`, `f1`, `support` by class name) and `confusion_matrix` (rows are true classes).
    """
    n = len(labels)
    if n == 0:
        return {"n": 0}
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

    indices = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    top: dict[str, float] = {}
    with warnings.catch_warnings():  # scikit-learn 1.7 takes few images of many classes for a regression
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        confusion = confusion_matrix(labels, predicted, labels=indices)
        columns = precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
        if len(class_names) > 2 * TOP:
            top["top_5_accuracy"] = float(top_k_accuracy_score(labels, probabilities, k=TOP, labels=indices))
    _, recall, f1, support = columns
    names = ("precision", "recall", "f1", "support")
    found: dict[str, Any] = {
        "n": n,
        **scores(probabilities, labels),
        "accuracy_95": list(accuracy_interval(int(np.trace(confusion)), n)),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "macro_f1": float(f1[support > 0].mean()),
        "roc_auc": _roc_auc(probabilities, labels) if (support > 0).all() else None,
        "ece": calibration_error(probabilities, labels),
        **top,
    }
    found["per_class"] = {
        class_name: {name: column[number].item() for name, column in zip(names, columns, strict=True)}
        for number, class_name in enumerate(class_names)
    }
    found["confusion_matrix"] = confusion.tolist()
    return found


def _roc_auc(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    # In single precision, probabilities of many classes may miss a sum of 1 by more than scikit-learn allows.
    wide = probabilities.astype(np.float64)
    return float(roc_auc_score(labels, wide / wide.sum(axis=1, keepdims=True), multi_class="ovr"))
