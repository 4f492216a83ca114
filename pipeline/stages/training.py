"""Train head: a classifier of cached features."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.calibration import fit_temperature, tempered
from pipeline.datasets import shortened
from pipeline.errors import CacheMismatchError, ConfigError, DataError
from pipeline.heads import FitReport, Head, HeadConfig, make_head
from pipeline.metrics import calibration_error, evaluate
from pipeline.parts import Part, joined
from pipeline.records import find_records, now
from pipeline.runs import Predictions, Run, command_line, new_id, save_run
from pipeline.selection import Candidate, Round, folds, mean_over_views, rate
from pipeline.table import FeatureTable, load_table

__all__ = [
    "Fitted",
    "TableOptions",
    "check_trainable",
    "describe_run",
    "fit_head",
    "open_table",
    "rounds_of",
    "train_head",
]

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Which features, and how they are used.

    Attributes:
        features: Features id, or its start; several joined by commas; None for the newest pooled features.
        test_views: Views over which the probabilities of an image are averaged, beside the image itself; None for none,
            and for a sweep to try all there are.
        memory: Bytes of features that may be held; None for half of the machine's.
        calibrate: Whether to scale the logits by a temperature fitted on val.
        cv: Number of folds of a cross-validation; None for none.
        seeds: Number of seeds.
    """

    features: str | None = None
    test_views: int | None = None
    memory: int | None = None
    calibrate: bool = False
    cv: int | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"--seeds is {self.seeds}; give 1 or more")
        if self.cv is not None and self.cv < 2:
            raise ConfigError(f"--cv is {self.cv}; give 2 folds or more")
        if self.test_views is not None and self.test_views < 0:
            raise ConfigError(f"--test-views is {self.test_views}; give 0 or more")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head that was fitted, and what it predicts.

    Attributes:
        head: The head.
        config: Its settings.
        report: What fitting gave.
        predictions: Of val and test.
        temperature: By which logits are divided; None if that was not asked for.
        calibration: Temperature, and the expected calibration error before and after by split.
        seconds: Of the fit itself.
    """

    head: Head
    config: HeadConfig
    report: FitReport
    predictions: list[Predictions]
    temperature: float | None
    calibration: dict[str, Any] | None
    seconds: float


def train_head(config: HeadConfig, cache: Path, reports: Path, options: TableOptions = TableOptions()) -> Run:
    """Train a head on cached features.

    Args:
        config: Which head, and how.
        cache: The cache folder.
        reports: Where the run goes.
        options: Which features, and how they are used.

    Raises:
        StoreError: If there are no such features.
        CacheMismatchError: If they keep height and width.
        DataError: If a class has no training images.
    """
    start = time.perf_counter()
    make_head(config)  # what is wrong with the options is said before the data is read
    table = open_table(cache, options, config.views, f"Training {config.head}")
    loaded = time.perf_counter()
    fitted = fit_head(config, table, options)
    start_of_repeats = time.perf_counter()
    repeats = None
    if options.cv or options.seeds > 1:
        # What the head chose by val stays as it is: here it is the head with these settings that is rated.
        repeats = _repeat(replace(fitted.config, **fitted.report.chosen), table, options)
    run = describe_run(
        "train-head",
        config.head,
        table,
        settings={
            "head": fitted.config.to_json(),
            "chosen": fitted.report.chosen,
            "test_views": options.test_views or 0,
        },
        seed=config.seed,
        predictions=fitted.predictions,
        seconds={
            "load": loaded - start,
            "fit": fitted.seconds,
            **({"repeats": time.perf_counter() - start_of_repeats} if repeats else {}),
            "total": time.perf_counter() - start,
        },
        trainable_parameters=fitted.head.trainable_parameters,
        notes=fitted.report.notes,
        calibration=fitted.calibration,
        repeats=repeats,
    )
    save_run(reports, run, fitted.report.history, fitted.predictions, fitted.head.save)
    return run


def open_table(cache: Path, options: TableOptions, views: int | None, what: str) -> FeatureTable:
    """The table that a user means, and a line about it; features that can't be trained on are refused."""
    records = find_records(cache, options.features)
    for record in records:
        if record.spec.pooling == "none":
            raise CacheMismatchError(
                f"A head takes pooled features [n, d], {record.id} keeps height and width (pooling 'none'). "
                f"Make some with: {record.config.command(pooling='avg')}"
            )
    views = min(record.config.views for record in records) if views is None else views
    test_views = options.test_views or 0
    most = max(views, test_views)
    for record in records:
        size = "x".join(map(str, record.spec.image_size))
        log.info(
            "%s on %s (%s %s, %s px, %d views)", what, record.id, record.spec.backbone, record.spec.endpoint, size, most
        )
    # A fold takes its validation images from the training images, and the other way round.
    wanted = (most, most) if options.cv else (views, test_views)
    memory = runtime.memory_limit() // 2 if options.memory is None else options.memory
    table = load_table(cache, records, wanted[0], test_views=wanted[1], memory=memory)
    if table.missing:
        log.warning("%s images of %s can't be read and are left out", f"{table.missing:,}", records[0].name)
    check_trainable(table)
    return table


