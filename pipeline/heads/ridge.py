"""Ridge regression of the labels, in closed form: every penalty from one eigendecomposition.

With X the prepared features less their mean [n, d], Y the one-hot labels less theirs [n, c], and
X'X = V diag(s) V', the weights for the penalty a are W = V diag(1 / (s + a)) V'X'Y. Where there are fewer images than
features, X X' = U diag(s) U' is the smaller matrix, and W = X' U diag(1 / (s + a)) U'Y.

A single penalty that is known needs no eigendecomposition: W solves (X'X + a) W = X'Y, or W = X' Z with
(X X' + a) Z = Y.

X'X and X'Y are sums over images. The sums of a fold are added to those of others, so that the heads of all folds cost
one pass over the features.

Source: Hoerl and Kennard 1970, Technometrics 12, p. 55.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.evaluation.calibration import fit_temperature
from pipeline.evaluation.metrics import scores
from pipeline.heads.affine import AffineHead, AffineMap, one_column
from pipeline.heads.base import FitReport, class_weights
from pipeline.heads.many import Trial
from pipeline.heads.prepare import Preparation
from pipeline.store.rows import Part, nothing

PENALTIES = tuple(float(f"{penalty:.3g}") for penalty in np.geomspace(1e-4, 10, 40))
DEFAULT_PENALTY = 0.5  # where there are no validation images to choose with
DEFAULT_SHARPNESS = 10.0
LEAST_SOLVED = 1e-4  # penalty; with less, what is solved may be singular up to rounding
COLUMNS = 1024  # classes times penalties whose scores are held at a time
ROWS = 2048  # rows that are widened to float64 at a time


@dataclass(frozen=True, slots=True)
class _Sums:
    """What the images sum up to, from which the weights for one penalty follow.

    Attributes:
        prepare: Of features.
        matrix: X'X, or X X' where that is smaller, shape [k, k].
        targets: X'Y, or Y, shape [k, c].
        lift: X', which leads from images to features, shape [d, k]; None where `matrix` is X'X.
        mean: Of prepared features, shape [d].
        prior: Mean label, shape [c].
        n: Images, or their weight.
    """

    prepare: Preparation
    matrix: NDArray[np.float64]
    targets: NDArray[np.float64]
    lift: NDArray[np.float64] | None
    mean: NDArray[np.float64]
    prior: NDArray[np.float64]
    n: float

    def path(self) -> _Path:
        """The eigendecomposition."""
        eigenvalues, vectors = np.linalg.eigh(self.matrix)
        return _Path(self, self._lifted(vectors), eigenvalues, vectors.T @ self.targets)

    def weights(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights [d, c] and bias [c] of the scores, which sum to 1; by Cholesky's decomposition where that is safe."""
        from scipy.linalg import solve

        if penalty < LEAST_SOLVED:
            return self.path().weights(penalty)
        shifted = self.matrix + penalty * self.n * np.eye(len(self.matrix))
        return self.with_bias(self._lifted(solve(shifted, self.targets, assume_a="pos")))

    def with_bias(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights, and the bias with which the mean image has the mean label for its scores."""
        return weights, self.prior - self.mean @ weights

    def _lifted(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        return columns if self.lift is None else self.lift @ columns


@dataclass(frozen=True, slots=True)
class _Path:
    """The eigendecomposition, from which the weights for any penalty follow.

    Attributes:
        sums: What was decomposed.
        basis: Shape [d, k].
        eigenvalues: Shape [k], of the images' covariance times their number.
        targets: What the basis has to do with the labels, shape [k, c].
    """

    sums: _Sums
    basis: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    targets: NDArray[np.float64]

    def weights(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As `_Sums.weights`."""
        # Directions in which the images don't differ at all carry rounding errors only.
        floor = np.finfo(np.float64).eps * len(self.basis) * max(self.eigenvalues.max(initial=0), 1e-300)
        total = penalty * self.sums.n
        shrunk = np.where(self.eigenvalues > floor, 1 / (np.maximum(self.eigenvalues, floor) + total), 0.0)
        return self.sums.with_bias(self.basis @ (shrunk[:, None] * self.targets))

    def scores(self, part: Part, penalties: Sequence[float]) -> Iterator[NDArray[np.float64]]:
        """Scores [n, c] of a part for each penalty, in one product for as many as may be held."""
        at_once = max(1, COLUMNS // len(self.sums.prior))
        for start in range(0, len(penalties), at_once):
            weights, biases = zip(*map(self.weights, penalties[start : start + at_once]), strict=True)
            joint = np.concatenate(weights, axis=1).astype(np.float32)
            found = np.empty((len(part), joint.shape[1]), np.float32)
            for rows in part.blocks():
                found[rows] = self.sums.prepare(part.load(rows)) @ joint
            for bias, own in zip(biases, np.split(found, len(biases), axis=1), strict=True):
                yield own + bias


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over images with features x, one-hot labels y and weights w, to which others can be added.

    Attributes:
        n: Of w.
        total: Of w x, shape [d].
        products: Of w x x', shape [d, d].
        cross: Of w x y', shape [d, c].
        counts: Of w y, shape [c].
    """

    n: float
    total: NDArray[np.float64]
    products: NDArray[np.float64]
    cross: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        part: Part,
        n_classes: int,
        of_class: NDArray[np.float64],
        prepare: Preparation | None = None,
    ) -> _Moments:
        """Of a part, whose features are prepared as they are read; `of_class` is what an image of each class weighs."""
        width = part.features.shape[1]
        products, sides = np.zeros((width, width)), np.zeros((width, n_classes + 1))
        counts = np.zeros(n_classes)
        for rows in part.blocks():
            block, block_labels = part.load(rows), part.labels[rows]
            for start in range(0, len(rows), ROWS):
                features, labels = block[start : start + ROWS], block_labels[start : start + ROWS]
                rooted = (prepare(features) if prepare else features).astype(np.float64)
                root = np.sqrt(of_class[labels])[:, None]
                rooted *= root
                products += rooted.T @ rooted  # of one array with itself NumPy computes only half
                targets = np.eye(n_classes)[labels]
                sides += rooted.T @ np.hstack([root * targets, root])
                counts += of_class[labels] @ targets
        return cls(float(counts.sum()), sides[:, -1], products, sides[:, :-1], counts)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def sums(self, prepare: Preparation) -> _Sums:
        """Of features that were prepared already."""
        mean, prior = self.total / self.n, self.counts / self.n
        matrix = self.products - self.n * np.outer(mean, mean)
        cross = self.cross - self.n * np.outer(mean, prior)
        return _Sums(prepare, matrix, cross, None, mean, prior, self.n)

    def standardised(self) -> _Sums:
        """Of features that are standardised only now, by their own mean and deviation; the weights must be equal."""
        mean = self.total / self.n
        variance = np.maximum(self.products.diagonal() / self.n - mean**2, 0)
        prepare = Preparation.of(mean, variance, l2_normalize=False)
        raw, scale = self.sums(prepare), prepare.scale.astype(np.float64)
        return replace(
            raw,
            matrix=raw.matrix / np.outer(scale, scale),
            targets=raw.targets / scale[:, None],
            mean=(mean - prepare.mean) / scale,
        )


def _summed(part: Part, n_classes: int, config: HeadConfig) -> _Sums:
    prepare = Preparation.fit(part, standardize=config.standardize, l2_normalize=config.l2_normalize)
    of_class = class_weights(part.labels, n_classes, config.class_weight)
    n = float(of_class[part.labels].sum())
    width = part.features.shape[1]
    if len(part) < width:
        features = prepare(part.array()).astype(np.float64)
        weights = of_class[part.labels][:, None]
        mean = (weights * features).sum(axis=0) / n
        targets = np.eye(n_classes)[part.labels]
        prior = (weights * targets).sum(axis=0) / n
        root = np.sqrt(weights)
        centred = root * (features - mean)
        return _Sums(prepare, centred @ centred.T, root * (targets - prior), centred.T, mean, prior, n)
    return _Moments.of(part, n_classes, of_class, prepare).sums(prepare)


class RidgeHead(AffineHead):
    """Least squares towards one-hot labels with an L2 penalty; the largest score wins.

    Without `l2` the penalty is the one with the highest accuracy on the validation images. A softmax of the scores,
    sharpened by the factor with the lowest log loss there, gives the probabilities.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.penalty = DEFAULT_PENALTY if config.l2 is None else config.l2
        self.sharpness = DEFAULT_SHARPNESS
        self.n_classes = 0

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`."""
        report = FitReport()
        self.n_classes = n_classes
        sums = _summed(train, n_classes, self.config)
        weights = sums.weights
        if len(val):
            path = sums.path()
            weights = path.weights
            report.chose_by_val = True
            penalties = PENALTIES if self.config.l2 is None else (self.config.l2,)
            best = (-1.0, 0.0)
            for penalty, found in zip(penalties, path.scores(val, penalties), strict=True):
                sharpness, probabilities = _sharpen(found, val.labels)
                rated = scores(probabilities, val.labels)
                report.history.append(
                    {"l2": penalty, "val_accuracy": rated["accuracy"], "val_log_loss": rated["log_loss"]}
                )
                if (rated["accuracy"], -rated["log_loss"]) > best:
                    best = (rated["accuracy"], -rated["log_loss"])
                    self.penalty, self.sharpness = penalty, sharpness
        elif self.config.l2 is None:
            report.notes.append(f"No validation images to choose the penalty with; l2 is {self.penalty:g}")
        report.notes.append(f"l2 = {self.penalty:g}")
        report.chosen["l2"] = self.penalty
        self.trained = self.final = self._map(sums.prepare, *weights(self.penalty))
        return report

    def refit(self, both: Part) -> None:
        """As `Head.refit`."""
        sums = _summed(both, self.n_classes, self.config)
        self.final = self._map(sums.prepare, *sums.weights(self.penalty))

    def solve(self, sums: _Sums) -> None:
        """Fit with the penalty that there is."""
        self.trained = self.final = self._map(sums.prepare, *sums.weights(self.penalty))

    def _map(self, prepare: Preparation, weights: NDArray[np.float64], bias: NDArray[np.float64]) -> AffineMap:
        return AffineMap(prepare, *one_column(self.sharpness * weights, self.sharpness * bias))


def _sharpen(found: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """The factor that turns scores into the logits of lowest log loss, and the probabilities."""
    from scipy.special import softmax

    sharpness = 1 / fit_temperature(found, labels)
    return sharpness, softmax(sharpness * found, axis=1)


def fit_many(
    configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
) -> Iterator[Trial]:
    """As `many.FitMany`: settings that differ in `l2` alone, from one eigendecomposition.

    No images are left to fit the sharpness on, so all settings have the same.
    """
    from scipy.special import softmax

    path = _summed(train, n_classes, configs[0]).path()
    penalties = [DEFAULT_PENALTY if config.l2 is None else config.l2 for config in configs]
    for number, found in enumerate(zip(*(path.scores(val, penalties) for val in vals), strict=True)):
        yield Trial(number, [softmax(DEFAULT_SHARPNESS * one, axis=1) for one in found])


def fit_without(
    config: HeadConfig, part: Part, n_classes: int, held: Sequence[NDArray[np.int64]]
) -> Iterator[RidgeHead]:
    """Heads with the penalty that is given, or the default, each fitted on all images of a part but some.

    Args:
        config: Its other options.
        part: All images.
        n_classes: Classes that there are.
        held: Rows that each head doesn't see; no row may be held twice.
    """
    plain = config.standardize and not config.l2_normalize and config.class_weight != "balanced"
    if not plain or len(part) < part.features.shape[1]:
        for rows in held:
            head = RidgeHead(config)
            head.fit(part.select(np.delete(np.arange(len(part)), rows)), nothing(part), n_classes)
            yield head
        return
    equal = np.ones(n_classes)
    always = np.delete(np.arange(len(part)), np.concatenate(held))
    moments = [_Moments.of(part.select(rows), n_classes, equal) for rows in (*held, always)]
    for number in range(len(held)):
        # Sums of the others, not of all less its own: features that only these images have would leave a residue.
        others = reduce(add, moments[:number] + moments[number + 1 :])
        head = RidgeHead(config)
        head.solve(others.standardised())
        yield head
