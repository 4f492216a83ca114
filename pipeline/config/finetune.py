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
        None,
        "What to train: a block or layer with everything above it, blocks joined by commas, all, or none (the head "
        "alone). [default: the top block]",
    )
    epochs: int = option(5, "Maximum number of passes over the training images.", bounds=COUNT)
    batch_size: int = option(32, "Images per training step.", bounds=COUNT)  # of several GPUs, all together
    accumulate: int = option(1, "Number of steps whose gradients are averaged for one update.", bounds=COUNT)
    learning_rate: float = option(
        1e-4,
        "Highest learning rate, reached after the warm-up.",
        bounds=Bounds(POSITIVE, 1, "a number above 0 and up to 1"),
    )
    backbone_lr_scale: float = option(1.0, "Factor on the learning rate of all layers below the head.", bounds=FACTOR)
    layer_decay: float = option(
        1.0, "Further factor on the learning rate for each block down from the top block.", bounds=FACTOR
    )
    warm_up: float = option(0.1, "Share of all steps during which the learning rate rises from 0.", bounds=SHARE)
    schedule: str = option("cosine", "How the learning rate changes after the warm-up.", legal=SCHEDULES)
    weight_decay: float = option(
        0.004, "Weight decay of kernels, decoupled from the gradients as in AdamW.", bounds=Bounds(0, 10, "0 to 10")
    )
    label_smoothing: float = option(0.0, "Share of each label that is spread evenly over all classes.", bounds=SHARE)
    mixup: float = option(
        0.0,
        "Alpha of mixup, which blends pairs of images and their labels; 0 leaves mixup out.",
        bounds=Bounds(0, 10, "0 to 10"),
    )
    ema: float = option(
        0.0,
        "Decay of a moving average of the weights, such as 0.999; the averaged weights are rated and saved. 0 turns it "
        "off.",
        bounds=SHARE,
    )
    views: int = option(
        0,
        "Number of augmented versions of each image whose activations are cached and trained on.",
        bounds=COUNT_OR_NONE,
    )
    augment: str | None = option(
        None,
        f"Operations that make the augmented versions, joined by commas: {', '.join(OPERATIONS)}. Without --views, new "
        "versions are made in every epoch and run through the frozen part each time.",
        legal=OPERATIONS,
        several=True,
    )
    train_bn: bool = option(
        False,
        "Also train BatchNormalization layers; as their statistics then come from small and few batches, this usually "
        "costs accuracy.",
    )
    remat: bool = option(
        False, "Compute activations twice instead of keeping them, which takes less memory and more time."
    )
    cold_head: bool = option(
        False, "Start with random weights in the head; its first gradients then disturb the layers below."
    )
    weights: str | None = option(
        None,
        "random trains the whole network from scratch, for comparison (needs --blocks all).",
        legal=("random",),
    )
    # Half as many until a plateau of the validation loss cuts the rate.
    patience: int = option(3, "Epochs without a lower validation loss after which training stops.", bounds=COUNT)
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

    head_run: str | None = option(None, "Run of train-head or sweep whose head to start from. [default: the newest]")
    head: str | None = option(None, "Kind of head to train first, on the frozen features, and to start from.")
    features: str | None = option(None, "Id of the features to train --head on. [default: the newest pooled features]")
    memory: int | None = option(
        None,
        "Activations to hold in memory at most, such as 1GB; the rest stays on disk. "
        "[default: half of the machine's memory]",
        parse=parse_memory,
    )
    resume: bool = option(False, "Continue after the last complete epoch of the same command.")
    tensorboard: bool = option(False, "Also write logs for TensorBoard.")
    name: str | None = option(None, "Name for the run, by which it can be found again.")
    on: str | None = option(
        None,
        "Ray cluster to train on, each run on a GPU or node of its own: ray, or an address ray://host:10001. "
        "[default: this machine]",
    )

    def __post_init__(self) -> None:
        if self.head_run and self.head:
            raise ConfigError(f"--head-run {self.head_run} and --head {self.head}: give one of them")
        if self.features and not self.head:
            raise ConfigError(f"--features {self.features} needs --head: which head to train on them first")
