"""What run.json holds of a training: the fields that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import is_path
from pipeline.backbones.hub import is_preset
from pipeline.config import ExtractConfig
from pipeline.data import SPLITS
from pipeline.evaluation.metrics import evaluate
from pipeline.runs.folder import RUN, command_line, new_id, read_run
from pipeline.runs.predictions import Predictions, read_seen
from pipeline.runs.run import RatedRun
from pipeline.store.records import now
from pipeline.store.table import FeatureTable
from pipeline.util import runtime

EXPORT_DEPTH = 3  # folders above an exported model: of its format, of exports, of the run


def made_now(stage: str, head: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Fields that tell how and when a run came to be."""
    return {
        "id": new_id(stage, head),
        "stage": stage,
        "created": now(),
        "command": command_line(),
        "versions": runtime.versions(),
        "seconds": dict(seconds),
        "head": head,
    }


def header(stage: str, head: str, table: FeatureTable, seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Fields of `Run`, and what every run on a table knows of its head and features."""
    record = table.records[0]
    of_table = {"data": record.config.data, "dataset": record.dataset, "seed": seed, "features": table.id}
    return made_now(stage, head, seconds) | of_table


def ratings(
    table: FeatureTable, predictions: Sequence[Predictions], fitted_on: Sequence[str], chosen_on: Sequence[str]
) -> dict[str, Any]:
    """Further fields of `RatedRun`.

    Args:
        table: What was trained on.
        predictions: Of val and test; those of val are of what was fitted on train alone.
        fitted_on: Splits whose images the classifier that is kept was fitted on.
        chosen_on: Splits whose images something was chosen by.
    """
    known = seen(table)
    if of_backbones(table)["val"]:
        chosen_on = sorted({*chosen_on, "val"})
    fits = {part.split: ["train"] if part.split == "val" else fitted_on for part in predictions}
    sizes = {split: int((table.splits[table.views == 0] == split).sum()) for split in SPLITS}
    return {
        "class_names": list(table.class_names),
        "specs": list(table.specs),
        "carved": list(table.records[0].carved),
        "extracts": [record.config for record in table.records],
        **{f"n_{split}": n for split, n in sizes.items()},
        "metrics": {part.split: evaluate(part.probabilities, part.labels, table.class_names) for part in predictions},
        "fitted_on": list(fitted_on),
        "chosen_on": list(chosen_on),
        "n_fitted": {part.split: n for part in predictions if (n := _n_known(part, known, fits[part.split]))},
        "n_chosen": {part.split: n for part in predictions if (n := _n_known(part, known, chosen_on))},
    }


def _n_known(part: Predictions, known: Mapping[str, NDArray[np.bytes_]], splits: Sequence[str]) -> int:
    """Images that were rated and are among those of some splits."""
    return int(np.isin(part.keys, np.concatenate([known[split] for split in splits])).sum()) if splits else 0


def seen(table: FeatureTable) -> dict[str, NDArray[np.bytes_]]:
    """Image keys of each split of a table; what a fine-tuned backbone was fitted on counts as train, too."""
    found = {split: np.unique(table.keys[table.splits == split]) for split in SPLITS}
    for split, keys in of_backbones(table).items():
        if keys:
            found[split] = np.union1d(found[split], np.array(sorted(keys), table.keys.dtype))
    return found


def of_backbones(table: FeatureTable) -> dict[str, set[bytes]]:
    """What the fine-tuned backbones of a table have seen; nothing where these are as they were published.

    Returns:
        Keys of the images that they were fitted on ("train"), and that something of them was chosen by ("val").
    """
    found: dict[str, set[bytes]] = {"train": set(), "val": set()}
    paths = {path for record in table.records for path in network_files(record.config)}
    for folder in {folder for path in paths if (folder := run_around(path))}:
        run = read_run(folder)
        keys = read_seen(folder, run.files) or {}
        if isinstance(run, RatedRun):
            for split, used in (("train", run.fitted_on), ("val", run.chosen_on)):
                found[split].update(key for key, splits in keys.items() if splits & set(used))
    return found


def network_files(config: ExtractConfig) -> list[Path]:
    """The files and run folders that a network was taken from; none where it is as it was published."""
    named = [config.backbone] if is_path(config.backbone) and not is_preset(config.backbone) else []
    return [Path(one) for one in (*named, config.weights) if one not in ("imagenet", "random")]


def run_around(path: Path) -> Path | None:
    """The folder of the run that a network belongs to: the path itself, or one that holds the model or an export."""
    around = (path, *list(path.parents)[:EXPORT_DEPTH])
    return next((folder for folder in around if (folder / RUN).is_file()), None)


def notes_on_backbones(table: FeatureTable) -> list[str]:
    """What can't be told of the networks of a table any more, in sentences."""
    gone = sorted({str(path) for record in table.records for path in network_files(record.config) if not path.exists()})
    return [f"{path} is gone, so it can't be told which images that network has seen" for path in gone]
