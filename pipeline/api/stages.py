"""The three stages as functions: extract, heads, and fine-tuning, as on the command line.

Every function takes `cache` and `reports`, the folders it reads and writes. Where they are left out these are the
folders of the results that it is given, else $TLPIPE_CACHE or the user's cache folder, and `reports` below the
current folder. A run may be given as what another function returned, as its id or a part of it, its name, its folder,
"latest", or "best".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import commands
from pipeline.api.options import FeaturesLike, Place, command, folders_of, joined
from pipeline.api.results import Extracted, with_folders
from pipeline.api.runs import CurveResult, RunResult
from pipeline.config import (
    ExtractConfig,
    ExtractOptions,
    FinetuneConfig,
    FinetuneOptions,
    HeadConfig,
    TrainingOptions,
)
from pipeline.config.head import CURVE_HEAD, DRAWS, GRID, HEAD, NOT_OF_A_CURVE, SWEPT_HEADS
from pipeline.errors import TlpipeError
from pipeline.runs.run import FinetuneRun, HeadRun, SweepRun
from pipeline.util.options import made, parse_counts


@command(ExtractConfig, ExtractOptions)
def extract(data: str | Path = "digits", *, cache: Place = None, **options: Any) -> Extracted:
    """Run a frozen backbone once over the images and cache its features, as `tlpipe extract` does.

    Args:
        data: A folder, a manifest (a table of images), an array file, or a built-in name.
        cache: The cache folder.
        **options: As listed below.

    Returns:
        Counts, seconds, and the features id.
    """
    at = folders_of(cache, None)
    config = made(ExtractConfig, {**options, "data": str(data)})
    return with_folders(Extracted, commands.extract(config, at.cache, made(ExtractOptions, options)), at)


@command(HeadConfig, TrainingOptions)
def train_head(
    features: FeaturesLike = None,
    head: str = HEAD,
    *,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> RunResult[HeadRun]:
    """Train a head on cached features, as `tlpipe train-head` does.

    Args:
        features: What `extract` returned, or a features id; several in a list are concatenated. None for the newest.
        head: "logreg", "ridge", "centroid", "knn20", "linear", "mlp512-128" or "bn-mlp50"; other numbers will do.
        cache: The cache folder.
        reports: Where the run goes.
        **options: As listed below; options that the kind of head doesn't have are refused.
    """
    at = folders_of(cache, reports)
    training = made(TrainingOptions, {**options, "features": joined(features)})
    return RunResult(
        commands.train_head(made(HeadConfig, {**options, "head": head}), at.cache, at.reports, training), at
    )


@command(HeadConfig, TrainingOptions)
def sweep(
    features: FeaturesLike = None,
    head: str | Sequence[str] = SWEPT_HEADS,
    *,
    grid: str = GRID,
    budget: float | None = None,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> RunResult[SweepRun]:
    """Try many heads and settings, and train the one that is best on val, as `tlpipe sweep` does.

    Args:
        features: As for `train_head`.
        head: Heads to try, in a list or joined by commas; a name without figures ("mlp") stands for all sizes in the
            grid.
        grid: How many settings of each head are tried: "small" or "full".
        budget: Seconds after which no further setting is tried; None for no limit.
        cache: The cache folder.
        reports: Where the run goes.
        **options: As listed below. Options that are given hold for all heads; the others vary.
    """
    at = folders_of(cache, reports)
    heads = [name.strip() for name in (head.split(",") if isinstance(head, str) else head)]
    training = made(TrainingOptions, {**options, "features": joined(features)})
    config = replace(made(HeadConfig, options), head="")
    end = math.inf if budget is None else budget
    return RunResult(commands.sweep(heads, grid, config, at.cache, at.reports, training, end), at)


@command(HeadConfig, TrainingOptions, without=NOT_OF_A_CURVE)
def learning_curve(
    features: FeaturesLike = None,
    head: str = CURVE_HEAD,
    *,
    per_class: str | Sequence[int] | None = None,
    draws: int = DRAWS,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> CurveResult:
    """Measure accuracy against the number of labelled images, as `tlpipe learning-curve` does.

    Args:
        features: As for `train_head`.
        head: As for `train_head`.
        per_class: Numbers of images per class to train with, in a list or joined by commas; None for 1, 2, 5, 10, ...
            up to all.
        draws: How many times images are drawn at random for each number.
        cache: The cache folder.
        reports: Where the run goes.
        **options: As listed below.
    """
    at = folders_of(cache, reports)
    training = made(TrainingOptions, {**options, "features": joined(features)})
    config = made(HeadConfig, {**options, "head": head})
    counts = None if per_class is None else parse_counts(joined(per_class) or "")
    return CurveResult(commands.learning_curve(config, at.cache, at.reports, training, counts, draws), at)


@command(FinetuneConfig, FinetuneOptions)
def finetune(
    blocks: str | Sequence[str] | None = None, *, cache: Place = None, reports: Place = None, **options: Any
) -> RunResult[FinetuneRun]:
    """Fine-tune the top blocks of a backbone, or all of it, as `tlpipe finetune` does.

    Args:
        blocks: What to train: a block or layer with everything above it; blocks in a list or joined by commas; "all";
            or "none" (the head alone). None for the top block.
        cache: The cache folder.
        reports: Where the head's run lies, and where this run goes.
        **options: As listed below. `head_run` may be what `train_head` or `sweep` returned.
    """
    at = folders_of(cache, reports)
    config, training = made(FinetuneConfig, {**options, "blocks": joined(blocks)}), made(FinetuneOptions, options)
    if training.on is None:
        return RunResult(commands.finetune(config, at.cache, at.reports, training), at)
    found = commands.finetune_each([config], at.cache, at.reports, training)[config]
    if isinstance(found, TlpipeError):
        raise found
    return RunResult(found, at)
