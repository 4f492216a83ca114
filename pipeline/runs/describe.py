"""What run.json holds of a training: the fields that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import evaluate
from pipeline.runs.predictions import Predictions
from pipeline.runs.run import command_line, new_id
from pipeline.store.records import now
from pipeline.store.table import FeatureTable

SPLITS = ("train", "val", "test")


def header(stage: str, head: str, table: FeatureTable, seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Fields of `Run`, and what every run on a table knows of its head and features."""
    return {
        "id": new_id(stage, head),
        "stage": stage,
        "created": now(),
        "command": command_line(),
        "data": table.records[0].config.data,
        "dataset": table.records[0].dataset,
        "seed": seed,
        "seconds": dict(seconds),
        "head": head,
        "features": table.id,
    }


def ratings(table: FeatureTable, predictions: Sequence[Predictions]) -> dict[str, Any]:
    """Further fields of `RatedRun`."""
    sizes = {split: int((table.splits[table.views == 0] == split).sum()) for split in SPLITS}
    return {
        "class_names": list(table.class_names),
        "specs": list(table.specs),
        "carved": list(table.records[0].carved),
        "extracts": [record.config for record in table.records],
        **{f"n_{split}": n for split, n in sizes.items()},
        "metrics": {part.split: evaluate(part.probabilities, part.labels, table.class_names) for part in predictions},
    }


def seen(table: FeatureTable) -> dict[str, NDArray[np.bytes_]]:
    """Image keys of each split of a table."""
    return {split: np.unique(table.keys[table.splits == split]) for split in SPLITS}
