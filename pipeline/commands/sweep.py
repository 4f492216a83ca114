"""Sweep: which head, and with which settings."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.commands.runs import check_name
from pipeline.config import Folders, HeadConfig, TrainingOptions
from pipeline.errors import ConfigError
from pipeline.heads import make_head
from pipeline.runs.describe import header
from pipeline.runs.run import SweepRun
from pipeline.selection.features import open_table, rounds_of
from pipeline.selection.fit import fit_head, fitted_fields, save_fitted
from pipeline.selection.grid import candidates
from pipeline.selection.trials import Candidate, Ratings, rate
from pipeline.store.records import find_records
from pipeline.store.table import FeatureTable
from pipeline.util.ray_cluster import check_on, spread
from pipeline.util.text import counted


def sweep(
    heads: Sequence[str],
    grid: str,
    common: HeadConfig,
    cache: Path,
    reports: Path,
    options: TrainingOptions = TrainingOptions(),
    budget: float = np.inf,
) -> SweepRun:
    """Try many heads and settings, choose by val or by cross-validation, and train the best as `train_head` does.

    The test images are looked at once, for the winner.

    Args:
        heads: Names of heads or kinds of heads.
        grid: "small" or "full".
        common: Options that are the same for all.
        cache: The cache folder.
        reports: Where the run goes.
        options: Which features, and how they are used; `test_views` above 0 are tried beside none.
        budget: Seconds after which nothing new is tried.

    Raises:
        ConfigError: For unknown heads or options.
        DataError: If there is nothing to choose by.
    """
    start = time.perf_counter()
    if not heads:
        raise ConfigError("--head names no head; leave it out for all that a sweep tries")
    check_name(options.name, reports)
    check_on(options.on)
    if not budget > 0:
        raise ConfigError(f"--budget is {budget:g}; give seconds above 0")
    candidates(heads, grid, common, [0], [0])  # what is wrong with the options is said before the data is read
    if options.test_views is None:
        extracted = min(record.config.views for record in find_records(cache, options.features))
        options = replace(options, test_views=extracted)
    table = open_table(cache, options, common.views, f"Sweeping {', '.join(heads)}")
    loaded = time.perf_counter()
    most = int(table.views[table.splits == "train"].max(initial=0))
    views = sorted({0, most}) if common.views is None else [common.views]
    tried = candidates(heads, grid, common, views, sorted({0, options.averaged}))
    with spread(options.on):
        ratings = rate(tried, rounds_of(table, options, common.seed), len(table.class_names), budget)
    searched = time.perf_counter()
    winner = ratings.rated[0].candidate
    chosen = replace(options, test_views=winner.test_views)
    fitted = fit_head(winner.config, table, chosen)
    seconds = {
        "load": loaded - start,
        "search": searched - loaded,
        "fit": fitted.seconds,
        "total": time.perf_counter() - start,
    }
    again = f"Again: {_command(winner, table, options, cache, reports)}"
    run = SweepRun(
        **header("sweep", winner.config.head, table, common.seed, seconds),
        **fitted_fields(fitted, table, chosen, chosen_among_others=bool((table.splits == "val").any())),
        notes=[*_notes(ratings, options), *fitted.report.notes, again],
        grid=grid,
        heads=list(heads),
        candidates=[one.to_json() for one in ratings.rated],
    )
    save_fitted(cache, reports, run, fitted, table)
    return run


def _notes(ratings: Ratings, options: TrainingOptions) -> list[str]:
    by = counted(options.cv, "fold") if options.cv else "val"
    by += f" and {counted(options.seeds, 'seed')}" if options.seeds > 1 else ""
    notes = [f"Best of {len(ratings.rated)} by accuracy on {by}; the best of many is partly luck, so trust test"]
    for cause in dict.fromkeys(ratings.failed.values()):
        heads = [candidate.config.head for candidate, other in ratings.failed.items() if other == cause]
        notes.append(f"{counted(len(heads), 'setting')} of {', '.join(sorted(set(heads)))} failed: {cause}")
    if ratings.untried:
        names = sorted({candidate.config.head for candidate in ratings.untried})
        untried = counted(len(ratings.untried), "more setting")
        notes.append(f"The budget ended before {untried} could be tried, of {', '.join(names)}")
    return notes


def _command(winner: Candidate, table: FeatureTable, options: TrainingOptions, cache: Path, reports: Path) -> str:
    """The command line that trains the winner alone."""
    words = ["tlpipe train-head", table.id, winner.config.command(make_head(HeadConfig(winner.config.head))[1])]
    words += [f"--test-views {winner.test_views}"] if winner.test_views else []
    words += [f"--memory {options.memory}"] if options.memory else []
    words += ["--calibrate"] if options.calibrate else []
    words += [shlex.join(Folders(cache, reports).words())]
    return " ".join(filter(None, words))
