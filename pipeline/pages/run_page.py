"""What the page of a run shows, from its folder and the pictures of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig
from pipeline.data.augment import Augment
from pipeline.errors import ImageError
from pipeline.evaluation.metrics import evaluate, reliability
from pipeline.pages import charts
from pipeline.pages.explained import coloured
from pipeline.pages.gallery import choose
from pipeline.pages.pictures import Pictures, webp_address
from pipeline.runs.class_maps import Maps
from pipeline.runs.predictions import Predictions
from pipeline.runs.run import EvaluateRun, FinetuneRun, RatedRun, SweepRun
from pipeline.util.text import counted, interval, percent, sides

CONFUSION = "confusion"  # name of a figure

GALLERY_SIDE, MAP_SIDE, SAMPLE_SIDE = 128, 48, 112  # pixels
GALLERY_BYTES, MAP_BYTES, SEEN_BYTES = 1_500_000, 1_500_000, 900_000  # so that a page stays below 5 MB
MOST_VIEWS = 4  # of a sample
MATRIX_CLASSES = 25  # more give a list of confusions in place of a matrix
FIGURE_CLASSES = 100  # more give no figure of the matrix: it has a square for each pair
LISTED_CONFUSIONS = 100

History = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Map:
    """Images as points.

    Attributes:
        keys: Image keys, shape [n].
        points: Shape [n, 2].
        method: How features became two numbers.
        features: Id of the features.
    """

    keys: NDArray[np.bytes_]
    points: NDArray[np.floating]
    method: str
    features: str


@dataclass(frozen=True, slots=True)
class RunData:
    """All that a run's page is made of.

    Attributes:
        run: The run.
        history: Of its training.
        predictions: By split.
        frozen: The run before fine-tuning and its history; None where there is none.
        pictures: Of its data; None if they can't be opened.
        locations: Where each image lies, by key.
        augment: How views were made; None where none were seen.
        views: Number of views of each image that were seen in training, beside the image itself.
        samples: Keys of some training images.
        map: None where there are no features.
        seen: Gives, of image keys and the classes that are asked about, maps of where each class is seen; only of
            pictures whose activations are in the cache. None where the run has no such maps.
        missing: What the page lacks, and why.
    """

    run: RatedRun
    history: History
    predictions: dict[str, Predictions]
    frozen: tuple[RatedRun, History] | None = None
    pictures: Pictures | None = None
    locations: dict[bytes, str] = field(default_factory=dict)
    augment: Augment | None = None
    views: int = 0
    samples: Sequence[bytes] = ()
    map: Map | None = None
    seen: Callable[[NDArray[np.bytes_], NDArray[np.int64]], Mapping[bytes, Maps]] | None = None
    missing: list[str] = field(default_factory=list)


def context(data: RunData, curves: list[charts.Spec]) -> dict[str, Any]:
    """What the template of a run's page needs, with its learning curves."""
    run, split = data.run, data.run.shown_split
    value: dict[str, Any] = {
        "run": run,
        "paragraph": paragraph(run),
        "charts": curves,
        "split": split,
        "missing": list(data.missing),
        "repeat": _repeat(data),
        "gallery": [],
        "samples": _samples(data),
        "engine": ", ".join(dict.fromkeys(spec.precision for spec in run.specs)),
        "baseline": _baseline(run),
        "used": run.used(),
        "candidates": _candidates(run),
    }
    predictions = data.predictions.get(split or "")
    if predictions is None:
        return value
    found = evaluate(predictions.probabilities, predictions.labels, run.class_names)
    matrix = found["confusion_matrix"]
    if len(run.class_names) > FIGURE_CLASSES:
        value["missing"].append(f"{len(run.class_names):,} classes are too many for a figure of their confusions.")
    gallery, lacks = _gallery(data, predictions)
    value["missing"] += lacks
    return value | {
        "per_class": found["per_class"],
        "matrix": matrix if len(run.class_names) <= MATRIX_CLASSES else None,
        "confusions": _confusions(matrix),
        "reliability": charts.reliability(reliability(predictions.probabilities, predictions.labels)),
        "ece": found["ece"],
        "gallery": gallery,
        "map": _map(data, predictions),
    }


