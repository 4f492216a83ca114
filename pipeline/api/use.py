"""Evaluate, predict, export, inspect and report as functions, as on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import commands
from pipeline.api.options import Place, RunLike, command, folders_of, joined
from pipeline.api.results import Exported, Inspected, Predicted, Reported, with_folders
from pipeline.api.runs import RunResult
from pipeline.config import Columns
from pipeline.config.extract import NOT_OF_PREDICT
from pipeline.config.head import TOP
from pipeline.data import shortened
from pipeline.errors import DataError
from pipeline.runs.run import EvaluateRun
from pipeline.util.remote import of_this_machine


@command(Columns)
def evaluate(
    run: RunLike,
    data: str | Path | None = None,
    *,
    against: RunLike | None = None,
    precision: str | None = None,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> RunResult[EvaluateRun]:
    """Rate a run on labelled data, as `tlpipe evaluate` does.

    Args:
        run: The run.
        data: As for `extract`; classes are matched by name. None for the run's own.
        against: Another run, compared image by image.
        precision: "auto", "float32", "bfloat16", "float16" or "int8"; None for that in which the run was rated.
        cache: The cache folder.
        reports: Where the run lies, and where the evaluation goes.
        options: Columns of a manifest.
    """
    at = folders_of(cache, reports)
    columns = Columns(**options)
    found = commands.evaluate(str(run), joined(data), at.cache, at.reports, precision, joined(against), columns)
    return RunResult(found, at)


@command(Columns, without=NOT_OF_PREDICT)
def predict(
    run: RunLike,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = TOP,
    csv: str | Path | None = None,
    precision: str | None = None,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> Predicted:
    """Label images by a run, as `tlpipe predict` does; `load_model` takes arrays and pictures of Pillow, too.

    Args:
        run: The run.
        images: Images, folders with all below them, or tables with a path.
        top: Classes to name of each image.
        csv: File to write a table to, too.
        precision: As for `evaluate`.
        cache: The cache folder.
        reports: Where the run lies.
        options: Columns of paths, or of the pictures themselves.

    Returns:
        An answer for each image, in their order; what can't be read has its cause in place of a label.
    """
    at = folders_of(cache, reports)
    names = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not names:
        raise DataError("There are no images to label")
    if foreign := [type(name).__name__ for name in names if not isinstance(name, (str, os.PathLike))]:
        raise DataError(
            f"predict takes paths, and was given {shortened(sorted(set(foreign)))}; arrays and pictures of Pillow are "
            "for load_model(run).predict_proba(images)"
        )
    csv_file = None if csv is None else of_this_machine(str(csv))
    answers = commands.predict(
        str(run),
        [str(name) for name in names],
        at.cache,
        at.reports,
        top=top,
        csv_file=csv_file,
        precision=precision,
        columns=Columns(**options),
    )
    return with_folders(Predicted, answers, at)


@command()
def export(
    run: RunLike,
    format: str | None = None,
    *,
    output: str | Path | None = None,
    precision: str | None = None,
    cache: Place = None,
    reports: Place = None,
) -> Exported:
    """Write a run as a model for other programs, and compare it with `predict`, as `tlpipe export` does.

    Args:
        run: The run.
        format: "keras", "savedmodel", "onnx", "openvino" or "tflite"; None for that of the output's name.
        output: File (m.onnx) or folder to write; None for export/FORMAT in the run's folder.
        precision: Of the predictions that it is compared with, as for `evaluate`.
        cache: The cache folder.
        reports: Where the run lies.
    """
    at = folders_of(cache, reports)
    target = None if output is None else of_this_machine(str(output))
    return with_folders(Exported, commands.export(str(run), format, at.cache, at.reports, target, precision), at)


@command(Columns)
def inspect(
    data: str | Path, *, seed: int = 0, cache: Place = None, reports: Place = None, **options: Any
) -> Inspected:
    """Look at a dataset, and write a page of what was found, as `tlpipe inspect` does.

    Args:
        data: As for `extract`; features of it are used once there are any.
        seed: Of the folds of the cross-validation.
        cache: The cache folder.
        reports: Where the page goes.
        options: Columns of a manifest.
    """
    at = folders_of(cache, reports)
    return with_folders(Inspected, commands.inspect(str(data), at.cache, at.reports, seed, Columns(**options)), at)


@command()
def report(
    runs: RunLike | Sequence[RunLike] | None = None,
    *,
    map: str = "pca",
    seed: int = 0,
    cache: Place = None,
    reports: Place = None,
) -> Reported:
    """Write a leaderboard of all runs, and a page and figures for each, as `tlpipe report` does.

    Args:
        runs: The runs that get a page; None for all.
        map: How features become a map: "pca" or "tsne".
        seed: Of t-SNE.
        cache: The cache folder.
        reports: Where the runs lie, and where the pages go.
    """
    at = folders_of(cache, reports)
    names = runs if isinstance(runs, (list, tuple)) else [] if runs is None else [runs]
    done = commands.report([str(name) for name in names], at.cache, at.reports, method=map, seed=seed)
    return with_folders(Reported, done, at)
