"""Runs: which there are, and what they gave; their names; and removing them."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ConfigError, RunError
from pipeline.runs.describe import network_files, run_around
from pipeline.runs.find import BEST, LATEST, all_runs, find_run
from pipeline.runs.folder import check_reports, remove_run, rename_run
from pipeline.runs.run import FinetuneRun, RatedRun, Run

NAME = r"[\w][\w.-]{0,59}"


def ls(reports: Path) -> list[Run]:
    """All runs, the newest first."""
    return all_runs(reports)[::-1]


def name(reference: str, to: str | None, reports: Path) -> Run:
    """Give a run a name, by which it is found like by its id; None takes its name away.

    Raises:
        ConfigError: If the name is not legal, or another run has it.
        RunError: If there is no such run.
    """
    run: Run
    run, folder = find_run(reports, reference, (Run,))
    if to is not None:
        check_name(to, folder.parent, but=run.id)
    rename_run(folder, run, to)
    return run


def check_name(given: str | None, reports: Path, but: str = "") -> None:
    """Refuse a name that no run can have, and a place where none can be kept.

    Raises:
        ConfigError: If it is not legal, or another run has it.
        StoreError: If the place is an address that can't be written.
    """
    check_reports(reports)
    if given is None:
        return
    if not re.fullmatch(NAME, given) or given in (LATEST, BEST):
        raise ConfigError(
            f"--name is {given!r}; give up to 60 letters, digits, dots, dashes or underscores, neither {LATEST} nor "
            f"{BEST}"
        )
    for other in all_runs(reports):
        if given in (other.name, other.id) and other.id != but:
            raise ConfigError(f"--name {given} is taken by {other.id}; free it first: tlpipe runs name {other.id}")


def rm(references: list[str], reports: Path) -> list[Run]:
    """Remove runs; all of them are found before the first is removed.

    Raises:
        RunError: If there is no such run, or another one needs it.
        StoreError: If a folder can't be removed.
    """
    found = {run.id: (run, folder) for run, folder in (find_run(reports, one, (Run,)) for one in references)}
    places = {folder.resolve().parent for _, folder in found.values()}
    for run in (one for place in places for one in all_runs(place)):
        if run.id in found:
            continue
        if isinstance(run, RatedRun):
            for one, folder in found.values():
                around = {run_around(path.resolve()) for config in run.extracts for path in network_files(config)}
                if folder.resolve() in around:
                    raise RunError(
                        f"{one.id} is the backbone of {run.id}; remove both: tlpipe runs rm {one.id} {run.id}"
                    )
        if isinstance(run, FinetuneRun) and run.head_run in found:
            raise RunError(
                f"{run.id} was fine-tuned from {run.head_run}, and its page compares the two; remove both: "
                f"tlpipe runs rm {run.head_run} {run.id}"
            )
    for _, folder in found.values():
        remove_run(folder)
    return [run for run, _ in found.values()]
