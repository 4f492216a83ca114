"""The command of the third stage: fine-tune."""

from __future__ import annotations

import typer

from pipeline.cli.common import Answer, command
from pipeline.config import FinetuneConfig, FinetuneOptions, Folders


def add_commands(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "finetune")
    def finetune(config: FinetuneConfig, options: FinetuneOptions, folders: Folders) -> Answer:
        """Fine-tune the top blocks below a trained head, from activations cached below them, or a whole network."""
        from pipeline import commands
        from pipeline.cli.render import run_text

        run = commands.finetune(config, folders.cache, folders.reports, options)
        return Answer(run.to_json(), run_text(run, str(folders.reports / run.id)))
