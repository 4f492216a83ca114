"""Run folders: one training or evaluation with all that is needed to repeat it.

run.json is a header that all runs have, and a payload whose type the stage decides:

Run
├── CurveRun                 learning-curve
└── RatedRun                 predictions and metrics of splits
    ├── HeadRun              train-head
    │   └── SweepRun         sweep
    ├── FinetuneRun          finetune
    └── EvaluateRun          evaluate
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.config import BACKBONE, ExtractConfig, FeatureSpec, FinetuneConfig, HeadConfig
from pipeline.errors import ConfigError, RunError
from pipeline.evaluation.compare import Difference
from pipeline.heads import kind_of, make_head
from pipeline.runs import legacy
from pipeline.runs.predictions import (
    HISTORY,
    PREDICTIONS,
    SEEN,
    Predictions,
    write_history,
    write_predictions,
    write_seen,
)
from pipeline.store.uses import remember_use
from pipeline.util.files import decoded, digest_of, mark_folder, published_folder, read_json, write_json
from pipeline.util.options import option_name, options_of

log = logging.getLogger("tlpipe")

RUN = "run.json"


class PointFields(TypedDict):
    """A point of a learning curve, as `Point.to_json` gives it."""

    per_class: int
    n_train: int
    accuracy: float
    std: float | None
    accuracies: list[float]


class _RoundFields(TypedDict, total=False):
    val_accuracy_std: float
    rounds: list[float]


class CandidateFields(_RoundFields):
    """A candidate of a sweep, as `Rated.to_json` gives it."""

    head: str
    settings: dict[str, Any]
    test_views: int
    val_accuracy: float
    val_log_loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What another run was found to be on the same images.

    Attributes:
        run: Its id.
        splits: The paired difference on each split.
        used: What it had used the images of each split for.
    """

    run: str
    splits: dict[str, Difference]
    used: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Run:
    """What run.json holds of every run.

    Attributes:
        id: Name of the folder.
        stage: The command that made it.
        created: ISO 8601, UTC.
        command: The command line.
        data: What the user gave as DATA.
        dataset: Id of the dataset.
        seed: Of everything drawn.
        seconds: Length of each part; `total` is there always.
        name: What the user calls it; None for nothing.
        versions: Of Python and the libraries.
        notes: What a user should know; nothing reads them but people.
        files: Digests of the files beside run.json that are checked when they are read.
    """

    id: str
    stage: str
    created: str
    command: str
    data: str
    dataset: str
    seed: int
    seconds: dict[str, float]
    name: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it: header and payload side by side."""
        value = asdict(self)
        return {"run": value.pop("id"), **value}


@dataclass(slots=True, kw_only=True)
class RatedRun(Run):
    """A run that rated a classifier on images.

    Attributes:
        head: The head's name.
        features: Features id; several are joined by commas.
        class_names: Sorted.
        specs: Of each set of features.
        extracts: The options of extract that gave each set, with which new images get the same features.
        n_train: Training images.
        n_val: Validation images.
        n_test: Test images.
        metrics: Of each split that has images.
        trainable_parameters: Numbers that were fitted.
        fitted_on: Splits whose images the classifier that is kept was fitted on.
        chosen_on: Splits whose images something was chosen by: the epoch, the penalty, the winner of a sweep. Their
            figures read a little high.
        carved: Splits that the source doesn't have, so that their images were taken from others.
        n_fitted: Of each split, its images that the classifier that rated them had been fitted on: twins of training
            images, for one.
        n_chosen: Of each split, its images that something of the classifier had been chosen by.
    """

    head: str
    features: str
    class_names: list[str]
    specs: list[FeatureSpec]
    extracts: list[ExtractConfig]
    n_train: int
    n_val: int
    n_test: int
    metrics: dict[str, Any]
    trainable_parameters: int
    fitted_on: list[str]
    chosen_on: list[str]
    carved: list[str]
    n_fitted: dict[str, int] = field(default_factory=dict)
    n_chosen: dict[str, int] = field(default_factory=dict)

    def options(self) -> str:
        """The options of extract and of the run that are not the defaults, as on the command line.

        The backbone is left out, as it is shown beside them.
        """
        extracted = [shlex.join(replace(one, backbone=BACKBONE).options()) for one in self.extracts]
        return " ".join(word for word in (*dict.fromkeys(extracted), *self.own_options()) if word)

    def own_options(self) -> list[str]:
        """Those of the run alone."""
        return []

    def used(self) -> dict[str, str]:
        """What the images of each split were used for before they rated the classifier, which flatters its figures.

        Where it wasn't all of them, their number is given.
        """
        return uses_of(self.n_fitted, self.n_chosen, {split: found["n"] for split, found in self.metrics.items()})

    def shown(self) -> list[tuple[str, dict[str, Any]]]:
        """The metrics that are shown side by side, each with a name."""
        return [(self.head, self.metrics)]

    @property
    def shown_split(self) -> str | None:
        """The split whose figures stand for the run: test, else val, else train; None if it was rated on no images."""
        return next((split for split in ("test", "val", "train") if self.metrics.get(split, {}).get("n")), None)


@dataclass(slots=True, kw_only=True)
class HeadRun(RatedRun):
    """A run of train-head.

    Attributes:
        config: The head's settings, as resolved.
        chosen: Options that were found while fitting.
        test_views: Views over which probabilities are averaged, beside the image itself.
        memory: Bytes of features that were held; None for half of the machine's.
        calibration: Temperature, and calibration errors before and after; None if that was not asked for.
        repeats: Mean and standard deviation over folds and seeds; None if that was not asked for.
    """

    config: HeadConfig
    chosen: dict[str, Any] = field(default_factory=dict)
    test_views: int = 0
    memory: int | None = None
    calibration: dict[str, Any] | None = None
    repeats: dict[str, Any] | None = None

    def own_options(self) -> list[str]:
        """As `RatedRun.own_options`."""
        words = [self.config.command(make_head(HeadConfig(self.head))[1]).removeprefix(f"--head {self.head}").strip()]
        words += [f"--test-views {self.test_views}"] if self.test_views else []
        words += ["--calibrate"] if self.calibration else []
        return words


@dataclass(slots=True, kw_only=True)
class SweepRun(HeadRun):
    """A run of sweep, which trained its winner.

    Attributes:
        grid: "small" or "full".
        heads: As the user named them.
        candidates: Each with its settings and its scores, the best first.
    """

    grid: str
    heads: list[str]
    candidates: list[CandidateFields]

    def settings_that_differ(self) -> list[str]:
        """The settings in which each candidate differs from others of its kind."""
        kinds = [kind_of(one["head"]).name for one in self.candidates]
        settings = [{**one["settings"], "test_views": one["test_views"]} for one in self.candidates]
        found = []
        for kind, own in zip(kinds, settings, strict=True):
            alike = [other for other, name in zip(settings, kinds, strict=True) if name == kind]
            varied = {name: value for name, value in own.items() if len({other.get(name) for other in alike}) > 1}
            texts = [
                f"{name} {value:g}" if type(value) is float else f"{name} {value}" for name, value in varied.items()
            ]
            found.append(", ".join(texts))
        return found


@dataclass(slots=True, kw_only=True)
class FinetuneRun(RatedRun):
    """A run of finetune.

    Attributes:
        config: How, with the blocks named.
        head_run: The run of the head it started from.
        cut: Highest layer of the frozen part.
        endpoint: Where the head took the features.
        top: Name of the highest layer of the backbone.
        end_to_end: Whether the trained part began at the images.
        baseline: Metrics before fine-tuning.
        peak_memory: Largest resident memory of the process, bytes.
        memory: Bytes of activations that were held; None for half of the machine's.
    """

    config: FinetuneConfig
    head_run: str
    cut: str
    endpoint: str
    top: str
    end_to_end: bool
    baseline: dict[str, Any]
    peak_memory: int
    memory: int | None = None

    def shown(self) -> list[tuple[str, dict[str, Any]]]:
        """As `RatedRun.shown`, with those of before."""
        return [("before", self.baseline), ("fine-tuned", self.metrics)]

    def own_options(self) -> list[str]:
        """As `RatedRun.own_options`."""
        words, default = [], FinetuneConfig()
        for name in options_of(FinetuneConfig):
            value = getattr(self.config, name)
            if value != getattr(default, name):
                words.append(option_name(name) if value is True else f"{option_name(name)} {value}")
        return words


@dataclass(slots=True, kw_only=True)
class EvaluateRun(RatedRun):
    """A run of evaluate.

    Attributes:
        of: The run that was rated.
        precision: As the user gave it; None for that in which the run was rated.
        against: The run it was compared with, the paired difference on each split, and what that run had used the
            images for; None where there was none.
    """

    of: str
    precision: str | None
    against: Against | None = None


@dataclass(slots=True, kw_only=True)
class CurveRun(Run):
    """A run of learning-curve.

    Attributes:
        head: The head's name.
        features: Features id; several are joined by commas.
        config: The head's settings, as resolved.
        split: Split on which accuracies were measured.
        points: The fewest images first.
        gain_of_doubling: What twice as many images would add to the accuracy; None where no law can be fitted.
    """

    head: str
    features: str
    config: HeadConfig
    split: str
    points: list[PointFields]
    gain_of_doubling: float | None


TYPES: dict[str, type[Run]] = {
    "train-head": HeadRun,
    "sweep": SweepRun,
    "finetune": FinetuneRun,
    "evaluate": EvaluateRun,
    "learning-curve": CurveRun,
}
HEADER = tuple(one.name for one in fields(Run))


def uses_of(n_fitted: Mapping[str, int], n_chosen: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, str]:
    """What the images of each split were used for, in words; with their number where it wasn't all of them."""
    found: dict[str, list[str]] = {}
    for what, counts in (("fit", n_fitted), ("choose", n_chosen)):
        for split, n in counts.items():
            if n:
                found.setdefault(split, []).append(what if n == sizes.get(split) else f"{what} {n:,}")
    return {split: ", ".join(words) for split, words in found.items()}


