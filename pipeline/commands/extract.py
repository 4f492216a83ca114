"""Extract: a dataset's features that are not in the cache yet, and a record of them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import whole_name
from pipeline.commands.backbones import Rate, remember_rate
from pipeline.config import ExtractConfig, ExtractOptions
from pipeline.data import Dataset, Opened, open_dataset, shortened, split_again
from pipeline.data.dataset import among
from pipeline.data.source import ImageSource
from pipeline.errors import ConfigError
from pipeline.extraction import cluster
from pipeline.extraction.engines import EngineChoice
from pipeline.extraction.pass_ import PassReport, Row
from pipeline.extraction.plan import Done, Plan, backbone_for, complete, plan_for
from pipeline.extraction.unreadable import check_readable, unreadable_of
from pipeline.store.records import (
    TableRecord,
    newest_pooled,
    now,
    place_of,
    read_record,
    records_of_data,
    remove_record,
    save_dataset,
    save_record,
    splits_of,
    table_id,
)
from pipeline.util import log, remote
from pipeline.util.memo import Memo
from pipeline.util.options import parse_part
from pipeline.util.ray_cluster import check_on, connected
from pipeline.util.text import counted


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What an extract gave.

    Attributes:
        record: What was extracted from what; its id names the features for the later stages.
        n_images: Images of the data, unreadable ones included.
        n_classes: Classes of its labels.
        n_computed: Rows computed: one for each distinct image and view.
        n_reused: Rows that were in the cache already.
        unreadable: Location and cause of each image that could not be read.
        part: Which part of how many was computed, such as "3/16"; None for all.
        choice: Engine and precision.
        seconds: Of start (until the engine is ready), read, compute and write (what the pass waited for), and total.
        images_per_second: Rate of the pass itself.
    """

    record: TableRecord
    n_images: int
    n_classes: int
    n_computed: int
    n_reused: int
    unreadable: dict[str, str]
    part: str | None
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
    config: ExtractConfig, cache: Path, options: ExtractOptions = ExtractOptions(), *, made_by: str = "extract"
) -> ExtractResult:
    """Compute the features of a dataset that are not in the cache yet.

    Images need no labels. Those that were split in an earlier extract of the same data, with the same options for
    splits, stay in their splits.

    Args:
        config: What to extract from what.
        cache: The cache folder.
        options: How it is run; with `again`, `config` has no options but the data.
        made_by: The command that wants the features; what another one than extract wants doesn't become the newest.

    Raises:
        ConfigError: For illegal options, or any beside `again`.
        DataError: If the data can't be used, or a class has no readable image.
        QuarantineError: If `strict`, and images can't be read.
        StoppedError: After Ctrl-C or SIGTERM.
    """
    start = time.perf_counter()
    of_data = records_of_data(cache, config.data, strict=options.again)
    config = _as_before(config, of_data, cache, again=options.again)
    # What is wrong with the options is said before the data is read.
    check_on(options.on)
    if options.on:
        connected(options.on)
    pretrained = backbone_for(config, cache)
    alike = _split_alike(config, of_data)
    opened = _opened(config, options, alike, cache)
    plan = plan_for(config, cache, pretrained)
    dataset = opened.dataset
    # Known from now on: what a stopped pass leaves behind belongs to something. The record comes first, as `cache gc`
    # takes a dataset that no record names.
    record = _record(plan, opened, config, dataset, made_by)
    begun = _begin_record(cache, record)
    save_dataset(cache, dataset)
    if options.part is not None:
        opened = _part_of(opened, options.part)
        dataset = opened.dataset
    elsewhere = _elsewhere(options.on, config, options, plan, opened.source) if options.on else None
    done = complete(
        plan, dataset.keys, dataset.locations, opened.source, options.batch_size, options.workers, elsewhere
    )
    unreadable = unreadable_of(opened, done.refused)
    check_readable(opened, done.refused, unreadable, whole=options.part is None, strict=options.strict)
    if options.part is None:
        dataset = _settled(opened, config, alike, done)
        if dataset is not opened.dataset:
            record = _record(plan, opened, config, dataset, made_by)
            _begin_record(cache, record)
            save_dataset(cache, dataset)
        record = _end_record(cache, begun, record)
    report = done.report
    if elsewhere is None and made_by == "extract" and config.endpoint is None:  # else it is another network
        remember_rate(cache, config.backbone, Rate.of(plan, report), report.n_computed)
    seconds = {"start": done.started - start, "read": report.read, "compute": report.compute, "write": report.write}
    return ExtractResult(
        record=record,
        n_images=len(opened.dataset) + len(opened.unreadable),
        n_classes=len(dataset.class_names),
        n_computed=report.n_computed,
        n_reused=done.n_reused,
        unreadable=unreadable,
        part=options.part,
        choice=plan.choice,
        seconds={**seconds, "total": time.perf_counter() - start},
        images_per_second=report.images_per_second,
    )


