"""What a head is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.errors import RunError
from pipeline.store.rows import Part
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

PROBABILITIES = "probabilities"  # name of the last layer of a model that serves
COSINE_TEMPERATURE = 0.07  # by which cosines are divided: Wu et al. 2018, arXiv:1805.01978, section 3.4


@dataclass(slots=True)
class FitReport:
    """What fitting a head gave beside the head.

    Attributes:
        history: A row for each epoch, or for each setting that was tried.
        notes: What a user should know.
        chosen: Options that were found while fitting.
        chose_by_val: Whether the validation images decided anything: an epoch, a penalty, a sharpness.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    chose_by_val: bool = False


class Head(Protocol):
    """A classifier of features.

    Attributes:
        refits: Whether `refit` does anything.
    """

    refits: bool

    def __init__(self, config: HeadConfig) -> None:
        """Not fitted yet; all options of the kind are set."""

    @property
    def trainable_parameters(self) -> int:
        """Numbers that were fitted."""

    @property
    def n_features(self) -> int:
        """Features per image."""

    @property
    def keeps_train_alone(self) -> bool:
        """Whether `predict_proba` can ask the classifier that has not seen the validation images."""

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """Fit on `train`, choosing with `val`, which may be empty."""

    def refit(self, both: Part) -> None:
        """Fit again, on the training and the validation images, with the settings that `fit` chose."""

    def predict_proba(self, features: NDArray[np.floating], *, final: bool = True) -> NDArray[np.floating]:
        """Probabilities [n, classes] of features [n, d].

        Args:
            features: Shape [n, d].
            final: Whether to ask the classifier that is meant for use; else that which has not seen the validation
                images, if these are two.
        """

    def layers(self, *, final: bool = False) -> list[keras.Layer]:
        """The same classifier as built Keras layers, from features [n, d] to logits; the last one is dense.

        Args:
            final: Whether it is the one that predicts; else that which was fitted on the training images alone, so that
                for fine-tuning the validation images stay unseen.

        Raises:
            ConfigError: If this kind of head has none.
        """

    def gradients(self, features: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.floating]:
        """How the logit of a class, less the mean of the logits of all, changes with each feature, shape [n, d].

        Logits alone mean nothing, as the same may be added to all of them.

        Args:
            features: Shape [n, d].
            labels: The class that is asked about, for each image, shape [n].

        Raises:
            ConfigError: If this kind of head has no gradient.
        """

    def save(self, folder: Path) -> None:
        """Write the head's files into a run folder, without pickle."""

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> Head:
        """Read what `save` wrote.

        Raises:
            RunError: If a file is missing or damaged.
        """


def predict(head: Head, part: Part, *, final: bool = True) -> NDArray[np.floating]:
    """Probabilities [n, classes] of a part, whose features may lie on disk; `final` as in `Head.predict_proba`."""
    found: NDArray[np.floating] | None = None
    for rows in part.blocks():
        probabilities = head.predict_proba(part.load(rows), final=final)
        if found is None:
            found = np.empty((len(part), probabilities.shape[1]), probabilities.dtype)
        found[rows] = probabilities
    if found is None:
        raise RunError("There are no images to predict")
    return found


def class_weights(labels: NDArray[np.int64], n_classes: int, class_weight: str | None) -> NDArray[np.float64]:
    """What an image of each class weighs, shape [classes].

    With "balanced" all classes weigh the same together; the mean weight over the images is 1, so that learning rates
    and penalties keep their meaning.
    """
    if class_weight != "balanced":
        return np.ones(n_classes)
    counts = np.bincount(labels, minlength=n_classes)
    present = np.count_nonzero(counts)
    weights: NDArray[np.float64] = len(labels) / (present * np.maximum(counts, 1))
    return weights


def n_logits(n_classes: int) -> int:
    """Two classes need one logit, that of the second."""
    return 1 if n_classes == 2 else n_classes


def probability_layer(logits: keras.Layer, n_classes: int, below: Any, temperature: float = 1.0) -> Any:
    """Probabilities [n, classes] in place of logits, as a tensor of a graph.

    With two classes the one logit becomes a pair, of which the first is always 0: the same probabilities.

    Args:
        logits: The dense layer that gives the logits.
        n_classes: Number of classes.
        below: The tensor that it reads.
        temperature: By which the logits are divided.
    """
    kernel, bias = (np.asarray(weight) / temperature for weight in logits.get_weights())
    if kernel.shape[1] < n_classes:
        kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
        bias = np.concatenate([np.zeros_like(bias), bias])
    dense = runtime.keras().layers.Dense(n_classes, activation="softmax", name=PROBABILITIES, dtype="float32")
    outputs = dense(below)
    dense.set_weights([kernel, bias])
    return outputs


def probabilities_of(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities [n, classes] of logits [n, classes], or of the one logit [n, 1] of the second of two classes."""
    from scipy.special import softmax

    wide = logits.astype(np.float64)
    if wide.shape[1] == 1:
        wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
    probabilities: NDArray[np.float64] = softmax(wide, axis=1)
    return probabilities


def check_array(array: NDArray[Any], ndim: int) -> NDArray[np.floating]:
    """Return an array from a file if it holds finite floating-point numbers on so many axes.

    Raises:
        ValueError: If not.
    """
    if array.ndim != ndim or not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise ValueError("it holds values that are not finite numbers, or of another shape")
    return array


def not_fitted() -> RunError:
    """The error of a head that is used too early."""
    return RunError("The head is not fitted yet; call fit first")


def damaged(path: Path, error: Exception) -> RunError:
    """The error of a head's file that can't be read."""
    return RunError(f"{path} can't be read: {error}; train the head again")
