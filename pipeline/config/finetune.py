"""What is fine-tuned, and how."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.extract import OPERATIONS, check_views
from pipeline.config.head import SCHEDULES
from pipeline.errors import ConfigError
from pipeline.util.options import (
    COUNT,
    COUNT_OR_NONE,
    FACTOR,
    POSITIVE,
    SEED,
    SEED_HELP,
    SHARE,
    Bounds,
    check,
    option,
    parse_memory,
)


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What is fine-tuned, and how.

    Source: of the decoupled weight decay Loshchilov and Hutter 2019, arXiv:1711.05101; of mixup Zhang et al. 2018,
        arXiv:1710.09412; of the average of the weights Polyak and Juditsky 1992, SIAM Journal on Control and
        Optimization 30, p. 838.
    """

    # None is the top block; of a model of one's own, all of it.
    blocks: str | None = option(
        None, "Block or layer to train with all above it (the top block); blocks joined by commas; all; none."
    )
    epochs: int = option(5, "Most passes over the training images.", bounds=COUNT)
    batch_size: int = option(32, "Images in a step.", bounds=COUNT)  # of several GPUs, all together
    accumulate: int = option(1, "Steps whose gradients make one update.", bounds=COUNT)
    learning_rate: float = option(1e-4, "At its highest.", bounds=Bounds(POSITIVE, 1, "a number above 0 and up to 1"))
    backbone_lr_scale: float = option(1.0, "Factor of it below the head.", bounds=FACTOR)
    layer_decay: float = option(1.0, "Further factor for each block further down.", bounds=FACTOR)
    warm_up: float = option(0.1, "Share of the steps in which the rate rises.", bounds=SHARE)
    schedule: str = option("cosine", "What the rate does then.", legal=SCHEDULES)
    weight_decay: float = option(0.004, "Of kernels, as AdamW does it.", bounds=Bounds(0, 10, "0 to 10"))
    label_smoothing: float = option(0.0, "Share of a label that is spread over all classes.", bounds=SHARE)
    mixup: float = option(
        0.0,
        "Mix pairs of images, by shares from a beta distribution of this alpha.",
        bounds=Bounds(0, 10, "0 to 10"),
    )
    ema: float = option(
        0.0,
        "Average the weights over the steps, each of which keeps this share of the average (such as 0.999); what is "
        "rated and saved is the average.",
        bounds=SHARE,
    )
    views: int = option(0, "Augmented versions of each image, cached at the cut beside it.", bounds=COUNT_OR_NONE)
    augment: str | None = option(
        None,
        "How --views are made (flip,crop), several joined by commas; without --views new ones are made in each epoch, "
        "and run through the frozen part every time.",
        legal=OPERATIONS,
        several=True,
    )
    train_bn: bool = option(
        False,
        "Train BatchNormalization, too. Its statistics then follow batches that are small and few, which mostly costs "
        "accuracy.",
    )
    remat: bool = option(False, "Compute activations twice instead of holding them: less memory, more time.")
    cold_head: bool = option(False, "Draw the head's weights anew. Its first gradients spoil what lies below.")
    weights: str | None = option(
        None,
        "random: train the whole network from scratch, for comparison (with --blocks all).",
        legal=("random",),
    )
    # Half as many until a plateau of the validation loss cuts the rate.
    patience: int = option(3, "Epochs without a lower validation loss until the end.", bounds=COUNT)
    seed: int = option(0, SEED_HELP, bounds=SEED)

    def __post_init__(self) -> None:
        check(self)
        check_views(self.views, self.augment)
        if self.weights is not None and self.blocks != "all":
            raise ConfigError("--weights random trains from scratch, which needs --blocks all")
        if self.remat and self.train_bn:
            raise ConfigError(
                "--remat with --train-bn would update the statistics of BatchNormalization twice in each step; "
                "leave one of them out"
            )
        if self.remat and self.weights:
            raise ConfigError("--remat with --weights random: training from scratch trains BatchNormalization, too")

    @property
    def drawn_anew(self) -> bool:
        """Whether the training images are read in every epoch, each time in another version."""
        return bool(self.augment and not self.views)


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Where fine-tuning starts, and how it goes on."""

    head_run: str | None = option(None, "Run of train-head or sweep to start from. [default: the newest]")
    head: str | None = option(None, "Train this head first, on the frozen features, and start from it.")
    features: str | None = option(None, "Features that --head is trained on. [default: the newest pooled]")
    memory: int | None = option(
        None,
        "Activations that may be held, such as 1GB; more stays on disk. [default: half of the machine's memory]",
        parse=parse_memory,
    )
    resume: bool = option(False, "Go on after the last whole epoch of the same command.")
    tensorboard: bool = option(False, "Write logs for TensorBoard, too.")
    name: str | None = option(None, "A name for the run, which finds it again.")
    on: str | None = option(
        None, "Where it is trained, each run on a GPU or a node: ray, or a cluster ray://host:10001. [default: here]"
    )

    def __post_init__(self) -> None:
        if self.head_run and self.head:
            raise ConfigError(f"--head-run {self.head_run} and --head {self.head}: give one of them")
        if self.features and not self.head:
            raise ConfigError(f"--features {self.features} needs --head: which head to train on them first")
