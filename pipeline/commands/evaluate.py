"""Evaluate: the metrics of a run on any labelled data, with the classes matched by name."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import BUILT_IN, SPLITS, Dataset, open_labelled, printable, shortened
from pipeline.errors import DataError, StoreError
from pipeline.evaluation.metrics import evaluate as metrics_of
from pipeline.extraction.plan import warn_unreadable
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.runs.predictions import Predictions
from pipeline.runs.run import Run, command_line, new_id, save_run
from pipeline.store.records import load_dataset, now
from pipeline.util import runtime
from pipeline.util.memo import Memo

log = logging.getLogger("tlpipe")


def evaluate(reference: str | None, data: str, cache: Path, reports: Path, precision: str | None = None) -> Run:
    """Rate a run on labelled data.

    Images are rated by the split that the data gives them; where it gives none, or train, by the split they had when
    the run was trained. New images without a split are test images.

    Args:
        reference: A run id, the start of one, or the path of a run folder; None for the newest.
        data: As for extract; one class will do.
        cache: The cache folder.
        reports: Where the run lies, and where the evaluation goes.
        precision: As in `ExtractConfig`; None for that in which the run was rated.

    Raises:
        ConfigError: If the precision is not legal.
        RunError: If the run can't be used.
        CacheMismatchError: If the backbone is not that of training any more.
        StoppedError: After Ctrl-C or SIGTERM; the same command goes on from there.
        DataError: If the data has no class that the run knows, or no image that can be read.
    """
    start = time.perf_counter()
    classifier = open_classifier(reports, reference, precision)
    opened = open_labelled(data, memo=Memo(cache))
    for note in opened.notes:
        log.warning("%s", note)
    foreign, notes = _foreign(opened.dataset, classifier)
    plans = classifier.plans(cache)
    specs = [{**spec, "precision": plan.spec.precision} for spec, plan in zip(classifier.run.specs, plans, strict=True)]
    source = opened.source.take(np.flatnonzero(~foreign).tolist())
    trained_on = _images_of_run(cache, classifier.run)
    dataset = _with_splits(opened.dataset.without(foreign), trained_on)
    loaded = time.perf_counter()
    predicted = classifier.predict(source, dataset.locations, cache)
    unreadable = {entry.location: entry.cause for entry in opened.unreadable}
    unreadable |= {dataset.locations[number]: cause for number, cause in predicted.unreadable.items()}
    warn_unreadable(unreadable, len(opened.dataset) + len(opened.unreadable))
    readable = predicted.readable
    if not readable.any():
        raise DataError(f"None of the {len(dataset):,} images of {data} can be read")
    if unreadable:
        notes.append(f"{len(unreadable):,} images can't be read and are left out: {shortened(list(unreadable))}")
    dataset, probabilities = dataset.without(~readable), predicted.probabilities[readable]
    notes += _absent(dataset, classifier)
    notes += _seen(dataset, trained_on)
    mine = {name: number for number, name in enumerate(classifier.class_names)}
    # By name: the data may know other classes, or the same ones in another order.
    labels = np.array([mine[dataset.class_names[label]] for label in dataset.labels.tolist()], np.int64)
    predictions = [
        Predictions(split, dataset.keys[rows], labels[rows], probabilities[rows])
        for split in SPLITS
        if (rows := dataset.splits == split).any()
    ]
    seconds = {"load": loaded - start, "total": time.perf_counter() - start}
    run = _described(classifier, specs, dataset, data, precision, predictions, seconds, notes)
    save_run(reports, run, [], predictions, lambda _: None)
    return run


def _described(
    classifier: Classifier,
    specs: list[dict[str, Any]],
    dataset: Dataset,
    data: str,
    precision: str | None,
    predictions: list[Predictions],
    seconds: dict[str, float],
    notes: list[str],
) -> Run:
    """What run.json will hold: of the run that was rated, all that was not found anew."""
    counts, of = dataset.counts(), classifier.run
    return replace(
        of,
        id=new_id("evaluate", of.head),
        stage="evaluate",
        created=now(),
        command=command_line(),
        specs=specs,
        dataset=dataset.id,
        data=data if data in BUILT_IN else printable(Path(data).expanduser().resolve()),
        settings={"of": of.id, "precision": precision},
        n_train=counts.get("train", 0),
        n_val=counts.get("val", 0),
        n_test=counts.get("test", 0),
        metrics={
            part.split: metrics_of(part.probabilities, part.labels, classifier.class_names) for part in predictions
        },
        baseline=None,
        seconds=seconds,
        peak_memory=None,
        calibration=None,
        repeats=None,
        candidates=[],
        versions=runtime.versions(),
        notes=[f"Of the run {of.id}", *notes],
    )


def _foreign(dataset: Dataset, classifier: Classifier) -> tuple[NDArray[np.bool_], list[str]]:
    """Which images are of classes that the run doesn't know, and what is to be said of these.

    Raises:
        DataError: If it knows none of the classes.
    """
    mine, theirs = classifier.class_names, dataset.class_names
    unknown = [name for name in theirs if name not in mine]
    if len(unknown) == len(theirs):
        raise DataError(
            f"{dataset.name} has no class that the run {classifier.run.id} knows: it has {shortened(list(theirs))}, "
            f"the run knows {shortened(list(mine))}; classes are matched by name, so rename its folders or labels"
        )
    notes = []
    foreign: NDArray[np.bool_] = np.isin(dataset.labels, [theirs.index(name) for name in unknown])
    if unknown:
        notes.append(
            f"{int(foreign.sum()):,} images of classes that the run doesn't know are left out: {shortened(unknown)}"
        )
    return foreign, notes


def _absent(dataset: Dataset, classifier: Classifier) -> list[str]:
    """What is to be said of classes without an image."""
    there = {dataset.class_names[label] for label in np.unique(dataset.labels).tolist()}
    missing = [name for name in classifier.class_names if name not in there]
    if not missing:
        return []
    return [
        f"No images of {shortened(missing)}: their recall isn't known, and ROC AUC isn't given; balanced accuracy "
        "is the mean over the other classes"
    ]


def _images_of_run(cache: Path, run: Run) -> dict[bytes, set[str]]:
    """The splits that each image had when a run was trained, by image key; empty where that isn't known any more.

    An image has several where the data hold byte-identical copies of it on both sides.
    """
    try:
        dataset = load_dataset(cache, run.dataset)
    except StoreError as error:
        log.warning("Which images the run was trained on can't be told: %s", error)
        return {}
    found: dict[bytes, set[str]] = {}
    for key, split in zip(dataset.keys.tolist(), dataset.splits.tolist(), strict=True):
        found.setdefault(key, set()).add(split)
    return found


def _with_splits(dataset: Dataset, trained_on: dict[bytes, set[str]]) -> Dataset:
    """With a split for the images that have none, and for those of train that were carved for val or test.

    An image of which the run was trained on any copy belongs to train: only where none was, it was carved from there.
    """
    splits: NDArray[np.str_] = dataset.splits.copy()
    for row, key in enumerate(dataset.keys.tolist()):
        if splits[row] in ("", "train"):
            had = trained_on.get(key, {splits[row] or "test"})
            splits[row] = next(split for split in SPLITS if split in had)
    return replace(dataset, splits=splits)


def _seen(dataset: Dataset, trained_on: dict[bytes, set[str]]) -> list[str]:
    """How many images of val and test the run was trained on, themselves or as a byte-identical copy."""
    notes = []
    for split in ("val", "test"):
        keys = dataset.keys[dataset.splits == split].tolist()
        if seen := sum("train" in trained_on.get(key, ()) for key in keys):
            notes.append(f"The run was trained on {seen:,} of the {len(keys):,} {split} images, which flatters it")
    return notes
