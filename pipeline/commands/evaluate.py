"""Evaluate: the metrics of a run on any labelled data, with the classes matched by name."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import COMMON, Columns, FeatureSpec
from pipeline.data import SPLITS, Dataset, Opened, open_labelled, printable, shortened
from pipeline.errors import DataError, StoreError
from pipeline.evaluation.compare import paired_difference
from pipeline.evaluation.metrics import evaluate as metrics_of
from pipeline.extraction.unreadable import warn_unreadable
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.runs.describe import made_now
from pipeline.runs.folder import check_reports, save_run
from pipeline.runs.predictions import Predictions, both_right, read_seen
from pipeline.runs.run import Against, EvaluateRun, uses_of
from pipeline.store.records import load_dataset, place_of
from pipeline.util import log
from pipeline.util.memo import Memo
from pipeline.util.text import counted

Seen = dict[bytes, set[str]]
"""The splits that each image had when a run was trained, by image key; several of one that is there several times."""


def evaluate(
    reference: str | None,
    data: str | None,
    cache: Path,
    reports: Path,
    precision: str | None = None,
    against: str | None = None,
    columns: Columns = COMMON,
) -> EvaluateRun:
    """Rate a run on labelled data.

    Images are rated by the split that the data gives them; where it gives none, and where tlpipe carved val or test
    from the training images, by the split they had when the run was trained. New images without a split are test
    images. Images that a head was fitted on after it had been rated by them are rated by the head of before.

    Args:
        reference: A run, as in `find_run`.
        data: As for extract; one class will do. None for the data of the run.
        cache: The cache folder.
        reports: Where the run lies, and where the evaluation goes.
        precision: As in `ExtractConfig`; None for that in which the run was rated.
        against: Another run, to be compared with image by image; None for none.
        columns: Of a manifest; if none is named, those that the run was trained with, where the data is the same.

    Raises:
        ConfigError: If the precision is not legal.
        RunError: If the run can't be used.
        CacheMismatchError: If the backbone is not that of training any more.
        StoppedError: After Ctrl-C or SIGTERM; the same command goes on from there.
        DataError: If the data has no class that the run knows, or no image that can be read.
    """
    start = time.perf_counter()
    check_reports(reports)
    classifier = open_classifier(reports, reference, precision)
    other = None if against is None else open_classifier(reports, against, precision)
    data = classifier.run.data if data is None else data
    if columns == COMMON:
        columns = classifier.run.extracts[0].columns_of(place_of(data))
    opened = open_labelled(data, columns=columns, memo=Memo(cache))
    for note in opened.notes:
        log.warning("%s", note)
    loaded = time.perf_counter()
    rated = _rate(classifier, opened, cache)
    compared = None if other is None else _compare(rated, other, _rate(other, opened, cache))
    seconds = {"load": loaded - start, "total": time.perf_counter() - start}
    run = _described(classifier, rated, printable(place_of(data)), columns, precision, seconds)
    run.against = compared
    save_run(cache, reports, run, predictions=rated.predictions)
    return run


@dataclass(frozen=True, slots=True)
class _Rated:
    """A classifier's answers about labelled images.

    Attributes:
        dataset: The images that are rated, with their splits.
        predictions: Of each split that has images.
        n_fitted: Images of each split that the classifier that answered had been fitted on.
        n_chosen: Images of each split that something of the classifier was chosen by.
        specs: What the features are that it was asked about.
        notes: What a user should know.
    """

    dataset: Dataset
    predictions: list[Predictions]
    n_fitted: dict[str, int]
    n_chosen: dict[str, int]
    specs: list[FeatureSpec]
    notes: list[str]


def _rate(classifier: Classifier, opened: Opened, cache: Path) -> _Rated:
    run = classifier.run
    foreign, notes = _foreign(opened.dataset, classifier)
    plans = classifier.plans(cache)
    seen = _images_of_run(cache, classifier)
    dataset = _with_splits(opened.dataset.without(foreign), seen, run.carved)
    source = opened.source.take(np.flatnonzero(~foreign))
    known = [seen.get(bytes(key), set()) for key in dataset.keys.tolist()]
    # Where val was carved, the head that is kept was fitted on val, too; the one that was rated is kept beside it.
    again = np.array(["val" in splits and "train" not in splits for splits in known], np.bool_)
    again &= "val" in run.fitted_on and classifier.keeps_train_alone
    probabilities = np.full((len(dataset), len(classifier.class_names)), np.nan)
    unreadable = {entry.location: entry.cause for entry in opened.unreadable}
    for final in (True, False):
        rows = np.flatnonzero(again != final)
        if len(rows):
            locations = [dataset.locations[row] for row in rows.tolist()]
            predicted = classifier.predict(source.take(rows), locations, cache, final=final)
            probabilities[rows] = predicted.probabilities
            unreadable |= {locations[number]: cause for number, cause in predicted.unreadable.items()}
    warn_unreadable(unreadable, len(opened.dataset) + len(opened.unreadable))
    readable = np.isfinite(probabilities).all(axis=1)
    if not readable.any():
        raise DataError(f"None of the {len(dataset):,} images of {opened.dataset.name} can be read")
    if unreadable:
        notes.append(f"{counted(len(unreadable), 'image')} can't be read, left out: {shortened(list(unreadable))}")
    fitted = np.array(
        [bool(splits & ({"train"} if row else set(run.fitted_on))) for splits, row in zip(known, again, strict=True)]
    )
    chosen = np.array([bool(splits & set(run.chosen_on)) for splits in known])
    dataset, probabilities = dataset.without(~readable), probabilities[readable]
    notes += _absent(dataset, classifier)
    mine = {name: number for number, name in enumerate(classifier.class_names)}
    # By name: the data may know other classes, or the same ones in another order.
    labels = np.array([mine[dataset.class_names[label]] for label in dataset.labels.tolist()], np.int64)
    predictions = [
        Predictions(split, dataset.keys[rows], labels[rows], probabilities[rows])
        for split in SPLITS
        if (rows := dataset.splits == split).any()
    ]
    fitted_splits, chosen_splits = (Counter(dataset.splits[mask[readable]].tolist()) for mask in (fitted, chosen))
    return _Rated(dataset, predictions, dict(fitted_splits), dict(chosen_splits), [plan.spec for plan in plans], notes)


def _compare(rated: _Rated, classifier: Classifier, other: _Rated) -> Against:
    """The paired difference on the images of each split that both were asked about; an error if there are none."""
    theirs = {part.split: part for part in other.predictions}
    right = {one.split: both_right(one, theirs[one.split]) for one in rated.predictions if one.split in theirs}
    found = {split: paired_difference(*pair) for split, pair in right.items() if len(pair[0])}
    if not found:
        raise DataError(f"No image has a class that {classifier.run.id} knows, too; classes are matched by name")
    sizes = {part.split: len(part.keys) for part in other.predictions}
    return Against(run=classifier.run.id, splits=found, used=uses_of(other.n_fitted, other.n_chosen, sizes))


def _described(
    classifier: Classifier,
    rated: _Rated,
    data: str,
    columns: Columns,
    precision: str | None,
    seconds: dict[str, float],
) -> EvaluateRun:
    """What run.json will hold: of the run that was rated, all that was not found anew."""
    of, counts = classifier.run, rated.dataset.counts()
    same = ("seed", "features", "class_names", "trainable_parameters", "fitted_on", "chosen_on", "carved")
    return EvaluateRun(
        **made_now("evaluate", of.head, seconds),
        **{name: getattr(of, name) for name in same},
        data=data,
        dataset=rated.dataset.id,
        specs=[replace(spec, precision=found.precision) for spec, found in zip(of.specs, rated.specs, strict=True)],
        extracts=[replace(one, data=data, columns=columns) for one in of.extracts],
        n_train=counts.get("train", 0),
        n_val=counts.get("val", 0),
        n_test=counts.get("test", 0),
        metrics={
            part.split: metrics_of(part.probabilities, part.labels, classifier.class_names)
            for part in rated.predictions
        },
        of=of.id,
        precision=precision,
        n_fitted=rated.n_fitted,
        n_chosen=rated.n_chosen,
        notes=[f"Of the run {of.id}", *rated.notes],
    )


def _foreign(dataset: Dataset, classifier: Classifier) -> tuple[NDArray[np.bool_], list[str]]:
    """Which images are of classes that the run doesn't know, and what is to be said of these."""
    mine, theirs = classifier.class_names, dataset.class_names
    unknown = [name for name in theirs if name not in mine]
    if len(unknown) == len(theirs):
        raise DataError(
            f"{dataset.name} has no class that the run {classifier.run.id} knows: it has {shortened(list(theirs))}, "
            f"the run knows {shortened(list(mine))}; classes are matched by name, so rename its folders or labels"
        )
    notes = []
    foreign: NDArray[np.bool_] = np.isin(dataset.labels, [-1, *(theirs.index(name) for name in unknown)])
    if foreign.any():
        named = f": {shortened(unknown)}" if unknown else ""
        notes.append(
            f"{counted(int(foreign.sum()), 'image')} without a label or of a class that the run doesn't know left out"
            f"{named}"
        )
    return foreign, notes