def _opened(config: ExtractConfig, options: ExtractOptions, alike: Sequence[TableRecord], cache: Path) -> Opened:
    """The data, split as in the earlier extracts, with what there is to know of it told."""
    opened = open_dataset(
        place_of(config.data) if options.on else config.data,  # machines of a cluster stand elsewhere
        config.splits,
        columns=config.columns,
        known=lambda: splits_of(cache, *alike),
        memo=Memo(cache),
        rehash=options.rehash,
    )
    log.info("%s", _told(opened.dataset))
    for note in opened.notes:
        log.warning("%s", note)
    return opened


def _elsewhere(
    on: str, config: ExtractConfig, options: ExtractOptions, plan: Plan, source: ImageSource
) -> Callable[[Sequence[Row]], PassReport]:
    """What computes rows on a cluster."""
    opened = cluster.opener(_with_whole_paths(config), plan, place_of(str(plan.cache)), options.batch_size)
    use_gpu = plan.choice.engine != "openvino"
    return partial(cluster.compute, on, opened, source, use_gpu=use_gpu, workers=options.workers)


def _told(dataset: Dataset) -> str:
    """What there is, before any of it is computed: images, classes, and the size of each split."""
    names, sizes = dataset.class_names, dataset.counts()
    text = f"{dataset.name}: {counted(len(dataset), 'image')}"
    if names:
        text += f" of {counted(len(names), 'class', 'classes')} ({shortened(list(names))})"
    return f"{text}; {', '.join(f'{split} {n:,}' for split, n in sizes.items())}"


def _part_of(opened: Opened, part: str) -> Opened:
    """The images of one part, which their keys alone decide."""
    number, n_parts = parse_part(part)
    rows = [row for row, key in enumerate(opened.dataset.keys.tolist()) if int(key[:8], 16) % n_parts == number - 1]
    inside = np.zeros(len(opened.dataset), np.bool_)
    inside[rows] = True
    log.info("Part %s: %s of %s", part, f"{len(rows):,}", counted(len(inside), "image"))
    return replace(opened, dataset=opened.dataset.without(~inside), source=opened.source.take(rows))


def _settled(opened: Opened, config: ExtractConfig, alike: Sequence[TableRecord], done: Done) -> Dataset:
    """The dataset as features show it: near duplicates together, if wanted, and without what can't be read now."""
    dataset = opened.dataset
    if config.group_duplicates and config.pooling != "none":
        dataset = _without_parted_duplicates(opened, config, alike, done).dataset
    # Their cause may pass, so they are not quarantined, but have no features now: this time they are no rows.
    passing = among(dataset.keys, done.report.passing)
    return dataset.without(passing) if passing.any() else dataset


def _as_before(config: ExtractConfig, of_data: Sequence[TableRecord], cache: Path, *, again: bool) -> ExtractConfig:
    """The options of the newest extract of the same data, if they are to be repeated; else say what these were."""
    earlier = newest_pooled(of_data)
    if not again:
        if earlier is not None and earlier.config.options() and not config.options():
            words = shlex.join(earlier.config.options())
            log.info("%s was extracted before with %s; --again repeats that", config.data, words)
        return config
    if given := config.options():
        raise ConfigError(
            f"--again takes all options from the newest extract of {config.data}, and goes with no others; leave out "
            f"{shlex.join(given)}, or --again"
        )
    if earlier is None:
        raise ConfigError(
            f"{config.data} was not extracted into {cache} yet, so --again has nothing to repeat; leave it out"
        )
    log.info("Repeating: %s", earlier.config.command())
    return earlier.config


