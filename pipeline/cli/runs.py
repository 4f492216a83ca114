"""`tlpipe runs`: list, name and remove runs."""

from __future__ import annotations

import click

from pipeline.cli import render
from pipeline.cli.common import Answer, Group, command, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import Folders


@command("runs", Group, invoke_without_command=True)
@takes("folders", Folders)
def runs(folders: Folders) -> Answer:
    """List runs, name them, or remove them.

    The newest come first, each with its accuracy on val and test and their 95 % intervals.
    """
    from pipeline.commands import runs as module

    found = module.ls(folders.reports)
    if not found:
        return Answer({"runs": []}, f"There are no runs in {folders.reports} yet; make one with: tlpipe train-head")
    return Answer({"runs": [run.to_json() for run in found]}, lambda: render.runs_text(found))


@command("name")
@click.argument(
    "run",
    help="Run to name: its id or a part of it, its present name, latest, or best.",
    shell_complete=COMPLETED["run"],
)
@click.argument("to", required=False, help="New name of the run. [default: none, which removes the name]")
@takes("folders", Folders)
def name(run: str, to: str | None, folders: Folders) -> Answer:
    """Give a run a name by which it can be found again."""
    from pipeline.commands import runs as module

    found = module.name(run, to, folders.reports)
    return Answer({"run": found.id, "name": to}, f"{found.id} {f'is now called {to}' if to else 'has no name now'}")


@command("rm")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    help="Runs to remove: ids, parts of ids, or names.",
    shell_complete=COMPLETED["run"],
)
@takes("folders", Folders)
def rm(runs: tuple[str, ...], folders: Folders) -> Answer:
    """Remove runs, with their models and pages."""
    from pipeline.commands import runs as module

    found = module.rm(list(runs), folders.reports)
    return Answer({"removed": [run.id for run in found]}, "\n".join(f"Removed {run.id}" for run in found))


runs.add_command(name)
runs.add_command(rm)