def check_trainable(table: FeatureTable) -> None:
    """Refuse data without training images of a class; say where there are few.

    Raises:
        DataError: If a class has no training images.
    """
    name, n_classes = table.records[0].name, len(table.class_names)
    in_view = table.views == 0
    counts = {
        split: np.bincount(table.labels[in_view & (table.splits == split)], minlength=n_classes)
        for split in ("train", "val")
    }
    absent = [table.class_names[label] for label in np.flatnonzero(counts["train"] == 0)]
    if absent:
        raise DataError(
            f"{name} has no training images of the class {shortened(absent)}; "
            "add some, or carve smaller splits (--val-fraction, --test-fraction)"
        )
    if counts["train"].sum() < 2 * n_classes:
        log.warning(
            "%s training images for %s classes are fewer than two each; expect little", counts["train"].sum(), n_classes
        )
    unseen = [table.class_names[label] for label in np.flatnonzero(counts["val"] == 0)]
    if unseen and counts["val"].sum():
        log.warning("No validation images of the class %s: nothing is chosen for it", shortened(unseen))


def is_carved(table: FeatureTable) -> bool:
    """Whether the validation images were carved from the training images, so that a final head may have both."""
    return all("val" in record.carved for record in table.records)


def fit_head(config: HeadConfig, table: FeatureTable, options: TableOptions) -> Fitted:
    """Fit a head on train, choosing with val; predict val, fit again on both where that is sound, and predict test."""
    head, resolved = make_head(config)
    train = table.part("train").up_to_view(config.views)
    views = range((options.test_views or 0) + 1)
    vals, tests = ([table.part(split, view) for view in views] for split in ("val", "test"))
    start = time.perf_counter()
    report = head.fit(train, vals[0], len(table.class_names))
    found: dict[str, tuple[Part, NDArray[np.floating]]] = {}
    if len(vals[0]):
        found["val"] = (vals[0], mean_over_views(head, vals))
        if head.refits and is_carved(table):
            head.refit(joined(train, vals[0]))
            report.notes.append("Then fitted on train and val")
    seconds = time.perf_counter() - start
    if len(tests[0]):
        found["test"] = (tests[0], mean_over_views(head, tests))
    n_views = int(train.views.max(initial=0))
    if n_views:
        report.notes.append(f"Trained on {n_views + 1} versions of each image")
    if options.test_views:
        report.notes.append(f"Probabilities are means over {options.test_views + 1} versions of each image")
    temperature, calibration = None, None
    if options.calibrate:
        temperature, calibration = _calibrate(found)
        report.notes.append(
            f"Temperature {temperature:.3f}; expected calibration error "
            + ", ".join(f"{split} {before:.3f} -> {after:.3f}" for split, (before, after) in calibration["ece"].items())
        )
        found = {split: (part, tempered(probabilities, temperature)) for split, (part, probabilities) in found.items()}
    predictions = [Predictions(split, part.keys, part.labels, value) for split, (part, value) in found.items()]
    return Fitted(head, resolved, report, predictions, temperature, calibration, seconds)


