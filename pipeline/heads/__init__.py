"""Heads: classifiers of cached features. A kind of head is a file here and a row of `KINDS`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.config import HEAD_DEFAULTS, HeadConfig
from pipeline.config.head import HEAD_FORMS
from pipeline.errors import ConfigError, RunError
from pipeline.heads import knn, linear, logreg, ridge
from pipeline.heads.base import PROBABILITIES, Head, n_logits, predict, probabilities_of, probability_layer
from pipeline.heads.centroid import CentroidHead
from pipeline.heads.knn import KnnHead
from pipeline.heads.linear import LinearHead
from pipeline.heads.logreg import LogregHead
from pipeline.heads.many import FitMany, in_processes, one_by_one
from pipeline.heads.mlp import MlpHead
from pipeline.heads.ridge import RidgeHead

__all__ = [
    "KINDS",
    "PROBABILITIES",
    "Head",
    "Kind",
    "kind_of",
    "load_head",
    "make_head",
    "n_logits",
    "predict",
    "probabilities_of",
    "probability_layer",
]

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of head.

    Attributes:
        name: Without figures, as in `HEAD_DEFAULTS` and `HEAD_FORMS`.
        pattern: What its names match.
        head: Its class.
        varies: Options that may differ between the settings of one `fit_many`.
        fit_many: Fits many settings in one go.
        small: Values of each option that a small sweep tries.
        full: And a full one.
    """

    name: str
    pattern: str
    head: type[Head]
    fit_many: FitMany
    varies: tuple[str, ...] = ()
    small: Grid = field(default_factory=dict)
    full: Grid = field(default_factory=dict)

    @property
    def form(self) -> str:
        """How its names look, by an example."""
        return HEAD_FORMS[self.name]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The defaults of its options; None where the value is found while fitting, or depends on other options."""
        return HEAD_DEFAULTS[self.name]


_ALL_BUT_VIEWS = tuple(field.name for field in fields(HeadConfig) if field.name != "views")
_WIDTHS = r"[1-9]\d{0,4}(?:-[1-9]\d{0,4})*"

KINDS = (
    Kind(
        name="logreg",
        pattern="logreg",
        head=LogregHead,
        fit_many=logreg.fit_many,
        varies=("l2",),
        small={"head": ["logreg"], "l2": logreg.PENALTIES[::2]},
        full={"head": ["logreg"], "l2": logreg.PENALTIES, "standardize": [True, False]},
    ),
    Kind(
        name="ridge",
        pattern="ridge",
        head=RidgeHead,
        fit_many=ridge.fit_many,
        varies=("l2",),
        small={"head": ["ridge"], "l2": ridge.PENALTIES[::4]},
        full={"head": ["ridge"], "l2": ridge.PENALTIES, "standardize": [True, False]},
    ),
    Kind(
        name="centroid",
        pattern="centroid",
        head=CentroidHead,
        fit_many=one_by_one(CentroidHead),
        varies=("standardize",),
        small={"head": ["centroid"]},
        full={"head": ["centroid"], "standardize": [True, False]},
    ),
    Kind(
        name="knn",
        pattern=r"knn[1-9]\d{0,5}",
        head=KnnHead,
        fit_many=knn.fit_many,
        varies=("head",),
        small={"head": ["knn5", "knn20"]},
        full={"head": [f"knn{k}" for k in (1, 3, 5, 10, 20, 50, 100)], "standardize": [True, False]},
    ),
    Kind(
        name="linear",
        pattern="linear",
        head=LinearHead,
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
        name="mlp",
        pattern=f"mlp{_WIDTHS}",
        head=MlpHead,
        fit_many=in_processes(MlpHead),
        varies=_ALL_BUT_VIEWS,
        small={"head": ["mlp512-128"], "label_smoothing": [0.0, 0.1]},
        full={"head": ["mlp256", "mlp512-128", "mlp1024-256"], "label_smoothing": [0.0, 0.1], "l2": [0.3, 1.0, 3.0]},
    ),
    Kind(
        name="bn-mlp",
        pattern=f"bn-mlp{_WIDTHS}",
        head=MlpHead,
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
    resolved = config.resolved(kind.defaults)
    return kind.head(resolved), resolved


def load_head(folder: Path, config: HeadConfig) -> Head:
    """The fitted head of a run folder.

    Args:
        folder: The run folder.
        config: Its settings.

    Raises:
        RunError: If its files are missing or damaged.
    """
    try:
        return kind_of(config.head).head.load(folder, config)
    except ConfigError as error:
        raise RunError(f"{folder}/run.json holds settings of no head: {error}") from error