def _absent(dataset: Dataset, classifier: Classifier) -> list[str]:
    """What is to be said of classes without an image."""
    there = {dataset.class_names[label] for label in np.unique(dataset.labels).tolist()}
    missing = [name for name in classifier.class_names if name not in there]
    if not missing:
        return []
    return [
        f"No images of {shortened(missing)}: their recall isn't known, and ROC AUC isn't given; balanced accuracy and "
        "macro F1 are means over the other classes"
    ]


def _images_of_run(cache: Path, classifier: Classifier) -> Seen:
    """The images that a run was trained with; none where that isn't known any more."""
    run = classifier.run
    found = read_seen(classifier.folder, run.files)
    if found is not None:
        return found
    try:
        dataset = load_dataset(cache, run.dataset)  # of a run before version 0.2
    except StoreError as error:
        log.warning("Which images the run was trained on can't be told: %s", error)
        return {}
    seen: Seen = {}
    for key, split in zip(dataset.keys.tolist(), dataset.splits.tolist(), strict=True):
        seen.setdefault(key, set()).add(split)
    return seen


def _with_splits(dataset: Dataset, seen: Seen, carved: list[str]) -> Dataset:
    """The dataset with a split for the images that have none, and for those of train that were carved for val or test.

    An image that the data itself puts into several splits stays where each of its files lies.
    """
    splits = []
    for key, split in zip(dataset.keys.tolist(), dataset.splits.tolist(), strict=True):
        known = seen.get(key, set())
        if not split:
            split = next((name for name in SPLITS if name in known), "test")
        elif split == "train" and len(known) == 1 and known <= set(carved):
            (split,) = known
        splits.append(split)
    return replace(dataset, splits=np.array(splits, "U5"))
