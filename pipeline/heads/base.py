"""What a head is, and what its options are."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import one_of
from pipeline.errors import ConfigError, RunError
from pipeline.store.rows import Part
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "none")
L2_OF = {"adamw": 1.0, "adam": 1e-4, "sgd": 1e-4}  # a decoupled decay of 1 is weak, a penalty of 1 is not
PROBABILITIES = "probabilities"  # name of the last layer of a model that serves
COSINE_TEMPERATURE = 0.07  # by which cosines are divided: Wu et al. 2018, arXiv:1805.01978, section 3.4
CLASS_WEIGHTS = ("balanced", "none")


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Which head, and how it is fitted. None stands for what the kind of head has as its default, or doesn't have.

    Attributes:
        head: The head's name: "logreg", "mlp512-128", ...
        epochs: Most passes over the training images.
        batch_size: Images in a step.
        learning_rate: At its highest.
        dropout: Share of the units of each hidden layer that is dropped.
        patience: Epochs without a lower validation loss until the end; half as many until "plateau" cuts the rate.
        l2: Weight of half the squared weights beside the mean loss of an image; with "adamw" the decoupled decay.
        label_smoothing: Share of each label that is spread over all classes.
        optimizer: "adam", "adamw" or "sgd" (momentum 0.9).
        schedule: Of the learning rate: "plateau", "cosine" or "none".
        class_weight: "balanced": each class weighs the same, however many images it has; or "none".
        standardize: Whether features are brought to mean 0 and standard deviation 1 over the training images.
        l2_normalize: Whether the features of each image are then brought to the same length.
        views: Number of cached views of the training images that are used beside the images themselves.
        seed: Of initial weights, dropout and order.
    """

    head: str = "logreg"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    dropout: float | None = None
    patience: int | None = None
    l2: float | None = None
    label_smoothing: float | None = None
    optimizer: str | None = None
    schedule: str | None = None
    class_weight: str | None = None
    standardize: bool | None = None
    l2_normalize: bool | None = None
    views: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        positive = sys.float_info.min
        for option, value, least, below, legal in (
            ("--epochs", self.epochs, 1, np.inf, "1 or more"),
            ("--batch-size", self.batch_size, 1, np.inf, "1 or more"),
            ("--patience", self.patience, 1, np.inf, "1 or more"),
            ("--views", self.views, 0, np.inf, "0 or more"),
            ("--learning-rate", self.learning_rate, positive, 10, "a number above 0 and below 10"),
            ("--l2", self.l2, 0, np.inf, "a number from 0 on"),
            ("--dropout", self.dropout, 0, 1, "a share from 0 up to, but not including, 1"),
            ("--label-smoothing", self.label_smoothing, 0, 1, "a share from 0 up to, but not including, 1"),
        ):
            if value is not None and not least <= value < below:
                raise ConfigError(f"{option} is {value}; give {legal}")
        for option, name, legal_names in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--class-weight", self.class_weight, CLASS_WEIGHTS),
        ):
            if name is not None:
                one_of(option, name, legal_names)

    def given(self) -> dict[str, Any]:
        """The options that are set, head and seed left out."""
        return {
            name: value for name, value in asdict(self).items() if value is not None and name not in ("head", "seed")
        }

    def resolved(self, defaults: dict[str, Any]) -> HeadConfig:
        """With the defaults of its kind.

        Args:
            defaults: Of all options the kind has; None where the value is found while fitting.

        Raises:
            ConfigError: For an option that the kind doesn't have.
        """
        foreign = [option_name(name) for name in self.given() if name not in defaults]
        if foreign:
            known = ", ".join(option_name(field.name) for field in fields(self) if field.name in defaults)
            raise ConfigError(f"{' and '.join(foreign)} means nothing to {self.head}; its options are {known}")
        full = replace(self, **{**defaults, **self.given()})
        if full.l2 is None and full.optimizer is not None:
            return replace(full, l2=L2_OF[full.optimizer])
        return full

    def command(self, default: HeadConfig) -> str:
        """The part of a command line that gives these settings, where the head alone would give `default`."""
        words, usual = [f"--head {self.head}"], default.given()
        for name, value in self.given().items():
            if value == usual.get(name):
                continue
            option = option_name(name)
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
            else:
                words.append(f"{option} {value}")
        return " ".join(words + ([f"--seed {self.seed}"] if self.seed else []))

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)


def option_name(field_name: str) -> str:
    """Of a field, on the command line."""
    return "--" + field_name.replace("_", "-")


@dataclass(slots=True)
class FitReport:
    """What fitting a head gave beside the head.

    Attributes:
        history: A row for each epoch, or for each setting that was tried.
        notes: What a user should know.
        chosen: Options that were found while fitting.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)


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

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """Fit on `train`, choosing with `val`, which may be empty."""

    def refit(self, both: Part) -> None:
        """Fit again, on the training and the validation images, with the settings that `fit` chose."""

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Probabilities [n, classes] of features [n, d]."""

    def layers(self, *, final: bool = False) -> list[keras.Layer]:
        """The same classifier as built Keras layers, from features [n, d] to logits; the last one is dense.

        Args:
            final: Whether it is the one that predicts; else that which was fitted on the training images alone, so that
                for fine-tuning the validation images stay unseen.

        Raises:
            ConfigError: If this kind of head has none.
        """

    def save(self, folder: Path) -> None:
        """Write the head's files into a run folder, without pickle."""

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> Head:
        """Read what `save` wrote.

        Raises:
            RunError: If a file is missing or damaged.
        """


def predict(head: Head, part: Part) -> NDArray[np.floating]:
    """Probabilities [n, classes] of a part, whose features may lie on disk."""
    found: NDArray[np.floating] | None = None
    for rows in part.blocks():
        probabilities = head.predict_proba(part.load(rows))
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
        raise ValueError("it holds something else than finite numbers of the right shape")
    return array


def not_fitted() -> RunError:
    """The error of a head that is used too early."""
    return RunError("The head is not fitted yet; call fit first")


def damaged(path: Path, error: Exception) -> RunError:
    """The error of a head's file that can't be read."""
    return RunError(f"{path} can't be read: {error}; train the head again")
