"""Run folders: how they are named, written and read."""

from __future__ import annotations

import json
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError, RunError
from pipeline.heads import kind_of
from pipeline.runs import legacy
from pipeline.runs.predictions import (
    READ_AS_BYTES,
    Predictions,
    write_history,
    write_predictions,
    write_seen,
)
from pipeline.runs.run import TYPES, CurveRun, FinetuneRun, RatedRun, Run
from pipeline.store.uses import remember_use
from pipeline.util import disk
from pipeline.util.addresses import asking, is_remote
from pipeline.util.fetching import fetch
from pipeline.util.files import digest_of_file, is_as_written, mark_folder, published, published_folder, remove_whole
from pipeline.util.local_copies import own_part
from pipeline.util.sealed import decoded, read_json, write_json

RUN = "run.json"
RUNS = "runs"  # in the own part of a reports folder at an address: copies of model files
HEADER = tuple(one.name for one in fields(Run))


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
    with published_folder(folder, last=RUN) as partial:
        write_history(partial, history)
        if isinstance(run, RatedRun):
            write_predictions(partial, run.class_names, predictions)
        if seen is not None:
            write_seen(partial, seen)
        if save_models is not None:
            save_models(partial)
        run.files = {path.name: digest_of_file(path) for path in sorted(partial.iterdir()) if path.is_file()}
        _write(partial / RUN, run)
    return folder


def at_hand(folder: Path, run: Run) -> Path:
    """Where libraries can open a run's model files: its folder, or a copy of those of one that lies at an address.

    A file that is missing in a folder on this machine is left to whoever opens it.

    Raises:
        RunError: If a file of it was changed, or is gone from an address.
        StoreError: If it can't be had, or there is no room for it.
    """
    copy = own_part(folder.parent) / RUNS / folder.name if is_remote(folder) else folder
    for name, digest in _model_files(folder, run).items():
        if Path(name).name != name:
            raise RunError(f"{folder / RUN} is not what tlpipe wrote: it names a file {name!r}")
        if is_remote(folder):
            _fetch_model(folder, copy, name, digest, run)
        elif (folder / name).is_file():
            _check_model(folder / name, folder / name, digest, run)
    return copy


def _fetch_model(folder: Path, copy: Path, name: str, digest: str, run: Run) -> None:
    if (copy / name).is_file() and is_as_written(copy / name, digest):
        return
    try:
        with published(copy / name) as partial:
            fetch(folder / name, partial)
            _check_model(folder / name, partial, digest, run)
    except DataError as error:
        raise RunError(f"{error}; if it is gone, make the run again: {run.command}") from error


def _check_model(path: Path, here: Path, digest: str, run: Run) -> None:
    """Refuse a file, which can be read here, that isn't what the run has written."""
    if not is_as_written(here, digest):
        raise RunError(f"{path} was changed after it was written; make the run again: {run.command}")


def _model_files(folder: Path, run: Run) -> dict[str, str]:
    """A run's model files with their digests; of one from before all files had digests with none."""
    found = {name: digest for name, digest in run.files.items() if name not in READ_AS_BYTES}
    if not found:
        with asking(folder):
            names = [path.name for path in folder.iterdir() if path.suffix in (".npz", ".keras")]
        found = {name: "" for name in names if name not in READ_AS_BYTES}
    return found


def check_reports(reports: Path) -> None:
    """See, before any work is done, that runs can be put at an address.

    Raises:
        StoreError: If they can't.
    """
    if is_remote(reports):
        mark_folder(reports)


def remove_run(folder: Path) -> None:
    """Remove a run folder; at no moment a part of one is there that could be taken for a run.

    Raises:
        StoreError: If it can't be removed.
    """
    remove_whole(folder, RUN)
    if is_remote(folder):
        with suppress(OSError):  # of copies
            disk.remove_tree(own_part(folder.parent) / RUNS / folder.name)


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
    remedy = f"name another run by its whole id, or remove this one: rm -r {shlex.quote(str(folder))}"
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read: {error}; {remedy}") from error
    try:
        flat = {**value, **value.pop("payload")} if "payload" in value else legacy.upgraded(value)
        flat.pop("payload", None)
        run = decoded(TYPES[flat["stage"]], flat)
        _check(run)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise RunError(f"{path} is not what tlpipe wrote: {error}; {remedy}") from error
    if run.id != folder.name:
        raise RunError(
            f"{path} belongs to the run {run.id!r}; give the folder that name, or move it out of {folder.parent}"
        )
    return run


def _check(run: Run) -> None:
    """Refuse by a `ValueError` what its types alone don't tell."""
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
