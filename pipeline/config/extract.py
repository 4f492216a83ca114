"""Which features are extracted from what, and how pictures become pixels."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field

from pipeline.errors import ConfigError
from pipeline.util.options import (
    COUNT,
    COUNT_OR_NONE,
    SEED,
    SEED_HELP,
    SHARE,
    Bounds,
    check,
    one_of,
    option,
    options_of,
    parse_image_size,
    parse_numbers,
    parse_part,
    words_of,
)

POOLINGS = ("avg", "max", "none", "cls", "cls+avg")
RESIZES = ("stretch", "pad", "crop")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
ENGINES = ("auto", "tensorflow", "openvino", "jax", "onnxruntime")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")

OPERATIONS = ("flip", "crop", "rotate", "zoom", "brightness", "contrast")

BACKBONE = "densenet121"
"""The default backbone."""

DATA_HELP = (
    "A folder class/*.jpg, {train,val,test}/class/*.jpg, or *.jpg without labels; a .csv, .tsv or .parquet table with "
    "a column path and perhaps label, split and group; Parquet files with the pictures inside, or tars of .jpg and "
    ".cls (a folder, a list a.tar,b.tar, or a pattern shard-{000..009}.tar); an .npz file; a folder of "
    "train_images.npy, train_labels.npy, ...; or one of digits, cifar10 and cifar100."
)
PIXELS = Bounds(1, 10**12, "a number of pixels above 0")
PIXEL_LIMIT_HELP = "Images with more pixels than this are not read, but listed as unreadable."


def share_of_crop(resize: str) -> float:
    """The share of the middle, between 0 and 1, that is kept of both sides: of `crop0.9` 0.9, of others all.

    Raises:
        ConfigError: If there is no such resize.
    """
    if (match := re.fullmatch(r"crop(0?\.\d+)", resize)) and float(match[1]) > 0:
        return float(match[1])
    one_of("--resize", resize, RESIZES)
    return 1.0


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a file becomes pixels."""

    image_size: tuple[int, int]  # (height, width), pixels
    resize: str = option("stretch", "How pictures are fitted to the image size.")
    interpolation: str = option(
        "bicubic", "How pixels are interpolated when pictures are resized.", legal=INTERPOLATIONS
    )
    pixel_limit: int = option(200_000_000, PIXEL_LIMIT_HELP, bounds=PIXELS)

    def __post_init__(self) -> None:
        check(self)
        share_of_crop(self.resize)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a manifest (a table of images) are read, and which labels overrule those of the data.

    A column is None where it has one of the common names.
    """

    path_column: str | None = option(None, "Column of the table that holds the paths of the images.")
    label_column: str | None = option(None, "Column of the table that holds the labels.")
    split_column: str | None = option(None, "Column of the table that holds the splits: train, val or test.")
    group_column: str | None = option(
        None, "Column of the table whose groups (patients, cameras, scenes, ...) must not be divided between splits."
    )
    image_column: str | None = option(None, "Column of the Parquet files that holds the pictures themselves.")
    label_key: str | None = option(None, "Key of the label in the .json files inside tars.")
    labels: str | None = option(
        None,
        "Labels that overrule those of the data: a table with the columns path and label, or the labels.jsonl of "
        "`tlpipe label`. The label `drop` leaves a picture out.",
    )


NOT_OF_PREDICT = ("label_column", "split_column", "group_column", "label_key", "labels")
"""Columns that mean nothing where pictures are only labelled."""

COMMON = Columns()
"""Columns of a manifest by their common names, and no other labels."""


@dataclass(frozen=True)
class SplitConfig:
    """How splits are carved that the source doesn't have."""

    val_fraction: float = option(
        0.15, "Share of the training images to set aside for validation, if the data has no val split.", bounds=SHARE
    )
    test_fraction: float = option(
        0.15,
        "Share of the --test-from images to set aside for testing, if the data has no test split.",
        bounds=SHARE,
    )
    test_from: str = option("train", "Split from which test images are set aside.", legal=("train", "val"))
    seed: int = 0  # another one draws other images

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
    """What to extract from what; what a record keeps of it repeats the extract."""

    data: str = option("digits", DATA_HELP, argument=True)
    backbone: str = option(
        BACKBONE,
        "Network that computes the features: a name from `tlpipe backbones`, hub:PRESET, a .keras or .onnx file, or a "
        "fine-tuned run (reports/RUN).",
    )
    weights: str = option("imagenet", "Weights of the backbone: imagenet, random, or a .h5 or .keras file.")
    image_size: tuple[int, int] | None = option(
        None,
        "Size to which images are resized, in pixels: 224, or 192x256 (height x width). [default: the backbone's own]",
        parse=parse_image_size,
    )
    endpoint: str | None = option(
        None,
        "Block or layer whose output becomes the features; several are joined by +, as in conv4+conv5. "
        "[default: the last feature map]",
    )
    pooling: str = option(
        "avg",
        "How each feature map (or the tokens of a transformer) is pooled: avg, max, none (not at all), cls (the class "
        "token alone) or cls+avg.",
        legal=POOLINGS,
    )
    resize: str | None = option(
        None,
        "How pictures are fitted to the image size: stretch, pad (with white), crop (to the middle), or crop0.9 (to "
        "the middle nine tenths of each side). [default: stretch, or as a preset or an ONNX file's JSON says]",
    )
    interpolation: str | None = option(
        None,
        "How pixels are interpolated when pictures are resized. "
        "[default: bicubic, or as a preset or an ONNX file's JSON says]",
        legal=INTERPOLATIONS,
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Mean of red, green and blue (0 to 1) that an ONNX file expects to be subtracted, such as 0.485,0.456,0.406.",
        parse=parse_numbers,
    )
    std: tuple[float, ...] | None = option(
        None,
        "Standard deviation of red, green and blue (0 to 1) by which an ONNX file expects them to be divided, such as "
        "0.229,0.224,0.225.",
        parse=parse_numbers,
    )
    pixel_limit: int = option(200_000_000, PIXEL_LIMIT_HELP, bounds=PIXELS)
    views: int = option(
        0, "Number of augmented versions of each image to cache beside the image itself.", bounds=COUNT_OR_NONE
    )
    augment: str | None = option(
        None, "Operations that make the augmented versions, joined by commas.", legal=OPERATIONS, several=True
    )
    engine: str = option("auto", "Library that computes the features.", legal=ENGINES)
    precision: str = option("auto", "Numeric precision in which features are computed.", legal=PRECISIONS)
    dtype: str | None = option(
        None,
        "Numeric type in which features are stored. [default: float32, and float16 for activations of trained weights]",
        legal=("float32", "float16"),
    )
    splits: SplitConfig = field(default_factory=SplitConfig)
    seed: int = option(0, SEED_HELP, bounds=SEED)
    columns: Columns = field(default_factory=Columns)
    group_duplicates: bool = option(False, "Keep near duplicates in the same split, as identical images always are.")

    def __post_init__(self) -> None:
        check(self)
        if self.resize is not None:
            share_of_crop(self.resize)
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
        plain = {name: getattr(self, name) for name in options_of(ExtractConfig) if name != "data"}
        values = {**plain, **asdict(self.splits), **asdict(self.columns), "seed": self.seed, **other}
        return words_of(values, {**asdict(ExtractConfig()), **asdict(SplitConfig()), **asdict(COMMON)})

    def command(self, **other: str) -> str:
        """The command line that extracts this, with some options changed."""
        return shlex.join(["tlpipe", "extract", self.data, *self.options(**other)])


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How an extract is run; nothing of it changes a feature."""

    batch_size: int | None = option(None, "Images per batch. [default: what suits the engine]", bounds=COUNT)
    workers: int | None = option(
        None, "Number of threads that decode images. [default: what suits the kind of data]", bounds=COUNT
    )
    rehash: bool = option(False, "Read every file again, even if it looks unchanged.")
    strict: bool = option(False, "Fail, with exit status 1, if any image can't be read.")
    again: bool = option(False, "Use all options of the newest extract of the same data.")
    part: str | None = option(
        None,
        "Compute only this part of the images, such as 3/16; after all parts, an extract without --part completes the "
        "work.",
    )

    on: str | None = option(
        None, "Ray cluster that computes the features: ray, or an address ray://host:10001. [default: this machine]"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.part is not None:
            parse_part(self.part)