def _split_alike(config: ExtractConfig, of_data: Sequence[TableRecord]) -> list[TableRecord]:
    """Extracts of the same data with the same options for splits, the oldest first.

    The last one alone doesn't know how images were split that had no label then, as tlpipe label extracts them.

    Raises:
        ConfigError: If near duplicates are to stay together, and there are no features to tell them by.
    """

    def splitting(one: ExtractConfig) -> tuple[object, ...]:
        return one.splits, replace(one.columns, labels=None), one.group_duplicates

    found = [record for record in of_data if splitting(record.config) == splitting(config)]
    if config.group_duplicates and config.pooling == "none" and not found:
        raise ConfigError(
            "--group-duplicates needs pooled features, by which near duplicates are found; extract such first: "
            + config.command(pooling="avg")
        )
    return found


def _without_parted_duplicates(
    opened: Opened, config: ExtractConfig, alike: Sequence[TableRecord], done: Done
) -> Opened:
    """The data split again, so that no near duplicates lie in different splits that were carved."""
    from pipeline.inspection.doubts import Neighbours
    from pipeline.inspection.duplicates import same_pictures
    from pipeline.pages.pictures import Pictures

    dataset = opened.dataset
    rows = np.flatnonzero(done.plan.store.has(dataset.keys))
    if len(rows) < 2:
        return opened
    pictures = Pictures(opened.source, dataset.keys, config.pixel_limit)
    keys = dataset.keys[rows]
    neighbours = Neighbours.of(done.features(keys), keys, rows)
    groups = same_pictures(neighbours, pictures)
    cache, together = done.plan.cache, [group.rows for group in groups]
    found = split_again(opened, config.splits, lambda: splits_of(cache, *alike), together)
    if groups:
        kept = counted(len(groups), "group")
        log.info("%s of near duplicates found; none is divided between splits that tlpipe makes", kept)
    return opened if found.dataset.id == dataset.id else found


def _record(plan: Plan, opened: Opened, config: ExtractConfig, dataset: Dataset, made_by: str) -> TableRecord:
    config = _with_whole_paths(config)
    return TableRecord(
        id=table_id(dataset.name, plan.spec, dataset.id, config),
        created=now(),
        spec=plan.spec,
        dataset=dataset.id,
        name=dataset.name,
        carved=opened.carved,
        config=config,
        made_by=made_by,
    )


def _with_whole_paths(config: ExtractConfig) -> ExtractConfig:
    """The same options, wherever one stands."""
    return replace(
        config,
        data=place_of(config.data),
        columns=replace(config.columns, labels=config.columns.labels and _whole(config.columns.labels)),
        backbone=whole_name(config.backbone),
        weights=config.weights if config.weights in ("imagenet", "random") else _absolute(config.weights),
    )


def _begin_record(cache: Path, record: TableRecord) -> TableRecord | None:
    """Save the record of an extract that has not come to its end; None where an earlier one had."""
    before = read_record(cache, record.id)
    if before is not None and before.complete:
        return None
    begun = replace(record, complete=False)
    save_record(cache, begun)
    return begun


def _end_record(cache: Path, begun: TableRecord | None, record: TableRecord) -> TableRecord:
    """Save the record of an extract that came to its end, in place of that of its beginning."""
    if begun is not None and begun.id != record.id:
        remove_record(cache, begun)
    before = read_record(cache, record.id)
    if record.made_by != "extract" and before is not None and before.complete:
        return before  # a user's own extract gave the same, and stays as new as it was
    save_record(cache, record)
    return record


def _whole(path: str) -> str:
    """The whole path or address, so that a later stage finds it from any folder."""
    return remote.whole_address(path) if remote.is_address(path) else _absolute(path)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())
