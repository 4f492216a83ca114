"""Sweep and learning curve: which head, and whether more labels would help."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commands.train_head import describe_run, fit_head
from pipeline.config import CACHE, REPORTS
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.metrics import scores
from pipeline.heads import HeadConfig, make_head
from pipeline.runs.run import Run, save_run
from pipeline.selection import (
    Candidate,
    Point,
    Ratings,
    candidates,
    draw_subset,
    gain_of_doubling,
    mean_over_views,
    rate,
    sizes_for,
)
from pipeline.selection.tables import NEWEST, TableOptions, open_table, rounds_of
from pipeline.store.records import find_records
from pipeline.store.rows import Part
from pipeline.store.table import FeatureTable
from pipeline.util.progress import progress


def sweep(
    heads: Sequence[str],
    grid: str,
    common: HeadConfig,
    cache: Path,
    reports: Path,
    options: TableOptions = NEWEST,
    budget: float = np.inf,
) -> Run:
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
    ratings = rate(tried, rounds_of(table, options, common.seed), len(table.class_names), budget)
    searched = time.perf_counter()
    winner = ratings.rated[0].candidate
    fitted = fit_head(winner.config, table, replace(options, test_views=winner.test_views))
    again = f"Again: {_command(winner, table, options, cache, reports)}"
    run = describe_run(
        "sweep",
        winner.config.head,
        table,
        settings={"head": fitted.config.to_json(), "test_views": winner.test_views, "grid": grid, "heads": list(heads)},
        seed=common.seed,
        predictions=fitted.predictions,
        seconds={
            "load": loaded - start,
            "search": searched - loaded,
            "fit": fitted.seconds,
            "total": time.perf_counter() - start,
        },
        trainable_parameters=fitted.head.trainable_parameters,
        notes=[*_notes(ratings, options), *fitted.report.notes, again],
        calibration=fitted.calibration,
        candidates=[one.to_json() for one in ratings.rated],
    )
    save_run(reports, run, fitted.report.history, fitted.predictions, fitted.head.save)
    return run


def _notes(ratings: Ratings, options: TableOptions) -> list[str]:
    by = f"{options.cv} folds" if options.cv else "val"
    by += f" and {options.seeds} seeds" if options.seeds > 1 else ""
    notes = [
        f"Best of {len(ratings.rated)} by accuracy on {by}; the best of many is a little lucky there, test tells more"
    ]
    if any(one.candidate.config.epochs for one in ratings.rated):
        notes.append("Heads with epochs choose the best of them by the same images, which flatters them a little")
    for cause in dict.fromkeys(ratings.failed.values()):
        heads = [candidate.config.head for candidate, other in ratings.failed.items() if other == cause]
        notes.append(f"{len(heads)} settings of {', '.join(sorted(set(heads)))} failed: {cause}")
    if ratings.untried:
        names = sorted({candidate.config.head for candidate in ratings.untried})
        notes.append(f"The budget ended before {len(ratings.untried)} more were tried: {', '.join(names)}")
    return notes


def _command(winner: Candidate, table: FeatureTable, options: TableOptions, cache: Path, reports: Path) -> str:
    """The command line that trains the winner alone."""
    words = ["tlpipe train-head", table.id, winner.config.command(make_head(HeadConfig(winner.config.head))[1])]
    words += [f"--test-views {winner.test_views}"] if winner.test_views else []
    words += [f"--memory {options.memory}"] if options.memory else []
    words += ["--calibrate"] if options.calibrate else []
    words += [shlex.join(["--cache", str(cache)])] if cache != CACHE else []
    words += [shlex.join(["--reports", str(reports)])] if reports != REPORTS else []
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class CurveResult:
    """Accuracy against the number of labelled images.

    Attributes:
        features: Features id.
        head: The head's name.
        split: Split on which accuracies were measured.
        points: The fewest images first.
        gain: What twice as many images would add to the accuracy; None where no law can be fitted.
        seconds: In all.
    """

    features: str
    head: str
    split: str
    points: list[Point]
    gain: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "features": self.features,
            "head": self.head,
            "split": self.split,
            "points": [point.to_json() for point in self.points],
            "gain_of_doubling": self.gain,
            "seconds": self.seconds,
        }


def learning_curve(
    config: HeadConfig,
    cache: Path,
    options: TableOptions = NEWEST,
    per_class: Sequence[int] | None = None,
    draws: int = 5,
) -> CurveResult:
    """Measure a head's accuracy against the number of labelled images, on val, or on test where there is no val.

    No choice is made with the images that it is measured on: what a head would choose there has a fixed value.

    Args:
        config: Which head, and how.
        cache: The cache folder.
        options: Which features, and how they are used.
        per_class: Numbers of images per class; None for 1, 2, 5, 10, ... up to all.
        draws: Random choices of images at each number.

    Raises:
        ConfigError: For illegal numbers.
        DataError: If there are no images to measure on.
    """
    start = time.perf_counter()
    _, resolved = make_head(config)
    if draws < 1 or any(size < 1 for size in per_class or ()):
        raise ConfigError("--draws and the numbers of --per-class must be 1 or more")
    table = open_table(cache, options, config.views, f"Learning curve of {config.head}")
    split = "val" if (table.splits == "val").any() else "test"
    parts = [table.part(split, view) for view in range(options.averaged + 1)]
    if not len(parts[0]):
        raise DataError(f"{table.records[0].name} has no images to measure on; carve some (--val-fraction)")
    train = table.part("train").up_to_view(config.views)
    most = int(np.bincount(train.labels[train.views == 0]).max())
    sizes = sorted({min(size, most) for size in per_class or sizes_for(train)})
    nothing = train.select(np.zeros(0, np.int64))
    points = []
    with progress("Drawing", len(sizes), "sizes") as advance:
        for size in sizes:
            accuracies, counts = [], []
            for draw in range(draws if size < most else 1):
                subset = draw_subset(train, size, draw, config.seed)
                accuracies.append(_accuracy(resolved, subset, nothing, parts, len(table.class_names)))
                counts.append(int((subset.views == 0).sum()))
            points.append(Point(size, round(np.mean(counts)), accuracies))
            advance(1)
    return CurveResult(table.id, config.head, split, points, gain_of_doubling(points), time.perf_counter() - start)


def _accuracy(config: HeadConfig, subset: Part, nothing: Part, parts: list[Part], n_classes: int) -> float:
    head, _ = make_head(config)
    head.fit(subset, nothing, n_classes)
    return scores(mean_over_views(head, parts), parts[0].labels)["accuracy"]
