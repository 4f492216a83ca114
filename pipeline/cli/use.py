"""`tlpipe predict`, `evaluate`, `export`, `inspect` and `report`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import render
from pipeline.cli.common import LOCAL_PATH, Answer, command, run_argument, seed_option, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import Columns, Folders
from pipeline.config.extract import NOT_OF_PREDICT
from pipeline.config.head import TOP
from pipeline.util.text import counted

precision_option = click.option(
    "--precision",
    help="auto, float32, bfloat16, float16 or int8. [default: that of the features, and float32 for a fine-tuned "
    "model]",
)


@command("predict")
@run_argument
@click.argument(
    "images",
    nargs=-1,
    required=True,
    help="Images, folders with all below them, tables (.csv, .tsv, .parquet) with a path, or Parquet files and tars "
    "that hold pictures.",
    shell_complete=COMPLETED["data"],
)
@click.option("--top", type=click.IntRange(1), default=TOP, help="Classes to name of each image.")
@click.option("--csv", type=LOCAL_PATH, help="Write a table here, too.")
@precision_option
@takes("columns", Columns, without=NOT_OF_PREDICT)
@takes("folders", Folders)
def predict(
    run: str,
    images: tuple[str, ...],
    top: int,
    csv: Path | None,
    precision: str | None,
    columns: Columns,
    folders: Folders,
) -> Answer:
    """Label images by a run; what can't be read is listed."""
    from pipeline import commands

    answers = commands.predict(
        run,
        list(images),
        folders.cache,
        folders.reports,
        top=top,
        csv_file=csv,
        precision=precision,
        columns=columns,
    )
    rows = [image.to_json() for image in answers.images]
    return Answer(rows, lambda: render.predict_text(answers), failed=len(answers.unreadable) == len(rows))


@command("evaluate")
@run_argument
@click.argument(
    "data",
    required=False,
    help="Labelled data, as for extract; classes are matched by name. [default: the run's own]",
    shell_complete=COMPLETED["data"],
)
@click.option("--against", help="Another run, compared image by image.", shell_complete=COMPLETED["run"])
@precision_option
@takes("columns", Columns)
@takes("folders", Folders)
def evaluate(
    run: str, data: str | None, against: str | None, precision: str | None, columns: Columns, folders: Folders
) -> Answer:
    """Rate a run on labelled data, by the splits that the data gives; without any, images that are new are test."""
    from pipeline import commands

    found = commands.evaluate(run, data, folders.cache, folders.reports, precision, against, columns)
    return Answer(found.to_json(), render.run_text(found, str(folders.reports / found.id)))


@command("export")
@run_argument
@click.option(
    "--format", "format_", help="keras, savedmodel, onnx, openvino or tflite. [default: by the name of OUTPUT]"
)
@click.option(
    "--output",
    type=LOCAL_PATH,
    help="File (m.onnx) or folder to write. [default: reports/RUN/export/FORMAT]",
)
@precision_option
@takes("folders", Folders)
def export(run: str, format_: str | None, output: Path | None, precision: str | None, folders: Folders) -> Answer:
    """Write a run as a model for other programs, from uint8 images to probabilities, and compare it with predict."""
    from pipeline import commands

    done = commands.export(run, format_, folders.cache, folders.reports, output, precision)
    return Answer(done.to_json(), render.export_text(done))


@command("inspect")
@click.argument(
    "data", help="As for extract; features of it are used once there are any.", shell_complete=COMPLETED["data"]
)
@seed_option
@takes("columns", Columns)
@takes("folders", Folders)
def inspect(data: str, seed: int, columns: Columns, folders: Folders) -> Answer:
    """Look at a dataset: counts, duplicates, leaks, likely label errors, outliers; and write a page of them."""
    from pipeline import commands

    found = commands.inspect(data, folders.cache, folders.reports, seed, columns)
    return Answer(found.to_json(), render.inspect_text(found))


@command("report")
@click.argument("runs", nargs=-1, help="Run ids, or reports/RUN. [default: all]", shell_complete=COMPLETED["run"])
@click.option("--map", "map_by", default="pca", help="How features become a map: pca or tsne.")
@seed_option
@takes("folders", Folders)
def report(runs: tuple[str, ...], map_by: str, seed: int, folders: Folders) -> Answer:
    """Write reports/index.html, a leaderboard of all runs, and a page and figures for each run."""
    from pipeline import commands

    done = commands.report(list(runs), folders.cache, folders.reports, method=map_by, seed=seed)
    pages = f"{counted(len(done.pages), 'page')}, {done.n_drawn:,} of them drawn anew, in {done.seconds:.1f} s"
    text = f"{pages}\nOpen       {done.index}"
    return Answer(done.to_json(), text)
