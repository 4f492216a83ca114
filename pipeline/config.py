"""What a user can choose, checked once, and handed on unchanged."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError
from pipeline.util.files import digest_of

Pooling = Literal["avg", "max", "none"]
Resize = Literal["stretch", "pad", "crop"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
StoredType = Literal["float32", "float16"]

POOLINGS: tuple[str, ...] = get_args(Pooling)
RESIZES: tuple[str, ...] = get_args(Resize)
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
ENGINE_NAMES = ("auto", "tensorflow", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

BACKBONE = "densenet121"
"""The default backbone."""

CACHE, REPORTS = Path("cache"), Path("reports")
"""The default folders."""

LARGEST = 1e15  # of numbers in a run; what is more was not written by tlpipe, and can't be shown

# Raised when the same options give other values than before (another resize, another preprocessing).
SPEC_VERSION = 1


def one_of(option: str, value: str, legal: tuple[str, ...]) -> str:
    """Return `value` if it is legal.

    Raises:
        ConfigError: If not, with the legal values.
    """
    if value not in legal:
        near = get_close_matches(value, legal, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{option} is {value!r}; it can be {', '.join(legal)}.{hint}")
    return value


def misfits(value: Any) -> list[str]:
    """Names of the fields of a dataclass whose values, read from JSON, are not of the annotated types."""
    return [name for name, hint in get_type_hints(type(value)).items() if not _fits(getattr(value, name), hint)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of an annotated type."""
    if hint is Any:
        return True
    inner = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if inner:  # one of several
        return any(_fits(value, one) for one in inner)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and abs(value) < LARGEST
    return isinstance(value, hint)


