"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def counted(n: int, noun: str, several: str = "") -> str:
    """A number of things, such as `1 image` or `2 images`; `several` is a plural that takes more than an s."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {several or noun + 's'}"


def readable_size(n_bytes: float) -> str:
    """Bytes in the largest unit that leaves 1 or more."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"


def sides(image_size: Sequence[int]) -> str:
    """The height and width of images, pixels."""
    return "x".join(map(str, image_size))


def interval(low: float, high: float, sign: str = "") -> str:
    """The ends of an interval of shares, in hundredths; with `sign` "+" they have their signs."""
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question whether one of up to three near names was meant; empty if none is near."""
    near = get_close_matches(name, list(known), n=3)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def first_line(error: Exception) -> str:
    """The first line of an error's text, to stand inside a sentence; its kind if it has none."""
    if "safe_mode" in str(error):  # Keras would advise to switch it off
        return "it holds code, such as a Lambda layer, and no code is run from a file"
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
