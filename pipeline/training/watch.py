"""When to stop, and which epoch to keep."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REDUCTION = 0.3  # of the learning rate on a plateau
LEAST_IMPROVEMENT = 1e-4


class Watch:
    """Which heads got better, which have stopped getting better, and how far "plateau" has reduced their rates.

    The best epoch of a head is that of its best accuracy on the validation images, of equals that of the lowest loss;
    patience looks at the loss, which moves where the accuracy of a few images stands still.

    Attributes:
        best_epoch: Of each head, from 1; 0 if its loss was never a finite number. Shape [heads].
        reductions: Factor of each head's learning rate, shape [heads].
    """

    def __init__(self, n_heads: int, patience: int | None, schedule: str | None, *, stops: bool | None = None) -> None:
        """Begin to watch.

        Args:
            n_heads: Heads that are trained side by side.
            patience: Epochs without a lower loss until a head has stopped getting better.
            schedule: Of the learning rate; "plateau" reduces it after half the patience.
            stops: Whether patience ends a training; by default unless the schedule is a cosine, whose last epochs,
                with small steps, are the best.
        """
        self.patience = patience or 1
        self.plateau = schedule == "plateau"
        self.stops = schedule != "cosine" if stops is None else stops
        self.best_epoch = np.zeros(n_heads, np.int64)
        self.reductions = np.ones(n_heads)
        self._accuracy = np.full(n_heads, -np.inf)
        self._loss_then = np.full(n_heads, np.inf)
        self._lowest = np.full(n_heads, np.inf)
        self._waited = np.zeros(n_heads, np.int64)
        self._since_reduction = np.zeros(n_heads, np.int64)
        self._stopped = np.zeros(n_heads, np.bool_)
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
        live = finite & ~self._stopped  # trained by itself, a head that has stopped would see no further epoch
        better: NDArray[np.bool_] = live
        if accuracies is not None:
            equal = (accuracies == self._accuracy) & (losses < self._loss_then)
            better = live & ((accuracies > self._accuracy) | equal)
            self._accuracy = np.where(better, accuracies, self._accuracy)
            self._loss_then = np.where(better, losses, self._loss_then)
        if self.stops:
            self._stopped |= self._waited >= self.patience
        self.best_epoch = np.where(better, self._epoch, self.best_epoch)
        return better

    @property
    def finished(self) -> bool:
        """Whether every head's patience has ended."""
        return bool(self._stopped.all())
