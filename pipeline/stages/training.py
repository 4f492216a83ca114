"""Train head: a classifier of cached features."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets import shortened
from pipeline.errors import CacheMismatchError, DataError
from pipeline.heads import HeadConfig, make_head
from pipeline.metrics import evaluate
from pipeline.runs import Predictions, Run, command_line, new_id, save_run
from pipeline.table import FeatureTable, Part, TableRecord, find_record, load_table, now

__all__ = ["describe_run", "train_head"]

log = logging.getLogger("tlpipe")


def train_head(
    config: HeadConfig, cache: Path, reports: Path, reference: str | None = None, views: int | None = None
) -> Run:
    """Train a head on cached features.

    Args:
        config: Which head, and how.
        cache: The cache folder.
        reports: Where the run goes.
        reference: Features id, or the start of one; None for the newest pooled features.
        views: Number of augmented views to train on; None for all there are.

    Raises:
        StoreError: If there are no such features.
        CacheMismatchError: If they keep height and width.
        DataError: If a class has no training images.
    """
    start = time.perf_counter()
    record = find_record(cache, reference)
    spec = record.spec
    size, n_views = "x".join(map(str, spec.image_size)), record.config.views if views is None else views
    what = f"{spec.backbone} {spec.endpoint}, {size} px, {n_views} views"
    log.info("Training %s on %s (%s)", config.head, record.id, what)
    table = load_table(cache, record, views)
    if table.features.ndim != 2:
        raise CacheMismatchError(
            f"A head takes pooled features [n, d], {record.id} has {list(table.features.shape)} "
            f"(pooling {record.spec.pooling!r}). Make some with: {record.config.command(pooling='avg')}"
        )
    if table.missing:
        log.warning("%s images of %s can't be read and are left out", f"{table.missing:,}", record.name)
    loaded = time.perf_counter()
    parts = {split: table.part(split) for split in ("train", "val", "test")}
    _check_trainable(table, parts["train"])
    head = make_head(config, carved_val="val" in record.carved)
    fitted = head.fit(parts["train"], parts["val"], len(table.class_names))
    fit_seconds = time.perf_counter() - loaded
    predictions = []
    if len(parts["val"]) and fitted.val_probabilities is not None:
        predictions.append(Predictions("val", parts["val"].keys, parts["val"].labels, fitted.val_probabilities))
    if len(parts["test"]):
        probabilities = head.predict_proba(parts["test"].features)
        predictions.append(Predictions("test", parts["test"].keys, parts["test"].labels, probabilities))
    run = describe_run(
        "train-head",
        config.head,
        table,
        record,
        settings={**config.to_json(), "views": n_views},
        seed=config.seed,
        predictions=predictions,
        seconds={"load": loaded - start, "fit": fit_seconds, "total": time.perf_counter() - start},
        trainable_parameters=head.trainable_parameters,
        notes=[*fitted.notes, *([f"Trained on {n_views + 1} versions of each image"] if n_views else [])],
    )
    save_run(reports, run, fitted.history, predictions, head.save)
    return run


def _check_trainable(table: FeatureTable, train: Part) -> None:
    present = set(np.unique(train.labels).tolist())
    absent = [name for label, name in enumerate(table.class_names) if label not in present]
    if absent:
        raise DataError(
            f"{table.name} has no training images of the class {shortened(absent)}; "
            "add some, or carve smaller splits (--val-fraction, --test-fraction)"
        )


def describe_run(
    stage: str,
    head: str,
    table: FeatureTable,
    record: TableRecord,
    *,
    settings: dict[str, Any],
    seed: int,
    predictions: list[Predictions],
    seconds: dict[str, float],
    trainable_parameters: int,
    notes: list[str],
    baseline: dict[str, Any] | None = None,
) -> Run:
    """What run.json will hold of a training, of any stage."""
    sizes = {split: int((table.splits[table.views == 0] == split).sum()) for split in ("train", "val", "test")}
    return Run(
        id=new_id(stage, head),
        stage=stage,
        created=now(),
        command=command_line(),
        head=head,
        features=record.id,
        dataset=record.dataset,
        data=record.config.data,
        class_names=list(table.class_names),
        settings=settings,
        spec=record.spec.to_json(),
        seed=seed,
        n_train=sizes["train"],
        n_val=sizes["val"],
        n_test=sizes["test"],
        metrics={part.split: evaluate(part.probabilities, part.labels) for part in predictions},
        seconds=seconds,
        trainable_parameters=trainable_parameters,
        baseline=baseline,
        notes=notes,
    )
