"""Pieces of Markdown that the pages of the reference share."""

from __future__ import annotations

import inspect
import re

MADE = "*Made from the code by `make docs`; a test compares the two.*"

SECTION = re.compile(r"^(Args|Attributes|Options|Returns|Raises|Yields):$")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def prose(docstring: str | None) -> str:
    """A docstring in the form of Google's guide as Markdown: its sections become lists."""
    lines: list[str] = []
    inside = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if SECTION.match(line):
            inside = True
            lines += [f"**{line.removesuffix(':')}**", ""]
        elif not inside or not line.strip():
            inside = inside and not line.strip()
            lines.append(line)
        elif line.startswith("    ") and not line.startswith("     ") and (named := _NAMED.match(line.strip())):
            lines.append(f"- `{named[1]}`: {named[2]}")
        else:
            lines[-1] += f" {line.strip()}"
    return "\n".join(lines).strip()


_NAMED = re.compile(r"^(\*{0,2}\w+): (.*)$")


def attributes(kind: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes, by their names."""
    _, found, listed = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    if not found:
        return {}
    listed = listed.split("\n\n")[0]
    pairs = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in pairs}
