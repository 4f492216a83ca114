"""Train head: a classifier of cached features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluation.calibration import fit_temperature, logits_of, tempered
from pipeline.evaluation.metrics import calibration_error, evaluate
from pipeline.heads import FitReport, Head, HeadConfig, make_head
from pipeline.runs.predictions import Predictions
from pipeline.runs.run import Run, command_line, new_id, save_run
from pipeline.selection import Candidate, mean_over_views, rate
from pipeline.selection.tables import NEWEST, TableOptions, is_carved, open_table, rounds_of
from pipeline.store.records import now
from pipeline.store.rows import Part, joined
from pipeline.store.table import FeatureTable


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head that was fitted, and what it predicts.

    Attributes:
        head: The head.
        config: Its settings.
        report: What fitting gave.
        predictions: Of val and test.
        calibration: Temperature, and the expected calibration error before and after by split; None if not asked for.
        seconds: Of the fit itself.
    """

    head: Head
    config: HeadConfig
    report: FitReport
    predictions: list[Predictions]
    calibration: dict[str, Any] | None
    seconds: float


def train_head(config: HeadConfig, cache: Path, reports: Path, options: TableOptions = NEWEST) -> Run:
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
            "test_views": options.averaged,
            "memory": options.memory,
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


def fit_head(config: HeadConfig, table: FeatureTable, options: TableOptions) -> Fitted:
    """Fit a head on train, choosing with val; predict val, fit again on both where that is sound, and predict test."""
    head, resolved = make_head(config)
    train = table.part("train").up_to_view(config.views)
    views = range(options.averaged + 1)
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
    if options.averaged:
        report.notes.append(f"Probabilities are means over {options.averaged + 1} versions of each image")
    calibration = None
    if options.calibrate:
        calibration = _calibrate(found)
        temperature = calibration["temperature"]
        report.notes.append(
            f"Temperature {temperature:.3f}; expected calibration error "
            + ", ".join(f"{split} {before:.3f} -> {after:.3f}" for split, (before, after) in calibration["ece"].items())
        )
        found = {split: (part, tempered(probabilities, temperature)) for split, (part, probabilities) in found.items()}
    predictions = [Predictions(split, part.keys, part.labels, value) for split, (part, value) in found.items()]
    return Fitted(head, resolved, report, predictions, calibration, seconds)


def _calibrate(found: dict[str, tuple[Part, NDArray[np.floating]]]) -> dict[str, Any]:
    """A temperature fitted on val, and what it does to the calibration error of each split."""
    if "val" not in found:
        raise DataError("--calibrate needs validation images, and there are none; carve some with --val-fraction")
    part, probabilities = found["val"]
    temperature = fit_temperature(logits_of(probabilities), part.labels)
    errors = {
        split: [calibration_error(value, rows.labels), calibration_error(tempered(value, temperature), rows.labels)]
        for split, (rows, value) in found.items()
    }
    return {"temperature": temperature, "ece": errors}


def _repeat(config: HeadConfig, table: FeatureTable, options: TableOptions) -> dict[str, Any]:
    """Mean and standard deviation over folds and seeds."""
    rounds = rounds_of(table, options, config.seed)
    candidate = Candidate(config, options.averaged)
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
        extracts=[record.config.to_json() for record in table.records],
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
