"""The commands of the three stages: extract, heads, and fine-tune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from pipeline.cli import render
from pipeline.cli.common import Answer, Decorator, command, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import (
    ExtractConfig,
    ExtractOptions,
    FinetuneConfig,
    FinetuneOptions,
    Folders,
    HeadConfig,
    TrainingOptions,
)
from pipeline.config.head import CURVE_HEAD, DRAWS, GRID, HEAD, HEADS_HELP, NOT_OF_A_CURVE, SWEPT_HEADS
from pipeline.errors import ConfigError
from pipeline.util.options import parse_counts

same_features = click.option(
    "--features",
    "same_features",
    metavar="A,B",
    help="Another way to give FEATURES.",
    shell_complete=COMPLETED["features"],
)


def _head(default: str, help: str) -> Decorator[Any]:
    return click.option("--head", default=default, help=help, shell_complete=COMPLETED["head"])


def _with_features(options: TrainingOptions, same: str | None) -> TrainingOptions:
    """The features may stand with or without the option's name."""
    if options.features is not None and same is not None:
        raise ConfigError(f"Features are given twice: {options.features}, and --features {same}; give one")
    return options if same is None else replace(options, features=same)


@command("extract")
@takes("config", ExtractConfig)
@takes("options", ExtractOptions)
@takes("folders", Folders)
def extract(config: ExtractConfig, options: ExtractOptions, folders: Folders) -> Answer:
    """Compute the features of all images once, and cache them.

    A pretrained network (the backbone) computes them; only what is not in the cache yet is computed.
    """
    from pipeline import commands

    result = commands.extract(config, folders.cache, options)
    return Answer(result.to_json(), render.extract_text(result, folders))


@command("train-head")
@_head(HEAD, HEADS_HELP)
@takes("options", TrainingOptions)
@same_features
@takes("config", HeadConfig)
@takes("folders", Folders)
def train_head(
    head: str, options: TrainingOptions, same_features: str | None, config: HeadConfig, folders: Folders
) -> Answer:
    """Train a head on cached features.

    Each kind of head has its own options, with its defaults in brackets; others are refused.
    """
    from pipeline import commands

    run = commands.train_head(
        replace(config, head=head), folders.cache, folders.reports, _with_features(options, same_features)
    )
    return Answer(run.to_json(), render.run_text(run, folders))


@command("sweep")
@_head(
    SWEPT_HEADS, "Heads to try, joined by commas; a name without figures (mlp, knn) stands for all sizes in the grid."
)
@click.option("--grid", default=GRID, help="How many settings of each head are tried: small or full.")
@click.option("--budget", type=float, help="Seconds after which no further setting is tried. [default: no limit]")
@takes("options", TrainingOptions)
@same_features
@takes("config", HeadConfig)
@takes("folders", Folders)
def sweep(
    head: str,
    grid: str,
    budget: float | None,
    options: TrainingOptions,
    same_features: str | None,
    config: HeadConfig,
    folders: Folders,
) -> Answer:
    """Try many heads and settings, and train the best one.

    The best is chosen on val. Options that you give hold for all heads; the others vary.
    """
    from pipeline import commands

    run = commands.sweep(
        [name.strip() for name in head.split(",")],
        grid,
        replace(config, head=""),
        folders.cache,
        folders.reports,
        _with_features(options, same_features),
        float("inf") if budget is None else budget,
    )
    return Answer(run.to_json(), render.sweep_text(run, folders))


@command("learning-curve")
@_head(CURVE_HEAD, HEADS_HELP)
@click.option(
    "--per-class", help="Numbers of images per class to train with, joined by commas. [default: 1,2,5,10,... up to all]"
)
@click.option("--draws", default=DRAWS, help="How many times images are drawn at random for each number.")
@takes("options", TrainingOptions, without=NOT_OF_A_CURVE)
@same_features
@takes("config", HeadConfig)
@takes("folders", Folders)
def learning_curve(
    head: str,
    per_class: str | None,
    draws: int,
    options: TrainingOptions,
    same_features: str | None,
    config: HeadConfig,
    folders: Folders,
) -> Answer:
    """Estimate how much more labelled images would help.

    The accuracy is measured with growing numbers of training images.
    """
    from pipeline import commands

    sizes = None if per_class is None else parse_counts(per_class)
    kept = _with_features(options, same_features)
    run = commands.learning_curve(replace(config, head=head), folders.cache, folders.reports, kept, sizes, draws)
    return Answer(run.to_json(), render.curve_text(run, folders))


@command("finetune")
@takes("configs", FinetuneConfig, each=True)
@takes("starts", FinetuneOptions, each=True)
@takes("folders", Folders)
def finetune(configs: list[FinetuneConfig], starts: list[FinetuneOptions], folders: Folders) -> Answer:
    """Fine-tune the top blocks of a backbone, or all of it.

    Training starts from a trained head, and from activations that are cached below the trained blocks.

    If an option is given several times, each value is tried; every combination becomes a run of its own.
    """
    from pipeline import commands
    from pipeline.commands.finetune_each import alone
    from pipeline.runs.run import FinetuneRun

    if len(starts) > 1:
        raise ConfigError("--head-run, --head, --features, --memory, --name and --on take one value each; give one")
    (options,) = starts
    if len(configs) == 1 and options.on is None:
        run = commands.finetune(configs[0], folders.cache, folders.reports, options)
        return Answer(run.to_json(), render.run_text(run, folders))
    found = commands.finetune_each(configs, folders.cache, folders.reports, options)
    if len(configs) == 1 and isinstance(only := found[configs[0]], FinetuneRun):
        return Answer(only.to_json(), render.run_text(only, folders))
    runs = [one for one in found.values() if isinstance(one, FinetuneRun)]
    failed = [
        {"command": alone(config, folders.cache, folders.reports, options), "cause": str(one)}
        for config, one in found.items()
        if not isinstance(one, FinetuneRun)
    ]
    value = {"runs": [run.to_json() for run in runs], "failed": failed}
    return Answer(value, lambda: render.tuned_text(runs, failed), failed=bool(failed))
