"""Options, declared once as fields of a dataclass; the command line, Python and the reference are made from them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from pipeline.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The legal numbers of an option, both ends included.

    Attributes:
        least: The smallest.
        most: The largest.
        text: What an error tells the user to give.
    """

    least: float
    most: float
    text: str


POSITIVE = sys.float_info.min
COUNT = Bounds(1, 100_000, "1 to 100,000")
COUNT_OR_NONE = Bounds(0, 100_000, "0 to 100,000")
SHARE = Bounds(0, math.nextafter(1, 0), "a share from 0 up to, but not including, 1")
FACTOR = Bounds(POSITIVE, 1, "above 0 and up to 1")
SEED_HELP = "Seed for all random choices."
SEED = Bounds(0, 2**31 - 1, f"a number from 0 to {2**31 - 1}")


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of a field that a user sets.

    Attributes:
        help: What it means, for the command line and the reference.
        legal: Its legal values, if they are a few words.
        several: Whether several of them may be joined by commas.
        bounds: Its legal numbers.
        parse: Makes the value of the text that is given on the command line.
        argument: Whether it stands on the command line without a name.
    """

    help: str
    legal: tuple[str, ...] = ()
    several: bool = False
    bounds: Bounds | None = None
    parse: Callable[[str], Any] | None = None
    argument: bool = False


def option(default: Any, help: str, **known: Any) -> Any:
    """Declare a field that a user sets; arguments as in `Option`."""
    return field(default=default, metadata={"option": Option(help, **known)})


@dataclass(frozen=True, slots=True)
class Declared:
    """An option where it is declared.

    Attributes:
        owner: The dataclass.
        name: The field's name.
        hint: Its type.
        default: Its default.
        option: What else is known of it.
    """

    owner: type
    name: str
    hint: Any
    default: Any
    option: Option


def declared(kind: type) -> Iterator[Declared]:
    """The options of a dataclass, and of the dataclasses among its fields."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        if is_dataclass(hints[one.name]):
            yield from declared(hints[one.name])
        elif "option" in one.metadata:
            yield Declared(kind, one.name, hints[one.name], one.default, one.metadata["option"])


def made(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass made of values that stand side by side: the dataclasses among its fields take theirs from them, too.

    Text is parsed where an option says how; what the dataclass doesn't have is left alone.

    Raises:
        ConfigError: For an illegal value.
    """
    hints, found = get_type_hints(kind), {}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in values:
            parse = one.metadata["option"].parse if "option" in one.metadata else None
            value = values[one.name]
            found[one.name] = parse(value) if parse and isinstance(value, str) else value
        elif is_dataclass(hints[one.name]):
            found[one.name] = made(hints[one.name], values)
    return kind(**found)


def options_of(kind: type) -> dict[str, Option]:
    """The options among the fields of a dataclass, by the fields' names."""
    return {one.name: one.metadata["option"] for one in fields(kind) if "option" in one.metadata}


def option_name(field_name: str) -> str:
    """The name of a field on the command line."""
    return "--" + field_name.replace("_", "-")


def words_of(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """What gives options on the command line; those that have their defaults are left out."""
    words = []
    for name, value in values.items():
        if value == defaults.get(name):
            continue
        if isinstance(value, bool):
            words.append(option_name(name if value else f"no_{name}"))
        elif isinstance(value, (list, tuple)):
            words += [option_name(name), ("x" if name == "image_size" else ",").join(map(str, value))]
        else:
            words += [option_name(name), str(value)]
    return words


def check(config: Any) -> None:
    """Refuse illegal values of a dataclass's options; None is always legal.

    Raises:
        ConfigError: With the value and the legal ones.
    """
    for name, known in options_of(type(config)).items():
        value = getattr(config, name)
        if value is None:
            continue
        for word in value.split(",") if known.several else [value]:
            if known.legal:
                one_of(option_name(name), word.strip(), known.legal)
        if known.bounds and not known.bounds.least <= value <= known.bounds.most:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ConfigError(f"{option_name(name)} is {shown}; give {known.bounds.text}")


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


def parse_image_size(text: str) -> tuple[int, int]:
    """Parse `224` or `HEIGHTxWIDTH` into (height, width) in pixels.

    Raises:
        ConfigError: If it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise ConfigError(f"--image-size is {text!r}; give pixels from 1 to 4096: 224, or 192x256 (height x width)")
    return int(parts[0]), int(parts[-1])


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parse numbers that are joined by commas.

    Raises:
        ConfigError: If it is anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{text!r} is no list of numbers; join them by commas: 0.485,0.456,0.406") from None


def parse_part(text: str) -> tuple[int, int]:
    """Parse `3/16`, the third of sixteen parts.

    Raises:
        ConfigError: If it is anything else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part is {text!r}; give which part of how many, such as 3/16")
    return int(match[1]), int(match[2])


def parse_memory(text: str) -> int:
    """Parse `800MB`, `1.5GB` or a number of bytes.

    Raises:
        ConfigError: If it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise ConfigError(f"--memory is {text!r}; give bytes, such as 800MB or 1.5GB")
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_counts(text: str) -> tuple[int, ...]:
    """Parse whole numbers that are joined by commas.

    Raises:
        ConfigError: If it is anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--per-class is {text!r}; give numbers joined by commas: 1,2,5,10")
    return tuple(int(part) for part in parts)
