"""Run folders: one training with all that is needed to repeat it."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.config import misfits
from pipeline.errors import RunError
from pipeline.runs.predictions import Predictions, write_history, write_predictions
from pipeline.util import runtime
from pipeline.util.files import mark_folder, published_folder, read_json

NAMED_AT_MOST = 5  # runs in an error

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class Run:
    """What run.json holds.

    Attributes:
        id: Name of the folder.
        stage: "train-head", "sweep", "finetune" or "evaluate".
        created: ISO 8601, UTC.
        command: The command line.
        head: The head's name.
        features: Features id; several are joined by commas.
        dataset: Id of the dataset.
        data: What the user gave as DATA.
        class_names: Sorted.
        settings: All options of the stage, as resolved.
        specs: The feature spec of each set of features.
        extracts: The options of extract that gave each set, with which new images get the same features.
        seed: Of everything drawn.
        n_train: Training images.
        n_val: Validation images.
        n_test: Test images.
        metrics: Of each split that has images.
        baseline: Metrics before fine-tuning; None for a head.
        seconds: Length of each part.
        trainable_parameters: Numbers that were fitted.
        peak_memory: Largest resident memory of the process, bytes; None where it wasn't measured.
        calibration: Temperature, and calibration errors before and after; None if that was not asked for.
        repeats: Mean and standard deviation over folds and seeds; None if that was not asked for.
        candidates: Of a sweep, each with its settings and its scores on val, the best first.
        versions: Of Python and the libraries.
        notes: What a user should know.
    """

    id: str
    stage: str
    created: str
    command: str
    head: str
    features: str
    dataset: str
    data: str
    class_names: list[str]
    settings: dict[str, Any]
    specs: list[dict[str, Any]]
    extracts: list[dict[str, Any]]
    seed: int
    n_train: int
    n_val: int
    n_test: int
    metrics: dict[str, Any]
    seconds: dict[str, float]
    trainable_parameters: int
    baseline: dict[str, Any] | None = None
    peak_memory: int | None = None
    calibration: dict[str, Any] | None = None
    repeats: dict[str, Any] | None = None
    candidates: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=runtime.versions)
    notes: list[str] = field(default_factory=list)


def new_id(stage: str, head: str) -> str:
    """A run id that sorts by time and is taken by no other run."""
    # Two runs may end in the same second.
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{stage}-{head}-{uuid.uuid4().hex[:4]}"


def command_line() -> str:
    """The command that runs now, as a user would type it."""
    import shlex

    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return words.encode("utf-8", "backslashreplace").decode()  # a path may be no UTF-8


def save_run(
    reports: Path,
    run: Run,
    history: Sequence[dict[str, float]],
    predictions: Sequence[Predictions],
    save_models: Callable[[Path], None],
) -> Path:
    """Publish a run folder, whole or not at all.

    Args:
        reports: The reports folder.
        run: What run.json will hold.
        history: A row for each epoch, or for each setting that was tried.
        predictions: Probabilities of held-out images.
        save_models: Writes the model files into a folder.

    Raises:
        StoreError: If the folder can't be written.
    """
    mark_folder(reports)
    folder = reports / run.id
    with published_folder(folder) as partial:
        _write_json(partial / "run.json", asdict(run))
        write_history(partial, history)
        write_predictions(partial, run.class_names, predictions)
        save_models(partial)
    return folder


def _write_json(path: Path, value: dict[str, Any]) -> None:
    import json

    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_run(folder: Path) -> Run:
    """Read a run folder's run.json.

    Raises:
        RunError: If it is missing or not what `save_run` wrote.
    """
    try:
        value = read_json(folder / "run.json")
        run = Run(**value)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder} is no run that can be read: {error}") from error
    wrong = misfits(run)
    if not wrong:
        wrong = [name for name in ("metrics", "baseline") if not _is_rated(getattr(run, name) or {})]
        wrong += [] if "total" in run.seconds else ["seconds"]
        wrong += [] if run.specs and len(run.specs) == len(run.extracts) else ["specs"]
    if wrong:
        raise RunError(f"{folder}/run.json is not what tlpipe wrote: {wrong[0]} is of the wrong kind")
    if run.id != folder.name:
        raise RunError(f"{folder}/run.json belongs to the run {run.id!r}; was the folder renamed?")
    return run


def _is_rated(metrics: dict[str, Any]) -> bool:
    """Whether metrics hold what is shown of every split."""
    numbers = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
    for found in metrics.values():
        if not isinstance(found, dict) or not isinstance(found.get("n"), int):
            return False
        interval = found.get("accuracy_95")
        pair = interval if isinstance(interval, list) and len(interval) == 2 else [None]
        values = [*(found.get(name) for name in numbers), *pair]
        if found["n"] and not all(isinstance(value, (int, float)) and abs(value) < 1e9 for value in values):
            return False
    return True


def runs(reports: Path, *, strict: bool = False) -> list[Run]:
    """All runs, the oldest first; folders that can't be read are left aside, with a warning.

    Raises:
        RunError: If `strict`, for one that can't be read.
    """
    found = []
    for path in reports.glob("*/run.json"):
        if path.parent.name.startswith("."):
            continue
        try:
            found.append(read_run(path.parent))
        except RunError as error:
            if strict:
                raise
            log.warning("%s", error)
    return sorted(found, key=lambda run: (run.created, run.id))


def find_run(reports: Path, reference: str | None, stages: Sequence[str]) -> tuple[Run, Path]:
    """The run that a user means, and its folder.

    Args:
        reports: The reports folder.
        reference: A run id, the start of one, or the path of a run folder; None for the newest.
        stages: The stages it may come from.

    Raises:
        RunError: If there is none, or several fit.
    """
    wanted = " or ".join(stages)
    if reference is not None and os.sep in reference:
        run = read_run(Path(reference))
        if run.stage not in stages:
            raise RunError(f"{reference} is a run of tlpipe {run.stage}; one of tlpipe {wanted} is needed")
        return run, Path(reference)
    known = [run for run in runs(reports) if run.stage in stages]
    if reference is None:
        if not known:
            raise RunError(f"There is no run of tlpipe {wanted} in {reports} yet; make one with: tlpipe {stages[0]}")
        return known[-1], reports / known[-1].id
    fitting = [run for run in known if run.id == reference] or [run for run in known if run.id.startswith(reference)]
    if len(fitting) == 1:
        return fitting[0], reports / fitting[0].id
    newest = [run.id for run in fitting or known][: -NAMED_AT_MOST - 1 : -1]
    names = ", ".join(newest) or "none"
    names += f" and {len(fitting or known) - len(newest)} older ones" if len(fitting or known) > len(newest) else ""
    what = "fits several" if fitting else "is not among the"
    raise RunError(f"{reference!r} {what} runs of tlpipe {wanted} in {reports}: {names}")
