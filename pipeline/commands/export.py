"""Export: a run as a file for other programs, checked at once against tlpipe's own predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import OnnxFile
from pipeline.data import Opened, open_labelled
from pipeline.errors import ConfigError, DataError, ImageError, RunError, StoppedError
from pipeline.extraction.plan import Plan
from pipeline.pages.pictures import Pictures
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.runs.formats import BATCH, FORMATS, Format, Joined, Runtime, format_named
from pipeline.runs.predictions import read_predictions
from pipeline.runs.serving import is_mirrored, metadata_of, serving
from pipeline.runs.usage import USAGE, usage
from pipeline.util import disk
from pipeline.util.files import digest_of_file, published_folder, temporary_folder, writing
from pipeline.util.memo import Memo
from pipeline.util.progress import progress
from pipeline.util.stopping import stopping
from pipeline.util.text import first_line

if TYPE_CHECKING:
    import keras

LEAST_AGREEMENT = 0.99
MOST_APART = 0.1  # of probabilities, where there are too few images to count labels by: bfloat16 stays below
MOST_MISSED = 0.01  # by which the probabilities of an image may miss a sum of 1
CHECKED = 200  # images of the run that an export is checked on


@dataclass(frozen=True, slots=True)
class Export:
    """A file for other programs.

    Attributes:
        run: Id of the run.
        format: Name of the format.
        path: The file, or the folder of a SavedModel.
        n: Images that it was checked on.
        agreement: Share of them that get the same label as from `tlpipe predict`.
        difference: Largest difference of a probability.
        seconds: In all.
    """

    run: str
    format: str
    path: Path
    n: int
    agreement: float
    difference: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "run": self.run,
            "format": self.format,
            "path": str(self.path),
            "n_checked": self.n,
            "agreement": self.agreement,
            "max_difference": self.difference,
            "seconds": self.seconds,
        }


def export(
    reference: str | None,
    name: str | None,
    cache: Path,
    reports: Path,
    output: Path | None = None,
    precision: str | None = None,
) -> Export:
    """Write a run as a model from uint8 images [n, height, width, 3] to probabilities [n, classes].

    Beside it lies a script that uses it.

    Args:
        reference: A run, as in `find_run`.
        name: Of the format; None for that of the output's suffix.
        cache: The cache folder.
        reports: The reports folder.
        output: File or folder to write; None for a folder in the run's folder, which is replaced.
        precision: Of the predictions that it is compared with, as in `tlpipe predict`; the file computes in float32.

    Raises:
        ConfigError: For an unknown format, or a head that is no network.
        RunError: If the run can't be used, or its export gives other labels; then nothing is written.
        DataError: If the images of the run can't be read any more.
        StoreError: If the folder can't be written.
    """
    start = time.perf_counter()
    form = _format(name, output)
    classifier = open_classifier(reports, reference, precision)
    place = classifier.folder / "export" / form.name if output is None else output
    alone = place.suffix == form.suffix != ""  # else a folder holds the file
    path = place if alone else place / form.file
    script = path.with_name(f"{path.stem}_{USAGE}" if alone else USAGE)  # that uses the file
    if output is not None:
        _check_free(output)
    if len(classifier.configs) > 1:
        raise ConfigError(
            f"{classifier.run.id} takes {len(classifier.configs)} sets of features, and a file holds one network; "
            "extract the endpoints together (--endpoint conv4+conv5) and train on that"
        )
    (plan,) = classifier.plans(cache)
    if isinstance(plan.pretrained, OnnxFile):
        _check_joins(form, plan)
    pixels, expected = _examples(classifier, plan, cache)
    model, metadata = serving(classifier, plan), metadata_of(classifier, plan)
    target = _beside_others(path) if alone else published_folder(place, replace=output is None, last=form.file)
    with target as folder:
        found = _written_and_run(form, model, folder / path.name, metadata, pixels)
        disk.write(folder / script.name, usage(form.name, path.name, metadata))
        agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        difference = float(np.abs(found - expected).max())
        _check(form, plan, agreement, difference, len(pixels))
    return Export(
        run=classifier.run.id,
        format=form.name,
        path=path,
        n=len(pixels),
        agreement=agreement,
        difference=difference,
        seconds=time.perf_counter() - start,
    )


def _format(name: str | None, output: Path | None) -> Format:
    """The format that is named, or else told by the suffix of the output, which must not tell another one."""
    told = next((form for form in FORMATS.values() if output is not None and output.suffix == form.suffix != ""), None)
    if name is None:
        if told is None:
            legal = ", ".join(form.suffix for form in FORMATS.values() if form.suffix)
            raise ConfigError(
                f"--format is missing; it can be {', '.join(FORMATS)}, or give an --output that ends in {legal}"
            )
        name = told.name
    form = format_named(name)
    if told is not None and told is not form:
        raise ConfigError(f"--format {form.name} and --output {output}, the name of a {told.name} file, contradict")
    return form


def _check_free(*paths: Path) -> None:
    """Refuse to replace files."""
    for path in paths:
        if path.exists():
            raise ConfigError(f"There is {path} already; give --output a file or folder that isn't there yet")


def _is_there(path: Path, folder: Path) -> bool:
    """Whether a folder holds the same file, as after an export that was ended before it gave its last file a name."""
    other = folder / path.name
    return other.is_file() and digest_of_file(other) == digest_of_file(path)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, with those above it, that are gone again if the block fails."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    disk.make_folder(folder)
    try:
        yield
    except BaseException:
        for path in absent:
            disk.remove_empty(path)  # another process may have put something there
        raise


@contextmanager
def _beside_others(output: Path) -> Iterator[Path]:
    """A temporary folder, whose files are published beside those that are there only if the block succeeds."""
    with writing(output), _made(output.parent), temporary_folder(output) as partial:
        yield partial
        # What the file refers to comes before it.
        paths = sorted(partial.iterdir(), key=lambda path: path.name == output.name)
        _check_free(*(output.parent / path.name for path in paths if not _is_there(path, output.parent)))
        for path in paths:
            disk.flush(path)
            disk.rename(path, output.parent / path.name)
        disk.flush(output.parent)


def _check(form: Format, plan: Plan, agreement: float, difference: float, n: int) -> None:
    """Refuse a file that answers otherwise than tlpipe.

    Of a few images a share of equal labels says little, so that the probabilities are compared in its place.
    """
    few = n < CHECKED // 2
    if not few and agreement < LEAST_AGREEMENT:
        raise RunError(
            f"The {form.name} file gives the same label as tlpipe predict on {100 * agreement:.1f} % of {n:,} images "
            f"of the run, less than {100 * LEAST_AGREEMENT:.0f} %; it was not kept. {_advice(plan)}"
        )
    if few and difference > MOST_APART:
        raise RunError(
            f"The {form.name} file gives probabilities up to {difference:.2f} apart from those of tlpipe predict on "
            f"{n:,} images of the run, more than {MOST_APART:g}; it was not kept. {_advice(plan)}"
        )


def _check_joins(form: Format, plan: Plan) -> None:
    """Refuse what a backbone from an ONNX file can't be exported as."""
    if form.name != "onnx":
        raise ConfigError(
            f"--format {form.name} can't hold {plan.pretrained.name}, which comes from an ONNX file; with its head it "
            "becomes one file by --format onnx"
        )
    if plan.views:
        raise ConfigError(
            f"tlpipe predict takes the mean over {plan.views + 1} versions of each image, and a file with "
            f"{plan.pretrained.name}, which comes from an ONNX file, takes each once: train without --test-views"
        )


