"""Which head is trained, how, on which features, and how it is rated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.errors import ConfigError
from pipeline.util.options import (
    COUNT,
    COUNT_OR_NONE,
    POSITIVE,
    SEED,
    SEED_HELP,
    SHARE,
    Bounds,
    check,
    option,
    option_name,
    options_of,
    parse_memory,
    words_of,
)

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "plateau", "none")
CLASS_WEIGHTS = ("balanced", "none")
L2_OF = {"adamw": 1.0, "adam": 1e-4, "sgd": 1e-4}  # a decoupled decay of 1 is weak, a penalty of 1 is not

_PREPARED = {"standardize": True, "l2_normalize": False, "views": None}
_CLOSED = {"l2": None, "class_weight": "none", **_PREPARED}
_COSINE = {"standardize": True, "views": None}
_STEPS = {
    "learning_rate": 1e-3,
    "l2": None,
    "optimizer": "adamw",
    "schedule": "cosine",
    "batch_size": None,
    "patience": 8,
    "label_smoothing": 0.0,
    "class_weight": "none",
    **_PREPARED,
}
_MLP = {"epochs": 20, "dropout": 0.5, **_STEPS}

HEAD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "logreg": _CLOSED,
    "ridge": _CLOSED,
    "centroid": _COSINE,
    "knn": _COSINE,
    "linear": {"epochs": 30, **_STEPS},
    "mlp": _MLP,
    "bn-mlp": {**_MLP, "standardize": False},
}
"""The options that each kind of head has, and their defaults; None where the value is found while fitting."""

HEAD_FORMS = {
    "logreg": "logreg",
    "ridge": "ridge",
    "centroid": "centroid",
    "knn": "knn20",
    "linear": "linear",
    "mlp": "mlp512-128",
    "bn-mlp": "bn-mlp50",
}
"""What the name of a kind stands for: of some it holds a figure."""

HEAD = "logreg"
SWEPT_HEADS, GRID = "logreg,ridge,centroid,knn,linear,mlp", "small"  # what a sweep tries
CURVE_HEAD, DRAWS = "ridge", 5  # of a learning curve, and random choices at each number of images
NOT_OF_A_CURVE = ("calibrate", "cv", "seeds", "on")  # options that a learning curve has no use for
TOP = 3  # classes that predict names of each image
NEAREST = 12  # pictures that search names
HEADS_HELP = (
    "Kind of head: logreg, ridge, centroid, knn20 (any number of neighbours), linear, mlp512-128 (any hidden widths) "
    "or bn-mlp50 (the same after BatchNormalization); knn, mlp and bn-mlp stand for the forms named here."
)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Which head, and how it is fitted. None stands for the default of the kind of head, or for no such option."""

    head: str = HEAD  # its name: "logreg", "mlp512-128", ...
    epochs: int | None = option(None, "Maximum number of passes over the training images.", bounds=COUNT)
    batch_size: int | None = option(
        None,
        "Approximate number of images per training step. [default: 16 to 256, depending on the number of images]",
        bounds=Bounds(1, 10**9, "1 or more"),
    )
    learning_rate: float | None = option(
        None,
        "Learning rate at the start, from which the schedule may lower it.",
        bounds=Bounds(POSITIVE, 10, "a number above 0 and up to 10"),
    )
    optimizer: str | None = option(None, "Optimizer that trains the head.", legal=OPTIMIZERS)
    schedule: str | None = option(None, "How the learning rate changes during training.", legal=SCHEDULES)
    # Half as many until a plateau of the validation loss cuts the rate.
    patience: int | None = option(
        None,
        "Epochs without a lower loss after which training stops; with the cosine schedule it never stops early.",
        bounds=COUNT,
    )
    dropout: float | None = option(None, "Dropout rate after each hidden layer.", bounds=SHARE)
    label_smoothing: float | None = option(
        None, "Share of each label that is spread evenly over all classes.", bounds=SHARE
    )
    l2: float | None = option(
        None,
        "L2 penalty: half the sum of squared weights, times this, is added to the mean loss; with adamw, the weight "
        "decay. By default 1 with adamw and 0.0001 with adam or sgd; logreg and ridge choose it on val (without val: "
        "0.03 and 0.5).",
        bounds=Bounds(0, 1e30, "a number from 0 on"),
    )
    class_weight: str | None = option(
        None,
        "What counts the same in the loss: every class (balanced), or every image (none).",
        legal=CLASS_WEIGHTS,
    )
    standardize: bool | None = option(None, "Scale each feature to mean 0 and standard deviation 1.")
    l2_normalize: bool | None = option(
        None,
        "Scale the features of each image to the same length, after any standardisation; knn and centroid always do.",
    )
    views: int | None = option(
        None,
        "Number of cached augmented views to train on, beside the images themselves. [default: all]",
        bounds=COUNT_OR_NONE,
    )
    seed: int = option(0, SEED_HELP, bounds=SEED)

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "head", HEAD_FORMS.get(self.head, self.head))

    def given(self) -> dict[str, Any]:
        """The options that are set, head and seed left out."""
        found = {name: getattr(self, name) for name in options_of(HeadConfig) if name != "seed"}
        return {name: value for name, value in found.items() if value is not None}

    def resolved(self, defaults: Mapping[str, Any]) -> HeadConfig:
        """The options with the defaults of their kind of head filled in.

        Args:
            defaults: Defaults of all options that the kind has; None where the value is found while fitting.

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
        words = words_of({**self.given(), "seed": self.seed}, {**default.given(), "seed": 0})
        return " ".join([f"--head {self.head}", *words])


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Which features a head is trained on, and how it is rated."""

    features: str | None = option(
        None,
        "Id of the features, or its first characters; features of several ids, joined by commas, are concatenated. "
        "[default: the newest pooled features]",
        argument=True,
    )
    test_views: int | None = option(
        None,
        "Number of cached views whose probabilities are averaged with those of the image itself. "
        "[default: 0; a sweep tries all]",
        bounds=COUNT_OR_NONE,
    )
    memory: int | None = option(
        None,
        "Features to hold in memory at most, such as 1GB; the rest stays on disk. "
        "[default: half of the machine's memory]",
        parse=parse_memory,
    )
    calibrate: bool = option(False, "Calibrate the probabilities, by a temperature that is fitted on val.")
    cv: int | None = option(
        None,
        "Number of folds for cross-validation over the training images, and over val if tlpipe set it aside.",
        bounds=Bounds(2, 1000, "2 folds or more"),
    )
    seeds: int = option(
        1, "Number of seeds to train with; mean and standard deviation over them are reported.", bounds=COUNT
    )
    name: str | None = option(None, "Name for the run, by which it can be found again.")
    on: str | None = option(
        None,
        "Ray cluster that fits folds, seeds and the settings of mlp: ray, or an address ray://host:10001. "
        "[default: this machine]",
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def averaged(self) -> int:
        """Views over which probabilities are averaged; none unless that was asked for."""
        return self.test_views or 0
