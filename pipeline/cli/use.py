"""`tlpipe predict`, `evaluate`, `export`, `inspect` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import Answer, Seed, Without, command
from pipeline.config import COMMON, Columns, Folders
from pipeline.config.extract import NOT_OF_PREDICT
from pipeline.config.head import TOP

RunArgument = Annotated[
    str,
    typer.Argument(
        help="A run of train-head, sweep or finetune: its id, a part of it, its name, latest, best, or reports/RUN."
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="auto, float32, bfloat16, float16 or int8. "
        "[default: that of the features, and float32 for a fine-tuned model]",
        show_default=False,
    ),
]


def predict(
    folders: Folders,
    run: RunArgument,
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders with all below them, or tables (.csv, .tsv, .parquet) with a path."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to name of each image.")] = TOP,
    csv: Annotated[Path | None, typer.Option(help="Write a table here, too.", dir_okay=False)] = None,
    precision: PrecisionOption = None,
    columns: Annotated[Columns, Without(NOT_OF_PREDICT)] = COMMON,
) -> Answer:
    """Label images by a run; what can't be read is listed."""
    from pipeline import commands
    from pipeline.cli.render import predict_text

    answers = commands.predict(
        run,
        images,
        folders.cache,
        folders.reports,
        top=top,
        csv_file=csv,
        precision=precision,
        path_column=columns.path_column,
    )
    rows = [image.to_json() for image in answers.images]
    return Answer(rows, lambda: predict_text(answers), failed=len(answers.unreadable) == len(rows))


def evaluate(
    folders: Folders,
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Argument(help="Labelled data, as for extract; classes are matched by name. [default: the run's own]"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another run, compared image by image.", show_default=False)
    ] = None,
    precision: PrecisionOption = None,
    columns: Columns = COMMON,
) -> Answer:
    """Rate a run on labelled data, by the splits that the data gives; without any, images that are new are test."""
    from pipeline import commands
    from pipeline.cli.render import run_text

    found = commands.evaluate(run, data, folders.cache, folders.reports, precision, against, columns)
    return Answer(found.to_json(), run_text(found, str(folders.reports / found.id)))


def export(
    folders: Folders,
    run: RunArgument,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="keras, savedmodel, onnx, openvino or tflite. [default: by the name of OUTPUT]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File (m.onnx) or folder to write. [default: reports/RUN/export/FORMAT]", show_default=False),
    ] = None,
    precision: PrecisionOption = None,
) -> Answer:
    """Write a run as a model for other programs, from uint8 images to probabilities, and compare it with predict."""
    from pipeline import commands
    from pipeline.cli.render import export_text

    done = commands.export(run, format_, folders.cache, folders.reports, output, precision)
    return Answer(done.to_json(), export_text(done))


def inspect(
    folders: Folders,
    data: Annotated[str, typer.Argument(help="As for extract; features of it are used once there are any.")],
    seed: Seed = 0,
    columns: Columns = COMMON,
) -> Answer:
    """Look at a dataset: counts, duplicates, leaks, likely label errors, outliers; and write a page of them."""
    from pipeline import commands
    from pipeline.cli.render import inspect_text

    found = commands.inspect(data, folders.cache, folders.reports, seed, columns)
    return Answer(found.to_json(), inspect_text(found))


def report(
    folders: Folders,
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run ids, or reports/RUN. [default: all]", show_default=False)
    ] = None,
    map_by: Annotated[str, typer.Option("--map", help="How features become a map: pca or tsne.")] = "pca",
    seed: Seed = 0,
) -> Answer:
    """Write reports/index.html, a leaderboard of all runs, and a page and figures for each run."""
    from pipeline import commands

    done = commands.report(runs or [], folders.cache, folders.reports, method=map_by, seed=seed)
    n = len(done.pages)
    pages = f"{n:,} {'page' if n == 1 else 'pages'}, {done.n_drawn:,} of them drawn anew, in {done.seconds:.1f} s"
    text = f"{pages}\nOpen       {done.index}"
    return Answer(done.to_json(), text)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for function in (evaluate, predict, export, inspect, report):
        command(app, function.__name__)(function)