def _written_and_run(
    form: Format, model: keras.Model | Joined, path: Path, metadata: dict[str, Any], pixels: NDArray[np.uint8]
) -> NDArray[np.floating]:
    """Probabilities of images by a file that is written first."""
    try:
        # A KeyboardInterrupt inside TensorFlow would come out as an error of its own.
        with stopping() as stop:
            form.write(model, disk.change("write", path), metadata)
            load = None if stop.signal else form.load(path)
            found = np.empty((0, 0)) if load is None or stop.signal else _run(load, pixels)
        if stop.signal is not None:
            raise StoppedError("Stopped; nothing was written.", signal=stop.signal)
    except (OSError, StoppedError):  # a full disk is told by what publishes the folder
        raise
    except Exception as error:  # converters and runtimes raise many kinds
        raise RunError(
            f"The network can't be written as {form.name}, or run from there: {first_line(error)}. Try another --format"
        ) from error
    # The largest of numbers that are none would pass for a label.
    if not np.isfinite(found).all() or np.abs(found.sum(axis=1) - 1).max() > MOST_MISSED:
        raise RunError(f"The {form.name} file gives no probabilities, so it was not kept. Try another --format")
    return found


def _advice(plan: Plan) -> str:
    """How a run can be had whose file agrees."""
    if plan.views and not is_mirrored(plan):
        return (
            f"tlpipe predict takes the mean over {plan.views + 1} versions of each image ({plan.augment}), a file "
            "takes each once: train without --test-views, or with mirror images alone (--views 1 --augment flip)"
        )
    if plan.spec.precision != "float32":
        return (
            f"tlpipe predict computes in {plan.spec.precision}, a file in float32: train on features of tlpipe extract "
            "--precision float32, or give --precision float32 to export and to predict"
        )
    return "Try another --format"


