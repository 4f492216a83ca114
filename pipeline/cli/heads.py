"""The commands of the second stage: train a head, sweep many, and the learning curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from pipeline.cli.common import Answer, Without, command
from pipeline.config import Folders, HeadConfig, TrainingOptions
from pipeline.config.head import CURVE_HEAD, DRAWS, GRID, HEAD, HEADS_HELP, NOT_OF_A_CURVE, SWEPT_HEADS
from pipeline.errors import ConfigError
from pipeline.util.options import parse_counts

SameFeatures = Annotated[
    str | None, typer.Option("--features", help="The same as FEATURES.", metavar="A,B", show_default=False)
]


def _with_features(options: TrainingOptions, same: str | None) -> TrainingOptions:
    """The features may stand with or without the option's name."""
    if options.features is not None and same is not None:
        raise ConfigError(f"Features are given twice: {options.features}, and --features {same}; give one")
    return options if same is None else replace(options, features=same)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the program."""

    @command(app, "train-head")
    def train_head(
        *,
        head: Annotated[str, typer.Option(help=HEADS_HELP)] = HEAD,
        options: TrainingOptions,
        same_features: SameFeatures = None,
        config: HeadConfig,
        folders: Folders,
    ) -> Answer:
        """Train a head on cached features. Defaults stand in brackets; options that a head doesn't have are refused."""
        from pipeline import commands
        from pipeline.cli.render import run_text

        run = commands.train_head(
            replace(config, head=head), folders.cache, folders.reports, _with_features(options, same_features)
        )
        return Answer(run.to_json(), run_text(run, str(folders.reports / run.id)))

    @command(app, "sweep")
    def sweep(
        *,
        head: Annotated[
            str,
            typer.Option(help="Heads joined by commas; a name without figures (mlp, knn) for those that the grid has."),
        ] = SWEPT_HEADS,
        grid: Annotated[str, typer.Option(help="small or full: how many settings of each head.")] = GRID,
        budget: Annotated[float | None, typer.Option(help="Seconds after which nothing new is tried.")] = None,
        options: TrainingOptions,
        same_features: SameFeatures = None,
        config: HeadConfig,
        folders: Folders,
    ) -> Answer:
        """Try many heads and settings, choose on val, and train the best. Given options hold for all; others vary."""
        from pipeline import commands
        from pipeline.cli.render import sweep_text

        run = commands.sweep(
            [name.strip() for name in head.split(",")],
            grid,
            replace(config, head=""),
            folders.cache,
            folders.reports,
            _with_features(options, same_features),
            float("inf") if budget is None else budget,
        )
        return Answer(run.to_json(), sweep_text(run, str(folders.reports / run.id)))

    @command(app, "learning-curve")
    def learning_curve(
        *,
        head: Annotated[str, typer.Option(help=HEADS_HELP)] = CURVE_HEAD,
        per_class: Annotated[
            str | None, typer.Option(help="Images of each class, joined by commas. [default: 1,2,5,10,... up to all]")
        ] = None,
        draws: Annotated[int, typer.Option(help="Random choices of images at each number.")] = DRAWS,
        options: Annotated[TrainingOptions, Without(NOT_OF_A_CURVE)],
        same_features: SameFeatures = None,
        config: HeadConfig,
        folders: Folders,
    ) -> Answer:
        """Measure accuracy against the number of labelled images, and say what more would buy."""
        from pipeline import commands
        from pipeline.cli.render import curve_text

        sizes = None if per_class is None else parse_counts(per_class)
        chosen = _with_features(options, same_features)
        run = commands.learning_curve(replace(config, head=head), folders.cache, folders.reports, chosen, sizes, draws)
        return Answer(run.to_json(), curve_text(run, str(folders.reports / run.id)))
