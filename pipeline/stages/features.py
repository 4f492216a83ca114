"""Extract: a dataset's features that are not in the cache yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import extraction
from pipeline.augment import Augment
from pipeline.backbones import Pretrained, is_path, open_backbone
from pipeline.config import ExtractConfig, FeatureSpec, ImageConfig
from pipeline.datasets import BUILT_IN, KEY_DTYPE, Dataset, ImageSource, Opened, open_dataset, shortened
from pipeline.engines import Engine, EngineChoice, choose, graph_folder, open_engine
from pipeline.errors import DataError, ImageError, QuarantineError
from pipeline.extraction import PassReport, Row
from pipeline.memo import Memo
from pipeline.records import TableRecord, now, save_dataset, save_record, table_id
from pipeline.store import FeatureStore
from pipeline.table import row_keys

__all__ = ["ExtractResult", "complete_rows", "extract", "features_of"]

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
class _Plan:
    """What the options come to on this machine."""

    cache: Path
    pretrained: Pretrained
    choice: EngineChoice
    spec: FeatureSpec
    images: ImageConfig
    augment: Augment | None
    views: int

    def engine(self, batch_size: int | None) -> Engine:
        """Compile the graph."""
        spec, graph = self.spec, graph_folder(self.cache, self.spec)
        return open_engine(self.choice, self.pretrained.network, spec.endpoint, spec.pooling, graph, batch_size)


@dataclass(frozen=True, slots=True)
class _Done:
    """What it took to have all features of some images.

    Attributes:
        report: Of the pass.
        refused: Why each image has no features that can't be read, by image key.
        n_wanted: Rows: one for each distinct image and view.
        started: When the engine was ready, by the performance counter.
    """

    report: PassReport
    refused: dict[bytes, str]
    n_wanted: int
    started: float


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
    pretrained = _backbone(config, cache)
    _views(config)
    choose(config.engine, config.precision)
    opened = open_dataset(config.data, config.splits, memo=Memo(cache), rehash=rehash)
    for note in opened.notes:
        log.warning("%s", note)
    plan = _plan(config, cache, pretrained)
    dataset = opened.dataset
    store = FeatureStore(cache, plan.spec)
    # Known from now on: what a stopped pass leaves behind belongs to something.
    record = _save_record(plan, opened, config, dataset)
    done = _complete(plan, store, dataset.keys, dataset.locations, opened.source, batch_size, workers)
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


def features_of(source: ImageSource, config: ExtractConfig, cache: Path) -> NDArray[np.floating]:
    """Features of images that belong to no dataset, in their order, shape [n, d].

    Args:
        source: The images.
        config: What to extract; `data` and `splits` are not used.
        cache: The cache folder.

    Raises:
        DataError: If an image can't be read.
    """
    keys = source.keys(Memo(cache), rehash=False)
    for number, key in enumerate(keys):
        if isinstance(key, ImageError):
            raise DataError(f"Image {number} can't be read: {key}")
    column = np.array(keys, KEY_DTYPE)
    plan = _plan(config, cache, _backbone(config, cache))
    store = FeatureStore(cache, plan.spec)
    done = _complete(plan, store, column, [f"image {number}" for number in range(len(keys))], source, None, None)
    for number, key in enumerate(column.tolist()):
        if key in done.refused:
            raise DataError(f"Image {number} can't be read: {done.refused[key]}")
    store.open()
    return store.read(column)


def complete_rows(config: ExtractConfig, cache: Path, opened: Opened, rows: NDArray[np.int64]) -> FeatureStore:
    """Compute the features of some rows of a dataset that are not in the cache yet; the store that has them all.

    Args:
        config: What to extract; `data` and `splits` are not used.
        cache: The cache folder.
        opened: The dataset.
        rows: Numbers of rows, each image once.

    Raises:
        DataError: If an image can't be read.
    """
    plan = _plan(config, cache, _backbone(config, cache))
    store = FeatureStore(cache, plan.spec)
    keys, locations = opened.dataset.keys[rows], [opened.dataset.locations[row] for row in rows.tolist()]
    done = _complete(plan, store, keys, locations, opened.source.take(rows.tolist()), None, None)
    for key, location in zip(keys.tolist(), locations, strict=True):
        if key in done.refused:
            raise DataError(f"{location} can't be read any more: {done.refused[key]}")
    store.open()
    return store


def _backbone(config: ExtractConfig, cache: Path) -> Pretrained:
    return open_backbone(config.backbone, config.weights, config.seed, config.image_size, Memo(cache))


def _views(config: ExtractConfig) -> Augment | None:
    augment = Augment.parse(config.augment) if config.augment else None
    if augment:
        augment.check(config.views)
    return augment


def _plan(config: ExtractConfig, cache: Path, pretrained: Pretrained) -> _Plan:
    """Resolve all options; nothing heavy is loaded if the memo knows the weights."""
    choice = choose(config.engine, config.precision)
    spec = FeatureSpec(
        backbone=pretrained.name,
        weights_digest=pretrained.digest(),
        weights_seed=pretrained.seed if config.weights == "random" else None,
        endpoint=config.endpoint or pretrained.default_endpoint(),
        pooling=config.pooling,
        image_size=pretrained.image_size,
        resize=config.resize,
        interpolation=config.interpolation,
        precision=choice.spec_precision,
        dtype=config.dtype or _dtype(config),
    )
    images = ImageConfig(spec.image_size, config.resize, config.interpolation, config.pixel_limit)
    return _Plan(cache, pretrained, choice, spec, images, _views(config), config.views)


def _dtype(config: ExtractConfig) -> str:
    """Type of stored features: activations are many, and half precision holds them, but for those of random weights.

    Nothing brings those to a scale: from layer to layer they shrink below what half precision can hold.
    """
    return "float16" if config.pooling == "none" and config.weights != "random" else "float32"


def _complete(
    plan: _Plan,
    store: FeatureStore,
    keys: NDArray[np.bytes_],
    locations: Sequence[str],
    source: ImageSource,
    batch_size: int | None,
    workers: int | None,
) -> _Done:
    """Compute what the store lacks of some images."""
    for damage in store.open():
        log.warning("%s %s; it was set aside, and its rows are computed again", damage.path, damage.cause)
    _, first = np.unique(keys, return_index=True)
    first = np.sort(first)
    n_wanted = len(first) * (plan.views + 1)
    reader = extraction.reader_name(plan.images)
    known = {key: entry.cause for key, entry in store.quarantined().items() if entry.reader == reader}
    refused = {key: known[key] for key in keys[first].tolist() if key in known}
    rows = []
    for view in range(plan.views + 1):
        view_keys = row_keys(keys[first], plan.augment, view)
        for key, index, stored in zip(view_keys.tolist(), first.tolist(), store.has(view_keys).tolist(), strict=True):
            image_key = bytes(keys[index])
            if not stored and image_key not in refused:
                rows.append(Row(key, image_key, view, index, locations[index]))
    if not rows:
        return _Done(PassReport(), refused, n_wanted, time.perf_counter())
    log.info(
        "%s of %s rows to compute with %s in %s",
        f"{len(rows):,}",
        f"{n_wanted:,}",
        plan.choice.engine,
        plan.choice.precision,
    )
    engine = plan.engine(batch_size)
    started = time.perf_counter()
    report = extraction.compute(store, source, rows, plan.images, plan.augment, engine, workers=workers)
    refused |= {key: str(error) for key, (_, error) in report.unreadable.items()}
    return _Done(report, refused, n_wanted, started)


def _save_record(plan: _Plan, opened: Opened, config: ExtractConfig, dataset: Dataset) -> TableRecord:
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
