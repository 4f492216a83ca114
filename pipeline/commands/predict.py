"""Predict: labels and probabilities of images, in the order in which a user names them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.extract import COMMON, Columns
from pipeline.config.head import TOP
from pipeline.data import list_images
from pipeline.errors import ConfigError
from pipeline.extraction.unreadable import warn_unreadable
from pipeline.pages.explained import draw_maps
from pipeline.runs.classifier import open_classifier
from pipeline.util.files import published


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """What is predicted of one image.

    Attributes:
        path: Where it lies.
        top: The most probable classes and their probabilities, the best first; empty if it can't be read.
        error: Why it can't be read; None if it can.
    """

    path: str
    top: list[tuple[str, float]]
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        label, probability = self.top[0] if self.top else (None, None)
        value: dict[str, Any] = {
            "path": self.path,
            "label": label,
            "probability": probability,
            "top": [{"label": name, "probability": share} for name, share in self.top],
        }
        return value if self.error is None else {**value, "error": self.error}


@dataclass(frozen=True, slots=True)
class Answers:
    """What is predicted of all images.

    Attributes:
        run: Id of the run.
        images: In the order in which they were named.
        n_computed: Rows of features that were not in the cache.
        images_per_second: Rate of the pass; 0 where nothing was computed.
    """

    run: str
    images: list[ImageAnswer]
    n_computed: int
    images_per_second: float

    @property
    def unreadable(self) -> list[ImageAnswer]:
        """The images that can't be read."""
        return [image for image in self.images if image.error is not None]

    def write_csv(self, path: Path) -> None:
        """Write a row for each image: path, label, probability, the next classes, and why it can't be read.

        Raises:
            StoreError: If the file can't be written.
        """
        most = max(1, *(len(image.top) for image in self.images))
        header = ["path", "label", "probability"]
        header += [f"{name}_{number}" for number in range(2, most + 1) for name in ("label", "probability")]
        rows = [[*header, "error"]]
        for image in self.images:
            cells = [cell for name, share in image.top for cell in (name, f"{share:.6g}")]
            cells += [""] * (2 * most - len(cells))
            rows.append([image.path, *cells, image.error or ""])
        path = path.resolve()  # a link stays one
        if path.exists() and not path.is_file():  # a pipe or a device is written to, never replaced
            _write_rows(path, rows)
            return
        with published(path) as partial:
            _write_rows(partial, rows)


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def predict(
    reference: str | None,
    names: Sequence[str],
    cache: Path,
    reports: Path,
    *,
    top: int = TOP,
    csv_file: Path | None = None,
    precision: str | None = None,
    columns: Columns = COMMON,
    explained: Path | None = None,
) -> Answers:
    """Label images by a run.

    Args:
        reference: A run, as in `find_run`.
        names: Images, folders and manifests.
        cache: The cache folder; features that it has are not computed again.
        reports: The reports folder.
        top: Classes that are named of each image.
        csv_file: Where the answers are written, too; None for nowhere.
        precision: As in `ExtractConfig`; None for that in which the run was rated.
        columns: Columns of paths, or of the pictures themselves.
        explained: Folder for copies of the images in which the parts that support the answer are coloured; None
            for none.

    Raises:
        ConfigError: For illegal options, or if pictures are to be explained and the run has no places to show.
        RunError: If the run can't be used.
        CacheMismatchError: If the backbone is not that of training any more.
        StoppedError: After Ctrl-C or SIGTERM; the same command goes on from there.
        DataError: If one of the names isn't there, or holds no images.
        StoreError: If the table can't be written.
    """
    if top < 1:
        raise ConfigError(f"--top is {top}; give 1 or more")
    if (
        csv_file is not None
        and csv_file.exists()
        and any(csv_file.samefile(name) for name in names if Path(name).exists())
    ):
        raise ConfigError(f"--csv {csv_file} is one of the images or tables that are read; name another file")
    classifier = open_classifier(reports, reference, precision)
    locations, source = list_images(names, columns)
    predicted = classifier.predict(source, locations, cache)
    bad = predicted.unreadable
    warn_unreadable({locations[number]: bad[number] for number in sorted(bad)}, len(locations))
    class_names = classifier.class_names
    order = np.argsort(-predicted.probabilities, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(predicted.probabilities, order, axis=1).tolist()
    images = []
    for number, (location, row, shares) in enumerate(zip(locations, order.tolist(), best, strict=True)):
        cause = bad.get(number)
        named = [] if cause else [(class_names[label], share) for label, share in zip(row, shares, strict=True)]
        images.append(ImageAnswer(location, named, cause))
    answers = Answers(classifier.run.id, images, predicted.n_computed, predicted.images_per_second)
    if csv_file is not None:
        answers.write_csv(csv_file)
    if explained is not None:
        rows = predicted.readable()
        places = [locations[row] for row in rows.tolist()]
        draw_maps(classifier, source.take(rows), places, order[rows, 0], cache, explained)
    return answers
