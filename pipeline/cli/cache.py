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
def ls(folders: Folders) -> Answer:
    """List the features in the cache: what they are, of what, how large, how old."""
    from pipeline.cli import render
    from pipeline.commands import cache as caretaker

    rows = caretaker.describe(folders.cache)
    if not rows:
        return Answer(
            {"tables": []}, f"There are no features in {folders.cache} yet; make some with: tlpipe extract DATA"
        )
    cells = []
    for row in rows:
        spec = row["spec"]
        side = f"{spec['image_size'][0]}x{spec['image_size'][1]}"
        what = f"{spec['backbone']} {spec['endpoint']} {side} {spec['pooling']} {spec['precision']}"
        images = "?" if row["images"] is None else f"{row['images']:,}"
        views = f" + {row['views']} views ({row['augment']})" if row["views"] else ""
        cells.append(
            [row["features_id"], images + views, what, render.size(row["bytes"]), row["created"][:16], row["data"]]
        )
    columns = ["features", "images", "what", "size", "date (UTC)", "data"]
    return Answer({"tables": rows}, render.table(columns, cells))


@command(app, "verify")
def verify(folders: Folders) -> Answer:
    """Compare the checksums of all shards and datasets; exit with 1 if any differs."""
    from pipeline.commands import cache as caretaker

    n_files, damaged = caretaker.verify(folders.cache)
    value = {"n_files": n_files, "damaged": [{"path": str(item.path), "cause": item.cause} for item in damaged]}
    lines = [f"{n_files:,} files verified, {len(damaged):,} damaged"]
    lines += [f"  {item.path}: {item.cause}" for item in damaged]
    if damaged:
        lines.append("The same tlpipe extract as before sets them aside and computes their rows again.")
    return Answer(value, "\n".join(lines), failed=bool(damaged))


@command(app, "gc")
def gc(
    folders: Folders,
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed; without it, only list.")] = False,
) -> Answer:
    """List what no dataset and no run needs; with --delete, remove it."""
    from pipeline.cli import render
    from pipeline.commands import cache as caretaker

    found = caretaker.collect(folders.cache, folders.reports)
    total = sum(item.size for item in found)
    if delete:
        caretaker.remove(found)
    value = {
        "removed": delete,
        "bytes": total,
        "items": [{"path": str(item.path), "cause": item.cause, "bytes": item.size} for item in found],
    }
    lines = [f"  {item.path} ({render.size(item.size)}): {item.cause}" for item in found]
    if not found:
        lines.append("Everything in the cache is needed.")
    elif delete:
        lines.append(f"Removed {len(found):,} items, {render.size(total)}.")
    else:
        lines.append(f"{len(found):,} items, {render.size(total)}, can go: tlpipe cache gc --delete")
    return Answer(value, "\n".join(lines))


@command(app, "export")
def export(
    folders: Folders,
    target: Annotated[Path, typer.Argument(help="File to write: .h5 or .npz.")],
    features: FeaturesArgument = None,
) -> Answer:
    """Write one plain HDF5 or NumPy file: features, labels, split, paths, class_names."""
    from pipeline.commands import cache as caretaker

    record = caretaker.export(folders.cache, features, target)
    return Answer({"features_id": record.id, "path": str(target)}, f"Wrote {record.id} to {target}")
