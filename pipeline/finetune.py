"""Fine-tuning of the top blocks, from activations that were cached at the cut below them.

With BatchNormalization in inference mode nothing below the first trainable layer changes, so its activations are the
same in every epoch, and are computed once.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.backbones import Unfrozen, tensor_of
from pipeline.errors import ConfigError, RunError
from pipeline.heads import Head, accuracy_of_logits, n_logits, probabilities_of, sparse_loss
from pipeline.parts import Part
from pipeline.progress import progress

if TYPE_CHECKING:
    import keras

__all__ = ["FinetuneConfig", "FinetuneModels", "Tuned", "assemble", "fit"]

WARM_UP = 0.1  # share of all steps in which the learning rate rises from 0

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What is fine-tuned, and how.

    Attributes:
        blocks: Block or layer; it and all above it are trained. None for the top block.
        epochs: Most passes over the training images.
        batch_size: Images in a step.
        learning_rate: Of AdamW at its highest; it rises over the first tenth of the steps, then falls as a cosine.
        patience: Epochs without a better validation accuracy until the end.
        seed: Of order and dropout.
    """

    blocks: str | None = None
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-4
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, holds, legal in (
            ("--epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("--batch-size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("--learning-rate", self.learning_rate, 0 < self.learning_rate < 1, "a number above 0 and below 1"),
            ("--patience", self.patience, self.patience >= 1, "1 or more"),
        ):
            if not holds:
                raise ConfigError(f"{option} is {value}; give {legal}")

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FinetuneModels:
    """One set of layers, seen as two models.

    Attributes:
        upper: From activations at the cut to logits: what is trained.
        whole: From uint8 images [n, height, width, 3] to logits.
        below_logits: The tensor that the last layer of `whole` reads.
        n_classes: Number of classes.
    """

    upper: keras.Model
    whole: keras.Model
    below_logits: Any
    n_classes: int

    def serving(self) -> keras.Model:
        """From uint8 images to probabilities [n, classes], with the weights as they are now.

        With two classes the one logit becomes a pair, of which the first is always 0: the same probabilities.
        """
        keras = runtime.keras()
        kernel, bias = (np.asarray(weight) for weight in self.whole.layers[-1].get_weights())
        if kernel.shape[1] < self.n_classes:
            kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
            bias = np.concatenate([np.zeros_like(bias), bias])
        dense = keras.layers.Dense(self.n_classes, activation="softmax", name="probabilities", dtype="float32")
        outputs = dense(self.below_logits)
        dense.set_weights([kernel, bias])
        return keras.Model(self.whole.inputs[0], outputs, name="classifier")

    def trainable_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(math.prod(weight.shape) for weight in self.upper.trainable_weights)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What fine-tuning gave.

    Attributes:
        history: A row for each epoch; epoch 0 is the start.
        best_epoch: Epoch whose weights were kept; 0 if none was better than the start.
        start: Probabilities of the images of each split before.
        end: And with the weights kept.
    """

    history: list[dict[str, float]]
    best_epoch: int
    start: dict[str, NDArray[np.float64]]
    end: dict[str, NDArray[np.float64]]


def assemble(features: keras.Model, unfrozen: Unfrozen, head: Head, n_classes: int) -> FinetuneModels:
    """Put a trained head on a backbone, and open the layers above the cut.

    BatchNormalization stays in inference mode, its scale and shift included: statistics of small batches would drift
    from what the layers above were trained with.

    Args:
        features: From uint8 images to features.
        unfrozen: The cut, and the layers that may be trained.
        head: Fitted on those features.
        n_classes: Number of classes.
    """
    keras = runtime.keras()
    logits = features.outputs[0]
    for layer in head.layers():
        below, logits = logits, layer(logits)
    if logits.shape[-1] != n_logits(n_classes):
        raise RunError(f"The head gives {logits.shape[-1]} logits, {n_classes} classes need {n_logits(n_classes)}")
    for layer in features.layers:
        frozen = layer.name not in unfrozen.layers or isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not frozen
    cut = tensor_of(features, unfrozen.cut)
    return FinetuneModels(keras.Model(cut, logits), keras.Model(features.inputs[0], logits), below, n_classes)


def _batches(part: Part, batch_size: int, seed: int | None) -> Any:
    """Activations in float32 batches; in another order each epoch if there is a seed.

    Keras would turn a float16 array into float32 as a whole.
    """
    keras = runtime.keras()

    class Batches(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.generator = np.random.default_rng(seed)
            self.order = np.arange(len(part)) if seed is None else self.generator.permutation(len(part))

        def __len__(self) -> int:
            return math.ceil(len(part) / batch_size)

        def __getitem__(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            rows = self.order[number * batch_size : (number + 1) * batch_size]
            return part.load(rows).astype(np.float32), part.labels[rows]

        def on_epoch_end(self) -> None:
            if seed is not None:
                self.order = self.generator.permutation(len(part))

    return Batches()


def fit(models: FinetuneModels, parts: dict[str, Part], config: FinetuneConfig) -> Tuned:
    """Train the upper model; the weights kept are those of the epoch with the best validation accuracy, start included.

    Args:
        models: What `assemble` gave.
        parts: Activations at the cut, of `train` and, where there are any, of `val` and `test`.
        config: How.

    Raises:
        RunError: If the loss diverges in the first epoch already.
    """
    keras = runtime.keras()
    keras.utils.set_random_seed(config.seed)
    train, val = parts["train"], parts.get("val")
    n_steps = config.epochs * math.ceil(len(train) / config.batch_size)
    warm_up = max(1, round(WARM_UP * n_steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_steps - warm_up), warmup_target=config.learning_rate, warmup_steps=warm_up
    )
    models.upper.compile(
        keras.optimizers.AdamW(schedule),
        sparse_loss(models.n_classes),
        metrics=[accuracy_of_logits(models.n_classes)],
    )

    def probabilities() -> dict[str, NDArray[np.float64]]:
        return {
            split: probabilities_of(models.upper.predict(_batches(part, 256, None), verbose=0))
            for split, part in parts.items()
            if split != "train"
        }

    start = probabilities()
    best = _KeepBest(models.upper, val, config.patience)
    with progress("Fine-tuning", n_steps, "steps") as advance:
        shown = keras.callbacks.LambdaCallback(
            on_epoch_end=best.on_epoch_end,
            on_train_batch_end=lambda *_, **__: advance(1),
        )
        fitted = models.upper.fit(
            _batches(train, config.batch_size, config.seed),
            epochs=config.epochs,
            validation_data=_batches(val, 256, None) if val else None,
            callbacks=[shown, keras.callbacks.TerminateOnNaN()],
            verbose=0,
        )
    if not np.isfinite(fitted.history["loss"][0]):
        raise RunError(f"The loss diverged in the first epoch; lower --learning-rate {config.learning_rate:g}")
    models.upper.set_weights(best.weights)
    names = list(fitted.history)
    history = [{"epoch": 0.0, **{name: best.start.get(name, float("nan")) for name in names}}]
    history += [
        {"epoch": epoch + 1.0, **{name: float(fitted.history[name][epoch]) for name in names}}
        for epoch in range(len(fitted.epoch))
    ]
    return Tuned(history, best.epoch, start, probabilities())


class _KeepBest:
    """Keeps the best weights, those of the start among them, and ends training when patience does."""

    def __init__(self, model: keras.Model, val: Part | None, patience: int) -> None:
        self.model = model
        self.patience = patience
        self.epoch = 0
        self.weights = model.get_weights()
        self.start: dict[str, float] = {}
        if val:
            loss, accuracy = model.evaluate(_batches(val, 256, None), verbose=0)
            self.start = {"val_loss": float(loss), "val_accuracy": float(accuracy)}
        self.score = self._score(self.start)

    @staticmethod
    def _score(logs: dict[str, float]) -> tuple[float, float]:
        """Accuracy first; of equals the one with the lower loss."""
        return (logs.get("val_accuracy", -math.inf), -logs.get("val_loss", math.inf))

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in logs.items() if name != "learning_rate")
        log.info("Epoch %d: %s", epoch + 1, figures)
        # Without validation images there is nothing to choose by: the last epoch that was sound counts.
        better = self._score(logs) > self.score if self.start else math.isfinite(logs["loss"])
        if better:
            self.epoch, self.score, self.weights = epoch + 1, self._score(logs), self.model.get_weights()
        elif epoch + 1 - self.epoch >= self.patience:
            self.model.stop_training = True