def new_id(stage: str, head: str) -> str:
    """A run id that sorts by time and is taken by no other run."""
    # Two runs may end in the same second.
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{stage}-{head}-{uuid.uuid4().hex[:4]}"


_called: ContextVar[str | None] = ContextVar("the command that a call from Python stands for", default=None)


@contextmanager
def called(command: str) -> Iterator[None]:
    """Let runs that are made in this block name a command line, which is not that of the Python process."""
    token = _called.set(command)
    try:
        yield
    finally:
        _called.reset(token)


def command_line() -> str:
    """The command that runs now, as a user would type it."""
    if (command := _called.get()) is not None:
        return command
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return words.encode("utf-8", "backslashreplace").decode()  # a path may be no UTF-8


def save_run(
    cache: Path,
    reports: Path,
    run: Run,
    *,
    history: Sequence[dict[str, float]] = (),
    predictions: Sequence[Predictions] = (),
    seen: Mapping[str, NDArray[np.bytes_]] | None = None,
    save_models: Callable[[Path], None] | None = None,
) -> Path:
    """Publish a run folder, whole or not at all.

    Args:
        cache: The cache folder, which remembers that its features were used.
        reports: The reports folder.
        run: What run.json will hold.
        history: A row for each epoch, or for each setting that was tried.
        predictions: Probabilities of held-out images.
        seen: Image keys of each split of the data that the run was trained with.
        save_models: Writes the model files into a folder.

    Raises:
        StoreError: If the folder can't be written.
    """
    mark_folder(reports)
    folder = reports / run.id
    if isinstance(run, (RatedRun, CurveRun)):
        remember_use(cache, reports, run.features.split(","))
    with published_folder(folder) as partial:
        write_history(partial, history)
        if isinstance(run, RatedRun):
            write_predictions(partial, run.class_names, predictions)
        if seen is not None:
            write_seen(partial, seen)
        if save_models is not None:
            save_models(partial)
        checked = [name for name in (HISTORY, PREDICTIONS, SEEN) if (partial / name).is_file()]
        run.files = {name: digest_of((partial / name).read_bytes()) for name in checked}
        _write(partial / RUN, run)
    return folder


