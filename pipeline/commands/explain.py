"""Explain: pictures that show which parts of them a run's answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.extract import COMMON, Columns
from pipeline.data import list_images, shortened
from pipeline.errors import ConfigError, DataError
from pipeline.extraction.unreadable import warn_unreadable
from pipeline.pages.explained import draw_maps
from pipeline.runs.classifier import open_classifier

FOLDER = "explained"  # in the run's folder


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where in a picture a class is seen.

    Attributes:
        path: Where the picture lies.
        label: The class that was asked about.
        probability: Of this class.
        file: The picture with the parts coloured that support the class.
    """

    path: str
    label: str
    probability: float
    file: Path

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"path": self.path, "label": self.label, "probability": self.probability, "file": str(self.file)}


def explain(
    reference: str | None,
    names: Sequence[str],
    cache: Path,
    reports: Path,
    *,
    label: str | None = None,
    output: Path | None = None,
    columns: Columns = COMMON,
) -> list[Explanation]:
    """Draw pictures in which the parts that support their class are coloured.

    Args:
        reference: A run, as in `find_run`.
        names: Images, folders and manifests.
        cache: The cache folder; activations that it has are not computed again.
        reports: The reports folder.
        label: The class to ask about; None for the most probable one of each picture.
        output: Folder for the pictures; None for `explained` in the run's folder.
        columns: Columns of paths, or of the pictures themselves.

    Raises:
        ConfigError: If there is no such class, or the run has no places to show.
        RunError: If the run can't be used.
        DataError: If one of the names isn't there, or holds no images that can be read.
        StoreError: If the pictures can't be written.
    """
    classifier = open_classifier(reports, reference)
    if label is not None and label not in classifier.class_names:
        raise ConfigError(f"--class is {label!r}; the run knows {shortened(list(classifier.class_names))}")
    locations, source = list_images(names, columns)
    predicted = classifier.predict(source, locations, cache)
    bad = predicted.unreadable
    warn_unreadable({locations[row]: bad[row] for row in sorted(bad)}, len(locations))
    rows = predicted.readable()
    if not len(rows):
        raise DataError(f"None of the {len(locations):,} images can be read")
    probabilities = predicted.probabilities[rows]
    chosen = probabilities.argmax(axis=1)
    if label is not None:
        chosen = np.full_like(chosen, classifier.class_names.index(label))
    folder = classifier.folder / FOLDER if output is None else output
    places = [locations[row] for row in rows.tolist()]
    files = draw_maps(classifier, source.take(rows), places, chosen, cache, folder)
    return [
        Explanation(place, classifier.class_names[number], float(shares[number]), file)
        for place, number, shares, file in zip(places, chosen.tolist(), probabilities, files, strict=True)
    ]
