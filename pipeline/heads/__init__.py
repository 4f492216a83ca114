"""Heads: classifiers of cached features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, RunError
from pipeline.heads.base import FORMS, FitReport, Head, HeadConfig, probabilities_of
from pipeline.heads.dense import DenseHead, accuracy_of_logits, n_logits, sparse_loss
from pipeline.heads.logreg import LogregHead

__all__ = [
    "FORMS",
    "FitReport",
    "Head",
    "HeadConfig",
    "accuracy_of_logits",
    "load_head",
    "make_head",
    "n_logits",
    "probabilities_of",
    "sparse_loss",
]


def make_head(config: HeadConfig, *, carved_val: bool) -> Head:
    """A head that is not fitted yet.

    Args:
        config: Which one.
        carved_val: Whether the validation images were carved from the training images, so that a head whose settings
            are chosen may be fitted on both in the end.
    """
    return LogregHead(config, refit=carved_val) if config.widths is None else DenseHead(config)


def load_head(folder: Path, settings: dict[str, Any]) -> Head:
    """The fitted head of a run folder.

    Raises:
        RunError: If its files are missing or damaged.
    """
    try:
        config = HeadConfig(**{name: value for name, value in settings.items() if name != "views"})
    except (TypeError, ConfigError) as error:
        raise RunError(f"{folder}/run.json holds settings of no head: {error}") from error
    return LogregHead.load(folder, config) if config.widths is None else DenseHead.load(folder, config)