def rename_run(folder: Path, run: Run, name: str | None) -> None:
    """Give a run another name, or none.

    Raises:
        StoreError: If the folder can't be written.
    """
    run.name = name
    _write(folder / RUN, run)


def _write(path: Path, run: Run) -> None:
    value = asdict(run)
    header = {name: value.pop(name) for name in HEADER}
    json.dumps(value, allow_nan=False)  # NaN is no JSON
    write_json(path, {**header, "payload": value})


def read_run(folder: Path) -> Run:
    """Read a run folder's run.json.

    Raises:
        RunError: If it is missing or not what `save_run` wrote.
    """
    path = folder / RUN
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is no run that can be read: {error}") from error
    try:
        flat = {**value, **value.pop("payload")} if "payload" in value else legacy.upgraded(value)
        flat.pop("payload", None)
        run = decoded(TYPES[flat["stage"]], flat)
        _check(run)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise RunError(f"{path} is not what tlpipe wrote: {error}") from error
    if run.id != folder.name:
        raise RunError(f"{path} belongs to the run {run.id!r}; was the folder renamed?")
    return run


def _check(run: Run) -> None:
    """Refuse what its types alone don't tell.

    Raises:
        ValueError: Saying which field is wrong.
    """
    if "total" not in run.seconds:
        raise ValueError("seconds lacks the total")
    if isinstance(run, RatedRun):
        kind_of(run.head)
        rated = [run.metrics, run.baseline] if isinstance(run, FinetuneRun) else [run.metrics]
        if not all(map(_is_rated, rated)):
            raise ValueError("metrics are of the wrong kind")
        if not run.specs or len(run.specs) != len(run.extracts):
            raise ValueError(f"it has {len(run.specs)} specs and {len(run.extracts)} extracts")


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
