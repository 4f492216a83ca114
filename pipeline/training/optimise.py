"""What heads that are trained by gradient steps share: the pass over the images, the optimizer, and when to stop.

A pass runs inside one graph, gathering its batches from a tensor of all features: on two cores that took 0.7 of the
time of `keras.Model.fit` at the same batch size, and it lets many heads share every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.store.rows import Part
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

MOMENTUM = 0.9
REDUCTION = 0.3  # of the learning rate on a plateau
LEAST_IMPROVEMENT = 1e-4


class Settings(Protocol):
    """Settings of a training by gradient steps."""

    @property
    def epochs(self) -> int | None: ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def learning_rate(self) -> float | None: ...

    @property
    def optimizer(self) -> str | None: ...

    @property
    def l2(self) -> float | None: ...

    @property
    def schedule(self) -> str | None: ...

    @property
    def patience(self) -> int | None: ...


def batch_size_for(config: Settings, n_train: int) -> int:
    """As given, else a power of two from 16 to 256 that makes about 20 steps an epoch."""
    return config.batch_size or int(2 ** np.clip(np.round(np.log2(max(1, n_train / 20))), 4, 8))


def schedule_for(config: Settings, rate: float, n_train: int) -> Any:
    """Learning rate of each step: falling to 0 as a cosine over all epochs, or constant."""
    if config.schedule != "cosine":
        return rate
    n_steps = (config.epochs or 1) * max(1, round(n_train / batch_size_for(config, n_train)))
    return runtime.keras().optimizers.schedules.CosineDecay(rate, n_steps)


def optimizer_for(config: Settings, n_train: int) -> keras.optimizers.Optimizer:
    """Keras's optimizer; with "adamw", kernels alone decay."""
    optimizers = runtime.keras().optimizers
    rate = schedule_for(config, config.learning_rate or 0, n_train)
    if config.optimizer == "sgd":
        return optimizers.SGD(rate, momentum=MOMENTUM)
    if config.optimizer == "adam":
        return optimizers.Adam(rate)
    optimizer = optimizers.AdamW(rate, weight_decay=config.l2 or 0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def optimizer_with_rates(
    name: str,
    schedule: Any,
    rates: Sequence[Any],
    decays: Sequence[Any],
    *,
    factor: Any = 1.0,
    **options: Any,
) -> keras.optimizers.Optimizer:
    """Keras's optimizer, but each variable has a learning rate and a decoupled weight decay of its own.

    Args:
        name: "sgd", else Adam; with decays that is AdamW.
        schedule: Learning rate of each step.
        rates: Factors of it, one for each variable; a number, or an array over its last axis.
        decays: Weight decay of each variable, multiplied by its rate; None for none.
        factor: A variable by which all rates are multiplied.
        options: Of Keras's optimizer.
    """
    optimizers = runtime.keras().optimizers
    base, own = (optimizers.SGD, {"momentum": MOMENTUM}) if name == "sgd" else (optimizers.Adam, {})

    class WithRates(base):  # type: ignore[misc, valid-type]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            number = self._get_variable_index(variable)
            rate = learning_rate * rates[number] * factor
            if decays[number] is not None:
                self.assign_sub(variable, variable * decays[number] * rate)
            super().update_step(gradient, variable, rate)

    return WithRates(schedule, **own, **options)


class Passes:
    """Passes over a part in shuffled batches.

    Args:
        step: What is done with a batch: features [b, d] float32, labels [b], views [b]; gives the loss.
        part: The training images; features on disk are read in blocks that hold a random choice of shards.
        batch_size: Images in a step; all images are used, in steps that differ by one image at most.
        seed: Of the order.
    """

    def __init__(self, step: Callable[[Any, Any, Any], Any], part: Part, batch_size: int, seed: int) -> None:
        tf = runtime.tensorflow()
        self.part = part
        self.batch_size = batch_size
        self.generator = np.random.default_rng(seed)
        self._held = self._tensors(np.arange(len(part))) if part.in_memory else None

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def run(features: Any, labels: Any, views: Any, order: Any, n_steps: Any) -> Any:
            total, n = 0.0, tf.size(order, tf.int64)
            for number in tf.range(n_steps):
                rows = order[number * n // n_steps : (number + 1) * n // n_steps]
                total += step(tf.gather(features, rows), tf.gather(labels, rows), tf.gather(views, rows))
            return total

        self._run = run

    def _tensors(self, rows: NDArray[np.int64]) -> tuple[Any, Any, Any]:
        tf, part = runtime.tensorflow(), self.part
        return tf.constant(part.load(rows), tf.float32), tf.constant(part.labels[rows]), tf.constant(part.views[rows])

    def epoch(self) -> float:
        """One pass; the mean loss of its steps."""
        passed = [self._block(rows) for rows in self.part.blocks(self.generator)]
        return sum(total for total, _ in passed) / sum(n_steps for _, n_steps in passed)

    def _block(self, rows: NDArray[np.int64]) -> tuple[float, int]:
        """Sum of losses and number of steps of some rows, whose tensors are gone before the next are read."""
        tf = runtime.tensorflow()
        n_steps = max(1, round(len(rows) / self.batch_size))
        order = tf.constant(self.generator.permutation(len(rows)))
        total = self._run(*(self._held or self._tensors(rows)), order, tf.constant(n_steps, tf.int64))
        return float(total), n_steps


class Watch:
    """Which heads got better, which have stopped getting better, and how far "plateau" has reduced their rates.

    The best epoch of a head is that of its best accuracy on the validation images, of equals that of the lowest loss;
    patience looks at the loss, which moves where the accuracy of a few images stands still.

    Attributes:
        best_epoch: Of each head, from 1; 0 if its loss was never a finite number. Shape [heads].
        reductions: Factor of each head's learning rate, shape [heads].
    """

    def __init__(self, config: Any, n_heads: int, *, stops: bool | None = None) -> None:
        self.patience = config.patience or 1
        self.plateau = config.schedule == "plateau"
        # Under a cosine the last epochs, with small steps, are the best: epochs of seconds are run to its end.
        self.stops = config.schedule != "cosine" if stops is None else stops
        self.best_epoch = np.zeros(n_heads, np.int64)
        self.reductions = np.ones(n_heads)
        self._accuracy = np.full(n_heads, -np.inf)
        self._loss_then = np.full(n_heads, np.inf)
        self._lowest = np.full(n_heads, np.inf)
        self._waited = np.zeros(n_heads, np.int64)
        self._since_reduction = np.zeros(n_heads, np.int64)
        self._epoch = 0

    def update(self, losses: NDArray[np.floating], accuracies: NDArray[np.floating] | None) -> NDArray[np.bool_]:
        """Take in losses [heads], and accuracies on the validation images if there are any, after an epoch.

        Returns:
            Which heads to keep as they are now, shape [heads]; without validation images all that are sound.
        """
        self._epoch += 1
        finite = np.isfinite(losses)
        lower = finite & (losses < self._lowest - LEAST_IMPROVEMENT)
        self._lowest = np.where(lower, losses, self._lowest)
        self._waited = np.where(lower, 0, self._waited + 1)
        self._since_reduction = np.where(lower, 0, self._since_reduction + 1)
        if self.plateau:
            due = self._since_reduction >= max(1, self.patience // 2)
            self.reductions = np.where(due, REDUCTION * self.reductions, self.reductions)
            self._since_reduction = np.where(due, 0, self._since_reduction)
        better: NDArray[np.bool_] = finite
        if accuracies is not None:
            equal = (accuracies == self._accuracy) & (losses < self._loss_then)
            better = finite & ((accuracies > self._accuracy) | equal)
            self._accuracy = np.where(better, accuracies, self._accuracy)
            self._loss_then = np.where(better, losses, self._loss_then)
        self.best_epoch = np.where(better, self._epoch, self.best_epoch)
        return better

    @property
    def finished(self) -> bool:
        """Whether every head's patience has ended."""
        return self.stops and bool((self._waited >= self.patience).all())


def diverged(config: Settings) -> RunError:
    """The error of a loss that was never a number."""
    return RunError(
        f"The loss was never a finite number with --learning-rate {config.learning_rate:g} and --l2 {config.l2:g}; "
        "lower them"
    )
