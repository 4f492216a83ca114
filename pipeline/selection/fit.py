"""Fit one head as users get it: chosen with val, fitted again where that is sound, rated, perhaps calibrated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig, TrainingOptions
from pipeline.errors import DataError
from pipeline.evaluation.calibration import fit_temperature, logits_of, tempered
from pipeline.evaluation.metrics import calibration_error
from pipeline.heads import make_head
from pipeline.heads.base import FitReport, Head
from pipeline.runs.describe import notes_on_backbones, ratings, seen
from pipeline.runs.folder import save_run
from pipeline.runs.predictions import Predictions
from pipeline.runs.run import HeadRun
from pipeline.selection.features import is_carved
from pipeline.selection.trials import mean_over_views
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
        refitted: Whether it was then fitted again, on train and val.
        seconds: Of the fit itself.
    """

    head: Head
    config: HeadConfig
    report: FitReport
    predictions: list[Predictions]
    calibration: dict[str, Any] | None
    refitted: bool
    seconds: float


def fit_head(config: HeadConfig, table: FeatureTable, options: TrainingOptions) -> Fitted:
    """Fit a head on train, choosing with val; predict val, fit again on both where that is sound, and predict test.

    Raises:
        DataError: If probabilities are to be calibrated, and there is no val.
    """
    head, resolved = make_head(config)
    train = table.part("train").up_to_view(config.views)
    views = range(options.averaged + 1)
    vals, tests = ([table.part(split, view) for view in views] for split in ("val", "test"))
    if options.calibrate and not len(vals[0]):
        raise DataError("--calibrate needs validation images, and there are none; carve some with --val-fraction")
    start = time.perf_counter()
    report = head.fit(train, vals[0], len(table.class_names))
    report.notes += notes_on_backbones(table)
    found: dict[str, tuple[Part, NDArray[np.floating]]] = {}
    refitted = bool(len(vals[0]) and head.refits and is_carved(table))
    if len(vals[0]):
        found["val"] = (vals[0], mean_over_views(head, vals))
    if refitted:
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
    return Fitted(head, resolved, report, predictions, calibration, refitted, seconds)


def _calibrate(found: dict[str, tuple[Part, NDArray[np.floating]]]) -> dict[str, Any]:
    """A temperature fitted on val, and what it does to the calibration error of each split."""
    part, probabilities = found["val"]
    temperature = fit_temperature(logits_of(probabilities), part.labels)
    errors = {
        split: [calibration_error(value, rows.labels), calibration_error(tempered(value, temperature), rows.labels)]
        for split, (rows, value) in found.items()
    }
    return {"temperature": temperature, "ece": errors}


def fitted_fields(
    fitted: Fitted, table: FeatureTable, options: TrainingOptions, *, chosen_among_others: bool = False
) -> dict[str, Any]:
    """Fields of `HeadRun` that tell how a head was fitted and what it is worth.

    Args:
        fitted: The head.
        table: What it was fitted on.
        options: How the table was used.
        chosen_among_others: Whether val also told which head it should be.
    """
    chose = fitted.report.chose_by_val or fitted.calibration or chosen_among_others
    fitted_on = ["train", "val"] if fitted.refitted else ["train"]
    return {
        **ratings(table, fitted.predictions, fitted_on, ["val"] if chose else []),
        "trainable_parameters": fitted.head.trainable_parameters,
        "config": fitted.config,
        "chosen": fitted.report.chosen,
        "test_views": options.averaged,
        "memory": options.memory,
        "calibration": fitted.calibration,
        "name": options.name,
    }


def save_fitted(cache: Path, reports: Path, run: HeadRun, fitted: Fitted, table: FeatureTable) -> None:
    """Publish the run of a fitted head."""
    save_run(
        cache,
        reports,
        run,
        history=fitted.report.history,
        predictions=fitted.predictions,
        seen=seen(table),
        save_models=fitted.head.save,
    )
