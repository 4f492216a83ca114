"""Evaluate, predict, explain, export, inspect, label, search and report as functions, as on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import commands
from pipeline.api.options import Place, RunLike, command, folders_of, joined
from pipeline.api.results import Explained, Exported, Inspected, Labelled, Predicted, Reported, Searched, with_folders
from pipeline.api.runs import RunResult
from pipeline.config import NOT_OF_LABEL, Columns, ExtractConfig, LabelOptions
from pipeline.config.extract import NOT_OF_PREDICT
from pipeline.config.head import NEAREST, TOP
from pipeline.data import shortened
from pipeline.errors import DataError
from pipeline.runs.run import EvaluateRun
from pipeline.util.options import made
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
        run: The run to rate.
        data: Labelled data, as for `extract`; classes are matched by name. None for the data of the run.
        against: Another run to compare with, image by image.
        precision: Numeric precision of the computation: "auto", "float32", "bfloat16", "float16" or "int8"; None for
            that in which the run was rated before.
        cache: The cache folder.
        reports: Where the run lies, and where the evaluation goes.
        **options: Columns of a manifest (a table of images).
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
    explain: str | Path | None = None,
    precision: str | None = None,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> Predicted:
    """Label images with a trained run, as `tlpipe predict` does.

    `load_model` gives a model that also takes arrays and Pillow images.

    Args:
        run: The run that labels them.
        images: Image files, folders with all images below them, or tables with a column path.
        top: Number of most probable classes to name for each image.
        csv: CSV file to write the answers to as well.
        explain: Folder for copies of the images in which the parts that support the answer are coloured.
        precision: Numeric precision of the computation, as for `evaluate`.
        cache: The cache folder.
        reports: Where the run lies.
        **options: Columns that hold the paths, or the pictures themselves.

    Returns:
        An answer for each image, in the same order; an image that can't be read has the reason in place of a label.
    """
    at = folders_of(cache, reports)
    names = _names(images, "predict")
    csv_file = None if csv is None else of_this_machine(str(csv))
    answers = commands.predict(
        str(run),
        names,
        at.cache,
        at.reports,
        top=top,
        csv_file=csv_file,
        precision=precision,
        columns=Columns(**options),
        explained=None if explain is None else of_this_machine(str(explain)),
    )
    return with_folders(Predicted, answers, at)


def _names(images: str | Path | Sequence[str | Path], command: str) -> list[str]:
    """The names of images, of which there must be some."""
    names = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not names:
        raise DataError("There are no images to label")
    if foreign := [type(name).__name__ for name in names if not isinstance(name, (str, os.PathLike))]:
        raise DataError(
            f"{command} takes paths, and was given {shortened(sorted(set(foreign)))}; arrays and pictures of Pillow "
            "are for load_model(run).predict_proba(images)"
        )
    return [str(name) for name in names]


@command(Columns, without=NOT_OF_PREDICT)
def explain(
    run: RunLike,
    images: str | Path | Sequence[str | Path],
    *,
    label: str | None = None,
    output: str | Path | None = None,
    cache: Place = None,
    reports: Place = None,
    **options: Any,
) -> Explained:
    """Show which parts of images a run's answers rest on, as `tlpipe explain` does.

    Args:
        run: The run that is asked.
        images: As for `predict`.
        label: The class to ask about; None for the most probable one of each image.
        output: Folder for the pictures; None for `explained` in the run's folder.
        cache: The cache folder.
        reports: Where the run lies.
        **options: Columns that hold the paths, or the pictures themselves.

    Returns:
        An explanation for each image that can be read, with the picture in which places are coloured.
    """
    at = folders_of(cache, reports)
    found = commands.explain(
        str(run),
        _names(images, "explain"),
        at.cache,
        at.reports,
        label=label,
        output=None if output is None else of_this_machine(str(output)),
        columns=Columns(**options),
    )
    return Explained(found)


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
        run: The run to export.
        format: "keras", "savedmodel", "onnx", "openvino" or "tflite"; None to infer it from the output's name.
        output: File (such as m.onnx) or folder to write; None for export/FORMAT in the run's folder.
        precision: Numeric precision of the predictions that the export is compared with, as for `evaluate`.
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
    """Find duplicates, leaks and likely label errors in data, and write a page, as `tlpipe inspect` does.

    Args:
        data: Data to look at, as for `extract`; if its features are in the cache, they are used as well.
        seed: Seed for the folds of a cross-validation.
        cache: The cache folder.
        reports: Where the page goes.
        **options: Columns of a manifest (a table of images).
    """
    at = folders_of(cache, reports)
    return with_folders(Inspected, commands.inspect(str(data), at.cache, at.reports, seed, Columns(**options)), at)


@command(ExtractConfig, LabelOptions, without=tuple(name for name in NOT_OF_LABEL if name != "labels"))
def label(data: str | Path = "digits", *, cache: Place = None, reports: Place = None, **options: Any) -> Labelled:
    """Label pictures on a page in the browser, as `tlpipe label` does, until the call is interrupted.

    Args:
        data: The pictures, as for `extract`.
        cache: The cache folder.
        reports: The reports folder.
        **options: As listed below.
    """
    at = folders_of(cache, reports)
    of_extract = {name: value for name, value in options.items() if name not in NOT_OF_LABEL}
    config = made(ExtractConfig, {**of_extract, "data": str(data)})
    return with_folders(Labelled, commands.label(config, at.cache, made(LabelOptions, options)), at)


@command()
def search(
    image: str | Path,
    data: str | Path | None = None,
    *,
    top: int = NEAREST,
    cache: Place = None,
    reports: Place = None,
) -> Searched:
    """Find the pictures of a dataset that are most like a given one, as `tlpipe search` does.

    Args:
        image: The picture to search for.
        data: Data to search, as for `extract`, whose features are in the cache. None for that of the newest features.
        top: Number of pictures to name.
        cache: The cache folder.
        reports: Where the page goes.
    """
    at = folders_of(cache, reports)
    found = commands.search(str(image), None if data is None else str(data), at.cache, at.reports, top)
    return with_folders(Searched, found, at)


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
        map: How features are drawn as a map in two dimensions: "pca" or "tsne".
        seed: Seed for t-SNE.
        cache: The cache folder.
        reports: Where the runs lie, and where the pages go.
    """
    at = folders_of(cache, reports)
    names = runs if isinstance(runs, (list, tuple)) else [] if runs is None else [runs]
    done = commands.report([str(name) for name in names], at.cache, at.reports, method=map, seed=seed)
    return with_folders(Reported, done, at)
