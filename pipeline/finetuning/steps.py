"""A step of fine-tuning: what is done to its images, its loss, and the update of each layer at a rate of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FinetuneConfig
from pipeline.data.augment import MAX_ANGLE, STRENGTH, ZOOM, Augment
from pipeline.training.losses import accuracy_of_logits, soft_loss, sparse_loss
from pipeline.training.optimizer import learning_rates, optimizer_with_rates
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

SHIFT = 0.15  # of the picture's sides, before `crop` enlarges it


class Augmentation:
    """What is done to the images of a step, and the loss that fits it.

    Attributes:
        mixes: Whether images are mixed, so that labels are shares.
    """

    def __init__(self, config: FinetuneConfig, n_classes: int) -> None:
        self.config = config
        self.n_classes = n_classes
        self.mixes = config.mixup > 0
        on_the_fly = config.augment if not config.views else None
        self.layers = _layers(Augment.parse(on_the_fly), config.seed) if on_the_fly else []
        self.mixup = runtime.keras().layers.MixUp(config.mixup, seed=config.seed) if self.mixes else None

    def variables(self) -> list[keras.Variable]:
        """State of the random generators."""
        layers = [*self.layers, self.mixup] if self.mixup else self.layers
        return [variable for layer in layers for variable in layer.variables]

    def __call__(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Augment uint8 images [b, height, width, 3]; labels that are mixed are shares [b, logits], from `shares`."""
        if not self.layers and not self.mixup:
            return images, labels
        ops = runtime.keras().ops
        images = ops.cast(images, "float32")
        for layer in self.layers:
            images = layer(images, training=True)
        if self.mixup:
            mixed = self.mixup({"images": images, "labels": labels}, training=True)
            images, labels = mixed["images"], mixed["labels"]
        # The network takes bytes, in training as in serving.
        return ops.cast(ops.round(ops.clip(images, 0, 255)), "uint8"), labels

    def shares(self, labels: NDArray[np.int64]) -> NDArray[Any]:
        """Labels as the step takes them: class indices [n], or, to be mixed, shares [n, logits]."""
        if not self.mixes:
            return labels
        shares: NDArray[np.float32] = np.eye(self.n_classes, dtype=np.float32)[labels]
        return shares[:, 1:] if self.n_classes == 2 else shares

    def objective(self) -> dict[str, Any]:
        """Loss and metrics, as `compile` takes them; of mixed images an accuracy would mean little."""
        smoothing = self.config.label_smoothing
        if self.mixes:
            return {"loss": soft_loss(self.n_classes, smoothing)}
        return {
            "loss": sparse_loss(self.n_classes, smoothing),
            "metrics": [accuracy_of_logits(self.n_classes)],
        }


def _layers(augment: Augment, seed: int) -> list[keras.Layer]:
    """Keras's layers for the operations of cached views, of about the same strength, drawn anew for each step."""
    layers = runtime.keras().layers
    fill: dict[str, Any] = {"fill_mode": "reflect"}
    side = 2 * SHIFT
    whole, low, high = (0, 255), 1 - STRENGTH[0], STRENGTH[1] - 1
    made = {
        "flip": lambda seed: [layers.RandomFlip("horizontal", seed=seed)],
        "crop": lambda seed: [
            layers.RandomTranslation(SHIFT, SHIFT, seed=seed, **fill),
            layers.RandomZoom((-side, 0.0), (-side, 0.0), seed=seed + 1, **fill),
        ],
        "rotate": lambda seed: [layers.RandomRotation(MAX_ANGLE / 360, seed=seed, **fill)],
        "zoom": lambda seed: [layers.RandomZoom((ZOOM[0] - 1, 0.0), seed=seed, **fill)],
        "brightness": lambda seed: [layers.RandomBrightness((-low / 2, high / 2), value_range=whole, seed=seed)],
        "contrast": lambda seed: [layers.RandomContrast((low, high), value_range=whole, seed=seed)],
    }
    return [layer for number, name in enumerate(augment.operations) for layer in made[name](seed + 2 * number)]


def with_steps(model: keras.Model, augmentation: Augmentation) -> keras.Model:
    """The same layers, as a model whose training step augments its batch first."""

    class Stepped(runtime.keras().Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            images, labels = data[:2]
            return super().train_step(augmentation(images, labels))

    return Stepped(model.inputs[0], model.outputs[0])


def schedule_of(config: FinetuneConfig, n_steps: int) -> Any:
    """Learning rate of the head at each step, which Keras counts also where gradients are only added up.

    Args:
        config: How.
        n_steps: Steps in an epoch.
    """
    n_steps *= config.epochs
    warm_up = min(round(config.warm_up * n_steps), n_steps - 1)
    return learning_rates(config.schedule, config.learning_rate, n_steps, warm_up)


def optimizer_of(
    stepped: keras.Model,
    trained: keras.Model,
    depths: dict[str, int],
    config: FinetuneConfig,
    schedule: Any,
    factor: Any,
) -> keras.optimizers.Optimizer:
    """AdamW with a rate for each layer: the head's, times the scale of the backbone, times the decay of its block.

    Args:
        stepped: The model that is compiled.
        trained: The model whose layers these are.
        depths: Of each layer of the backbone, the number of blocks above its own.
        config: How.
        schedule: What `schedule_of` gave.
        factor: A variable by which all rates are multiplied.
    """
    rates = {
        id(variable): config.backbone_lr_scale * config.layer_decay ** depths[layer.name]
        for layer in trained.layers
        if layer.name in depths
        for variable in layer.trainable_variables
    }
    variables = stepped.trainable_variables
    optimizer = optimizer_with_rates(
        "adam",
        schedule,
        [rates.get(id(variable), 1.0) for variable in variables],
        [config.weight_decay if len(variable.shape) > 1 else None for variable in variables],
        factor=factor,
        gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
    )
    optimizer.build(variables)
    return optimizer
