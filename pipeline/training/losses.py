"""Cross-entropy of logits, and the accuracy that fits it; of two classes there is one logit, that of the second."""

from __future__ import annotations

from typing import Any

from pipeline.util import runtime


def sparse_loss(n_classes: int, label_smoothing: float = 0.0, **options: Any) -> Any:
    """Keras's cross-entropy of class indices and logits."""
    if n_classes == 2:
        return soft_loss(n_classes, label_smoothing, **options)
    if label_smoothing == 0:
        return runtime.keras().losses.SparseCategoricalCrossentropy(from_logits=True, **options)
    smooth = soft_loss(n_classes, label_smoothing, **options)
    return lambda labels, logits: smooth(runtime.keras().ops.one_hot(labels, n_classes), logits)


def soft_loss(n_classes: int, label_smoothing: float = 0.0, **options: Any) -> Any:
    """Keras's cross-entropy of shares [b, logits] and logits."""
    losses = runtime.keras().losses
    kind = losses.BinaryCrossentropy if n_classes == 2 else losses.CategoricalCrossentropy
    return kind(from_logits=True, label_smoothing=label_smoothing, **options)


def accuracy_of_logits(n_classes: int) -> Any:
    """Share of right predictions; Keras's own "accuracy" would take one logit for a probability."""
    metrics = runtime.keras().metrics
    if n_classes == 2:
        return metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    return metrics.SparseCategoricalAccuracy(name="accuracy")
