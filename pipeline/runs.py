"""Run folders: one training with all that is needed to repeat it."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import runtime
from pipeline.errors import RunError
from pipeline.files import published_folder, read_json

__all__ = [
    "MODEL_FILE",
    "Predictions",
    "Run",
    "find_run",
    "read_history",
    "read_predictions",
    "read_run",
    "runs",
    "save_run",
]

MODEL_FILE = "model.keras"  # of a fine-tuned run

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


@dataclass(frozen=True, slots=True)
class Predictions:
    """Probabilities of the images of one split.

    Attributes:
        split: "val" or "test".
        keys: Image keys, shape [n].
        labels: Class indices, shape [n].
        probabilities: Shape [n, classes].
    """

    split: str
    keys: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.floating]


def new_id(stage: str, head: str) -> str:
    """A run id that sorts by time and is taken by no other run."""
    # Two runs may end in the same second.
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{stage}-{head}-{uuid.uuid4().hex[:4]}"


def command_line() -> str:
    """The command that runs now, as a user would type it."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


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
    folder = reports / run.id
    with published_folder(folder) as partial:
        _write_json(partial / "run.json", asdict(run))
        if history:
            with (partial / "history.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(history[0]))
                writer.writeheader()
                writer.writerows(history)
        _write_predictions(partial / "predictions.h5", run.class_names, predictions)
        save_models(partial)
    return folder


def _write_json(path: Path, value: dict[str, Any]) -> None:
    import json

    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_predictions(path: Path, class_names: list[str], predictions: Sequence[Predictions]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("class_names", data=class_names, dtype=h5py.string_dtype())
        for part in predictions:
            group = file.create_group(part.split)
            group.create_dataset("key", data=part.keys)
            group.create_dataset("label", data=part.labels)
            group.create_dataset("probability", data=part.probabilities.astype(np.float32))


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
    wrong = [name for name, hint in get_type_hints(Run).items() if not _fits(getattr(run, name), hint)]
    wrong += [] if "total" in run.seconds else ["seconds"]
    wrong += [name for name in ("metrics", "baseline") if not wrong and not _is_rated(getattr(run, name) or {})]
    if wrong:
        raise RunError(f"{folder}/run.json is not what tlpipe wrote: {wrong[0]} is of the wrong kind")
    if run.id != folder.name:
        raise RunError(f"{folder}/run.json belongs to the run {run.id!r}; was the folder renamed?")
    return run


def read_predictions(folder: Path, run: Run) -> dict[str, Predictions]:
    """The predictions of a run, by split.

    Raises:
        RunError: If they are missing or not what `save_run` wrote.
    """
    path = folder / "predictions.h5"
    try:
        with h5py.File(path, "r") as file:
            splits = [name for name in ("train", "val", "test") if name in file]
            found = {
                split: Predictions(split, *(file[split][name][:] for name in ("key", "label", "probability")))
                for split in splits
            }
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} can't be read: {error}; train again: {run.command}") from error
    for part in found.values():
        n, wanted = len(part.keys), (len(part.keys), len(run.class_names))
        kinds = (part.keys.dtype.kind, part.labels.dtype.kind, part.probabilities.dtype.kind)
        if (
            kinds != ("S", "i", "f")
            or part.keys.ndim != 1
            or part.labels.shape != (n,)
            or part.probabilities.shape != wanted
            or not n
            or not ((part.labels >= 0) & (part.labels < wanted[1])).all()
            or not ((part.probabilities >= 0) & (part.probabilities <= 1)).all()
        ):
            raise RunError(f"{path} is not what tlpipe wrote: its {part.split} doesn't fit run.json")
    return found


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's history; none where it has none. What was not measured is left out of a row.

    Raises:
        RunError: If it isn't what `save_run` wrote.
    """
    path = folder / "history.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path} is not what tlpipe wrote: {error}") from error
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of an annotated type."""
    if hint is Any:
        return True
    inner = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if inner:  # one of several
        return any(_fits(value, one) for one in inner)
    return isinstance(value, (int, float) if hint is float else hint)


def _is_rated(metrics: dict[str, Any]) -> bool:
    """Whether metrics hold what is shown of every split."""
    numbers = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
    for found in metrics.values():
        if not isinstance(found, dict) or not isinstance(found.get("n"), int):
            return False
        interval = found.get("accuracy_95")
        values = [*(found.get(name) for name in numbers), *(interval if isinstance(interval, list) else [None])]
        if found["n"] and not all(isinstance(value, (int, float)) for value in values):
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
    names = ", ".join(run.id for run in fitting or known) or "none"
    what = "fits several" if fitting else "is not among the"
    raise RunError(f"{reference!r} {what} runs of tlpipe {wanted} in {reports}: {names}")
