"""The command of the third stage: fine-tune."""

from __future__ import annotations

from pipeline.cli.common import Answer, command, takes
from pipeline.config import FinetuneConfig, FinetuneOptions, Folders


@command("finetune")
@takes("config", FinetuneConfig)
@takes("options", FinetuneOptions)
@takes("folders", Folders)
def finetune(config: FinetuneConfig, options: FinetuneOptions, folders: Folders) -> Answer:
    """Fine-tune the top blocks below a trained head, from activations cached below them, or a whole network."""
    from pipeline import commands
    from pipeline.cli.render import run_text

    run = commands.finetune(config, folders.cache, folders.reports, options)
    return Answer(run.to_json(), run_text(run, str(folders.reports / run.id)))
