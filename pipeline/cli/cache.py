"""`tlpipe cache`: look after what is on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import render
from pipeline.cli.common import LOCAL_PATH, Answer, Group, command, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import Folders
from pipeline.util.text import counted, readable_size

if TYPE_CHECKING:
    from pipeline.commands.cache import Verified
    from pipeline.commands.gc import Cleaned


@click.group("cache", Group)
def cache() -> None:
    """List, verify, clean and export cached features."""


@command("ls")
@takes("folders", Folders)
def ls(folders: Folders) -> Answer:
    """List the features in the cache, with their size and date.

    With --verbose, also say what computed them.
    """
    from pipeline.commands import cache as module

    rows = module.ls(folders.cache, writers=click.get_current_context().params["verbose"])
    if not rows:
        how = folders.command("tlpipe extract DATA")
        return Answer({"tables": []}, f"There are no features in {folders.cache} yet; make some with: {how}")
    return Answer({"tables": rows}, _features_text(rows))


@command("verify")
@click.option("--recompute", default=0, help="Number of images of each set of features to compute again and compare.")
@takes("folders", Folders)
def verify(recompute: int, folders: Folders) -> Answer:
    """Check all features and datasets in the cache for damage.

    Their checksums are compared; the exit status is 1 if any differs.
    """
    from pipeline.commands import cache as module

    found = module.verify(folders.cache, recompute)
    return Answer(found.to_json(), _verified_text(found), failed=bool(found.damaged))


@command("gc")
@click.option("--delete", is_flag=True, default=False, help="Remove these files, instead of only listing them.")
@takes("folders", Folders)
def gc(delete: bool, folders: Folders) -> Answer:
    """List files that no dataset and no run needs.

    With --delete, remove them.
    """
    from pipeline.commands import gc as module

    found = module.gc(folders.cache, folders.reports, delete=delete)
    return Answer(found.to_json(), cleaned_text(found, folders))


@command("export")
@click.argument("target", type=LOCAL_PATH, help="File to write, which ends in .h5 or .npz.")
@click.argument(
    "features",
    required=False,
    help="Id of the features, or its first characters. [default: the newest pooled features]",
    shell_complete=COMPLETED["features"],
)
@takes("folders", Folders)
def export(target: Path, features: str | None, folders: Folders) -> Answer:
    """Write features to one plain HDF5 or NumPy file.

    It holds the arrays features, labels, split, paths and class_names.
    """
    from pipeline.commands import cache as module

    record = module.export(folders.cache, features, target)
    return Answer({"features_id": record.id, "path": str(target)}, f"Wrote {record.id} to {target}")


def _features_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The features in a cache."""
    cells, written = [], []
    for row in rows:
        spec = row["spec"]
        side = f"{spec['image_size'][0]}x{spec['image_size'][1]}"
        what = f"{spec['backbone']} {spec['endpoint']} {side} {spec['pooling']} {spec['precision']}"
        what += ", stored in float16" if spec["dtype"] == "float16" else ""
        images = "?" if row["images"] is None else f"{row['images']:,}"
        views = f" + {counted(row['views'], 'view')} ({row['augment']})" if row["views"] else ""
        state = "" if row["complete"] else "  INCOMPLETE"
        date, data = row["created"][:16], row["data"]
        cells.append([row["features_id"] + state, images + views, what, readable_size(row["bytes"]), date, data])
        for writer in row.get("written_by", ()):
            written.append(f"  {row['features_id']}: " + ", ".join(f"{name} {text}" for name, text in writer.items()))
    lines = [render.aligned(["features", "images", "what", "size", "date (UTC)", "data"], cells)]
    if not all(row["complete"] for row in rows):
        lines.append("An incomplete extract was stopped or failed; run the same command again to complete it.")
    return "\n".join([*lines, *(["Written by", *written] if written else [])])


def _verified_text(found: Verified) -> str:
    """What reading a cache from end to end has shown."""
    lines = [f"{counted(found.n_files, 'file')} verified, {len(found.damaged):,} damaged"]
    lines += [f"  {item.path}: {item.cause}" for item in found.damaged]
    if found.damaged:
        lines.append("Run the same tlpipe extract as before: it sets them aside and computes their rows again.")
    lines += [
        f"{one.features_id}: {counted(one.n, 'image')} computed again by {one.engine}, largest difference "
        f"{one.max_difference:.2e} ({one.relative:.1e} of the largest number), least cosine {one.cosine:.6f}"
        for one in found.recomputed
    ]
    return "\n".join(lines)


def cleaned_text(found: Cleaned, folders: Folders) -> str:
    """What a cache can do without."""
    lines = [f"  {item.path} ({readable_size(item.size)}): {item.cause}" for item in found.found]
    lines += [
        f"{folder} used this cache but can't be found now, so everything it used is kept. If it is gone for good, "
        "remove the files that name it from the folder uses of the cache."
        for folder in found.away
    ]
    if not found.found:
        lines.append("Everything in the cache is needed.")
    elif found.removed:
        lines.append(f"Removed {counted(len(found.found), 'item')}, {readable_size(found.size)}.")
    else:
        how = folders.command("tlpipe cache gc --delete")
        lines.append(f"{counted(len(found.found), 'item')}, {readable_size(found.size)}. Remove with: {how}")
    return "\n".join(lines)


for one in (ls, verify, gc, export):
    cache.add_command(one)
