"""Extract: a dataset's features that are not in the cache yet."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import extraction
from pipeline.augment import Augment
from pipeline.backbones import Pretrained, open_backbone
from pipeline.config import ExtractConfig, FeatureSpec, ImageConfig
from pipeline.datasets import Opened, open_dataset, shortened
from pipeline.engines import Engine, EngineChoice, choose, open_engine
from pipeline.errors import DataError, QuarantineError
from pipeline.extraction import PassReport, Row
from pipeline.memo import Memo
from pipeline.store import FeatureStore
from pipeline.table import TableRecord, now, row_keys, save_dataset, save_record, table_id

__all__ = ["ExtractResult", "extract"]

NAMED_AT_MOST = 10  # unreadable images named on the terminal; the answer of --json lists all

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


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An extract before its pass."""

    opened: Opened
    pretrained: Pretrained
    choice: EngineChoice
    spec: FeatureSpec
    images: ImageConfig
    augment: Augment | None


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
    prepared = _prepare(config, cache, rehash)
    opened, spec = prepared.opened, prepared.spec
    for note in opened.notes:
        log.warning("%s", note)
    store = FeatureStore(cache, spec)
    for damage in store.open():
        log.warning("%s %s; it was set aside, and its rows are computed again", damage.path, damage.cause)
    rows, refused = _work(prepared, store, config.views)
    n_wanted = len(set(opened.dataset.keys.tolist())) * (config.views + 1)

    report = PassReport()
    started = time.perf_counter()
    if rows:
        log.info(
            "%s: %s of %s rows to compute with %s in %s",
            opened.dataset.name,
            f"{len(rows):,}",
            f"{n_wanted:,}",
            prepared.choice.engine,
            prepared.choice.precision,
        )
        engine = _engine(prepared, cache, batch_size)
        started = time.perf_counter()
        report = extraction.compute(
            store, opened.source, rows, prepared.images, prepared.augment, engine, workers=workers
        )
    record = _save_record(prepared, config, cache)
    unreadable = {entry.location: entry.cause for entry in opened.unreadable}
    refused |= {key: str(error) for key, (_, error) in report.unreadable.items()}
    for key, location in zip(opened.dataset.keys.tolist(), opened.dataset.locations, strict=True):
        if key in refused:
            unreadable[location] = refused[key]
    _check_readable(opened, refused, unreadable, strict)
    n_refused_rows = len(refused) * (config.views + 1)
    return ExtractResult(
        record=record,
        n_images=len(opened.dataset) + len(opened.unreadable),
        n_computed=report.n_computed,
        n_reused=n_wanted - n_refused_rows - report.n_computed,
        unreadable=unreadable,
        choice=prepared.choice,
        seconds={
            "start": started - start,
            "read": report.read,
            "compute": report.compute,
            "write": report.write,
            "total": time.perf_counter() - start,
        },
        images_per_second=report.images_per_second,
    )


def _prepare(config: ExtractConfig, cache: Path, rehash: bool) -> _Prepared:
    """Resolve all options; nothing heavy is loaded if the memo knows the weights."""
    augment = Augment.parse(config.augment) if config.augment else None
    if augment:
        augment.check(config.views)
    choice = choose(config.engine, config.precision)
    memo = Memo(cache)
    opened = open_dataset(config.data, config.splits, memo=memo, rehash=rehash)
    pretrained = open_backbone(config.backbone, config.weights, config.seed, config.image_size, memo)
    spec = FeatureSpec(
        backbone=pretrained.name,
        weights_digest=pretrained.digest(),
        endpoint=config.endpoint or pretrained.default_endpoint(),
        pooling=config.pooling,
        image_size=pretrained.image_size,
        resize=config.resize,
        interpolation=config.interpolation,
        precision=choice.spec_precision,
        dtype=config.dtype or ("float16" if config.pooling == "none" else "float32"),
    )
    images = ImageConfig(spec.image_size, config.resize, config.interpolation, config.pixel_limit)
    return _Prepared(opened, pretrained, choice, spec, images, augment)


def _work(prepared: _Prepared, store: FeatureStore, views: int) -> tuple[list[Row], dict[bytes, str]]:
    """Rows to compute, and the cause for each image that is known to be unreadable, by image key."""
    dataset = prepared.opened.dataset
    reader = extraction.reader_name(prepared.images)
    known = {key: entry.cause for key, entry in store.quarantined().items() if entry.reader == reader}
    _, first = np.unique(dataset.keys, return_index=True)
    first = np.sort(first)
    refused = {key: known[key] for key in dataset.keys[first].tolist() if key in known}
    rows = []
    for view in range(views + 1):
        keys = row_keys(dataset.keys[first], prepared.augment, view)
        stored = store.has(keys)
        for key, index, there in zip(keys.tolist(), first.tolist(), stored.tolist(), strict=True):
            image_key = bytes(dataset.keys[index])
            if not there and image_key not in refused:
                rows.append(Row(key, image_key, view, index, dataset.locations[index]))
    return rows, refused


def _engine(prepared: _Prepared, cache: Path, batch_size: int | None) -> Engine:
    spec = prepared.spec
    # The graph that is compiled depends on neither the resize nor the precision.
    graph = (spec.backbone, spec.weights_digest, spec.endpoint, spec.pooling, *spec.image_size)
    name = hashlib.blake2b(repr(graph).encode(), digest_size=16).hexdigest()
    folder = cache / "graphs" / name
    return open_engine(prepared.choice, prepared.pretrained.network, spec.endpoint, spec.pooling, folder, batch_size)


def _save_record(prepared: _Prepared, config: ExtractConfig, cache: Path) -> TableRecord:
    dataset = prepared.opened.dataset
    config = replace(
        config,
        data=_absolute(config.data),
        backbone=_absolute(config.backbone),
        weights=_absolute(config.weights),
    )
    record = TableRecord(
        id=table_id(dataset.name, prepared.spec, dataset.id, config),
        created=now(),
        spec=prepared.spec,
        dataset=dataset.id,
        name=dataset.name,
        carved=prepared.opened.carved,
        config=config,
    )
    save_dataset(cache, dataset)
    save_record(cache, record)
    return record


def _absolute(text: str) -> str:
    """The whole path if `text` names something that exists, so that a later stage finds it from any folder."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def _check_readable(opened: Opened, refused: dict[bytes, str], unreadable: dict[str, str], strict: bool) -> None:
    """Name what could not be read; refuse data of which a class is gone."""
    if not unreadable:
        return
    lines = [f"{location}: {cause}" for location, cause in unreadable.items()]
    log.warning("%s images can't be read:", f"{len(lines):,}")
    for line in lines[:NAMED_AT_MOST]:
        log.warning("  %s", line)
    if len(lines) > NAMED_AT_MOST:
        log.warning("  and %s more; all are in the answer of --json", f"{len(lines) - NAMED_AT_MOST:,}")
    dataset = opened.dataset
    readable = np.array([key not in refused for key in dataset.keys.tolist()])
    left = set(dataset.labels[readable].tolist())
    gone = [name for label, name in enumerate(dataset.class_names) if label not in left]
    if gone:
        raise DataError(f"No image of the class {shortened(gone)} can be read; mend the files, or take the class away")
    if strict:
        raise QuarantineError(
            f"--strict: {len(lines):,} of {len(dataset) + len(opened.unreadable):,} images can't be read "
            f"({lines[0]}); all others are stored. Mend or remove them, or leave --strict out"
        )
