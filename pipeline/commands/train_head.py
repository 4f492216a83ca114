"""Train head: a classifier of cached features."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.commands.runs import check_name
from pipeline.config import HeadConfig, TrainingOptions
from pipeline.heads import make_head
from pipeline.runs.corrected import compare_with_before
from pipeline.runs.describe import header
from pipeline.runs.run import HeadRun
from pipeline.selection.features import open_table, rounds_of
from pipeline.selection.fit import fit_head, fitted_fields, save_fitted
from pipeline.selection.trials import repeat
from pipeline.util.ray_cluster import check_on, spread


def train_head(config: HeadConfig, cache: Path, reports: Path, options: TrainingOptions = TrainingOptions()) -> HeadRun:
    """Train a head on cached features.

    Args:
        config: Which head, and how.
        cache: The cache folder.
        reports: Where the run goes.
        options: Which features, and how they are used.

    Raises:
        StoreError: If there are no such features.
        CacheMismatchError: If they keep height and width.
        DataError: If a class has no training images.
    """
    start = time.perf_counter()
    check_name(options.name, reports)
    check_on(options.on)
    make_head(config)  # what is wrong with the options is said before the data is read
    table = open_table(cache, options, config.views, f"Training {config.head}")
    # What the repeats lack is said before anything is fitted.
    rounds = rounds_of(table, options, config.seed) if options.cv or options.seeds > 1 else []
    loaded = time.perf_counter()
    fitted = fit_head(config, table, options)
    start_of_repeats = time.perf_counter()
    repeats = None
    if rounds:
        repeats = {"folds": options.cv, "seeds": options.seeds}
        with spread(options.on):
            repeats |= repeat(fitted.config, rounds, len(table.class_names), options.averaged)
    seconds = {
        "load": loaded - start,
        "fit": fitted.seconds,
        **({"repeats": time.perf_counter() - start_of_repeats} if repeats else {}),
        "total": time.perf_counter() - start,
    }
    run = HeadRun(
        **header("train-head", config.head, table, config.seed, seconds),
        **fitted_fields(fitted, table, options),
        notes=fitted.report.notes,
        repeats=repeats,
    )
    compare_with_before(run, fitted.predictions, cache, reports)
    save_fitted(cache, reports, run, fitted, table)
    return run
