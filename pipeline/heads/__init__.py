"""Heads: classifiers of cached features. A kind of head is a file here and a row of `KINDS`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, RunError
from pipeline.heads import knn, linear, logreg, ridge
from pipeline.heads.base import (
    PROBABILITIES,
    FitReport,
    Head,
    HeadConfig,
    n_logits,
    option_name,
    predict,
    probabilities_of,
    probability_layer,
)
from pipeline.heads.centroid import CentroidHead
from pipeline.heads.knn import KnnHead
from pipeline.heads.linear import LinearHead
from pipeline.heads.logreg import LogregHead
from pipeline.heads.many import FitMany, Trial, in_processes, one_by_one
from pipeline.heads.mlp import MlpHead, accuracy_of_logits, soft_loss, sparse_loss
from pipeline.heads.ridge import RidgeHead
from pipeline.training.optimise import Watch, optimizer_with_rates

__all__ = [
    "FORMS",
    "KINDS",
    "PROBABILITIES",
    "FitReport",
    "Head",
    "HeadConfig",
    "Kind",
    "Trial",
    "Watch",
    "accuracy_of_logits",
    "kind_of",
    "load_head",
    "make_head",
    "n_logits",
    "optimizer_with_rates",
    "option_name",
    "predict",
    "probabilities_of",
    "probability_layer",
    "soft_loss",
    "sparse_loss",
]

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of head.

    Attributes:
        form: How its names look, by an example.
        pattern: What its names match.
        head: Its class.
        defaults: Of the options it has; None where the value is found while fitting, or depends on other options.
        varies: Options that may differ between the settings of one `fit_many`.
        fit_many: Fits many settings in one go.
        small: Values of each option that a small sweep tries.
        full: And a full one.
    """

    form: str
    pattern: str
    head: type[Head]
    defaults: Mapping[str, Any]
    fit_many: FitMany
    varies: tuple[str, ...] = ()
    small: Grid = field(default_factory=dict)
    full: Grid = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The form without its figures."""
        return self.form.rstrip("0123456789-")


_PREPARED = {"standardize": True, "l2_normalize": False, "views": None}
_COSINE = {"standardize": True, "views": None}
_STEPS = {
    "batch_size": None,
    "patience": 8,
    "label_smoothing": 0.0,
    "class_weight": "none",
    **_PREPARED,
}
_MLP = {
    "epochs": 20,
    "learning_rate": 1e-3,
    "dropout": 0.5,
    "l2": None,
    "optimizer": "adamw",
    "schedule": "cosine",
    **_STEPS,
}
_ALL_BUT_VIEWS = tuple(field.name for field in fields(HeadConfig) if field.name != "views")
_WIDTHS = r"[1-9]\d{0,4}(?:-[1-9]\d{0,4})*"

KINDS = (
    Kind(
        form="logreg",
        pattern="logreg",
        head=LogregHead,
        defaults={"l2": None, "class_weight": "none", **_PREPARED},
        fit_many=logreg.fit_many,
        varies=("l2",),
        small={"head": ["logreg"], "l2": logreg.PENALTIES[::2]},
        full={"head": ["logreg"], "l2": logreg.PENALTIES, "standardize": [True, False]},
    ),
    Kind(
        form="ridge",
        pattern="ridge",
        head=RidgeHead,
        defaults={"l2": None, "class_weight": "none", **_PREPARED},
        fit_many=ridge.fit_many,
        varies=("l2",),
        small={"head": ["ridge"], "l2": ridge.PENALTIES[::4]},
        full={"head": ["ridge"], "l2": ridge.PENALTIES, "standardize": [True, False]},
    ),
    Kind(
        form="centroid",
        pattern="centroid",
        head=CentroidHead,
        defaults=_COSINE,
        fit_many=one_by_one(CentroidHead),
        varies=("standardize",),
        small={"head": ["centroid"]},
        full={"head": ["centroid"], "standardize": [True, False]},
    ),
    Kind(
        form="knn20",
        pattern=r"knn[1-9]\d{0,5}",
        head=KnnHead,
        defaults=_COSINE,
        fit_many=knn.fit_many,
        varies=("head",),
        small={"head": ["knn5", "knn20"]},
        full={"head": [f"knn{k}" for k in (1, 3, 5, 10, 20, 50, 100)], "standardize": [True, False]},
    ),
    Kind(
        form="linear",
        pattern="linear",
        head=LinearHead,
        defaults={
            "epochs": 30,
            "learning_rate": 1e-3,
            "l2": None,
            "optimizer": "adamw",
            "schedule": "cosine",
            **_STEPS,
        },
        fit_many=linear.fit_many,
        varies=("learning_rate", "l2", "standardize", "l2_normalize", "label_smoothing", "class_weight", "views"),
        small={"head": ["linear"], "learning_rate": [3e-4, 1e-3, 3e-3], "l2": [0.1, 1.0]},
        full={
            "head": ["linear"],
            "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
            "l2": [0.01, 0.1, 1.0, 3.0],
            "standardize": [True, False],
        },
    ),
    Kind(
        form="mlp512-128",
        pattern=f"mlp{_WIDTHS}",
        head=MlpHead,
        defaults=_MLP,
        fit_many=in_processes(MlpHead),
        varies=_ALL_BUT_VIEWS,
        small={"head": ["mlp512-128"], "label_smoothing": [0.0, 0.1]},
        full={
            "head": ["mlp256", "mlp512-128", "mlp1024-256"],
            "label_smoothing": [0.0, 0.1],
            "l2": [0.3, 1.0, 3.0],
        },
    ),
    Kind(
        form="bn-mlp50",
        pattern=f"bn-mlp{_WIDTHS}",
        head=MlpHead,
        defaults={**_MLP, "standardize": False},
        fit_many=in_processes(MlpHead),
        varies=_ALL_BUT_VIEWS,
        full={"head": ["bn-mlp50", "bn-mlp256"], "dropout": [0.3, 0.5]},
    ),
)

FORMS = ", ".join(kind.form for kind in KINDS)


def kind_of(head: str) -> Kind:
    """The kind of a head's name.

    Raises:
        ConfigError: If the name is not legal, with the legal forms.
    """
    for kind in KINDS:
        if re.fullmatch(kind.pattern, head):
            return kind
    near = get_close_matches(head.lower(), [kind.name for kind in KINDS], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"Unknown head {head!r}. Legal are {FORMS}, with any numbers in place of these.{hint}")


def make_head(config: HeadConfig) -> tuple[Head, HeadConfig]:
    """A head that is not fitted yet, and its settings with the defaults of its kind.

    Raises:
        ConfigError: If the head's name is not legal, or it doesn't have one of the options.
    """
    kind = kind_of(config.head)
    resolved = config.resolved(dict(kind.defaults))
    return kind.head(resolved), resolved


def load_head(folder: Path, settings: dict[str, Any]) -> Head:
    """The fitted head of a run folder.

    Args:
        folder: The run folder.
        settings: Its `HeadConfig`, as JSON holds it.

    Raises:
        RunError: If its files are missing or damaged.
    """
    try:
        config = HeadConfig(**settings)
        kind = kind_of(config.head)
    except (TypeError, ConfigError) as error:
        raise RunError(f"{folder}/run.json holds settings of no head: {error}") from error
    return kind.head.load(folder, config)
