"""What the shell completes: names of backbones, heads and blocks, and ids of runs and features that are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.config import BACKBONE, Folders
from pipeline.config.head import HEAD_FORMS


def _folders(ctx: click.Context) -> Folders:
    """The folders that the line names so far."""
    named = {name: ctx.params[name] for name in ("cache", "reports") if ctx.params.get(name)}
    return Folders(**named)


def _starting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def backbones(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Names in the table of backbones."""
    from pipeline.backbones.catalogue import BACKBONES

    return _starting(list(BACKBONES), incomplete)


def heads(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Heads with the figures of their defaults."""
    return _starting(list(dict.fromkeys([*HEAD_FORMS.values(), *HEAD_FORMS])), incomplete)


def endpoints(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Blocks of the backbone that the line names."""
    return _starting(_blocks_of(ctx.params.get("backbone") or BACKBONE), incomplete)


def blocks(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Blocks of the backbone of the newest features."""
    newest = _newest(_folders(ctx).cache / "tables", "*.json")
    parts = newest[0].split("-") if newest else []
    return _starting([*_blocks_of(parts[-2] if len(parts) > 2 else BACKBONE), "all", "none"], incomplete)


def _blocks_of(backbone: str) -> list[str]:
    from pipeline.backbones.catalogue import BACKBONES

    row = BACKBONES.get(backbone)
    return [block.name for block in row.blocks] if row else []


def features(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids of features in the cache, the newest first."""
    return _starting(_newest(_folders(ctx).cache / "tables", "*.json"), incomplete)


def runs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids and names of runs in the reports folder, the newest first, and the words that stand for one."""
    found = sorted(_folders(ctx).reports.glob("[!.]*/run.json"), reverse=True)
    names: list[str] = []
    for path in found:
        with suppress(OSError, ValueError, AttributeError):  # a run that can't be read has no name
            names.append(json.loads(path.read_bytes()).get("name") or "")
    ids = [path.parent.name for path in found]
    return _starting(["latest", "best", *filter(None, names), *ids], incomplete)


def _newest(folder: Path, pattern: str) -> list[str]:
    """Stems of the files in a folder, the newest first."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.stem for path in files]


def or_files(names: Callable[..., list[str]]) -> Callable[..., list[Any]]:
    """Names, or where none fits files."""

    def found(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
        return names(context, parameter, incomplete) or files(context, parameter, incomplete)

    return found


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, as the shell knows them."""
    return [CompletionItem(incomplete, type="file")]


COMPLETED: dict[str, Callable[[click.Context, click.Parameter, str], list[Any]]] = {
    "backbone": or_files(backbones),
    "blocks": blocks,
    "endpoint": endpoints,
    "features": features,
    "head": heads,
    "data": files,
    "weights": files,
    "head_run": or_files(runs),
    "run": or_files(runs),
}
"""What completes an option, by its name: called with the line so far and the word."""