def figures(data: RunData) -> dict[str, charts.Spec]:
    """The charts that are kept beside the page, too, by the names of their files."""
    run = data.run
    found: dict[str, charts.Spec] = {}
    for name, title in (("accuracy", "accuracy"), ("loss", "log loss")):
        rows, x, baseline = _curve(data, name)
        if rows:
            epochs = x == "epoch"
            found[f"curves-{name}"] = charts.curves(rows, x, title, log=not epochs, baseline=baseline)
    predictions = data.predictions.get(run.shown_split or "")
    n_classes = len(run.class_names)
    if predictions is not None and n_classes <= FIGURE_CLASSES:
        matrix = np.zeros((n_classes, n_classes), np.int64)
        np.add.at(matrix, (predictions.labels, predictions.probabilities.argmax(axis=1)), 1)
        found[CONFUSION] = charts.confusion(matrix.tolist(), run.class_names)
    return found


def _curve(data: RunData, name: str) -> tuple[list[dict[str, Any]], str, float | None]:
    """Rows of one chart, what stands on its x axis, and the frozen baseline on val."""
    sources = [(data.run, data.history, "")]
    if data.frozen is not None:
        sources = [(data.run, data.history, "fine-tuned, "), (*data.frozen, "frozen, ")]
    x = "epoch" if any("epoch" in row for row in data.history) else "l2"
    columns = {name: "train", f"val_{name}": "val"}
    if name == "loss":
        columns["val_log_loss"] = "val"
    rows = [
        {"x": row[x], "value": row[column], "series": f"{prefix}{split}"}
        for _, history, prefix in sources
        for row in history
        for column, split in columns.items()
        # A penalty of 0 has no place on a logarithmic scale.
        if column in row and x in row and (x == "epoch" or row[x] > 0)
    ]
    before = _baseline(data.run).get("val", {})
    return rows, x, before.get("accuracy" if name == "accuracy" else "log_loss")


def _candidates(run: RatedRun) -> list[dict[str, Any]]:
    """Candidates of a sweep, each with the settings in which they differ."""
    if not isinstance(run, SweepRun):
        return []
    return [{**one, "settings": text} for one, text in zip(run.candidates, run.settings_that_differ(), strict=True)]


def _baseline(run: RatedRun) -> dict[str, Any]:
    """Metrics before fine-tuning; none where there was none."""
    return run.baseline if isinstance(run, FinetuneRun) else {}


def paragraph(run: RatedRun) -> str:
    """What was done, on what, and what it gave, as a paper's methods section would say it."""
    specs = " and ".join(
        f"{spec.backbone} ({spec.endpoint}, {spec.pooling} pooling, {sides(spec.image_size)} px, {spec.precision})"
        for spec in run.specs
    )
    n_classes = len(run.class_names)
    if isinstance(run, EvaluateRun):
        what = f"The run {run.of} ({run.head}) was rated on {run.data}"
    elif isinstance(run, FinetuneRun):
        above = (
            f"from new views of the images in each epoch, above {run.cut}"
            if run.config.drawn_anew
            else f"from activations cached at {run.cut}"
        )
        where = "end to end" if run.end_to_end else above
        below = f"{run.specs[0].backbone} ({sides(run.specs[0].image_size)} px) below it"
        what = f"{run.head} was fine-tuned with {run.config.blocks} of {below}, {where}, on {run.data}"
    else:
        how = "chosen by a sweep and trained" if isinstance(run, SweepRun) else "trained"
        what = f"{run.head} was {how} on features of {specs}, of {run.data}"
    sizes = [(run.n_train, "training"), (run.n_val, "validation"), (run.n_test, "test")]
    counts = ", ".join(f"{n:,} {name}" for n, name in sizes if n)
    text = f"{what}: {n_classes:,} classes, {counts} images. It took {run.seconds.get('total', 0):,.1f} s"
    if not isinstance(run, EvaluateRun):
        text += f" and fitted {run.trainable_parameters:,} parameters"
    if split := run.shown_split:
        found = run.metrics[split]
        right = f"{percent(found['accuracy'])} were right (95 % interval {interval(*found['accuracy_95'])})"
        text += f". Of the {split} images {right}"
        before = _baseline(run).get(split, {})
        if before.get("n"):
            text += f", {100 * before['accuracy']:.1f} % before fine-tuning"
    return text + "."


def _confusions(matrix: list[list[int]]) -> list[tuple[int, int, int]]:
    """True class, predicted class and number of images of the commonest mistakes."""
    cells = [
        (true, predicted, n)
        for true, row in enumerate(matrix)
        for predicted, n in enumerate(row)
        if n and true != predicted
    ]
    return sorted(cells, key=lambda cell: -cell[2])[:LISTED_CONFUSIONS]