def _examples(classifier: Classifier, plan: Plan, cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Pixels of images of the run, held-out ones where there are any, and tlpipe's own probabilities."""
    run = classifier.run
    try:
        columns = run.extracts[0].columns_of(run.data)
        opened = open_labelled(run.data, columns=columns, memo=Memo(cache))
    except DataError as error:
        raise DataError(f"{error}. An export is checked on images of its run, and these are gone") from error
    rows = _rows(classifier, opened)
    locations = [opened.dataset.locations[row] for row in rows]
    predicted = classifier.predict(opened.source.take(rows), locations, cache)
    good = [number for number in range(len(rows)) if number not in predicted.unreadable]
    if not good:
        raise DataError(f"None of the images of {run.data} that {run.id} should be checked on can be read any more")
    pixels = np.empty((len(good), *plan.images.image_size, 3), np.uint8)
    pictures = Pictures(opened.source, opened.dataset.keys, plan.images.pixel_limit)
    for number, position in enumerate(good):
        try:
            pixels[number] = pictures.pixels(rows[position], plan.images)
        except ImageError as error:
            raise DataError(f"{locations[position]} can't be read any more: {error}") from error
    return pixels, predicted.probabilities[good]


def _rows(classifier: Classifier, opened: Opened) -> list[int]:
    """Rows of images to check on: of those the run was rated on, else of all."""
    dataset = opened.dataset
    rated = [
        part.keys
        for part in read_predictions(classifier.folder, len(classifier.class_names), classifier.run.files).values()
    ]
    keys, first = np.unique(dataset.keys, return_index=True)
    if rated:
        first = first[np.isin(keys, np.concatenate(rated))]
    if not len(first):
        raise DataError(f"{classifier.run.data} no longer holds the images that {classifier.run.id} was rated on")
    # Keys are digests, so that the first ones in their order are a random choice, and always the same.
    return [int(row) for row in first[:CHECKED]]


def _run(run: Runtime, pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Probabilities of images, in batches of one size and perhaps a smaller last one."""
    found: list[NDArray[np.floating]] = []
    with progress("Checking", len(pixels)) as advance:
        for start in range(0, len(pixels), BATCH):
            found.append(run(pixels[start : start + BATCH]))
            advance(len(found[-1]))
    return np.concatenate(found)
