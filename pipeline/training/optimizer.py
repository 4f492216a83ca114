"""Learning rates, optimizers and losses of heads and fine-tuning; of two classes there is one logit, the second's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import RunError
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

MOMENTUM = 0.9


def default_batch_size(n_train: int) -> int:
    """A power of two from 16 to 256 that makes about 20 steps an epoch."""
    return int(2 ** np.clip(np.round(np.log2(max(1, n_train / 20))), 4, 8))


def learning_rates(kind: str | None, rate: float, n_steps: int, warm_up: int = 0) -> Any:
    """Keras's schedule of the learning rate.

    Args:
        kind: "cosine" falls to 0 over all steps; with "plateau" and "none" the schedule itself stays constant.
        rate: The highest rate.
        n_steps: Steps of all epochs.
        warm_up: Of these, the steps in which the rate rises from 0.
    """
    # A cosine that falls to where it starts is constant, and brings the same warm-up.
    return runtime.keras().optimizers.schedules.CosineDecay(
        0.0 if warm_up else rate,
        n_steps - warm_up,
        alpha=0.0 if kind == "cosine" else 1.0,
        warmup_target=rate if warm_up else None,
        warmup_steps=warm_up,
    )


def optimizer_with_rates(
    name: str | None,
    schedule: Any,
    rates: Sequence[Any],
    decays: Sequence[Any],
    **options: Any,
) -> keras.optimizers.Optimizer:
    """Keras's optimizer, in which each variable has a learning rate and a decoupled weight decay of its own.

    Args:
        name: "sgd", else Adam; with decays that is AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
        schedule: Learning rate of each step.
        rates: Factors of it, one for each variable; a number, or an array over the variable's last axis.
        decays: Weight decay of each variable, multiplied by its rate; None for none.
        options: Of Keras's optimizer.

    Returns:
        The optimizer; all rates are multiplied by its variable `factor`, which is 1.
    """
    optimizers = runtime.keras().optimizers
    base, own = (optimizers.SGD, {"momentum": MOMENTUM}) if name == "sgd" else (optimizers.Adam, {})

    class WithRates(base):  # type: ignore[misc, valid-type]
        def build(self, variables: Any) -> None:
            super().build(variables)
            # A variable of the optimizer's own: JAX would take any other for a constant.
            self.factor = self.add_variable((), initializer="ones", name="plateau")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            number = self._get_variable_index(variable)
            rate = learning_rate * rates[number] * self.factor
            if decays[number] is not None:
                self.assign_sub(variable, variable * decays[number] * rate)
            super().update_step(gradient, variable, rate)

    return WithRates(schedule, **own, **options)


def diverged(learning_rate: float | None, l2: float | None) -> RunError:
    """The error of a loss that was never a finite number."""
    return RunError(
        f"The loss was never a finite number with --learning-rate {learning_rate:g} and --l2 {l2:g}; lower them"
    )


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
