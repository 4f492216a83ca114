"""What corrected labels have changed: the data, and what a head that is trained on them is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data import Dataset
from pipeline.errors import RunError, StoreError
from pipeline.evaluation.compare import paired_difference
from pipeline.runs.find import all_runs
from pipeline.runs.predictions import Predictions, both_right, read_predictions
from pipeline.runs.run import Against, HeadRun, uses_of
from pipeline.store.records import load_dataset
from pipeline.util import log
from pipeline.util.text import counted


def compare_with_before(run: HeadRun, predictions: Sequence[Predictions], cache: Path, reports: Path) -> None:
    """Where labels were corrected, tell a run what that changed, and how it does beside the run of before.

    Both are rated by the corrected labels, on the test images that they share. The run of before is the newest of the
    same head on the same features of the same data, with other labels.

    Args:
        run: The run, whose `against` is set and which gets a note.
        predictions: What it predicts.
        cache: The cache folder.
        reports: Where earlier runs lie.
    """
    if run.extracts[0].columns.labels is None:
        return
    before = _run_before(run, reports)
    if before is None:
        return
    try:
        run.notes.append(_changes(load_dataset(cache, before.dataset), load_dataset(cache, run.dataset), before.id))
        theirs = read_predictions(reports / before.id, len(before.class_names), before.files)
    except (StoreError, RunError) as error:
        log.warning("The run of before can't be compared with: %s", error)
        return
    mine = next((part for part in predictions if part.split == "test"), None)
    if mine is None or "test" not in theirs:
        return
    right, other = both_right(mine, _relabelled(theirs["test"], before.class_names, mine, run.class_names))
    if len(right):
        sizes = {"test": len(theirs["test"].keys)}
        used = uses_of(before.n_fitted, before.n_chosen, sizes)
        run.against = Against(run=before.id, splits={"test": paired_difference(right, other)}, used=used)


def _run_before(run: HeadRun, reports: Path) -> HeadRun | None:
    def alike(one: HeadRun) -> tuple[object, ...]:
        return one.data, one.specs, one.config, one.test_views

    heads = [one for one in all_runs(reports) if isinstance(one, HeadRun) and one.dataset != run.dataset]
    return next((one for one in reversed(heads) if alike(one) == alike(run)), None)


def _changes(before: Dataset, now: Dataset, run: str) -> str:
    """What differs between two datasets of the same source, in a sentence."""
    old, new = _labels(before), _labels(now)
    shared = old.keys() & new.keys()
    changed = {key for key in shared if old[key] and old[key] != new[key]}
    given = {key for key in shared if not old[key] and new[key]}
    splits = dict(zip(now.keys.tolist(), now.splits.tolist(), strict=True))
    parts = [f"{split} {n:,}" for split in now.counts() if (n := sum(splits[key] == split for key in changed | given))]
    where = f" ({', '.join(parts)})" if parts else ""
    return (
        f"Since {run}: {counted(len(changed), 'label')} changed and {len(given):,} given{where}, "
        f"{counted(len(old.keys() - new.keys()), 'picture')} left out, {len(new.keys() - old.keys()):,} added"
    )


def _labels(dataset: Dataset) -> Mapping[bytes, str]:
    return {key: dataset.label_name(row) for row, key in enumerate(dataset.keys.tolist())}


def _relabelled(theirs: Predictions, names: Sequence[str], mine: Predictions, my_names: Sequence[str]) -> Predictions:
    """The predictions of before, with the labels of now; a class that was not known then is one that none can hit."""
    label_of = dict(zip(mine.keys.tolist(), mine.labels.tolist(), strict=True))
    number_of = {name: number for number, name in enumerate(names)}
    labels = [number_of.get(my_names[label_of[key]], -1) if key in label_of else -1 for key in theirs.keys.tolist()]
    return Predictions(theirs.split, theirs.keys, np.array(labels, np.int64), theirs.probabilities)
