"""Which run a user means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import RunError
from pipeline.runs.folder import read_run
from pipeline.runs.run import TYPES, RatedRun, Run
from pipeline.util.addresses import is_remote
from pipeline.util.files import matching
from pipeline.util.references import one_meant, tell
from pipeline.util.remote import READERS, shared

LATEST, BEST = "latest", "best"

R = TypeVar("R", bound=Run)


def all_runs(reports: Path, *, strict: bool = False) -> list[Run]:
    """All runs, the oldest first; folders that can't be read are left aside, with a warning.

    Raises:
        RunError: If `strict`, for one that can't be read.
        StoreError: If the folder lies at an address that can't be reached.
    """
    found, damaged = _read_all(reports)
    tell(damaged.values(), strict=strict)
    return found


def _read_all(reports: Path) -> tuple[list[Run], dict[str, RunError]]:
    """All runs, the oldest first, and why each of the others can't be read, by its id."""
    folders = [path.parent for path in matching(reports, "*/run.json") if not path.parent.name.startswith(".")]
    with ThreadPoolExecutor(READERS if is_remote(reports) else 1) as pool:
        read = {folder.name: one for folder, one in zip(folders, pool.map(_run_or_why_not, folders), strict=True)}
    found = sorted((one for one in read.values() if isinstance(one, Run)), key=lambda run: (run.created, run.id))
    return found, {name: one for name, one in read.items() if isinstance(one, RunError)}


def _run_or_why_not(folder: Path) -> Run | RunError:
    try:
        return read_run(folder)
    except RunError as error:
        return error


def find_run(reports: Path, reference: str | None, kinds: tuple[type[Any], ...]) -> tuple[Any, Path]:
    """The run that a user means, and its folder.

    Args:
        reports: The reports folder.
        reference: A run id or a part of it, a name that was given to a run, the path of a run folder, "latest", or
            "best": of the runs on the data of the latest, that of the highest accuracy on val. None for the latest.
        kinds: The types of run it may be.

    Raises:
        RunError: If there is none, several fit, or one that may be meant can't be read.
    """
    wanted = " or ".join(_commands(kinds))
    if reference is not None and os.sep in reference:
        folder = shared(reference)
        run = read_run(folder)
        if not isinstance(run, kinds):
            raise RunError(f"{reference} is a run of tlpipe {run.stage}; one of tlpipe {wanted} is needed")
        return run, folder
    if reference not in (None, LATEST, BEST):
        found, damaged = _read_all(reports)
        known = [run for run in found if isinstance(run, kinds)]
        what = f"runs of tlpipe {wanted} in {reports}"
        meant = one_meant(reference, known, damaged, what, "tlpipe runs", RunError, lambda run: run.name)
        return meant, reports / meant.id
    # Where the newest is asked for, a damaged one might be that.
    known = [run for run in all_runs(reports, strict=True) if isinstance(run, kinds)]
    if not known:
        first = _commands(kinds)[0]
        raise RunError(f"There is no run of tlpipe {wanted} in {reports} yet; make one with: tlpipe {first}")
    meant = _best(known) if reference == BEST else known[-1]
    return meant, reports / meant.id


def _best(known: Sequence[R]) -> R:
    """Of the runs on the data of the newest, that of the highest accuracy on val, of equals the newest."""
    dataset = known[-1].dataset
    rated = [run for run in known if run.dataset == dataset and isinstance(run, RatedRun) and "val" in run.metrics]
    if not rated:
        raise RunError(
            f"No run on the data of {known[-1].id} was rated on val, so none is the best; name one by its id"
        )
    return max(rated, key=lambda run: (run.metrics["val"].get("accuracy", 0.0), run.created))


def _commands(kinds: tuple[type[Run], ...]) -> list[str]:
    return [stage for stage, kind in TYPES.items() if issubclass(kind, kinds)]
