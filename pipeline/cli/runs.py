"""`tlpipe runs`: list, name and remove runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.common import Answer, command
from pipeline.config import Folders

app = typer.Typer(help="List runs, name them, or remove them.", rich_markup_mode=None)


@command(app, None)
def runs(folders: Folders) -> Answer:
    """List runs, name them, or remove them: newest first, with val and test accuracy and their 95 % intervals."""
    from pipeline.cli.render import runs_text
    from pipeline.commands import runs as module

    found = module.ls(folders.reports)
    if not found:
        return Answer({"runs": []}, f"There are no runs in {folders.reports} yet; make one with: tlpipe train-head")
    return Answer({"runs": [run.to_json() for run in found]}, lambda: runs_text(found))


@command(app, "name")
def name(
    folders: Folders,
    run: Annotated[str, typer.Argument(help="Its id, a part of it, its name, latest or best.")],
    to: Annotated[str | None, typer.Argument(help="The new name. [default: none]", show_default=False)] = None,
) -> Answer:
    """Give a run a name that finds it again."""
    from pipeline.commands import runs as module

    found = module.name(run, to, folders.reports)
    return Answer({"run": found.id, "name": to}, f"{found.id} is {'called ' + to if to else 'called nothing'} now")


@command(app, "rm")
def rm(
    folders: Folders,
    runs: Annotated[list[str], typer.Argument(help="Ids, parts of them, or names.")],
) -> Answer:
    """Remove runs, with their models and pages."""
    from pipeline.commands import runs as module

    found = module.rm(runs, folders.reports)
    return Answer({"removed": [run.id for run in found]}, "\n".join(f"Removed {run.id}" for run in found))
