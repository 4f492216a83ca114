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
HEADS_HELP = (
    "logreg, ridge, centroid, knn20 (any number of neighbours), linear, mlp512-128 (any hidden widths), or bn-mlp50 "
    "(the same over BatchNormalization); knn, mlp and bn-mlp mean these."
)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Which head, and how it is fitted. None stands for what the kind of head has as its default, or doesn't have."""

    head: str = HEAD  # its name: "logreg", "mlp512-128", ...
    epochs: int | None = option(None, "Passes over the images.", bounds=COUNT)
    batch_size: int | None = option(
        None, "Images in a step, about; 16 to 256 by the number of images.", bounds=Bounds(1, 10**9, "1 or more")
    )
    learning_rate: float | None = option(
        None, "At its highest.", bounds=Bounds(POSITIVE, 10, "a number above 0 and up to 10")
    )
    optimizer: str | None = option(None, "What makes the steps.", legal=OPTIMIZERS)
    schedule: str | None = option(None, "Of the learning rate.", legal=SCHEDULES)
    # Half as many until a plateau of the validation loss cuts the rate.
    patience: int | None = option(
        None, "Epochs without a lower loss until the end; a cosine is run out all the same.", bounds=COUNT
    )
    dropout: float | None = option(None, "After each hidden layer.", bounds=SHARE)
    label_smoothing: float | None = option(None, "Share of a label that is spread over all classes.", bounds=SHARE)
    l2: float | None = option(
        None,
        "Weight of half the squared weights beside the mean loss; with adamw the weight decay. Of linear and mlp 1 "
        "with adamw, else 0.0001; logreg and ridge choose it on val (without val it is 0.03 and 0.5).",
        bounds=Bounds(0, 1e30, "a number from 0 on"),
    )
    class_weight: str | None = option(None, "How classes are weighed against each other.", legal=CLASS_WEIGHTS)
    standardize: bool | None = option(None, "Bring features to mean 0 and deviation 1.")
    l2_normalize: bool | None = option(
        None, "Then bring the features of each image to the same length; knn and centroid always do."
    )
    views: int | None = option(None, "Cached views to train on beside the images; all.", bounds=COUNT_OR_NONE)
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
        words = words_of({**self.given(), "seed": self.seed}, {**default.given(), "seed": 0})
        return " ".join([f"--head {self.head}", *words])


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Which features a head is trained on, and how it is rated."""

    features: str | None = option(
        None,
        "Features id, or its start; several, joined by commas, are put side by side. [default: the newest pooled]",
        argument=True,
    )
    test_views: int | None = option(
        None,
        "Cached views over which the probabilities of an image are averaged (0; a sweep tries all).",
        bounds=COUNT_OR_NONE,
    )
    memory: int | None = option(
        None,
        "Features that may be held, such as 1GB; what is more stays on disk (half of the machine's memory).",
        parse=parse_memory,
    )
    calibrate: bool = option(False, "Scale the logits by a temperature fitted on val.")
    cv: int | None = option(
        None,
        "Folds of a cross-validation over the training images, and over val if it was carved.",
        bounds=Bounds(2, 1000, "2 folds or more"),
    )
    seeds: int = option(1, "Number of seeds: mean and deviation over them.", bounds=COUNT)
    name: str | None = option(None, "A name for the run, which finds it again.")
    on: str | None = option(
        None, "Where folds, seeds and settings of mlp are fitted: ray, or a cluster ray://host:10001. [default: here]"
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def averaged(self) -> int:
        """Views over which probabilities are averaged; none unless that was asked for."""
        return self.test_views or 0
