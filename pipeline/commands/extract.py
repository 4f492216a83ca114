"""Extract: a dataset's features that are not in the cache yet, and a record of them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import is_path
from pipeline.config import ExtractConfig
from pipeline.data import BUILT_IN, Dataset, Opened, open_dataset, shortened
from pipeline.errors import DataError, QuarantineError
from pipeline.extraction.engines import EngineChoice
from pipeline.extraction.plan import Plan, backbone_for, complete, plan_for, warn_unreadable
from pipeline.store.records import TableRecord, now, save_dataset, save_record, table_id
from pipeline.util.memo import Memo

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What an extract gave.

    Attributes:
        record: What was extracted from what; its id names the features for the later stages.
        n_images: Images of the data, unreadable ones included.
        n_computed: Rows computed: one for each distinct image and view.
        n_reused: Rows that were in the cache already.
        unreadable: Location and cause of each image that could not be read.
        choice: Engine and precision.
        seconds: Of start (until the engine is ready), read, compute and write (what the pass waited for), and total.
        images_per_second: Rate of the pass itself.
    """

    record: TableRecord
    n_images: int
    n_computed: int
    n_reused: int
    unreadable: dict[str, str]
    choice: EngineChoice
    seconds: dict[str, float]
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "features_id": self.record.id,
            "spec": {**self.record.spec.to_json(), "digest": self.record.spec.digest()},
            "dataset": self.record.dataset,
            "n_images": self.n_images,
            "n_computed": self.n_computed,
            "n_reused": self.n_reused,
            "n_quarantined": len(self.unreadable),
            "quarantined": self.unreadable,
            "engine": self.choice.engine,
            "precision": self.choice.precision,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


def extract(
    config: ExtractConfig,
    cache: Path,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    rehash: bool = False,
    strict: bool = False,
) -> ExtractResult:
    """Compute the features of a dataset that are not in the cache yet.

    Args:
        config: What to extract from what.
        cache: The cache folder.
        batch_size: Images in a batch; changes no feature.
        workers: Decoding threads.
        rehash: Read all files again to see whether they changed.
        strict: Fail if images can't be read, after everything else was saved.

    Raises:
        DataError: If the data can't be used, or a class has no readable image.
        QuarantineError: If `strict`, and images can't be read.
        StoppedError: After Ctrl-C or SIGTERM.
    """
    start = time.perf_counter()
    # What is wrong with the options is said before the data is read.
    pretrained = backbone_for(config, cache)
    opened = open_dataset(config.data, config.splits, memo=Memo(cache), rehash=rehash)
    for note in opened.notes:
        log.warning("%s", note)
    plan = plan_for(config, cache, pretrained)
    dataset = opened.dataset
    # Known from now on: what a stopped pass leaves behind belongs to something.
    record = _save_record(plan, opened, config, dataset)
    done = complete(plan, dataset.keys, dataset.locations, opened.source, batch_size, workers)
    if passing := done.report.passing:
        # Their cause may pass, so they are not quarantined, but have no features now: this time they are no rows.
        dropped = np.array([key in passing for key in dataset.keys.tolist()])
        record = _save_record(plan, opened, config, dataset.without(dropped))
    unreadable = _unreadable(opened, done.refused)
    _check_readable(opened, done.refused, unreadable, strict)
    report = done.report
    return ExtractResult(
        record=record,
        n_images=len(dataset) + len(opened.unreadable),
        n_computed=report.n_computed,
        n_reused=done.n_wanted - report.n_computed - len(done.refused) * (config.views + 1),
        unreadable=unreadable,
        choice=plan.choice,
        seconds={
            "start": done.started - start,
            "read": report.read,
            "compute": report.compute,
            "write": report.write,
            "total": time.perf_counter() - start,
        },
        images_per_second=report.images_per_second,
    )


def _save_record(plan: Plan, opened: Opened, config: ExtractConfig, dataset: Dataset) -> TableRecord:
    config = replace(
        config,
        data=config.data if config.data in BUILT_IN else _absolute(config.data),
        backbone=_absolute(config.backbone) if is_path(config.backbone) else config.backbone,
        weights=config.weights if config.weights in ("imagenet", "random") else _absolute(config.weights),
    )
    record = TableRecord(
        id=table_id(dataset.name, plan.spec, dataset.id, config),
        created=now(),
        spec=plan.spec,
        dataset=dataset.id,
        name=dataset.name,
        carved=opened.carved,
        config=config,
    )
    save_dataset(plan.cache, dataset)
    save_record(plan.cache, record)
    return record


def _absolute(path: str) -> str:
    """The whole path, so that a later stage finds it from any folder."""
    return str(Path(path).expanduser().resolve())


def _unreadable(opened: Opened, refused: dict[bytes, str]) -> dict[str, str]:
    """Location and cause of every image that can't be read, opened or not."""
    rows = zip(opened.dataset.keys.tolist(), opened.dataset.locations, strict=True)
    return {
        **{entry.location: entry.cause for entry in opened.unreadable},
        **{location: refused[key] for key, location in rows if key in refused},
    }


def _check_readable(opened: Opened, refused: dict[bytes, str], unreadable: dict[str, str], strict: bool) -> None:
    """Name what could not be read; refuse data of which a class is gone."""
    if not unreadable:
        return
    dataset = opened.dataset
    n_images = len(dataset) + len(opened.unreadable)
    warn_unreadable(unreadable, n_images)
    readable = np.array([key not in refused for key in dataset.keys.tolist()])
    left = set(dataset.labels[readable].tolist())
    gone = [name for label, name in enumerate(dataset.class_names) if label not in left]
    if gone:
        raise DataError(f"No image of the class {shortened(gone)} can be read; mend the files, or take the class away")
    if strict:
        first = next(iter(unreadable))
        raise QuarantineError(
            f"--strict: {len(unreadable):,} of {n_images:,} images can't be read "
            f"({first}: {unreadable[first]}); all others are stored. Mend or remove them, or leave --strict out"
        )
