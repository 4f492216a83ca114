"""Linear heads by gradient steps, any number of them in one pass over the images.

All heads read the same batches. Their kernels stand side by side as columns of one matrix, so a step of 48 heads is
one product, and each head has its own learning rate, decay, preparation and views. A head's columns never meet
another's: it ends as if it had been alone, but that a head of fewer views than others sees fewer of its images in a
step.

Source of the idea: the linear evaluation of DINOv2, Oquab et al. 2023, arXiv:2304.07193, section B.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.heads.affine import AffineHead, AffineMap
from pipeline.heads.base import FitReport, class_weights, n_logits, probabilities_of
from pipeline.heads.many import Trial
from pipeline.heads.prepare import Preparation
from pipeline.store.rows import Part, nothing
from pipeline.training.optimizer import default_batch_size, diverged, learning_rates, optimizer_with_rates
from pipeline.training.passes import Passes
from pipeline.training.watch import Watch
from pipeline.util import runtime
from pipeline.util.progress import progress
from pipeline.util.text import counted

ROWS = 4096  # validation images that all heads look at at a time


class LinearHead(AffineHead):
    """Cross-entropy minimised by gradient steps; the weights kept are those of the best validation accuracy."""

    refits = False

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`; without validation images the last epoch counts."""
        columns = _Columns([self.config], train, n_classes)
        report = columns.fit(val)
        if not columns.sound[0]:
            raise diverged(self.config.learning_rate, self.config.l2)
        self.trained = self.final = columns.maps()[0]
        return report

    def refit(self, both: Part) -> None:
        """As `Head.refit`: the best epoch can't be told on images that were trained on, so nothing is done."""


def fit_many(
    configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
) -> Iterator[Trial]:
    """As `many.FitMany`: settings with the same optimizer, schedule, batch size, epochs and patience, in one pass."""
    columns = _Columns(configs, train, n_classes)
    columns.fit(nothing(train))
    found = [columns.predict_proba(val) for val in vals]
    for number in range(len(configs)):
        failure = "" if columns.sound[number] else str(diverged(configs[number].learning_rate, configs[number].l2))
        yield Trial(number, [probabilities[number] for probabilities in found], failure)


@dataclass(slots=True)
class _Group:
    """Heads with the same preparation, whose columns share a kernel.

    Attributes:
        prepare: Of features.
        heads: Which heads these are.
        kernel: Variable of shape [d, heads * logits].
        bias: Variable of shape [heads * logits].
        best: Kernel and bias as they were at each head's best epoch.
    """

    prepare: Preparation
    heads: list[int]
    kernel: Any
    bias: Any
    best: tuple[NDArray[np.float32], NDArray[np.float32]]


