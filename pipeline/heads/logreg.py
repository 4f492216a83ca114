"""Logistic regression: scikit-learn's, on prepared features, with its penalty chosen on the validation images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.evaluation.metrics import scores
from pipeline.heads.affine import AffineHead, AffineMap
from pipeline.heads.base import FitReport
from pipeline.heads.many import Trial
from pipeline.heads.prepare import Preparation
from pipeline.store.rows import Part
from pipeline.util import log
from pipeline.util.text import counted

# As l2 beside the mean loss the best ones differ little between sets of a thousand and of fifty thousand images;
# scikit-learn's C is 1 / (images * l2).
PENALTIES = (1.0, 0.3, 0.1, 0.05, 0.03, 0.015, 0.008, 0.003, 0.001, 3e-4)
DEFAULT_PENALTY = 0.03  # where the search begins, and where there are no validation images to choose with
LEAST_PENALTY = 1e-30  # scikit-learn's C is finite
MAX_ITERATIONS = 1000
LARGE = 1_000_000  # logits (images times classes) above which penalties are compared on a share, and fits end sooner
SHARE = 10_000  # rows that a share has at least
TOLERANCE, TOLERANCE_OF_LARGE = 1e-4, 3e-4  # of the largest derivative of the mean loss


class LogregHead(AffineHead):
    """Multinomial logistic regression with an L2 penalty, fitted by L-BFGS.

    Without `l2` it is the one with the lowest log loss on the validation images.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.penalty = DEFAULT_PENALTY if config.l2 is None else config.l2

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`."""
        report = FitReport()
        if self.config.l2 is None and len(val):
            report.chose_by_val = True
            share = _share(train, n_classes)
            self.penalty, self.trained, tried = _search(share, val, n_classes, self.config)
            report.history = [{"l2": l2, "C": _c(l2, train), **tried[l2]} for l2 in sorted(tried, reverse=True)]
            if len(share) < len(train):
                report.notes.append(f"Penalties were compared on {len(share):,} of {counted(len(train), 'row')}")
                self.trained = _Regression(train, n_classes, self.config, self.trained).fit(self.penalty)
        else:
            if self.config.l2 is None:
                report.notes.append(f"No validation images to choose the penalty with; l2 is {self.penalty:g}")
            self.trained = _Regression(train, n_classes, self.config).fit(self.penalty)
        self.final = self.trained
        report.chosen["l2"] = self.penalty
        report.notes.append(f"l2 = {self.penalty:g}, that is C = {_c(self.penalty, train):.3g}")
        return report

    def refit(self, both: Part) -> None:
        """As `Head.refit`."""
        n_classes = int(both.labels.max()) + 1
        start = self.trained if len(both) * n_classes > LARGE else None
        self.final = _Regression(both, n_classes, self.config, start).fit(self.penalty)


def _share(train: Part, n_classes: int) -> Part:
    """Rows of all classes, in their proportions: all of them, or about as many as are no large problem."""
    step = len(train) // max(LARGE // n_classes, SHARE)
    if step <= 1:
        return train
    order = np.argsort(train.labels, kind="stable")
    firsts = np.unique(train.labels, return_index=True)[1]
    return train.select(np.union1d(order[::step], firsts))


def _search(
    train: Part, val: Part, n_classes: int, config: HeadConfig
) -> tuple[float, AffineMap, dict[float, dict[str, float]]]:
    """The penalty of the lowest log loss on the validation images, its fit, and the scores of each that was tried.

    The loss is taken to have one minimum along the penalties, walked down to from the default: to weaker ones, or,
    if the first of these is no better, to stronger ones.
    """
    model = _Regression(train, n_classes, config)
    rows: dict[float, dict[str, float]] = {}
    fits: dict[float, AffineMap] = {}

    @cache
    def loss(place: int) -> float:
        penalty = PENALTIES[place]
        fits[penalty] = model.fit(penalty)
        log.info("Tried l2 = %g", penalty)
        found = scores(fits[penalty].predict_proba(val.array()), val.labels)
        rows[penalty] = {f"val_{name}": one for name, one in found.items()}
        return float(found["log_loss"])

    best = start = PENALTIES.index(DEFAULT_PENALTY)
    for step in (1, -1):
        while best + step in range(len(PENALTIES)) and loss(best + step) < loss(best):
            best += step
        if best != start:
            break
    penalty = PENALTIES[best]
    return penalty, fits[penalty], rows


def fit_many(
    configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
) -> Iterator[Trial]:
    """As `many.FitMany`: along the path of penalties, each fit from where the last one ended."""
    penalties = [DEFAULT_PENALTY if config.l2 is None else config.l2 for config in configs]
    order: list[int] = np.argsort(penalties)[::-1].tolist()
    model = _Regression(train, n_classes, configs[0])
    end = time.monotonic() + seconds
    for number in order:
        candidate = model.fit(penalties[number])
        yield Trial(number, [candidate.predict_proba(val.array()) for val in vals])
        if time.monotonic() >= end:
            return


def _c(penalty: float, part: Part) -> float:
    """scikit-learn's C, the weight of the summed loss beside half the squared weights."""
    return 1 / (max(penalty, LEAST_PENALTY) * len(part))


def _one_thread_of_scipy() -> Any:
    """Keep SciPy's copy of OpenBLAS to one thread, as a context.

    The wheels of NumPy and SciPy bring a copy each. L-BFGS, in SciPy, and the loss, in NumPy, take turns, and the
    threads of one wait busily on the processors that the other needs: on two cores fits took 3 to 4 times as long.
    """
    from threadpoolctl import ThreadpoolController

    pools = ThreadpoolController()
    own = [pool.filepath for pool in pools.lib_controllers if "scipy.libs" in pool.filepath]
    return pools.select(filepath=own).limit(limits=1)


class _Regression:
    """scikit-learn's model of prepared features, each fit of which starts from where the last one ended."""

    def __init__(self, part: Part, n_classes: int, config: HeadConfig, start: AffineMap | None = None) -> None:
        from sklearn.linear_model import LogisticRegression

        self.part = part
        self.prepare = Preparation.fit(part, standardize=config.standardize, l2_normalize=config.l2_normalize)
        self.features: NDArray[np.float32] = self.prepare(part.array())
        self.model = LogisticRegression(
            max_iter=MAX_ITERATIONS,
            tol=TOLERANCE if len(part) * n_classes <= LARGE else TOLERANCE_OF_LARGE,
            warm_start=True,
            random_state=config.seed,
            class_weight="balanced" if config.class_weight == "balanced" else None,
        )
        if start is not None:  # means and deviations differ little between most of the images and all
            self.model.coef_, self.model.intercept_ = start.weights.T, start.bias

    def fit(self, penalty: float) -> AffineMap:
        """Fit with a penalty."""
        from sklearn.exceptions import ConvergenceWarning

        self.model.set_params(C=_c(penalty, self.part))
        with _one_thread_of_scipy(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            self.model.fit(self.features, self.part.labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            log.warning("logreg with l2 = %g did not converge in %d iterations", penalty, MAX_ITERATIONS)
        weights, bias = self.model.coef_.T, self.model.intercept_
        return AffineMap(self.prepare, np.ascontiguousarray(weights, np.float64), np.asarray(bias, np.float64))
