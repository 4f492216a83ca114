"""Search: the pictures of a dataset that are most like a given one, by their cached features."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.head import NEAREST
from pipeline.data import Dataset, ImageSource, list_images, open_dataset, printable
from pipeline.errors import CacheMismatchError, ConfigError, DataError, StoreError
from pipeline.extraction.plan import features_of, open_plan, pinned
from pipeline.inspection.findings import NO_LABEL
from pipeline.pages.pictures import Pictures
from pipeline.pages.write import Figure, Section, write_search
from pipeline.store.records import (
    TableRecord,
    find_record,
    load_dataset,
    newest_pooled,
    plain_name,
    records_of_data,
)
from pipeline.store.shards import FeatureStore
from pipeline.util import log
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo

BLOCK = 65_536  # rows whose features are held at a time


@dataclass(frozen=True, slots=True)
class Likeness:
    """A picture that is like the one that was searched for.

    Attributes:
        path: Where it lies.
        label: Its class; "" if it has none.
        split: Where it lies, "train", "val" or "test".
        similarity: Cosine of its features and those of the other, from -1 to 1.
    """

    path: str
    label: str
    split: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Search:
    """What was found.

    Attributes:
        image: The picture that was searched for.
        data: The data that was searched.
        features: Id of the features.
        n: Pictures that were compared.
        nearest: The most similar, the best first; byte-identical ones are among them.
        page: Where the page is; None where the pictures of the data are not to be had any more.
        seconds: In all.
    """

    image: str
    data: str
    features: str
    n: int
    nearest: list[Likeness]
    page: Path | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**asdict(self), "page": None if self.page is None else str(self.page)}


def search(image: str, data: str | None, cache: Path, reports: Path, top: int = NEAREST) -> Search:
    """Find the pictures of a dataset that are most like a given one.

    All of them are compared, block by block; the features are those of the newest extract of the data.

    Args:
        image: The picture, which need not be one of the data.
        data: As for extract; None for the data of the newest features.
        cache: The cache folder.
        reports: Where the page goes.
        top: How many pictures are named.

    Raises:
        ConfigError: If `top` is below 1.
        StoreError: If the data has no pooled features yet, or none any more.
        DataError: If the picture can't be read, or is not one picture.
        CacheMismatchError: If the backbone is not that of the features any more.
    """
    start = time.perf_counter()
    if top < 1:
        raise ConfigError(f"--top is {top}; give 1 or more")
    record = _features_of(cache, data)
    locations, source = list_images([image], record.config.columns_of(image))
    if len(source) != 1:
        raise DataError(f"{image} holds {len(source):,} pictures; name one of them")
    plan = open_plan(pinned(record.config, record.spec), cache)
    if replace(plan.spec, precision=record.spec.precision) != record.spec:
        raise CacheMismatchError(
            f"The backbone {record.config.backbone} is not that which gave the features {record.id}; extract again: "
            f"{record.config.command()}"
        )
    query = features_of(plan, source, locations)[0]
    dataset = load_dataset(cache, record.dataset)
    rows, similarities, n = _nearest(query, dataset, FeatureStore(cache, record.spec), top)
    if not n:
        raise StoreError(
            f"{record.config.data} has no features any more; make them again with: {record.config.command()}"
        )
    nearest = [
        Likeness(dataset.locations[row], dataset.label_name(row), str(dataset.splits[row]), similarity)
        for row, similarity in zip(rows, similarities, strict=True)
    ]
    page = _draw(image, source, record, nearest, dataset.keys[rows], n, cache, reports)
    data = record.config.data
    return Search(printable(image), data, record.id, n, nearest, page, time.perf_counter() - start)


def _features_of(cache: Path, data: str | None) -> TableRecord:
    """The newest pooled features of some data, or the newest of all."""
    if data is None:
        record = find_record(cache, None)
    else:
        found = newest_pooled(records_of_data(cache, data, strict=True))
        if found is None:
            raise StoreError(f"{data} has no features in {cache} yet; make some with: tlpipe extract {data}")
        record = found
    if record.spec.pooling == "none":
        raise CacheMismatchError(
            f"Pictures are compared by pooled features, and {record.id} keeps height and width; make some with: "
            f"{record.config.command(pooling='avg')}"
        )
    return record


def _nearest(
    query: NDArray[np.floating], dataset: Dataset, store: FeatureStore, top: int
) -> tuple[list[int], list[float], int]:
    """Rows whose features have the largest cosines with a query, the best first; these; and how many have features."""
    from sklearn.preprocessing import normalize

    for damage in store.open():
        log.warning("%s %s; it was set aside", damage.path, damage.cause)
    query = normalize(query[None])[0]
    best, cosines, n = np.zeros(0, np.int64), np.zeros(0, np.float32), 0
    for rows, features in _blocks(dataset, store):
        best, cosines = np.concatenate([best, rows]), np.concatenate([cosines, normalize(features) @ query])
        order = np.lexsort((best, -cosines))[:top]
        best, cosines, n = best[order], cosines[order], n + len(rows)
    return best.tolist(), [min(float(cosine), 1.0) for cosine in cosines], n


def _blocks(dataset: Dataset, store: FeatureStore) -> Iterator[tuple[NDArray[np.int64], NDArray[np.floating]]]:
    """Rows with features, and these, so many at a time; in the order of the shards, so that each is read once."""
    rows = np.flatnonzero(store.has(dataset.keys))
    places = store.places(dataset.keys[rows])
    order = np.lexsort((places[:, 1], places[:, 0]))
    for start in range(0, len(rows), BLOCK):
        block = order[start : start + BLOCK]
        yield rows[block], store.read_at(places[block]).astype(np.float32, copy=False)


def _draw(
    image: str,
    source: ImageSource,
    record: TableRecord,
    nearest: list[Likeness],
    nearest_keys: NDArray[np.bytes_],
    n: int,
    cache: Path,
    reports: Path,
) -> Path | None:
    """Write the page of what was found, and tell where; None where the data's pictures can't be had any more."""
    config = record.config
    try:
        opened = open_dataset(config.data, config.splits, columns=config.columns, memo=Memo(cache))
    except DataError as error:
        log.warning("There is no page, as the pictures can't be had: %s", error)
        return None
    pictures = Pictures(opened.source, opened.dataset.keys, config.pixel_limit)
    figures = [  # by content, as another picture may lie at the same place by now
        Figure(pictures.rows[key], one.path, f"{one.label or NO_LABEL}, {one.split}, {one.similarity:.3f}")
        for one, key in zip(nearest, nearest_keys.tolist(), strict=True)
        if key in pictures.rows
    ]
    text = f"The nearest of {n:,} pictures of {printable(opened.dataset.name)}, by the features {record.id}."
    if gone := len(nearest) - len(figures):
        text += f" {gone:,} of the nearest can't be shown any more, as the data have changed."
    key = source.keys(None, rehash=False).column
    # Pictures of one name, such as 1.jpg, are told apart by what they show, and where.
    place = digest_of(os.fsencode(config.data) + key[0])[:4]
    page = reports / f"search-{plain_name(Path(image).stem)}-{place}.html"
    asked = Pictures(source, key, config.pixel_limit)
    write_search(page, printable(image), asked, Section("Nearest", text, figures), pictures)
    return page
