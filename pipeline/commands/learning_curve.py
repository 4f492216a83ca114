"""Learning curve: whether more labels would help."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.commands.runs import check_name
from pipeline.config import HeadConfig, TrainingOptions
from pipeline.config.head import DRAWS
from pipeline.errors import ConfigError, DataError
from pipeline.heads import make_head
from pipeline.runs.describe import header
from pipeline.runs.folder import save_run
from pipeline.runs.run import CurveRun
from pipeline.selection.curve import accuracy_of, draw_subset, gain_of_doubling, point, sizes_for
from pipeline.selection.features import notes_on_rating, open_table
from pipeline.util.progress import progress


def learning_curve(
    config: HeadConfig,
    cache: Path,
    reports: Path,
    options: TrainingOptions = TrainingOptions(),
    per_class: Sequence[int] | None = None,
    draws: int = DRAWS,
) -> CurveRun:
    """Measure a head's accuracy against the number of labelled images, on val, or on test where there is no val.

    No choice is made with the images that it is measured on: what a head would choose there has a fixed value.

    Args:
        config: Which head, and how.
        cache: The cache folder.
        reports: Where the run goes.
        options: Which features, and how they are used.
        per_class: Numbers of images per class; None for 1, 2, 5, 10, ... up to all.
        draws: Random choices of images at each number.

    Raises:
        ConfigError: For illegal numbers.
        DataError: If there are no images to measure on.
    """
    start = time.perf_counter()
    check_name(options.name, reports)
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
    points = []
    with progress("Drawing", len(sizes), "sizes") as advance:
        for size in sizes:
            accuracies, counts = [], []
            for draw in range(draws if size < most else 1):
                subset = draw_subset(train, size, draw, config.seed)
                accuracies.append(accuracy_of(resolved, subset, parts, len(table.class_names)))
                counts.append(int((subset.views == 0).sum()))
            points.append(point(size, round(np.mean(counts)), accuracies))
            advance(1)
    run = CurveRun(
        **header("learning-curve", config.head, table, config.seed, {"total": time.perf_counter() - start}),
        config=resolved,
        split=split,
        points=points,
        gain_of_doubling=gain_of_doubling(points),
        name=options.name,
        notes=notes_on_rating(table, split),
    )
    save_run(cache, reports, run)
    return run
