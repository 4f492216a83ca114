"""What is fine-tuned, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import one_of
from pipeline.data.augment import Augment
from pipeline.errors import ConfigError

SCHEDULES = ("cosine", "plateau", "none")
MOST = 100_000  # of anything that is counted


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What is fine-tuned, and how.

    Attributes:
        blocks: Block or layer, which is trained with all above it; blocks joined by commas; "all" or "none". None for
            the top block, or for all of a model of one's own.
        epochs: Most passes over the training images.
        batch_size: Images in a step; of several GPUs, all together.
        accumulate: Steps whose gradients are averaged for one update.
        learning_rate: Of the head, at its highest.
        backbone_lr_scale: Factor of it for the backbone.
        layer_decay: Further factor from each block to the one below.
        warm_up: Share of all steps in which the rate rises from 0.
        schedule: What it does then: falls to 0 as a "cosine", is cut on a "plateau" of the validation loss, or "none".
        weight_decay: Decoupled, of kernels (AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101).
        label_smoothing: Share of each label that is spread over all classes.
        mixup: Alpha of the beta distribution by which pairs of images are mixed (Zhang et al. 2018,
            arXiv:1710.09412); 0 for none. End to end only.
        views: Cached augmented views of each training image beside the image itself.
        augment: Operations that make views; without views, done to the images of each step, end to end.
        train_bn: Whether BatchNormalization is trained, and follows the batches.
        remat: Whether activations are computed again in the backward pass instead of held.
        cold_head: Whether the head's weights are drawn anew.
        weights: "random" to train from scratch; None to start from the backbone of the features.
        patience: Epochs without a lower validation loss until the end; half as many until "plateau" cuts the rate.
        seed: Of order, dropout, augmentation and all that is drawn.
    """

    blocks: str | None = None
    epochs: int = 5
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-4
    backbone_lr_scale: float = 1.0
    layer_decay: float = 1.0
    warm_up: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.004
    label_smoothing: float = 0.0
    mixup: float = 0.0
    views: int = 0
    augment: str | None = None
    train_bn: bool = False
    remat: bool = False
    cold_head: bool = False
    weights: str | None = None
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        share = "a share from 0 up to, but not including, 1"
        for option, number, least in (
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 1),
            ("--accumulate", self.accumulate, 1),
            ("--views", self.views, 0),
            ("--patience", self.patience, 1),
        ):
            if not least <= number <= MOST:
                raise ConfigError(f"{option} is {number}; give {least} to {MOST:,}")
        for option, value, holds, legal in (
            ("--learning-rate", self.learning_rate, 0 < self.learning_rate < 1, "a number above 0 and below 1"),
            ("--backbone-lr-scale", self.backbone_lr_scale, 0 < self.backbone_lr_scale <= 1, "above 0 and up to 1"),
            ("--layer-decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and up to 1"),
            ("--warm-up", self.warm_up, 0 <= self.warm_up < 1, share),
            ("--weight-decay", self.weight_decay, 0 <= self.weight_decay < 10, "0 or more, below 10"),
            ("--label-smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, share),
            ("--mixup", self.mixup, 0 <= self.mixup <= 10, "0 to 10"),
        ):
            if not holds:
                raise ConfigError(f"{option} is {value}; give {legal}")
        one_of("--schedule", self.schedule, SCHEDULES)
        if self.augment is not None:
            augment = Augment.parse(self.augment)
            if self.views:
                augment.check(self.views)
        if self.weights is not None:
            one_of("--weights", self.weights, ("random",))
            if self.blocks != "all":
                raise ConfigError("--weights random trains from scratch, which needs --blocks all")
        if self.remat and self.train_bn:
            raise ConfigError(
                "--remat with --train-bn would update the statistics of BatchNormalization twice in each step; "
                "leave one of them out"
            )
        if self.remat and self.weights:
            raise ConfigError("--remat with --weights random: training from scratch trains BatchNormalization, too")

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)
