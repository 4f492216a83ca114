"""The page of the Python interface, made of the public names of the package."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import FunctionType
from typing import Any

from pipeline.cli.reference.markdown import MADE, cell, prose
from pipeline.errors import TlpipeError

INTRODUCTION = """\
`import pipeline`, or `from pipeline import extract, train_head`. Functions have the words, defaults and errors of the
[commands](commands.md). [Use tlpipe from Python](../how-to/use-from-python.md) shows them at work."""

WIDTH = 100  # of a signature, until it is broken into lines


def page() -> str:
    """The functions, then the classes of what they return, the estimators, and the errors."""
    pipeline = import_module("pipeline")  # as users do; the command line itself needs nothing of the Python interface
    named = {name: getattr(pipeline, name) for name in pipeline.__all__ if not name.startswith("_")}
    errors = {name: one for name, one in named.items() if inspect.isclass(one) and issubclass(one, TlpipeError)}
    classes = {name: one for name, one in named.items() if inspect.isclass(one) and name not in errors}
    lines = ["# Python", "", MADE, "", INTRODUCTION, "", "## Functions"]
    for name, one in named.items():
        if isinstance(one, FunctionType):
            lines += ["", f"### {name}", "", *_signature(name, one), "", prose(one.__doc__)]
        elif name not in classes and name not in errors:
            lines += _methods(name, one, "###")
    lines += ["", "## Classes"]
    for name, one in classes.items():
        lines += ["", f"### {name}", "", prose(one.__doc__), *_members(one)]
    lines += ["", "## Errors", "", "| error | what it means |", "| --- | --- |"]
    lines += [f"| `{name}({one.__mro__[1].__name__})` | {_first(one)} |" for name, one in errors.items()]
    return "\n".join([*lines, ""])


def _methods(name: str, value: Any, level: str) -> list[str]:
    """The functions that are kept under one name."""
    lines: list[str] = []
    for inner in sorted(vars(type(value))):
        function = getattr(value, inner)
        if not inner.startswith("_") and callable(function):
            lines += ["", f"{level} {name}.{inner}", "", *_signature(f"{name}.{inner}", function)]
            lines += ["", prose(function.__doc__)]
    return lines


def _members(kind: type) -> list[str]:
    """A table of the properties and methods of a class that say what they are."""
    found: dict[str, str] = {}
    for name in dir(kind):
        one = inspect.getattr_static(kind, name)
        if name.startswith("_") or not (one.__doc__ and type(one).__module__ == "builtins"):
            continue
        function = getattr(one, "fget", one)
        if not isinstance(function, FunctionType) or not function.__module__.startswith("pipeline."):
            continue
        if _first(function).startswith(("As `", "As ")):
            continue
        found[name if isinstance(one, property) else f"{name}()"] = _first(function)
    if not found:
        return []
    rows = [f"| `{name}` | {text} |" for name, text in found.items()]
    return ["", "| member | what it is |", "| --- | --- |", *rows]


def _first(one: Any) -> str:
    """The first paragraph of a docstring, for a table."""
    return cell(inspect.cleandoc(one.__doc__ or "").split("\n\n")[0])


def _signature(name: str, function: Any) -> list[str]:
    """A call with all parameters and their defaults; types stand with the options of the command line."""
    parameters: list[str] = []
    starred = False
    for one in inspect.signature(function).parameters.values():
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            parameters.append("*")
            starred = True
        default = "" if one.default is inspect.Parameter.empty else f"={_text(one.default)}"
        parameters.append(f"{one.name}{default}")
    line = f"{name}({', '.join(parameters)})"
    if len(line) <= WIDTH:
        return ["    " + line]
    rows, row = [], ""
    for parameter in parameters:
        if row and len(row) + len(parameter) + 2 > WIDTH - 4:
            rows.append(row)
            row = ""
        row += f"{parameter}, "
    return [f"    {name}(", *(f"        {one}".rstrip() for one in [*rows, row]), "    )"]


def _text(value: Any) -> str:
    return str(value) if inspect.isclass(value) or callable(value) else repr(value)