def _calibrate(found: dict[str, tuple[Part, NDArray[np.floating]]]) -> tuple[float, dict[str, Any]]:
    """A temperature fitted on val, and what it does to the calibration error of each split."""
    if "val" not in found:
        raise DataError("--calibrate needs validation images, and there are none; carve some with --val-fraction")
    part, probabilities = found["val"]
    temperature = fit_temperature(np.log(np.maximum(probabilities, 1e-12)), part.labels)
    errors = {
        split: [calibration_error(value, rows.labels), calibration_error(tempered(value, temperature), rows.labels)]
        for split, (rows, value) in found.items()
    }
    return temperature, {"temperature": temperature, "ece": errors}


def rounds_of(table: FeatureTable, options: TableOptions, test_views: int, seed: int) -> list[Round]:
    """What heads are fitted on and rated by: folds where there is a cross-validation, else val; once for each seed.

    Raises:
        DataError: If there are neither.
    """
    pool = table.all()
    offsets = range(options.seeds)
    if options.cv:
        used = (table.splits == "train") | ((table.splits == "val") & is_carved(table))
        rows = np.flatnonzero(used)
        found = [folds(pool, rows, options.cv, test_views, seed + offset) for offset in offsets]
        return [replace(turn, seed=offset) for offset, turns in zip(offsets, found, strict=True) for turn in turns]
    vals = [np.flatnonzero((table.splits == "val") & (table.views == view)) for view in range(test_views + 1)]
    if not len(vals[0]):
        raise DataError(
            f"{table.records[0].name} has no validation images to choose by; give --cv 5, or carve some "
            "(--val-fraction)"
        )
    return [Round(pool, np.flatnonzero(table.splits == "train"), vals, offset) for offset in offsets]


def _repeat(config: HeadConfig, table: FeatureTable, options: TableOptions) -> dict[str, Any]:
    """Mean and standard deviation over folds and seeds."""
    rounds = rounds_of(table, options, options.test_views or 0, config.seed)
    candidate = Candidate(config, options.test_views or 0)
    value = rate([candidate], rounds, len(table.class_names), np.inf).rated[0].to_json()
    return {
        "folds": options.cv,
        "seeds": options.seeds,
        "accuracy": value["val_accuracy"],
        "accuracy_std": value["val_accuracy_std"],
        "log_loss": value["val_log_loss"],
        "rounds": value["rounds"],
    }


def describe_run(
    stage: str,
    head: str,
    table: FeatureTable,
    *,
    settings: dict[str, Any],
    seed: int,
    predictions: Sequence[Predictions],
    seconds: dict[str, float],
    trainable_parameters: int,
    notes: list[str],
    **more: Any,
) -> Run:
    """What run.json will hold of a training, of any stage."""
    sizes = {split: int((table.splits[table.views == 0] == split).sum()) for split in ("train", "val", "test")}
    return Run(
        id=new_id(stage, head),
        stage=stage,
        created=now(),
        command=command_line(),
        head=head,
        features=table.id,
        dataset=table.records[0].dataset,
        data=table.records[0].config.data,
        class_names=list(table.class_names),
        settings=settings,
        specs=[spec.to_json() for spec in table.specs],
        seed=seed,
        n_train=sizes["train"],
        n_val=sizes["val"],
        n_test=sizes["test"],
        metrics={part.split: evaluate(part.probabilities, part.labels, table.class_names) for part in predictions},
        seconds=seconds,
        trainable_parameters=trainable_parameters,
        notes=notes,
        **more,
    )
