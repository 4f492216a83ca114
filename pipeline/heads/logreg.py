"""Logistic regression: scikit-learn's, on prepared features, with its penalty chosen on the validation images."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
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
        self.penalty = DEFAULT_PENALTY if config.l2 is None else config.l2

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`."""
        report = FitReport()
        if self.config.l2 is not None or not len(val):
            if self.config.l2 is None:
                report.notes.append(f"No validation images to choose the penalty with; l2 is {self.penalty:g}")
            self.trained = next(_path(train, (self.penalty,), self.config))
        else:
            report.chose_by_val = True
            best = np.inf
            for penalty, candidate in zip(PENALTIES, _path(train, PENALTIES, self.config), strict=False):
                log.info("Tried l2 = %g", penalty)
                found = scores(candidate.predict_proba(val.array()), val.labels)
                row = {"l2": penalty, "C": _c(penalty, train)}
                report.history.append(row | {f"val_{name}": value for name, value in found.items()})
                if found["log_loss"] >= best:
                    break  # the loss has one minimum along the path
                best, self.penalty, self.trained = found["log_loss"], penalty, candidate
        self.final = self.trained
        report.chosen["l2"] = self.penalty
        report.notes.append(f"l2 = {self.penalty:g}, that is C = {_c(self.penalty, train):.3g}")
        return report

    def refit(self, both: Part) -> None:
        """As `Head.refit`."""
        self.final = next(_path(both, (self.penalty,), self.config))


def fit_many(
    configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
) -> Iterator[Trial]:
    """As `many.FitMany`: along the path of penalties, each fit from where the last one ended."""
    penalties = [DEFAULT_PENALTY if config.l2 is None else config.l2 for config in configs]
    order: list[int] = np.argsort(penalties)[::-1].tolist()
    path = _path(train, [penalties[number] for number in order], configs[0])
    end = time.monotonic() + seconds
    for number, candidate in zip(order, path, strict=False):
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


def _path(part: Part, penalties: Sequence[float], config: HeadConfig) -> Iterator[AffineMap]:
    """Fit for each penalty in turn, from where the last one ended."""
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
        model.set_params(C=_c(penalty, part))
        with _one_thread_of_scipy(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(features, part.labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            log.warning("logreg with l2 = %g did not converge in %d iterations", penalty, MAX_ITERATIONS)
        weights, bias = np.ascontiguousarray(model.coef_.T, np.float64), np.asarray(model.intercept_, np.float64)
        yield AffineMap(prepare, weights, bias)
