"""`tlpipe label`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import LOCAL_PATH, Answer, command, takes
from pipeline.config import ExtractConfig, Folders
from pipeline.config.extract import NOT_OF_LABEL
from pipeline.errors import ConfigError
from pipeline.util.text import counted, percent


@command("label")
@takes("config", ExtractConfig, without=NOT_OF_LABEL)
@click.option("--classes", help="Names of classes, joined by commas, beside those of the data.")
@click.option(
    "--labels",
    type=LOCAL_PATH,
    default=Path("labels.jsonl"),
    help="File to which answers are appended; a labelling goes on from what it holds.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the page; 0 for any that is free.")
@click.option("--host", default="127.0.0.1", help="Address of this machine at which the page is served.")
@click.option("--no-open", is_flag=True, default=False, help="Don't open the page in a browser.")
@click.option("--export", type=LOCAL_PATH, help="Write the labels to a .csv table, and serve nothing.")
@click.option(
    "--to-folders", type=LOCAL_PATH, help="Copy the labelled pictures into a folder for each class, and serve nothing."
)
@click.option("--link", is_flag=True, default=False, help="With --to-folders, make links in place of copies.")
@takes("folders", Folders)
def label(
    config: ExtractConfig,
    classes: str | None,
    labels: Path,
    port: int,
    host: str,
    no_open: bool,
    export: Path | None,
    to_folders: Path | None,
    link: bool,
    folders: Folders,
) -> Answer:
    """Label pictures, or check labels, on a page in the browser.

    Those are shown first that teach a head most. Features that are missing are computed before.
    """
    from pipeline.commands import label as module

    if export is not None and to_folders is not None:
        raise ConfigError("--export and --to-folders are two things; give one of them")
    if link and to_folders is None:
        raise ConfigError("--link goes with --to-folders; leave it out")
    if export is not None:
        n = module.export_labels(config.data, labels, export, folders.cache, config.columns)
        return Answer({"path": str(export), "n_labels": n}, f"Wrote {counted(n, 'label')} to {export}")
    if to_folders is not None:
        n = module.copy_to_folders(config.data, labels, to_folders, folders.cache, config.columns, link=link)
        done = "Linked" if link else "Copied"
        return Answer({"path": str(to_folders), "n_labels": n}, f"{done} {counted(n, 'picture')} into {to_folders}")
    names = [] if classes is None else [name.strip() for name in classes.split(",")]
    found = module.label(config, labels, folders.cache, classes=names, host=host, port=port, browser=not no_open)
    lines = [f"{labels}: {counted(found.n_labels, 'picture')} with a label, {found.n_dropped:,} left out"]
    if found.rating is not None:
        share, rated = percent(found.rating["accuracy"]), counted(found.rating["n"], "picture")
        lines.append(f"The head was right on {share} of {rated} drawn at random")
    lines.append(f"Next       {folders.command(f'tlpipe extract {config.data} --labels {labels}')}")
    return Answer(found.to_json(), "\n".join(lines))
