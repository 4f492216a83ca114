"""A step of fine-tuning: what is done with its images, its loss, and the update of each layer at a rate of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FinetuneConfig
from pipeline.extraction.engines import Engine, call
from pipeline.training.batches import Prepare
from pipeline.training.optimizer import accuracy_of_logits, learning_rates, optimizer_with_rates, soft_loss, sparse_loss

if TYPE_CHECKING:
    import keras


def targets_of(config: FinetuneConfig, labels: NDArray[np.int64], n_classes: int) -> NDArray[Any]:
    """What the loss compares with: class indices [n], or, where images are mixed, shares of the classes [n, logits]."""
    if not config.mixup:
        return labels
    shares: NDArray[np.float32] = np.eye(n_classes, dtype=np.float32)[labels]
    return shares[:, 1:] if n_classes == 2 else shares


def objective(config: FinetuneConfig, n_classes: int) -> dict[str, Any]:
    """Loss and metrics, as `compile` takes them; of mixed images an accuracy would mean little."""
    if config.mixup:
        return {"loss": soft_loss(n_classes, config.label_smoothing)}
    return {"loss": sparse_loss(n_classes, config.label_smoothing), "metrics": [accuracy_of_logits(n_classes)]}


def preparation(config: FinetuneConfig, engine: Engine | None, epoch: int) -> Prepare | None:
    """What is done with a batch of images before the step: they are mixed, then run through the part that stays frozen.

    All of it happens in the threads that decode, ahead of the step.

    Args:
        config: How.
        engine: Gives the activations at the cut; None where inputs go into the trained model as they are.
        epoch: Number of the epoch, on which the mixing depends.
    """
    if engine is None and not config.mixup:
        return None
    turn = threading.Lock()  # one batch takes all that computes

    def prepare(number: int, images: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if config.mixup:
            images, targets = mixed(images, targets, config.mixup, np.random.default_rng((config.seed, epoch, number)))
        if engine is not None:
            with turn:
                images = call(engine, images)
        return images, targets

    return prepare


def mixed(
    images: NDArray[np.uint8], shares: NDArray[np.float32], alpha: float, draw: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Images and labels mixed in pairs by the same shares; Zhang et al. 2018, arXiv:1710.09412.

    Args:
        images: uint8 [n, height, width, 3].
        shares: Of the classes, [n, logits].
        alpha: Of the beta distribution that the shares of a pair come from.
        draw: The generator.
    """
    other = draw.permutation(len(images))
    own = draw.beta(alpha, alpha, (len(images), 1)).astype(np.float32)
    of_pixels = own[:, :, None, None]
    joint = np.rint(of_pixels * images + (1 - of_pixels) * images[other]).astype(np.uint8)
    return joint, own * shares + (1 - own) * shares[other]


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
) -> keras.optimizers.Optimizer:
    """AdamW with a rate for each layer: the head's, times the scale of the backbone, times the decay of its block.

    Args:
        stepped: The model that is compiled.
        trained: The model whose layers these are.
        depths: Of each layer of the backbone, the number of blocks above its own.
        config: How.
        schedule: What `schedule_of` gave.
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
        gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
        use_ema=config.ema > 0,
        ema_momentum=config.ema,
    )
    optimizer.build(variables)
    return optimizer
