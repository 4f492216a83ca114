"""How pictures are prepared for a network that doesn't say so itself: by options, or by a JSON beside its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.extract import INTERPOLATIONS
from pipeline.errors import ConfigError

RESIZE, INTERPOLATION = "stretch", "bicubic"
"""How pictures are brought to the size where nothing says otherwise."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Mean and standard deviation that a network expects to be taken away, both of RGB as shares of white."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_factors(self) -> tuple[list[float], list[float]]:
        """Scale and offset of each channel that do the same to RGB 0..255."""
        scale = [1 / (255 * std) for std in self.std]
        return scale, [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]


@dataclass(frozen=True, slots=True)
class Preparation:
    """How pictures are prepared.

    Attributes:
        scaling: None where it isn't known.
        image_size: (height, width), pixels; None where it isn't known.
        resize: As in `ImageConfig`.
        interpolation: As in `ImageConfig`.
    """

    scaling: Scaling | None = None
    image_size: tuple[int, int] | None = None
    resize: str = RESIZE
    interpolation: str = INTERPOLATION


def preparation(path: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preparation:
    """What options say of how pictures are prepared, and for what they don't, the JSON of the same name.

    Args:
        path: The file of the network.
        mean: Of RGB, as shares of white; None if it wasn't given.
        std: Likewise, the standard deviation.

    Raises:
        ConfigError: If only one of both is known, or the JSON says what can't be.
    """
    about = _read(path.with_suffix(".json"))
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std belong together; give both, or neither")
    if mean is None or std is None:
        return about
    return replace(about, scaling=Scaling(_three("--mean", mean), _three("--std", std, above=0)))


def _read(path: Path) -> Preparation:
    """What a JSON in the form of timm says: by itself, or as the `pretrained_cfg` of a `config.json`."""
    if not path.is_file():
        return Preparation()
    try:
        value = json.loads(path.read_bytes())
        value = value.get("pretrained_cfg", value)
        scaling = None
        if "mean" in value or "std" in value:
            scaling = Scaling(_three("mean", value["mean"]), _three("std", value["std"], above=0))
        size = None
        if "input_size" in value:
            channels, height, width = (int(side) for side in value["input_size"])
            if channels != 3 or min(height, width) < 1:
                raise ValueError(f"input_size is {value['input_size']}, and [3, height, width] would be right")
            size = height, width
        interpolation = value.get("interpolation", INTERPOLATION)
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {interpolation!r}; it can be {', '.join(INTERPOLATIONS)}")
        return Preparation(scaling, size, _resize(value.get("crop_pct")), interpolation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(
            f"{path} doesn't say how pictures are prepared, in the form of timm (input_size, mean, std, crop_pct, "
            f"interpolation): {cause}"
        ) from error


def _resize(crop_pct: Any) -> str:
    """The resize that keeps the same share of the middle as timm."""
    if crop_pct is None:
        return RESIZE
    if not 0 < float(crop_pct) <= 1:
        raise ValueError(f"crop_pct is {crop_pct}, and a share up to 1 would be right")
    return "crop" if float(crop_pct) == 1 else f"crop{float(crop_pct):g}"


def _three(name: str, values: Sequence[float], above: float | None = None) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in (values if len(values) != 1 else [*values] * 3))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {values}; give three numbers, of red, green and blue") from error
    if above is not None and min(red, green, blue) <= above:
        raise ConfigError(f"{name} is {list(values)}; give numbers above {above:g}")
    return red, green, blue
