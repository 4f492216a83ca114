"""Export: a run as a file for other programs, checked at once against tlpipe's own predictions."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import first_line
from pipeline.config import ExtractConfig
from pipeline.data import Opened, open_labelled
from pipeline.errors import ConfigError, DataError, ImageError, RunError, StoppedError
from pipeline.extraction.plan import Plan
from pipeline.heads import probability_layer
from pipeline.pages import Pictures
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.runs.formats import BATCH, Format, Runtime, format_named
from pipeline.runs.predictions import read_predictions
from pipeline.store.records import now
from pipeline.util import runtime
from pipeline.util.files import decoded, published_folder
from pipeline.util.memo import Memo
from pipeline.util.progress import progress

if TYPE_CHECKING:
    import keras

LEAST_AGREEMENT = 0.99
MOST_MISSED = 0.01  # by which the probabilities of an image may miss a sum of 1
CHECKED = 200  # images of the run that an export is checked on

log = logging.getLogger("tlpipe")


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
    name: str,
    cache: Path,
    reports: Path,
    output: Path | None = None,
    precision: str | None = None,
) -> Export:
    """Write a run as a model from uint8 images [n, height, width, 3] to probabilities [n, classes].

    Args:
        reference: A run id, the start of one, or the path of a run folder; None for the newest.
        name: Of the format.
        cache: The cache folder.
        reports: The reports folder.
        output: Folder to write; None for one in the run's folder, which is replaced.
        precision: Of the predictions that it is compared with, as in `tlpipe predict`; the file computes in float32.

    Raises:
        ConfigError: For an unknown format, or a head that is no network.
        RunError: If the run can't be used, or its export gives other labels; then nothing is written.
        DataError: If the images of the run can't be read any more.
        StoreError: If the folder can't be written.
    """
    start = time.perf_counter()
    form = format_named(name)
    classifier = open_classifier(reports, reference, precision)
    folder = classifier.folder / "export" / name if output is None else output
    if output is not None and output.exists():
        raise ConfigError(f"There is {output} already; give --output a folder that isn't there yet")
    if len(classifier.configs) > 1:
        raise ConfigError(
            f"{classifier.run.id} takes {len(classifier.configs)} sets of features, and a file holds one network; "
            "extract the endpoints together (--endpoint conv4+conv5) and train on that"
        )
    (plan,) = classifier.plans(cache)
    pixels, expected = _examples(classifier, plan, cache)
    model = _serving(classifier, plan)
    with published_folder(folder, replace=output is None) as partial:
        found = _written_and_run(form, model, partial / form.file, _metadata(classifier, plan), pixels)
        agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        difference = float(np.abs(found - expected).max())
        if agreement < LEAST_AGREEMENT:
            raise RunError(
                f"The {name} file gives the same label as tlpipe predict on {100 * agreement:.1f} % of {len(pixels):,} "
                f"images of the run, less than {100 * LEAST_AGREEMENT:.0f} %; it was not kept. {_advice(plan)}"
            )
    return Export(
        run=classifier.run.id,
        format=name,
        path=folder / form.file,
        n=len(pixels),
        agreement=agreement,
        difference=difference,
        seconds=time.perf_counter() - start,
    )


def _written_and_run(
    form: Format, model: keras.Model, path: Path, metadata: dict[str, Any], pixels: NDArray[np.uint8]
) -> NDArray[np.floating]:
    """Probabilities of images by a file that is written first.

    Raises:
        RunError: If the network can't be written in this format or run from it.
    """
    try:
        # A KeyboardInterrupt inside TensorFlow would come out as an error of its own.
        with runtime.stopping() as stop:
            form.write(model, path, metadata)
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
    if plan.views:
        return (
            f"tlpipe predict takes the mean over {plan.views + 1} versions of each image, a file takes each once: "
            "train without --test-views"
        )
    if plan.spec.precision != "float32":
        return (
            f"tlpipe predict computes in {plan.spec.precision}, a file in float32: train on features in float32, or "
            "use --precision float32 for both"
        )
    return "Try another --format"


def _serving(classifier: Classifier, plan: Plan) -> keras.Model:
    """The whole of a run as one Keras model."""
    network = plan.pretrained.network()
    features = network.features(plan.spec.endpoint, plan.spec.pooling)
    if classifier.trained is None:
        return features  # of a fine-tuned model, the probabilities
    trained = classifier.trained
    *below, logits = trained.head.layers(final=True)
    tensor = features.outputs[0]
    for layer in below:
        tensor = layer(tensor)
    outputs = probability_layer(logits, len(classifier.class_names), tensor, trained.temperature)
    return runtime.keras().Model(features.inputs[0], outputs, name="classifier")


def _examples(classifier: Classifier, plan: Plan, cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Pixels of images of the run, held-out ones where there are any, and tlpipe's own probabilities.

    Raises:
        DataError: If they can't be read any more.
    """
    run = classifier.run
    try:
        columns = decoded(ExtractConfig, run.extracts[0]).columns_of(run.data)
        opened = open_labelled(run.data, columns=columns, memo=Memo(cache))
    except DataError as error:
        raise DataError(f"{error}. An export is checked on images of its run, and these are gone") from error
    rows = _rows(classifier, opened)
    locations = [opened.dataset.locations[row] for row in rows]
    predicted = classifier.predict(opened.source.take(rows), locations, cache)
    good = np.flatnonzero(predicted.readable)
    if not len(good):
        raise DataError(f"None of the images of {run.data} that {run.id} should be checked on can be read any more")
    pixels = np.empty((len(good), *plan.images.image_size, 3), np.uint8)
    pictures = Pictures(opened.source, opened.dataset.keys, plan.images.pixel_limit)
    for number, position in enumerate(good.tolist()):
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


def _metadata(classifier: Classifier, plan: Plan) -> dict[str, Any]:
    """What a program needs to use the file, and where it comes from."""
    run, spec = classifier.run, plan.spec
    height, width = spec.image_size
    accuracies = {split: found["accuracy"] for split, found in run.metrics.items() if found["n"]}
    return {
        "class_names": list(classifier.class_names),
        "input": f"uint8 RGB [n, {height}, {width}, 3]; normalisation is inside",
        "output": f"probabilities, float32 [n, {len(classifier.class_names)}], in the order of class_names",
        "image_size": [height, width],
        "resize": spec.resize,
        "interpolation": spec.interpolation,
        "resized_by": "pillow, after JPEGs at least twice as large as needed were shrunk by the decoder (Image.draft)",
        "run": run.id,
        "stage": run.stage,
        "head": run.head,
        "backbone": run.specs[0].backbone,
        "weights_digest": run.specs[0].weights_digest,
        "dataset": run.dataset,
        "accuracy": accuracies,
        "trained": run.created,
        "exported": now(),
        "versions": runtime.versions(),
    }
