"""`tlpipe label`."""

from __future__ import annotations

from pipeline.cli.common import Answer, command, takes
from pipeline.config import NOT_OF_LABEL, ExtractConfig, Folders, LabelOptions
from pipeline.util.text import counted, percent


@command("label")
@takes("config", ExtractConfig, without=NOT_OF_LABEL)
@takes("options", LabelOptions)
@takes("folders", Folders)
def label(config: ExtractConfig, options: LabelOptions, folders: Folders) -> Answer:
    """Label pictures, or check labels, on a page in the browser.

    The most informative pictures come first. Missing features are computed beforehand.
    """
    from pipeline import commands

    found = commands.label(config, folders.cache, options)
    if found.written is not None:
        text = f"{counted(found.n_labels, 'picture')} with a label: {found.written}"
        return Answer(found.to_json(), text)
    lines = [f"{found.labels}: {counted(found.n_labels, 'picture')} with a label, {found.n_dropped:,} left out"]
    if found.rating is not None:
        share, rated = percent(found.rating["accuracy"]), counted(found.rating["n"], "picture")
        lines.append(f"The head was right on {share} of {rated} drawn at random")
    if found.config is not None:  # with the same features, so that nothing is computed again
        lines.append(f"Next       {folders.command(found.config.command(labels=str(found.labels)))}")
    return Answer(found.to_json(), "\n".join(lines))
