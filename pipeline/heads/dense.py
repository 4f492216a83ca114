"""Dense heads in Keras: linear, and multilayer perceptrons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.errors import RunError
from pipeline.heads.base import FitReport, HeadConfig, probabilities_of, standard_scale
from pipeline.progress import progress
from pipeline.table import Part

if TYPE_CHECKING:
    import keras

__all__ = ["DenseHead", "accuracy_of_logits", "n_logits", "sparse_loss"]

FILE = "head.keras"


def n_logits(n_classes: int) -> int:
    """Two classes need one logit, that of the second."""
    return 1 if n_classes == 2 else n_classes


def sparse_loss(n_classes: int) -> Any:
    """Cross-entropy of class indices and logits."""
    losses = runtime.keras().losses
    if n_classes == 2:
        return losses.BinaryCrossentropy(from_logits=True)
    return losses.SparseCategoricalCrossentropy(from_logits=True)


def accuracy_of_logits(n_classes: int) -> Any:
    """Share of right predictions; Keras's own "accuracy" would take one logit for a probability."""
    metrics = runtime.keras().metrics
    if n_classes == 2:
        return metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    return metrics.SparseCategoricalAccuracy(name="accuracy")


class DenseHead:
    """Standardisation, then layers of relu and dropout, then logits; Adam with early stopping."""

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.trainable_parameters = 0
        self.model: keras.Model | None = None

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`; the weights kept are those of the epoch with the lowest validation loss."""
        keras = runtime.keras()
        keras.utils.set_random_seed(self.config.seed)
        features = train.features.astype(np.float32)
        self.model = self._build(features, n_classes)
        self.model.compile(
            optimizer=keras.optimizers.Adam(self.config.learning_rate),
            loss=sparse_loss(n_classes),
            metrics=[accuracy_of_logits(n_classes)],
        )
        watched = "val_loss" if len(val) else "loss"
        callbacks = [
            keras.callbacks.EarlyStopping(watched, patience=self.config.patience, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(watched, factor=0.3, patience=max(1, self.config.patience // 2)),
        ]
        with progress("Training", self.config.epochs, "epochs") as advance:
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, **__: advance(1)))
            fitted = self.model.fit(
                features,
                train.labels,
                batch_size=self.config.batch_size or _batch_size(len(train)),
                epochs=self.config.epochs,
                validation_data=(val.features.astype(np.float32), val.labels) if len(val) else None,
                validation_batch_size=1024,
                callbacks=callbacks,
                verbose=0,
            )
        self.trainable_parameters = self._count()
        report = FitReport()
        n_epochs = len(fitted.epoch)
        report.history = [
            {"epoch": epoch + 1, **{name: float(values[epoch]) for name, values in fitted.history.items()}}
            for epoch in range(n_epochs)
        ]
        losses = fitted.history[watched]
        if not np.isfinite(losses).any():
            raise RunError(
                f"The loss was never a finite number with --learning-rate {self.config.learning_rate:g}; lower it"
            )
        report.notes.append(f"{n_epochs} epochs, best {int(np.nanargmin(losses)) + 1} by {watched}")
        if len(val):
            report.val_probabilities = self.predict_proba(val.features)
        return report

    def _build(self, features: NDArray[np.float32], n_classes: int) -> keras.Model:
        keras = runtime.keras()
        mean = features.mean(axis=0, dtype=np.float64)
        variance = standard_scale(features.std(axis=0, dtype=np.float64)) ** 2
        standardise = keras.layers.Normalization(mean=mean, variance=variance, name="standardise")
        layers: list[Any] = [keras.Input((features.shape[1],)), standardise]
        for number, width in enumerate(self.config.widths or (), start=1):
            layers.append(keras.layers.Dense(width, activation="relu", name=f"hidden_{number}"))
            layers.append(keras.layers.Dropout(self.config.dropout, name=f"dropout_{number}"))
        layers.append(keras.layers.Dense(n_logits(n_classes), name="logits"))
        return keras.Sequential(layers, name="head")

    def _count(self) -> int:
        return sum(int(np.prod(weight.shape)) for weight in self._fitted().trainable_weights)

    def _fitted(self) -> keras.Model:
        if self.model is None:
            raise RunError("The head is not fitted yet; call fit first")
        return self.model

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """As `Head.predict_proba`."""
        return probabilities_of(self._fitted().predict(features.astype(np.float32), batch_size=1024, verbose=0))

    def layers(self) -> list[keras.Layer]:
        """As `Head.layers`."""
        return list(self._fitted().layers)

    def save(self, folder: Path) -> None:
        """As `Head.save`: a `.keras` file."""
        self._fitted().save(folder / FILE)

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> DenseHead:
        """Read what `save` wrote, in Keras's safe mode, which runs no code from the file.

        Raises:
            RunError: If the file is missing or damaged.
        """
        head = cls(config)
        try:
            head.model = runtime.keras().models.load_model(folder / FILE, compile=False, safe_mode=True)
        except Exception as error:  # Keras, zipfile and h5py raise many kinds
            raise RunError(f"{folder / FILE} can't be read: {error}; train the head again") from error
        head.trainable_parameters = head._count()
        return head


def _batch_size(n_train: int) -> int:
    """About 20 steps an epoch, a power of two from 16 to 256."""
    return int(2 ** np.clip(np.round(np.log2(max(1, n_train / 20))), 4, 8))