def parse_image_size(text: str) -> tuple[int, int]:
    """Parse `224` or `HEIGHTxWIDTH` into (height, width) in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise ConfigError(f"--image-size is {text!r}; give pixels from 1 to 4096: 224, or 192x256 (height x width)")
    return int(parts[0]), int(parts[-1])


def parse_bytes(option: str, text: str) -> int:
    """Parse `800MB`, `1.5GB` or a number of bytes.

    Raises:
        ConfigError: If it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{option} is {text!r}; give bytes, such as 800MB or 1.5GB")
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


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
    resize: str = "stretch"
    interpolation: str = "bicubic"
    pixel_limit: int = 200_000_000

    def __post_init__(self) -> None:
        one_of("--resize", self.resize, RESIZES)
        one_of("--interpolation", self.interpolation, INTERPOLATIONS)
        if self.pixel_limit < 1:
            raise ConfigError(f"--pixel-limit is {self.pixel_limit}; give a number of pixels above 0")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of a manifest; None for the common ones.

    Attributes:
        path: Where each picture lies.
        label: Its class.
        split: Its split.
        group: What it must not be parted from.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class SplitConfig:
    """How splits are carved that the source doesn't have.

    Attributes:
        val_fraction: Share of the training images that becomes `val`.
        test_fraction: Share of the images of `test_from` that becomes `test`.
        test_from: "train" or "val".
        seed: Another seed draws other images.
    """

    val_fraction: float = 0.15
    test_fraction: float = 0.15
    test_from: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("--test-from", self.test_from, ("train", "val"))
        for option, value in (("--val-fraction", self.val_fraction), ("--test-fraction", self.test_fraction)):
            if not 0 <= value < 1:
                raise ConfigError(f"{option} is {value:g}; give a share from 0 up to, but not including, 1")
        if self.test_from == "train" and self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"--val-fraction {self.val_fraction:g} and --test-fraction {self.test_fraction:g} leave nothing to "
                "train on; together they must stay below 1"
            )


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract from what; the options of `tlpipe extract`.

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
        engine: "auto", "tensorflow" or "openvino".
        precision: "auto", "float32", "bfloat16" or "float16".
        dtype: Type of stored features; None for float32, or float16 without pooling, if weights are not random.
        splits: How missing splits are carved.
        seed: Seed of random weights.
        path_column: Name of a manifest's column, as in `Columns`; None for the common names.
        label_column: The same.
        split_column: The same.
        group_column: The same.
        group_duplicates: Whether near duplicates, too, are kept on one side of a split.
    """

    data: str = "digits"
    backbone: str = BACKBONE
    weights: str = "imagenet"
    image_size: tuple[int, int] | None = None
    endpoint: str | None = None
    pooling: str = "avg"
    resize: str = "stretch"
    interpolation: str = "bicubic"
    pixel_limit: int = 200_000_000
    views: int = 0
    augment: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    dtype: str | None = None
    splits: SplitConfig = field(default_factory=SplitConfig)
    seed: int = 0
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    group_duplicates: bool = False

    def __post_init__(self) -> None:
        one_of("--pooling", self.pooling, POOLINGS)
        one_of("--engine", self.engine, ENGINE_NAMES)
        one_of("--precision", self.precision, PRECISIONS)
        ImageConfig((1, 1), self.resize, self.interpolation, self.pixel_limit)
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"--seed is {self.seed}; give a number from 0 to {2**31 - 1}")
        if self.views < 0:
            raise ConfigError(f"--views is {self.views}; give 0 or more")
        if self.augment and not self.views:
            raise ConfigError(f"--augment {self.augment} needs --views: how many augmented versions of each image")
        if self.views and not self.augment:
            raise ConfigError(f"--views {self.views} needs --augment, such as --augment flip,crop")

    @property
    def columns(self) -> Columns:
        """Which columns of a manifest are read."""
        return Columns(self.path_column, self.label_column, self.split_column, self.group_column)

    def columns_of(self, data: str) -> Columns:
        """Which columns are read of some data: those of this extract, if it is the same."""
        return self.columns if data == self.data else Columns()

    def options(self, **other: str) -> list[str]:
        """The options on the command line that give this, with some of them changed."""
        words: list[str] = []
        values = {**asdict(self), **{f"splits.{name}": value for name, value in asdict(self.splits).items()}}
        defaults = {**asdict(ExtractConfig()), **{f"splits.{n}": v for n, v in asdict(SplitConfig()).items()}}
        for name, value in {**values, **other}.items():
            if name in ("data", "splits", "dtype", "splits.seed") or value == defaults[name]:
                continue
            text = "x".join(map(str, value)) if name == "image_size" else str(value)
            option = "--" + name.removeprefix("splits.").replace("_", "-")
            words += [option] if value is True else [option, text]
        return words

    def command(self, **other: str) -> str:
        """The command line that extracts this, with some options changed."""
        return shlex.join(["tlpipe", "extract", self.data, *self.options(**other)])

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ExtractConfig:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: If fields are missing, unknown, or of illegal values.
        """
        try:
            size, splits = value["image_size"], SplitConfig(**value["splits"])
            config = cls(**{**value, "splits": splits, "image_size": tuple(size) if size else None})
            wrong = [*misfits(config), *misfits(splits)]
        except (TypeError, KeyError) as error:
            raise ConfigError(f"These are not options of extract: {error}") from error
        if wrong:
            raise ConfigError(f"These are not options of extract: {wrong[0]} is of the wrong kind")
        return config


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Everything that changes a feature value, and nothing else; its digest names the folder in the cache.

    Attributes:
        backbone: Name in the table of backbones, or of a model file.
        weights_digest: Digest of the weight arrays as loaded.
        weights_seed: Seed of random weights; None for trained ones.
        endpoint: Block or layer whose output is taken; several are joined by "+".
        pooling: "avg", "max" or "none", over height and width.
        image_size: (height, width), pixels.
        resize: As in `ImageConfig`.
        interpolation: As in `ImageConfig`.
        precision: "float32", which is the same on every engine, else engine and precision ("openvino-bfloat16").
        dtype: Type on disk, "float32" or "float16".
    """

    backbone: str
    weights_digest: str
    weights_seed: int | None
    endpoint: str
    pooling: str
    image_size: tuple[int, int]
    resize: str
    interpolation: str
    precision: str
    dtype: str

    def digest(self) -> str:
        """Hexadecimal digest over all fields, 32 characters."""
        text = json.dumps({"version": SPEC_VERSION, **asdict(self)}, sort_keys=True)
        return digest_of(text.encode())

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FeatureSpec:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: If fields are missing, unknown or of the wrong type.
        """
        names = {column.name for column in fields(cls)}
        try:
            spec = cls(**{**value, "image_size": tuple(value["image_size"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"A feature spec has the fields {', '.join(sorted(names))}; {error}") from error
        texts = [getattr(spec, name) for name in names - {"image_size", "weights_seed"}]
        numbers = [*spec.image_size, spec.weights_seed or 0]
        if not all(isinstance(text, str) for text in texts) or [type(number) for number in numbers] != [int] * 3:
            raise ConfigError(
                "A feature spec holds texts, an image size of two numbers and perhaps a seed; not this one"
            )
        return spec

    def differences(self, other: FeatureSpec) -> dict[str, tuple[Any, Any]]:
        """Fields in which two specs differ, each with both values."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
