"""Logistic regression: scikit-learn's, on prepared features, with its penalty chosen on the validation images."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.affine import AffineHead, AffineMap
from pipeline.heads.base import FitReport, HeadConfig
from pipeline.heads.many import Trial
from pipeline.heads.prepare import Preparation
from pipeline.metrics import scores
from pipeline.parts import Part

__all__ = ["PENALTIES", "LogregHead", "fit_many"]

log = logging.getLogger("tlpipe")

# Strongest first, so that each fit starts from a simpler one. As l2 beside the mean loss the best ones differ little
# between sets of a thousand and of fifty thousand images; scikit-learn's C is 1 / (images * l2).
PENALTIES = (1.0, 0.3, 0.1, 0.05, 0.03, 0.015, 0.008, 0.003, 0.001, 3e-4)
DEFAULT_PENALTY = 0.03  # where there are no validation images to choose with
LEAST_PENALTY = 1e-30  # scikit-learn's C is finite
MAX_ITERATIONS = 1000


class LogregHead(AffineHead):
    """Multinomial logistic regression with an L2 penalty, fitted by L-BFGS.

    Without `l2` it is the one with the lowest log loss on the validation images.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.c = np.nan

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`."""
        report = FitReport()
        if self.config.l2 is not None or not len(val):
            penalty = DEFAULT_PENALTY if self.config.l2 is None else self.config.l2
            if self.config.l2 is None:
                report.notes.append(f"No validation images to choose the penalty with; l2 is {penalty:g}")
            self.c, self.trained = next(_path(train, (penalty,), self.config))
        else:
            best = np.inf
            for penalty, (c, candidate) in zip(PENALTIES, _path(train, PENALTIES, self.config), strict=False):
                log.info("Tried l2 = %g", penalty)
                found = scores(candidate.predict_proba(val.array()), val.labels)
                report.history.append(
                    {"l2": penalty, "C": c, "val_accuracy": found["accuracy"], "val_log_loss": found["log_loss"]}
                )
                if found["log_loss"] >= best:
                    break  # the loss has one minimum along the path
                best, self.c, self.trained = found["log_loss"], c, candidate
        self.final = self.trained
        report.chosen["l2"] = 1 / (self.c * len(train))
        report.notes.append(f"C = {self.c:.4g}, that is l2 = {report.chosen['l2']:.3g}")
        return report

    def refit(self, both: Part) -> None:
        """As `Head.refit`, with the same C."""
        same_c = replace(self.config, l2=1 / (self.c * len(both)))
        self.final = next(_path(both, (same_c.l2 or 0,), same_c))[1]


def fit_many(
    configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
) -> Iterator[Trial]:
    """As `many.FitMany`: along the path of penalties, each fit from where the last one ended."""
    penalties = [DEFAULT_PENALTY if config.l2 is None else config.l2 for config in configs]
    order: list[int] = np.argsort(penalties)[::-1].tolist()
    path = _path(train, [penalties[number] for number in order], configs[0])
    end = time.monotonic() + seconds
    for number, (_, candidate) in zip(order, path, strict=False):
        yield Trial(number, [candidate.predict_proba(val.array()) for val in vals])
        if time.monotonic() >= end:
            return


def _path(part: Part, penalties: Sequence[float], config: HeadConfig) -> Iterator[tuple[float, AffineMap]]:
    """Fit for each penalty in turn, from where the last one ended; C and the map of each."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    prepare = Preparation.fit(part, standardize=config.standardize, l2_normalize=config.l2_normalize)
    features: NDArray[np.float32] = prepare(part.array())
    model = LogisticRegression(
        max_iter=MAX_ITERATIONS,
        warm_start=True,
        random_state=config.seed,
        class_weight="balanced" if config.class_weight == "balanced" else None,
    )
    for penalty in penalties:
        c = 1 / (max(penalty, LEAST_PENALTY) * len(part))
        model.set_params(C=c)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(features, part.labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            log.warning("logreg with C = %.3g did not converge in %d iterations", c, MAX_ITERATIONS)
        yield (
            c,
            AffineMap(
                prepare, np.ascontiguousarray(model.coef_.T, np.float64), np.asarray(model.intercept_, np.float64)
            ),
        )
