"""Multilayer perceptrons in Keras, with standardised features or with BatchNormalization below."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.evaluation.metrics import scores
from pipeline.heads.base import FitReport, class_weights, damaged, n_logits, not_fitted, predict, probabilities_of
from pipeline.heads.prepare import Preparation
from pipeline.store.rows import Part
from pipeline.training.optimizer import default_batch_size, diverged, learning_rates, optimizer_with_rates, sparse_loss
from pipeline.training.passes import Passes
from pipeline.training.watch import Watch
from pipeline.util import disk, runtime
from pipeline.util.archives import keras_model
from pipeline.util.progress import progress
from pipeline.util.text import counted

if TYPE_CHECKING:
    import keras

FILE = "head.keras"
BN_MOMENTUM = 0.9
PREDICTED = 1024  # rows at a time
WIDTHS_A_CLASS = 2  # units of the last hidden layer for each class; with fewer, classes get into each other's way


class MlpHead:
    """Layers of relu and dropout, then logits; the weights kept are those of the best validation accuracy.

    Below them stands standardisation, or, in "bn-mlp...", BatchNormalization.
    """

    refits = False
    keeps_train_alone = True

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.batch_normalization = config.head.startswith("bn-")
        self.widths = [int(width) for width in config.head.removeprefix("bn-").removeprefix("mlp").split("-")]
        self.model: keras.Model | None = None

    @property
    def trainable_parameters(self) -> int:
        """As `Head.trainable_parameters`."""
        return 0 if self.model is None else sum(math.prod(weight.shape) for weight in self.model.trainable_weights)

    @property
    def n_features(self) -> int:
        """As `Head.n_features`."""
        return 0 if self.model is None else int(self.model.input_shape[1])

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`; without validation images the last epoch counts."""
        config = self.config
        keras = runtime.keras()
        start = time.perf_counter()
        keras.utils.set_random_seed(config.seed)
        model = self.model = self._build(train, n_classes)
        batch_size, epochs = config.batch_size or default_batch_size(len(train)), config.epochs or 1
        schedule = learning_rates(
            config.schedule, config.learning_rate or 0, epochs * max(1, round(len(train) / batch_size))
        )
        optimizer = self._optimizer(model, schedule)
        passes = Passes(self._step(model, optimizer, train, n_classes), train, batch_size, config.seed)
        watch = Watch(1, config.patience, config.schedule)
        report = FitReport(chosen={"batch_size": batch_size}, chose_by_val=len(val) > 0)
        best = model.get_weights()
        with progress("Training", epochs, "epochs") as advance:
            for epoch in range(1, epochs + 1):
                rate = float(optimizer.learning_rate) * float(optimizer.factor)
                row = {"epoch": epoch, "learning_rate": rate, "loss": float(passes.epoch()[0])}
                if len(val):
                    found = scores(predict(self, val), val.labels)
                    row |= {"val_loss": found["log_loss"], "val_accuracy": found["accuracy"]}
                report.history.append({**row, "seconds": time.perf_counter() - start})
                advance(1)
                if not np.isfinite(row["loss"]):
                    report.notes.append(f"The loss was not a finite number in epoch {epoch}; training ended there")
                    break
                accuracy = np.array([row["val_accuracy"]]) if len(val) else None
                if watch.update(np.array([row.get("val_loss", row["loss"])]), accuracy)[0]:
                    best = model.get_weights()
                if watch.finished:
                    break
                optimizer.factor.assign(watch.reductions[0])
        if not watch.best_epoch[0]:
            raise diverged(config.learning_rate, config.l2)
        model.set_weights(best)
        kept = f"epoch {watch.best_epoch[0]} is kept, the best on val" if len(val) else "the last one is kept"
        report.notes.append(f"{counted(len(report.history), 'epoch')}; {kept}")
        if self.widths[-1] < (least := WIDTHS_A_CLASS * n_classes):
            report.notes.append(
                f"{self.widths[-1]:,} units in the last hidden layer are narrow for {n_classes:,} classes; "
                f"take {least:,} or more"
            )
        return report

    def _optimizer(self, model: keras.Model, schedule: Any) -> keras.optimizers.Optimizer:
        """The optimizer, with which kernels alone decay."""
        decay = self.config.l2 if self.config.optimizer == "adamw" else None
        variables = model.trainable_variables
        decays = [decay if variable.name == "kernel" else None for variable in variables]
        optimizer = optimizer_with_rates(self.config.optimizer, schedule, [1.0] * len(variables), decays)
        optimizer.build(variables)
        return optimizer

    def _step(self, model: keras.Model, optimizer: Any, train: Part, n_classes: int) -> Any:
        """One update, for a batch."""
        tf = runtime.tensorflow()
        config = self.config
        loss = sparse_loss(n_classes, config.label_smoothing or 0.0, reduction=None)
        of_class = tf.constant(class_weights(train.labels, n_classes, config.class_weight), tf.float32)
        penalty = 0.0 if config.optimizer == "adamw" else (config.l2 or 0.0) / 2
        kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]

        def step(features: Any, labels: Any, _: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(features, training=True)
                each = loss(labels[:, None] if n_classes == 2 else labels, logits)
                value = tf.reduce_mean(tf.gather(of_class, labels) * each)
                if penalty:
                    value += penalty * tf.add_n([tf.reduce_sum(tf.square(kernel)) for kernel in kernels])
            optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
            return value

        return step

    def _build(self, train: Part, n_classes: int) -> keras.Model:
        layers = runtime.keras().layers
        config = self.config
        prepare = Preparation.fit(train, standardize=config.standardize, l2_normalize=config.l2_normalize)
        stack: list[Any] = [runtime.keras().Input((train.features.shape[1],)), *prepare.layers()]
        if self.batch_normalization:
            stack.append(self._normalization(train, prepare))
        for number, width in enumerate(self.widths, start=1):
            stack.append(layers.Dense(width, activation="relu", name=f"hidden_{number}"))
            stack.append(layers.Dropout(config.dropout or 0.0, name=f"dropout_{number}"))
        stack.append(layers.Dense(n_logits(n_classes), name="logits"))
        return runtime.keras().Sequential(stack, name="head")

    @staticmethod
    def _normalization(train: Part, prepare: Preparation) -> keras.Layer:
        """BatchNormalization whose statistics start at those of the training features.

        From 0 and 1 they would take as many steps to get there as a small set has in several epochs.
        """
        initial = runtime.keras().initializers.Constant
        found = Preparation.fit(train, standardize=True, l2_normalize=False)
        return runtime.keras().layers.BatchNormalization(
            momentum=BN_MOMENTUM,
            moving_mean_initializer=initial(((found.mean - prepare.mean) / prepare.scale).tolist()),
            moving_variance_initializer=initial(np.square(found.scale / prepare.scale).tolist()),
            name="batch_normalization",
        )

    def predict_proba(self, features: NDArray[np.floating], *, final: bool = True) -> NDArray[np.float64]:
        """As `Head.predict_proba`."""
        if self.model is None:
            raise not_fitted()
        # `predict` would set up a data set for every call, which took a fifth of the time of training.
        parts = np.split(features.astype(np.float32), range(PREDICTED, len(features), PREDICTED))
        return probabilities_of(np.concatenate([np.asarray(self.model.predict_on_batch(part)) for part in parts]))

    def gradients(self, features: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Head.gradients`, by automatic differentiation."""
        if self.model is None:
            raise not_fitted()
        tf = runtime.tensorflow()
        tensor = tf.constant(features.astype(np.float32))
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            logits = self.model(tensor, training=False)
            if logits.shape[1] == 1:
                logits = tf.concat([tf.zeros_like(logits), logits], axis=1)
            score = tf.gather(logits, labels, axis=1, batch_dims=1) - tf.reduce_mean(logits, axis=1)
        found: NDArray[np.float32] = tape.gradient(score, tensor).numpy()
        return found

    def refit(self, both: Part) -> None:
        """As `Head.refit`: the best epoch can't be told on images that were trained on, so nothing is done."""

    def layers(self, *, final: bool = False) -> list[keras.Layer]:
        """As `Head.layers`."""
        if self.model is None:
            raise not_fitted()
        return list(self.model.layers)

    def save(self, folder: Path) -> None:
        """As `Head.save`: a `.keras` file."""
        if self.model is None:
            raise not_fitted()
        self.model.save(disk.change("write", folder / FILE))

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> MlpHead:
        """As `Head.load`, in Keras's safe mode, which runs no code from the file."""
        head = cls(config)
        try:
            head.model = keras_model(folder / FILE)
        except Exception as error:  # Keras, zipfile and h5py raise many kinds
            raise damaged(folder / FILE, error) from error
        return head
