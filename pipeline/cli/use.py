"""`tlpipe predict`, `explain`, `evaluate`, `export`, `inspect`, `search` and `report`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import render
from pipeline.cli.common import LOCAL_PATH, Answer, command, run_argument, seed_option, takes
from pipeline.cli.complete import COMPLETED
from pipeline.config import Columns, Folders
from pipeline.config.extract import NOT_OF_PREDICT
from pipeline.config.head import NEAREST, TOP
from pipeline.util.text import counted

PRECISION_HELP = (
    "auto, float32, bfloat16, float16 or int8. [default: that of the features, and float32 for a fine-tuned model]"
)
precision_option = click.option("--precision", help=f"Numeric precision of the computation: {PRECISION_HELP}")


@command("predict")
@run_argument
@click.argument(
    "images",
    nargs=-1,
    required=True,
    help="Image files, folders with all images below them, tables (.csv, .tsv, .parquet) with a column path, or "
    "Parquet files and tars that hold pictures.",
    shell_complete=COMPLETED["data"],
)
@click.option(
    "--top", type=click.IntRange(1), default=TOP, help="Number of most probable classes to name for each image."
)
@click.option("--csv", type=LOCAL_PATH, help="CSV file to write the answers to as well.")
@click.option(
    "--explain",
    "explained",
    type=LOCAL_PATH,
    help="Folder for copies of the images in which the parts that support the answer are coloured.",
)
@precision_option
@takes("columns", Columns, without=NOT_OF_PREDICT)
@takes("folders", Folders)
def predict(
    run: str,
    images: tuple[str, ...],
    top: int,
    csv: Path | None,
    explained: Path | None,
    precision: str | None,
    columns: Columns,
    folders: Folders,
) -> Answer:
    """Label images with a trained run.

    Images that can't be read are listed.
    """
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
        explained=explained,
    )
    rows = [image.to_json() for image in answers.images]
    return Answer(rows, lambda: render.predict_text(answers), failed=len(answers.unreadable) == len(rows))


@command("evaluate")
@run_argument
@click.argument(
    "data",
    required=False,
    help="Labelled data, as for extract; classes are matched by name. [default: the data of the run]",
    shell_complete=COMPLETED["data"],
)
@click.option("--against", help="Another run to compare with, image by image.", shell_complete=COMPLETED["run"])
@precision_option
@takes("columns", Columns)
@takes("folders", Folders)
def evaluate(
    run: str, data: str | None, against: str | None, precision: str | None, columns: Columns, folders: Folders
) -> Answer:
    """Measure the accuracy of a run on labelled data.

    Images have the splits that the data gives, or else those of training; new images count as test images.
    """
    from pipeline import commands

    found = commands.evaluate(run, data, folders.cache, folders.reports, precision, against, columns)
    return Answer(found.to_json(), render.run_text(found, folders))


@command("export")
@run_argument
@click.option(
    "--format",
    "format_",
    help="Format of the model: keras, savedmodel, onnx, openvino or tflite. [default: by the name of --output]",
)
@click.option(
    "--output",
    type=LOCAL_PATH,
    help="File (such as m.onnx) or folder to write. [default: reports/RUN/export/FORMAT]",
)
@click.option(
    "--precision",
    help="Numeric precision of the predictions that the export is compared with (the exported file computes in "
    f"float32): {PRECISION_HELP}",
)
@takes("folders", Folders)
def export(run: str, format_: str | None, output: Path | None, precision: str | None, folders: Folders) -> Answer:
    """Write a run as a model for other programs.

    The model takes uint8 images and gives probabilities, which are compared with those of tlpipe predict.
    """
    from pipeline import commands

    done = commands.export(run, format_, folders.cache, folders.reports, output, precision)
    return Answer(done.to_json(), render.export_text(done))


@command("inspect")
@click.argument(
    "data",
    help="Data to look at, as for extract; if its features are in the cache, they are used as well.",
    shell_complete=COMPLETED["data"],
)
@seed_option
@takes("columns", Columns)
@takes("folders", Folders)
def inspect(data: str, seed: int, columns: Columns, folders: Folders) -> Answer:
    """Find duplicates, leaks and likely label errors in data.

    Also counts the images of each class, finds outliers, and writes a page with all of this.
    """
    from pipeline import commands

    found = commands.inspect(data, folders.cache, folders.reports, seed, columns)
    return Answer(found.to_json(), render.inspect_text(found))


@command("explain")
@run_argument
@click.argument(
    "images",
    nargs=-1,
    required=True,
    help="Images, as for predict.",
    shell_complete=COMPLETED["data"],
)
@click.option("--class", "label", help="Class to ask about. [default: the most probable one of each image]")
@click.option("--output", type=LOCAL_PATH, help="Folder for the pictures. [default: reports/RUN/explained]")
@takes("columns", Columns, without=NOT_OF_PREDICT)
@takes("folders", Folders)
def explain(
    run: str, images: tuple[str, ...], label: str | None, output: Path | None, columns: Columns, folders: Folders
) -> Answer:
    """Show which parts of an image a run's answer rests on.

    For each image, a copy is written in which the parts that support the class are coloured.
    """
    from pipeline import commands

    found = commands.explain(
        run, list(images), folders.cache, folders.reports, label=label, output=output, columns=columns
    )
    return Answer([one.to_json() for one in found], lambda: render.explain_text(found))


@command("search")
@click.argument("image", help="Picture to search for.", shell_complete=COMPLETED["data"])
@click.option(
    "--in",
    "data",
    help="Data to search, as for extract, whose features are in the cache. [default: that of the newest features]",
    shell_complete=COMPLETED["data"],
)
@click.option("--top", type=click.IntRange(1), default=NEAREST, help="Number of pictures to name.")
@takes("folders", Folders)
def search(image: str, data: str | None, top: int, folders: Folders) -> Answer:
    """Find the pictures of a dataset that are most like a given one.

    They are compared by their cached features. A page shows them.
    """
    from pipeline import commands

    found = commands.search(image, data, folders.cache, folders.reports, top)
    return Answer(found.to_json(), render.search_text(found))


@command("report")
@click.argument(
    "runs",
    nargs=-1,
    help="Runs that get a page: their ids, or reports/RUN. [default: all]",
    shell_complete=COMPLETED["run"],
)
@click.option("--map", "map_by", default="pca", help="How features are drawn as a map in two dimensions: pca or tsne.")
@seed_option
@takes("folders", Folders)
def report(runs: tuple[str, ...], map_by: str, seed: int, folders: Folders) -> Answer:
    """Write a leaderboard of all runs, and a page for each run.

    The leaderboard is reports/index.html; the pages come with figures.
    """
    from pipeline import commands

    done = commands.report(list(runs), folders.cache, folders.reports, method=map_by, seed=seed)
    pages = f"{counted(len(done.pages), 'page')} ({done.n_drawn:,} drawn anew) in {done.seconds:.1f} s"
    text = f"{pages}\nOpen       {done.index}"
    return Answer(done.to_json(), text)
