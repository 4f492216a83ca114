"""`tlpipe cache`: look after what is on disk."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import render
from pipeline.cli.common import LOCAL_PATH, Answer, Group, command, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import Folders


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
    return Answer({"tables": rows}, render.cache_text(rows))


@command("verify")
@click.option("--recompute", default=0, help="Number of images of each set of features to compute again and compare.")
@takes("folders", Folders)
def verify(recompute: int, folders: Folders) -> Answer:
    """Check all features and datasets in the cache for damage.

    Their checksums are compared; the exit status is 1 if any differs.
    """
    from pipeline.commands import cache as module

    found = module.verify(folders.cache, recompute)
    return Answer(found.to_json(), render.verified_text(found), failed=bool(found.damaged))


@command("gc")
@click.option("--delete", is_flag=True, default=False, help="Remove the listed files, which otherwise are only listed.")
@takes("folders", Folders)
def gc(delete: bool, folders: Folders) -> Answer:
    """List files that no dataset and no run needs.

    With --delete, remove them.
    """
    from pipeline.commands import gc as module

    found = module.gc(folders.cache, folders.reports, delete=delete)
    return Answer(found.to_json(), render.cleaned_text(found, folders))


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


for one in (ls, verify, gc, export):
    cache.add_command(one)