def _gallery(data: RunData, predictions: Predictions) -> tuple[list[dict[str, Any]], list[str]]:
    """Images with their pictures, as many as a page may hold, and what is said of the others."""
    found: list[dict[str, Any]] = []
    if data.pictures is None:
        return found, []
    size, unreadable, too_many = 0, 0, 0
    # What a page can't hold is of the confusions, so that neither the surest mistakes nor the least certain fall away.
    for one in sorted(choose(predictions), key=lambda one: not (one.wrong or one.uncertain)):
        if size > GALLERY_BYTES:
            too_many += 1
            continue
        key = bytes(predictions.keys[one.row])
        row = data.pictures.rows.get(key)
        picture = None if row is None else data.pictures.thumbnail(row, GALLERY_SIDE)
        if picture is None:
            unreadable += 1
            continue
        size += len(picture)
        found.append(
            {
                "shown": one,
                "picture": picture,
                "path": data.locations.get(key, key.decode("ascii", "replace")),
                "seen": None,
            }
        )
    _color(data, predictions, found)
    found.sort(key=lambda one: -one["shown"].probability)
    lacks = []
    if unreadable:
        lacks.append(f"{counted(unreadable, 'image')} of the gallery without a picture: they can't be read any more.")
    if too_many:
        lacks.append(f"{counted(too_many, 'image')} of the gallery left out: the page would be too large.")
    return found, lacks


def _color(data: RunData, predictions: Predictions, gallery: list[dict[str, Any]]) -> None:
    """Add to the images of a gallery, as many as a page may hold, where their predicted class is seen."""
    if data.seen is None or data.pictures is None or not gallery:
        return
    rows = [one["shown"].row for one in gallery]
    maps = data.seen(predictions.keys[rows], np.array([one["shown"].predicted for one in gallery], np.int64))
    size, spec = 0, data.run.specs[0]
    config = ImageConfig((GALLERY_SIDE, GALLERY_SIDE), spec.resize, spec.interpolation)
    for one, row in zip(gallery, rows, strict=True):
        key = bytes(predictions.keys[row])
        if key not in maps or size > SEEN_BYTES:
            continue
        with suppress(ImageError):
            one["seen"] = webp_address(coloured(data.pictures.pixels(data.pictures.rows[key], config), maps[key]))
            size += len(one["seen"])


def _map(data: RunData, predictions: Predictions) -> dict[str, Any] | None:
    found = data.map
    if found is None:
        return None
    names, size = data.run.class_names, 0
    rows = {bytes(key): row for row, key in enumerate(predictions.keys.tolist())}
    points: list[dict[str, Any]] = []
    for key, (x, y) in zip(found.keys.tolist(), found.points.tolist(), strict=True):
        row = rows[key]
        true, predicted = int(predictions.labels[row]), int(predictions.probabilities[row].argmax())
        point = {
            "x": round(x, 4),
            "y": round(y, 4),
            "class": names[true],
            "predicted": names[predicted],
            "right": true == predicted,
            "path": data.locations.get(key, ""),
        }
        if data.pictures is not None and size < MAP_BYTES and key in data.pictures.rows:
            point["image"] = data.pictures.thumbnail(data.pictures.rows[key], MAP_SIDE)
            size += len(point["image"] or "")
        points.append(point)
    return {
        "chart": charts.embedding(points, names),
        "n": len(points),
        "of": len(predictions.keys),
        "method": found.method,
        "features": found.features,
    }


def _samples(data: RunData) -> list[dict[str, Any]]:
    """Training images, each with its augmented views."""
    if data.pictures is None:
        return []
    found = []
    for key in data.samples:
        row = data.pictures.rows.get(key)
        if row is None:
            continue
        views = range(min(data.views, MOST_VIEWS) + 1 if data.augment else 1)
        shown = [data.pictures.thumbnail(row, SAMPLE_SIDE, data.augment, view) for view in views]
        found.append({"path": data.locations.get(key, ""), "pictures": [picture for picture in shown if picture]})
    return [one for one in found if one["pictures"]]


def _repeat(data: RunData) -> list[str]:
    """The commands that give this run again, from the data on."""
    first = data.run if data.frozen is None else data.frozen[0]
    commands = [config.command() for config in first.extracts]
    if isinstance(data.run, EvaluateRun):
        commands = []
    return [*commands, *dict.fromkeys([first.command, data.run.command])]
