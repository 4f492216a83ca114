"""Which features are extracted from what, and how pictures become pixels."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import ConfigError
from pipeline.util.options import (
    COUNT,
    COUNT_OR_NONE,
    SEED,
    SEED_HELP,
    SHARE,
    Bounds,
    check,
    option,
    option_name,
    parse_image_size,
)
from pipeline.util.text import sides

POOLINGS = ("avg", "max", "none")
RESIZES = ("stretch", "pad", "crop")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
ENGINES = ("auto", "tensorflow", "openvino", "jax")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")

OPERATIONS = ("flip", "crop", "rotate", "zoom", "brightness", "contrast")

BACKBONE = "densenet121"
"""The default backbone."""

DATA_HELP = (
    "A folder class/*.jpg, {train,val,test}/class/*.jpg, or *.jpg without labels; a .csv, .tsv or .parquet with the "
    "columns path and perhaps label, split and group; Parquet files with the pictures inside, or tars of .jpg and .cls "
    "(a folder, a list a.tar,b.tar, or a pattern shard-{000..009}.tar); an .npz; a folder of train_images.npy, "
    "train_labels.npy, ...; digits, cifar10 or cifar100."
)
PIXELS = Bounds(1, 10**12, "a number of pixels above 0")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a file becomes pixels.

    Attributes:
        image_size: (height, width), pixels.
        resize: "stretch", "pad" (white, centred) or "crop" (centred).
        interpolation: "bicubic", "bilinear", "nearest" or "lanczos".
        pixel_limit: Images of more pixels than this are refused.
    """

    image_size: tuple[int, int]
    resize: str = option("stretch", "How pictures are brought to the size.", legal=RESIZES)
    interpolation: str = option("bicubic", "How pixels are interpolated.", legal=INTERPOLATIONS)
    pixel_limit: int = option(200_000_000, "Refuse images of more pixels.", bounds=PIXELS)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of a manifest; None where it is one of the common names.

    Attributes:
        path_column: Where each picture lies.
        label_column: Its class.
        split_column: Its split.
        group_column: What it must not be parted from.
        image_column: The pictures themselves, in Parquet files that hold them.
        label_key: Key of the label in members of tars that are JSON.
    """

    path_column: str | None = option(None, "Column of a manifest that holds the paths.")
    label_column: str | None = option(None, "Column that holds the labels.")
    split_column: str | None = option(None, "Column that holds the splits.")
    group_column: str | None = option(None, "Column of what must stay on one side of a split: patient, camera, scene.")
    image_column: str | None = option(None, "Column of Parquet files that holds the pictures themselves.")
    label_key: str | None = option(None, "Key of the label in the .json members of tars.")


NOT_OF_PREDICT = ("label_column", "split_column", "group_column", "label_key")
"""Columns that mean nothing where pictures are only labelled."""

COMMON = Columns()
"""Columns of a manifest by their common names."""


@dataclass(frozen=True)
class SplitConfig:
    """How splits are carved that the source doesn't have.

    Attributes:
        val_fraction: Share of the training images that becomes `val`.
        test_fraction: Share of the images of `test_from` that becomes `test`.
        test_from: "train" or "val".
        seed: Another seed draws other images.
    """

    val_fraction: float = option(0.15, "Share for val, if the data has none.", bounds=SHARE)
    test_fraction: float = option(0.15, "Share for test, if the data has none.", bounds=SHARE)
    test_from: str = option("train", "Split that test is taken from.", legal=("train", "val"))
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.test_from == "train" and self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"--val-fraction {self.val_fraction:g} and --test-fraction {self.test_fraction:g} leave nothing to "
                "train on; together they must stay below 1"
            )


def check_views(views: int, augment: str | None) -> None:
    """Refuse views that could only repeat others.

    Raises:
        ConfigError: If there are more views than the operations can make.
    """
    if augment == "flip" and views > 1:
        raise ConfigError(
            f"--views {views} with --augment flip would repeat the mirror image; use --views 1, or add crop"
        )


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract from what; what a record keeps of it repeats the extract.

    Attributes:
        data: A folder, a manifest, an array file, or a built-in name.
        backbone: Name in the table of backbones, or a `.keras` file.
        weights: "imagenet", "random", or a file.
        image_size: (height, width), pixels; None for the backbone's native size.
        endpoint: Block or layer, several joined by "+"; None for the last feature map.
        pooling: "avg", "max" or "none".
        resize: As in `ImageConfig`.
        interpolation: As in `ImageConfig`.
        pixel_limit: As in `ImageConfig`.
        views: Number of augmented views beside the image itself.
        augment: Operations that make a view, joined by commas; None where there are no views.
        engine: "auto", "tensorflow", "openvino" or "jax".
        precision: "auto", "float32", "bfloat16", "float16" or "int8".
        dtype: Type of stored features; None for float32, or float16 without pooling, if weights are not random.
        splits: How missing splits are carved.
        seed: Seed of random weights.
        columns: Which columns of a manifest are read.
        group_duplicates: Whether near duplicates, too, are kept on one side of a split.
    """

    data: str = option("digits", DATA_HELP, argument=True)
    backbone: str = option(BACKBONE, "A name from `tlpipe backbones`, a .keras file, or a fine-tuned run: reports/RUN.")
    weights: str = option("imagenet", "imagenet, random, or a .h5 or .keras file.")
    image_size: tuple[int, int] | None = option(
        None, "Pixels: 224, or 192x256 (height x width). [default: the backbone's own]", parse=parse_image_size
    )
    endpoint: str | None = option(
        None, "Block or layer to take; several joined by +: conv4+conv5. [default: the last feature map]"
    )
    pooling: str = option("avg", "How height and width are pooled.", legal=POOLINGS)
    resize: str = option("stretch", "How pictures are brought to the size; pad with white.", legal=RESIZES)
    interpolation: str = option("bicubic", "How pixels are interpolated.", legal=INTERPOLATIONS)
    pixel_limit: int = option(200_000_000, "Refuse images of more pixels.", bounds=PIXELS)
    views: int = option(0, "Augmented versions of each image to cache beside it.", bounds=COUNT_OR_NONE)
    augment: str | None = option(
        None, "How versions are made: several joined by commas.", legal=OPERATIONS, several=True
    )
    engine: str = option("auto", "What computes the features.", legal=ENGINES)
    precision: str = option("auto", "Precision of the engine.", legal=PRECISIONS)
    dtype: str | None = option(
        None,
        "Type of stored features. [default: float32, and float16 for activations of trained weights]",
        legal=("float32", "float16"),
    )
    splits: SplitConfig = field(default_factory=SplitConfig)
    seed: int = option(0, SEED_HELP, bounds=SEED)
    columns: Columns = field(default_factory=Columns)
    group_duplicates: bool = option(False, "Keep near duplicates on one side of a split, too.")

    def __post_init__(self) -> None:
        check(self)
        if self.augment and not self.views:
            raise ConfigError(f"--augment {self.augment} needs --views: how many augmented versions of each image")
        if self.views and not self.augment:
            raise ConfigError(f"--views {self.views} needs --augment, such as --augment flip,crop")
        check_views(self.views, self.augment)
        if self.dtype == "float16" and self.weights == "random":
            raise ConfigError(
                "--dtype float16 can't hold features of random weights, which shrink from layer to layer as nothing "
                "brings them to a scale; leave it out"
            )

    def columns_of(self, data: str) -> Columns:
        """Which columns are read of some data: those of this extract, if it is the same."""
        return self.columns if data == self.data else COMMON

    def options(self, **other: str) -> list[str]:
        """The options on the command line that give this, with some of them changed."""
        words: list[str] = []
        values = {**asdict(self), **asdict(self.splits), **asdict(self.columns), "seed": self.seed}
        defaults = {**asdict(ExtractConfig()), **asdict(SplitConfig()), **asdict(COMMON)}
        for name, value in {**values, **other}.items():
            if name in ("data", "splits", "columns") or value == defaults[name]:
                continue
            text = sides(value) if name == "image_size" else str(value)
            words += [option_name(name)] if value is True else [option_name(name), text]
        return words

    def command(self, **other: str) -> str:
        """The command line that extracts this, with some options changed."""
        return shlex.join(["tlpipe", "extract", self.data, *self.options(**other)])

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How an extract is run; nothing of it changes a feature.

    Attributes:
        batch_size: Images in a batch; None for what did best.
        workers: Decoding threads; None for one a processor.
        rehash: Whether all files are read again, even if they look unchanged.
        strict: Whether images that can't be read are an error, after all others were stored.
        again: Whether all options are taken from the newest extract of the same data.
    """

    batch_size: int | None = option(None, "Images in a batch. [default: what did best]", bounds=COUNT)
    workers: int | None = option(None, "Decoding threads. [default: one a processor]", bounds=COUNT)
    rehash: bool = option(False, "Read all files again, even if they look unchanged.")
    strict: bool = option(False, "Exit with 1 if images can't be read.")
    again: bool = option(False, "Take all options from the newest extract of the same data.")

    def __post_init__(self) -> None:
        check(self)
