"""The program: its first stage, and the commands of the other modules."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeline.cli import cache, finetune, heads, runs, tools, use
from pipeline.cli.common import Answer, Group, command, takes
from pipeline.config import ExtractConfig, ExtractOptions, Folders
from pipeline.util import runtime


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"tlpipe {runtime.version('tlpipe')}")
        context.exit()


@click.group("tlpipe", Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version and exit."
)
def app() -> None:
    """Transfer learning for images: extract features once, train heads in seconds, fine-tune the top blocks."""


@command("extract")
@takes("config", ExtractConfig)
@takes("options", ExtractOptions)
@takes("folders", Folders)
def extract(config: ExtractConfig, options: ExtractOptions, folders: Folders) -> Answer:
    """Run a frozen backbone once over the images and cache its features."""
    from pipeline import commands
    from pipeline.cli.render import extract_text

    result = commands.extract(config, folders.cache, **asdict(options))
    return Answer(result.to_json(), extract_text(result))


for one in (
    extract,
    heads.train_head,
    heads.sweep,
    heads.learning_curve,
    finetune.finetune,
    use.evaluate,
    use.predict,
    use.export,
    use.inspect,
    use.report,
    tools.backbones,
    tools.doctor,
    tools.bench,
    tools.demo,
    runs.runs,
    cache.cache,
):
    app.add_command(one)


def main() -> None:
    """Entry point of the command `tlpipe`."""
    app(prog_name="tlpipe")