class _Columns:
    """Many linear heads, trained together."""

    def __init__(self, configs: Sequence[HeadConfig], train: Part, n_classes: int) -> None:
        self.configs = configs
        self.config = configs[0]  # for what all have in common
        self.train = train
        self.batch_size = self.config.batch_size or default_batch_size(len(train))
        self.n_classes = n_classes
        self.n_logits = n_logits(n_classes)
        tf = runtime.tensorflow()
        d = train.features.shape[1]
        kinds: dict[tuple[bool, bool, int], list[int]] = {}
        most = int(train.views.max(initial=0))
        self.views = [most if config.views is None else min(config.views, most) for config in configs]
        for number, config in enumerate(configs):
            key = (bool(config.standardize), bool(config.l2_normalize), self.views[number])
            kinds.setdefault(key, []).append(number)
        self.groups = []
        for (standardize, l2_normalize, views), heads in kinds.items():
            own = train.up_to_view(views)
            prepare = Preparation.fit(own, standardize=standardize, l2_normalize=l2_normalize)
            width = len(heads) * self.n_logits
            # The loss is convex, so all weights may start at 0, and the seed decides the order alone.
            kernel, bias = np.zeros((d, width), np.float32), np.zeros(width, np.float32)
            self.groups.append(_Group(prepare, heads, tf.Variable(kernel), tf.Variable(bias), (kernel, bias)))
        self.sound = np.zeros(len(configs), np.bool_)
        self.order = np.argsort(np.concatenate([group.heads for group in self.groups]), kind="stable")

    def _wide(self, group: _Group, values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float32]:
        """A value of each head, for each of its columns."""
        return np.repeat(np.asarray(values, np.float32)[group.heads], self.n_logits)

    def fit(self, val: Part) -> FitReport:
        """Train all heads until the patience of each has ended."""
        batch_size = self.batch_size
        rates = [runtime.tensorflow().Variable(self._wide(group, self._rates())) for group in self.groups]
        passes = Passes(self._step(rates), self.train, batch_size, self.config.seed, len(self.configs))
        losses_of = self._losses(val) if len(val) else None
        watch = Watch(len(self.configs), self.config.patience, self.config.schedule)
        report = FitReport(chosen={"batch_size": batch_size}, chose_by_val=len(val) > 0)
        with progress("Training", self.config.epochs or 1, "epochs") as advance:
            for epoch in range(1, (self.config.epochs or 1) + 1):
                of_train = passes.epoch()
                row = {"epoch": epoch, "loss": float(of_train.mean())}
                losses, accuracies = losses_of() if losses_of else (of_train, None)
                if accuracies is not None:
                    row |= {"val_loss": float(losses.min()), "val_accuracy": float(accuracies.max())}
                report.history.append(row)
                advance(1)
                self._keep(watch.update(losses, accuracies))
                for group, rate in zip(self.groups, rates, strict=True):
                    rate.assign(self._wide(group, self._rates() * watch.reductions))
                if watch.finished or not np.isfinite(losses).any():
                    break
        self.sound = watch.best_epoch > 0
        kept = f"epoch {watch.best_epoch.max()} is kept, the best on val" if losses_of else "the last one is kept"
        report.notes.append(f"{counted(len(report.history), 'epoch')}; {kept}")
        return report

    def _rates(self) -> NDArray[np.float64]:
        return np.array([config.learning_rate for config in self.configs])

    def _keep(self, heads: NDArray[np.bool_]) -> None:
        """Remember the columns of some heads as they are now."""
        for group in self.groups:
            columns = np.repeat(heads[group.heads], self.n_logits)
            for kept, now in zip(group.best, (group.kernel, group.bias), strict=True):
                kept[..., columns] = now.numpy()[..., columns]

    def _logits(self, features: Any) -> Any:
        """Logits [b, heads, logits] of features [b, d]."""
        tf = runtime.tensorflow()
        parts = []
        for group in self.groups:
            prepared = features
            for layer in group.prepare.layers():
                prepared = layer(prepared)
            parts.append(tf.reshape(prepared @ group.kernel + group.bias, (-1, len(group.heads), self.n_logits)))
        joint = parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
        return joint if len(parts) == 1 else tf.gather(joint, self.order, axis=1)

    def _cross_entropy(self, logits: Any, labels: Any, smoothing: Any) -> Any:
        """Cross-entropy [b, heads] of logits [b, heads, logits] and labels [b]."""
        tf = runtime.tensorflow()
        if self.n_logits == 1:
            smoothing = 0.0 if smoothing is None else smoothing
            target = tf.cast(labels, tf.float32)[:, None] * (1 - smoothing) + smoothing / 2
            return tf.nn.sigmoid_cross_entropy_with_logits(target + tf.zeros_like(logits[..., 0]), logits[..., 0])
        # The fused operations take a third of the time of a softmax and a logarithm.
        if smoothing is None:
            of_head = tf.repeat(labels[:, None], len(self.configs), axis=1)
            return tf.nn.sparse_softmax_cross_entropy_with_logits(of_head, logits)
        target = tf.one_hot(labels, self.n_classes)[:, None, :] * (1 - smoothing[:, None])
        return tf.nn.softmax_cross_entropy_with_logits(target + smoothing[:, None] / self.n_classes, logits)

    def _step(self, rates: list[Any]) -> Any:
        """One update of all heads, for a batch."""
        tf = runtime.tensorflow()
        smooth = [config.label_smoothing or 0.0 for config in self.configs]
        smoothing = tf.constant(smooth) if any(smooth) else None
        weights = [class_weights(self.train.labels, self.n_classes, config.class_weight) for config in self.configs]
        of_class = tf.constant(np.stack(weights, axis=1), tf.float32)
        views = tf.constant(self.views, tf.int64)
        decoupled = self.config.optimizer == "adamw"
        decays = [
            tf.constant(self._wide(group, [config.l2 or 0.0 for config in self.configs])) for group in self.groups
        ]
        variables = [variable for group in self.groups for variable in (group.kernel, group.bias)]
        n_steps = (self.config.epochs or 1) * max(1, round(len(self.train) / self.batch_size))
        optimizer = optimizer_with_rates(
            self.config.optimizer,
            learning_rates(self.config.schedule, 1.0, n_steps),
            [rate for rate in rates for _ in ("kernel", "bias")],
            [each for decay in decays for each in (decay if decoupled else None, None)],
        )
        optimizer.build(variables)

        # Compiled, the dozen passes over all weights become one; for a single head that saves less than it takes.
        @tf.function(jit_compile=len(self.configs) > 1, autograph=False)  # type: ignore[untyped-decorator]
        def update(given: list[Any]) -> None:
            gradients = list(given)
            if not decoupled:
                for number, (group, decay) in enumerate(zip(self.groups, decays, strict=True)):
                    gradients[2 * number] += decay * group.kernel
            optimizer.apply(gradients, variables)

        def step(features: Any, labels: Any, view: Any) -> Any:
            with tf.GradientTape() as tape:
                each = self._cross_entropy(self._logits(features), labels, smoothing) * tf.gather(of_class, labels)
                used = tf.cast(view[:, None] <= views, tf.float32)
                losses = tf.reduce_sum(used * each, axis=0) / tf.maximum(tf.reduce_sum(used, axis=0), 1)
                total = tf.reduce_sum(losses)  # each head's gradient is that of its own loss
            update(tape.gradient(total, variables))
            return losses

        return step

    def _losses(self, val: Part) -> Any:
        """A function that gives log loss and accuracy [heads] on the validation images."""
        tf = runtime.tensorflow()

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def sums(features: Any, labels: Any) -> Any:
            logits = self._logits(features)
            if self.n_logits == 1:
                logits = tf.concat([tf.zeros_like(logits), logits], axis=2)
            log_p = tf.nn.log_softmax(logits)
            right = tf.argmax(log_p, axis=2) == labels[:, None]
            own = tf.reduce_sum(log_p * tf.one_hot(labels, log_p.shape[2])[:, None, :], axis=2)
            return tf.reduce_sum(own, axis=0), tf.reduce_sum(tf.cast(right, tf.float32), axis=0)

        def losses() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            loss, right = np.zeros(len(self.configs)), np.zeros(len(self.configs))
            for rows in val.blocks():
                block, labels = val.load(rows), val.labels[rows]
                for start in range(0, len(rows), ROWS):
                    features = tf.constant(block[start : start + ROWS], tf.float32)
                    found = sums(features, tf.constant(labels[start : start + ROWS]))
                    loss -= found[0].numpy()
                    right += found[1].numpy()
            return loss / len(val), right / len(val)

        return losses

    def maps(self) -> list[AffineMap]:
        """Each head by itself."""
        found: list[AffineMap | None] = [None] * len(self.configs)
        for group in self.groups:
            kernels, biases = (np.split(best, len(group.heads), axis=-1) for best in group.best)
            for number, kernel, bias in zip(group.heads, kernels, biases, strict=True):
                found[number] = AffineMap(group.prepare, kernel.copy(), bias.copy())
        return [head for head in found if head is not None]

    def predict_proba(self, part: Part) -> list[NDArray[np.floating]]:
        """Probabilities [n, classes] of each head, preparing the features once for all that prepare them alike."""
        found = [np.empty((len(part), self.n_classes), np.float32) for _ in self.configs]
        for rows in part.blocks():
            features = part.load(rows)
            for group in self.groups:
                kernel, bias = group.best
                logits = group.prepare(features) @ kernel + bias
                for number, own in zip(group.heads, np.split(logits, len(group.heads), axis=1), strict=True):
                    found[number][rows] = probabilities_of(own)
        return list(found)
