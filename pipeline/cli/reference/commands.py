"""The page of the command line, made of what the commands declare."""

from __future__ import annotations

import re
from typing import Any

from pipeline.cli.main import app
from pipeline.cli.reference.markdown import MADE, cell

SHARED = ("as_json", "quiet", "verbose", "help")
SHARED_TEXT = """\
Every command has `--json` (one JSON object, or a list, on standard output and nothing else there), `--quiet`,
`--verbose` and `--help`. Exit status: 0 done; 1 an error, with what to do about it; 2 wrong usage; 130 or 143 stopped
by Ctrl-C or SIGTERM. After a stop, run `extract` again to continue, or `finetune` with `--resume`."""


def page() -> str:
    """A section for each command, with a table of its arguments and options."""
    commands = sorted(_commands(app, "tlpipe"))
    links = [f"[{name.removeprefix('tlpipe ')}](#{name.replace(' ', '-')})" for name, _ in commands]
    lines = ["# Commands", "", MADE, "", SHARED_TEXT, "", " · ".join(links)]
    for name, command in commands:
        lines += ["", f"## {name}", "", " ".join((command.help or "").split()), ""]
        rows = [_row(one) for one in command.params if one.name not in SHARED]
        if rows:
            lines += ["| | default | what it is |", "| --- | --- | --- |", *rows]
    return "\n".join([*lines, ""])


def _commands(group: Any, path: str) -> list[tuple[str, Any]]:
    """Names and commands, those of groups among them."""
    found = []
    for name, item in group.commands.items():
        inner = getattr(item, "commands", None)
        if not inner or getattr(item, "invoke_without_command", False):
            found.append((f"{path} {name}", item))
        found += _commands(item, f"{path} {name}") if inner else []
    return found


def _row(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", None) or "").split())
    named = re.search(r" *\[default: (.*)\]$", text)
    given = parameter.to_info_dict()["default"]
    if parameter.multiple:
        given = next(iter(given), None)
    default = "" if given is None or given is False else f"`{given}`"
    if named:
        text, default = text[: named.start()], default or named[1]
    names = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
    if not parameter.opts[0].startswith("-"):
        names = f"`{str(parameter.name).upper()}`"
    return f"| {names} | {default} | {cell(text)} |"
