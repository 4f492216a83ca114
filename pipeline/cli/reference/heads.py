"""The page of heads, made of the table of kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.cli.reference.markdown import MADE, cell, prose
from pipeline.config.head import L2_OF, HeadConfig
from pipeline.heads import KINDS, Kind
from pipeline.util.options import option_name, options_of

INTRODUCTION = """\
A head is a classifier that is trained on cached features: `tlpipe train-head --head NAME`. The numbers in a name may be
any: `knn5`, `mlp1024`, `bn-mlp256-64`. An option that a head doesn't have is an error. Which head to take, and what
their options gained: [Choose a head](../how-to/choose-a-head.md)."""

FOUND = "found while fitting"
_ON = {True: "on", False: "off"}


def page() -> str:
    """A section for each kind of head: what it is, its options, and what a sweep tries."""
    lines = ["# Heads", "", MADE, "", INTRODUCTION]
    for kind in KINDS:
        lines += ["", f"## {kind.form}", "", prose(kind.head.__doc__), "", *_options(kind), "", *_swept(kind)]
    lines += ["", "## What the options mean", "", "| option | what it is |", "| --- | --- |"]
    lines += [f"| `{option_name(name)}` | {cell(one.help)} |" for name, one in options_of(HeadConfig).items()]
    return "\n".join([*lines, ""])


def _options(kind: Kind) -> list[str]:
    rows = [f"| `{option_name(name)}` | {_default(kind, name)} |" for name in kind.defaults]
    return ["| option | default |", "| --- | --- |", *rows]


def _default(kind: Kind, name: str) -> str:
    """A default in words."""
    value = kind.defaults[name]
    if name == "l2" and value is None and (optimizer := kind.defaults.get("optimizer")):
        return f"{L2_OF[optimizer]:g} with `{optimizer}`"
    if value is None:
        return {"views": "all that are cached", "batch_size": "16 to 256, by the number of images"}.get(name, FOUND)
    return _ON[value] if isinstance(value, bool) else f"`{value}`"


def _swept(kind: Kind) -> list[str]:
    if not kind.full:
        return []
    small = f"tries {_grid(kind.small)}" if kind.small else "leaves it out"
    return [f"`tlpipe sweep` {small}; with `--grid full` it tries {_grid(kind.full)}."]


def _grid(grid: Mapping[str, Any]) -> str:
    """The values of a grid: all if they are few, else their number and their ends."""
    parts = []
    for name, values in grid.items():
        texts = [f"`{_ON.get(value, value) if isinstance(value, bool) else value}`" for value in values]
        shown = ", ".join(texts) if len(texts) <= 7 else f"{len(texts)} values from {texts[0]} to {texts[-1]}"
        parts.append(shown if name == "head" else f"`{option_name(name)}` {shown}")
    return " with ".join([parts[0], "; ".join(parts[1:])] if len(parts) > 1 else parts)
