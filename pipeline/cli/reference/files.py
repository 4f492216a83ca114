"""The page of the files on disk, made of the table of them and of the types that are written as JSON."""

from __future__ import annotations

import re
from dataclasses import fields

from pipeline.cli.reference.markdown import MADE, attributes, cell
from pipeline.config.folders import FILES
from pipeline.runs.run import TYPES, RatedRun, Run

INTRODUCTION = """\
tlpipe writes into two folders: the cache (`--cache`, `$TLPIPE_CACHE`, else `./cache`; from Python the user's cache
folder) and the reports (`--reports`, else `./reports`). Elsewhere it writes only files that you name, the answers of
`tlpipe label` (`--labels`, else `./labels.jsonl`), and, if pictures or the cache are at an address,
[local copies](../how-to/pictures-at-addresses.md#what-is-fetched). Keras keeps downloaded weights and built-in datasets
in a folder of its own. What the cache promises: [How the cache works](../explanation/cache.md)."""

RUN_JSON = """\
A run's `run.json` is a header that every run has, and a payload that depends on the command."""


def page() -> str:
    """A table of each folder, then the fields of run.json."""
    lines = ["# Files on disk", "", MADE, "", INTRODUCTION]
    for folder in dict.fromkeys(one.folder for one in FILES):
        lines += ["", f"## {folder}/", "", "| file | what it holds |", "| --- | --- |"]
        lines += [f"| `{one.path}` | {cell(one.what)} |" for one in FILES if one.folder == folder]
    lines += ["", "## run.json", "", RUN_JSON, "", "**Every run**", "", *_fields(Run)]
    lines += ["", "**`payload` of train-head, sweep, finetune and evaluate**", "", *_fields(RatedRun, Run)]
    for stage, kind in TYPES.items():
        lines += ["", f"**and of {stage}**", "", *_fields(kind, kind.__mro__[1])]
    return "\n".join([*lines, ""])


def _fields(kind: type[Run], base: type | None = None) -> list[str]:
    """The fields of a type that its base doesn't have."""
    known = {one.name for one in fields(base)} if base else set()
    text = attributes(kind)
    said = {name: re.sub(r"\bNone\b", "null", what) for name, what in text.items()}  # as JSON has it
    rows = [f"| `{one.name}` | {cell(said[one.name])} |" for one in fields(kind) if one.name not in known]
    return ["| field | what it is |", "| --- | --- |", *rows]
