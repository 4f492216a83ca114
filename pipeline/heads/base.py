"""What a head is, and what its options are."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.table import Part

if TYPE_CHECKING:
    import keras

__all__ = ["FORMS", "FitReport", "Head", "HeadConfig", "probabilities_of", "standard_scale"]

LEAST_DEVIATION = 1e-6
FORMS = "logreg, linear, mlp512-128 (any hidden widths, joined by -)"


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Which head, and how it is trained.

    Attributes:
        head: "logreg", "linear", or "mlp" and the widths of its hidden layers, joined by "-".
        epochs: Most passes over the training images; Keras heads only, as are all options below.
        batch_size: Images in a step; None for one that gives about 20 steps an epoch, from 16 to 256.
        learning_rate: Of Adam, at the start.
        dropout: Share of the units of each hidden layer that is dropped.
        patience: Epochs without a lower validation loss until the end; half as many until the rate is reduced.
        seed: Of initial weights, dropout and order.
    """

    head: str = "logreg"
    epochs: int = 60
    batch_size: int | None = None
    learning_rate: float = 1e-3
    dropout: float = 0.5
    patience: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.widths
        for option, value, holds, legal in (
            ("--epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("--batch-size", self.batch_size, self.batch_size is None or self.batch_size >= 1, "1 or more"),
            ("--learning-rate", self.learning_rate, 0 < self.learning_rate < 10, "a number above 0 and below 10"),
            ("--dropout", self.dropout, 0 <= self.dropout < 1, "a share from 0 up to, but not including, 1"),
            ("--patience", self.patience, self.patience >= 1, "1 or more"),
        ):
            if not holds:
                raise ConfigError(f"{option} is {value}; give {legal}")

    @property
    def widths(self) -> tuple[int, ...] | None:
        """Units of each hidden layer; none for `linear`; None for `logreg`.

        Raises:
            ConfigError: If the head's name is not legal.
        """
        if self.head == "logreg":
            return None
        if self.head == "linear":
            return ()
        if match := re.fullmatch(r"mlp([1-9]\d{0,4}(?:-[1-9]\d{0,4})*)", self.head):
            return tuple(int(width) for width in match[1].split("-"))
        raise ConfigError(f"Unknown head {self.head!r}. Legal are {FORMS}")

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(slots=True)
class FitReport:
    """What fitting a head gave beside the head.

    Attributes:
        history: A row for each epoch, or for each setting that was tried.
        val_probabilities: Of the validation images, from a head that has not seen them; None without any.
        notes: What a user should know.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    val_probabilities: NDArray[np.floating] | None = None
    notes: list[str] = field(default_factory=list)


class Head(Protocol):
    """A classifier of features.

    Attributes:
        trainable_parameters: Numbers that were fitted.
    """

    trainable_parameters: int

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """Fit on `train`, choosing with `val`, which may be empty."""

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Probabilities [n, classes] of features [n, d]."""

    def layers(self) -> list[keras.Layer]:
        """The same classifier as built Keras layers, from features [n, d] to logits, which fine-tuning starts from.

        It is the one that was fitted on the training images alone, so that the validation images stay unseen.
        """

    def save(self, folder: Path) -> None:
        """Write the head's files into a run folder, without pickle."""


def standard_scale(deviations: NDArray[np.floating]) -> NDArray[np.float64]:
    """What features are divided by: their standard deviations, but 1 for those that hardly ever change.

    Otherwise a feature that is still while training would explode when it moves.
    """
    return np.where(deviations < LEAST_DEVIATION, 1.0, deviations).astype(np.float64)


def probabilities_of(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities [n, classes] of logits [n, classes], or of the one logit [n, 1] of the second of two classes."""
    from scipy.special import softmax

    wide = logits.astype(np.float64)
    if wide.shape[1] == 1:
        wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
    probabilities: NDArray[np.float64] = softmax(wide, axis=1)
    return probabilities
