"""The program: its first stage, and the commands of the other modules."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli import cache, finetune, heads, runs, tools, use
from pipeline.cli.common import Answer, command
from pipeline.config import ExtractConfig, ExtractOptions, Folders
from pipeline.util import runtime

app = typer.Typer(
    name="tlpipe",
    help="Transfer learning for images: extract features once, train heads in seconds, fine-tune the top blocks.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tlpipe {runtime.version('tlpipe')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


@command(app, "extract")
def extract(config: ExtractConfig, options: ExtractOptions, folders: Folders) -> Answer:
    """Run a frozen backbone once over the images and cache its features."""
    from pipeline import commands
    from pipeline.cli.render import extract_text

    result = commands.extract(config, folders.cache, **asdict(options))
    return Answer(result.to_json(), extract_text(result))


heads.add_commands(app)
finetune.add_commands(app)
use.add_commands(app)
tools.add_commands(app)
app.add_typer(runs.app, name="runs")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Entry point of the command `tlpipe`."""
    app()
