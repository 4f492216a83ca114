"""Logistic regression: scikit-learn's, on standardised features, with C chosen on the validation images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.errors import RunError
from pipeline.heads.base import FitReport, HeadConfig, probabilities_of, standard_scale
from pipeline.metrics import evaluate
from pipeline.table import Part

if TYPE_CHECKING:
    import keras

__all__ = ["LogregHead"]

log = logging.getLogger("tlpipe")

# Strongest regularisation first, so that each fit starts from a simpler one. On standardised pooled features the best
# lies between 0.001 and 0.1, the lower the more images there are.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
DEFAULT_C = 1e-2  # where there are no validation images to choose with
MAX_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class _Linear:
    """A standardisation and a linear map; with one column, of the log odds of the second class."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        return probabilities_of(((features - self.mean) / self.scale) @ self.weights + self.bias)


class LogregHead:
    """Multinomial logistic regression with an L2 penalty, fitted by L-BFGS.

    C is the one with the lowest log loss on the validation images. If these were carved from the training images, the
    head is then fitted again on both; the one fitted on the training images alone is kept beside it.
    """

    def __init__(self, config: HeadConfig, *, refit: bool) -> None:
        self.config = config
        self.refit = refit
        self.trainable_parameters = 0
        self.trained: _Linear | None = None
        self.final: _Linear | None = None

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`."""
        report = FitReport()
        if len(val):
            best = np.inf
            for c, candidate in _path(train, STRENGTHS, self.config.seed, report):
                log.info("Tried C = %g", c)
                probabilities = candidate.predict_proba(val.features)
                scores = evaluate(probabilities, val.labels)
                report.history.append({"C": c, "val_accuracy": scores["accuracy"], "val_log_loss": scores["log_loss"]})
                if scores["log_loss"] >= best:
                    break  # the loss has one minimum along the path
                best, chosen = scores["log_loss"], c
                self.trained, report.val_probabilities = candidate, probabilities
        else:
            chosen = DEFAULT_C
            self.trained = next(_path(train, (chosen,), self.config.seed, report))[1]
            report.notes.append(f"No validation images to choose C with; C is {chosen}")
        self.final = self.trained
        if self.refit and len(val):
            both = Part(
                np.concatenate([train.features, val.features]),
                np.concatenate([train.labels, val.labels]),
                np.concatenate([train.keys, val.keys]),
            )
            self.final = next(_path(both, (chosen,), self.config.seed, report))[1]
        report.notes.append(f"C = {chosen:g}" + (", then fitted on train and val" if self.refit and len(val) else ""))
        self.trainable_parameters = _fitted(self.final).weights.size + _fitted(self.final).bias.size
        return report

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """As `Head.predict_proba`."""
        return _fitted(self.final).predict_proba(features)

    def layers(self) -> list[keras.Layer]:
        """As `Head.layers`."""
        layers = runtime.keras().layers
        fitted = _fitted(self.trained)
        standardise = layers.Normalization(mean=fitted.mean, variance=fitted.scale**2, name="standardise")
        dense = layers.Dense(fitted.weights.shape[1], name="logits")
        dense.build((None, len(fitted.mean)))
        dense.set_weights([fitted.weights, fitted.bias])
        return [standardise, dense]

    def save(self, folder: Path) -> None:
        """As `Head.save`: plain arrays."""
        arrays = {}
        for name, fitted in (("final", _fitted(self.final)), ("trained", _fitted(self.trained))):
            for field in ("mean", "scale", "weights", "bias"):
                arrays[f"{name}_{field}"] = getattr(fitted, field)
        np.savez(folder / "head.npz", **arrays)

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> LogregHead:
        """Read what `save` wrote.

        Raises:
            RunError: If the file is missing or damaged.
        """
        head = cls(config, refit=False)
        try:
            with np.load(folder / "head.npz", allow_pickle=False) as file:
                head.final, head.trained = (
                    _Linear(*(file[f"{name}_{field}"] for field in ("mean", "scale", "weights", "bias")))
                    for name in ("final", "trained")
                )
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise RunError(f"{folder / 'head.npz'} can't be read: {error}; train the head again") from error
        head.trainable_parameters = head.final.weights.size + head.final.bias.size
        return head


def _fitted(linear: _Linear | None) -> _Linear:
    if linear is None:
        raise RunError("The head is not fitted yet; call fit first")
    return linear


def _path(part: Part, strengths: tuple[float, ...], seed: int, report: FitReport) -> Any:
    """Fit for each C in turn, from where the last one ended."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(part.features)
    scaler.scale_ = standard_scale(np.sqrt(scaler.var_))
    features = scaler.transform(part.features)
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True, random_state=seed)
    for c in strengths:
        model.set_params(C=c)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(features, part.labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            report.notes.append(f"C = {c:g} did not converge in {MAX_ITERATIONS} iterations")
        yield (
            c,
            _Linear(
                scaler.mean_.astype(np.float64),
                scaler.scale_,
                np.ascontiguousarray(model.coef_.T, np.float64),
                np.asarray(model.intercept_, np.float64),
            ),
        )
