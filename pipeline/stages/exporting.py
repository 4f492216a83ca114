"""Export: a run as a file for other programs, checked at once against tlpipe's own predictions."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import extraction, images, runtime
from pipeline.datasets import Opened, open_labelled
from pipeline.errors import ConfigError, DataError, ImageError, RunError
from pipeline.exporting import BATCH, Run, format_named
from pipeline.extraction import Row
from pipeline.files import published_folder
from pipeline.heads import probability_layer
from pipeline.memo import Memo
from pipeline.progress import progress
from pipeline.records import now
from pipeline.runs import read_predictions
from pipeline.stages.rows import Plan
from pipeline.stages.serving import Classifier, open_classifier

if TYPE_CHECKING:
    import keras

__all__ = ["LEAST_AGREEMENT", "Export", "export"]

LEAST_AGREEMENT = 0.99
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
        agreement: Share of them that get the same label as from tlpipe.
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


def export(reference: str | None, name: str, cache: Path, reports: Path, output: Path | None = None) -> Export:
    """Write a run as a model from uint8 images [n, height, width, 3] to probabilities [n, classes].

    Args:
        reference: A run id, the start of one, or the path of a run folder; None for the newest.
        name: Of the format.
        cache: The cache folder.
        reports: The reports folder.
        output: Folder to write; None for one in the run's folder, which is replaced.

    Raises:
        ConfigError: For an unknown format, or a head that is no network.
        RunError: If the run can't be used, or its export gives other labels; then nothing is written.
        DataError: If the images of the run can't be read any more.
    """
    start = time.perf_counter()
    form = format_named(name)
    classifier = open_classifier(reports, reference, "float32")
    if classifier.configs[0].views:
        log.warning("The file takes each image once: the mean over augmented versions is not in it")
    once = tuple(replace(config, views=0, augment=None) for config in classifier.configs)
    classifier = replace(classifier, configs=once)
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
        form.write(model, partial / form.file, _metadata(classifier, plan))
        found = _run(form.load(partial / form.file), pixels)
        agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        difference = float(np.abs(found - expected).max())
        if agreement < LEAST_AGREEMENT:
            raise RunError(
                f"The {name} file gives the same label as tlpipe on {100 * agreement:.1f} % of {len(pixels):,} images "
                f"of the run, less than {100 * LEAST_AGREEMENT:.0f} %; it was not kept. Try another --format"
            )
    seconds = time.perf_counter() - start
    return Export(classifier.run.id, name, folder / form.file, len(pixels), agreement, difference, seconds)


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
    """Images of the run, held-out ones where there are any, and tlpipe's own probabilities of them.

    Raises:
        DataError: If they can't be read any more.
    """
    run = classifier.run
    try:
        opened = open_labelled(run.data, memo=Memo(cache))
    except DataError as error:
        raise DataError(f"{error}. An export is checked on images of its run, and these are gone") from error
    rows = _rows(classifier, opened)
    locations = [opened.dataset.locations[row] for row in rows]
    predicted = classifier.predict(opened.source.take(rows), locations, cache)
    good = np.flatnonzero(predicted.readable)
    if not len(good):
        raise DataError(f"None of the images of {run.data} that {run.id} should be checked on can be read any more")
    pixels = np.empty((len(good), *plan.images.image_size, 3), np.uint8)
    with images.reading(plan.images.pixel_limit):
        for number, position in enumerate(good.tolist()):
            row = rows[position]
            key = bytes(opened.dataset.keys[row])
            try:
                pixels[number] = extraction.pixels_of(
                    opened.source, Row(key, key, 0, row, locations[position]), plan.images, None
                )
            except ImageError as error:
                raise DataError(f"{locations[position]} can't be read any more: {error}") from error
    return pixels, predicted.probabilities[good]


def _rows(classifier: Classifier, opened: Opened) -> list[int]:
    """Rows of images to check on: of those the run was rated on, else of all."""
    dataset = opened.dataset
    rated = [part.keys for part in read_predictions(classifier.folder, classifier.run).values()]
    keys, first = np.unique(dataset.keys, return_index=True)
    if rated:
        first = first[np.isin(keys, np.concatenate(rated))]
    if not len(first):
        raise DataError(f"{classifier.run.data} no longer holds the images that {classifier.run.id} was rated on")
    # Keys are digests, so that the first ones in their order are a random choice, and always the same.
    return [int(row) for row in first[:CHECKED]]


def _run(run: Run, pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
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
        "resized_by": "pillow",
        "run": run.id,
        "stage": run.stage,
        "head": run.head,
        "backbone": run.specs[0]["backbone"],
        "weights_digest": run.specs[0]["weights_digest"],
        "dataset": run.dataset,
        "accuracy": accuracies,
        "trained": run.created,
        "exported": now(),
        "versions": runtime.versions(),
    }
