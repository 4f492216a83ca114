"""`tlpipe cache`: look after what is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import Answer, command
from pipeline.config import Folders

app = typer.Typer(help="List, verify, clean and export cached features.", no_args_is_help=True, rich_markup_mode=None)

FeaturesArgument = Annotated[
    str | None,
    typer.Argument(help="Features id, or its start. [default: the newest pooled]", show_default=False),
]


@command(app, "ls")
def ls(folders: Folders, verbose: bool) -> Answer:
    """List the features in the cache: what they are, of what, how large, how old; --verbose: what computed them."""
    from pipeline.cli import render
    from pipeline.commands import cache

    rows = cache.ls(folders.cache, writers=verbose)
    if not rows:
        return Answer(
            {"tables": []}, f"There are no features in {folders.cache} yet; make some with: tlpipe extract DATA"
        )
    return Answer({"tables": rows}, render.cache_text(rows))


@command(app, "verify")
def verify(
    folders: Folders,
    recompute: Annotated[
        int, typer.Option(help="Images of each set of features that are computed again and compared.")
    ] = 0,
) -> Answer:
    """Compare the checksums of all shards and datasets; exit with 1 if any differs."""
    from pipeline.cli.render import verified_text
    from pipeline.commands import cache

    found = cache.verify(folders.cache, recompute)
    return Answer(found.to_json(), verified_text(found), failed=bool(found.damaged))


@command(app, "gc")
def gc(
    folders: Folders,
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed; without it, only list.")] = False,
) -> Answer:
    """List what no dataset and no run needs; with --delete, remove it."""
    from pipeline.cli.render import cleaned_text
    from pipeline.commands import cache

    found = cache.gc(folders.cache, folders.reports, delete=delete)
    return Answer(found.to_json(), cleaned_text(found))


@command(app, "export")
def export(
    folders: Folders,
    target: Annotated[Path, typer.Argument(help="File to write: .h5 or .npz.")],
    features: FeaturesArgument = None,
) -> Answer:
    """Write one plain HDF5 or NumPy file: features, labels, split, paths, class_names."""
    from pipeline.commands import cache

    record = cache.export(folders.cache, features, target)
    return Answer({"features_id": record.id, "path": str(target)}, f"Wrote {record.id} to {target}")
