"""The program, of the commands of the other modules."""

from __future__ import annotations

import click

from pipeline.cli import cache, label, runs, stages, tools, use
from pipeline.cli.common import Group


@click.group("tlpipe", Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="tlpipe", message="tlpipe %(version)s", help="Print the version and exit.")
def app() -> None:
    """Transfer learning for images: extract features once, train heads in seconds, fine-tune the top blocks."""


for one in (
    stages.extract,
    stages.train_head,
    stages.sweep,
    stages.learning_curve,
    stages.finetune,
    use.evaluate,
    use.predict,
    use.explain,
    use.export,
    use.inspect,
    label.label,
    use.search,
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
