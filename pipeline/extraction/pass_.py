"""The pass: images are decoded in threads, run through the engine and written as shards, all at the same time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig
from pipeline.data import ImageSource, images
from pipeline.data.augment import Augment
from pipeline.data.images import Pixels, read_pixels
from pipeline.errors import ImageError, StoppedError, StoreError
from pipeline.extraction.engines import Engine
from pipeline.store.shards import FeatureStore, Quarantined
from pipeline.store.table import row_keys
from pipeline.util import log
from pipeline.util.progress import progress
from pipeline.util.stopping import Stopping, stopping
from pipeline.util.text import readable_size

SHARD_ROWS = 2048
SHARD_BYTES = 32 * 2**20
SHARD_SECONDS = 30.0
AHEAD = 2  # batches decoded ahead of the engine, beside one for each thread


@dataclass(frozen=True, slots=True)
class Row:
    """One row of features to compute.

    Attributes:
        key: Row key: the image key, or that of a view.
        image_key: Key of the image.
        view: 0 for the image itself.
        index: Position of the image in its source.
        location: Where the image lies, for people.
    """

    key: bytes
    image_key: bytes
    view: int
    index: int
    location: str


class Missing(Sequence[Row]):
    """Rows that the store lacks, made as they are asked for: there may be many millions of them.

    Args:
        keys: Image keys, shape [n].
        locations: Where the images lie.
        augment: How views are made.
        places: Number of the image, and the view, shape [m, 2].
    """

    def __init__(
        self, keys: NDArray[np.bytes_], locations: Sequence[str], augment: Augment | None, places: NDArray[np.int64]
    ) -> None:
        self._keys, self._locations, self._augment, self._places = keys, locations, augment, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        index, view = self._places[number].tolist()
        (key,) = row_keys(self._keys[index : index + 1], self._augment, view)
        return Row(bytes(key), bytes(self._keys[index]), view, index, self._locations[index])


@dataclass(slots=True)
class PassReport:
    """What a pass did.

    Attributes:
        n_computed: Rows computed and stored.
        unreadable: Where each image lies that could not be read, and why, by image key.
        read: Seconds the pass waited for decoded images.
        compute: Seconds it waited for the engine.
        write: Seconds it wrote shards.
    """

    n_computed: int = 0
    unreadable: dict[bytes, tuple[str, ImageError]] = field(default_factory=dict)
    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0

    @property
    def passing(self) -> set[bytes]:
        """Keys of the unreadable images that may be readable another time."""
        return {key for key, (_, error) in self.unreadable.items() if not error.lasting}

    @property
    def seconds(self) -> float:
        """Length of the whole pass."""
        return self.read + self.compute + self.write

    @property
    def images_per_second(self) -> float:
        """Rate of the pass; 0 where there was nothing to do."""
        return self.n_computed / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class _Batch:
    pixels: Pixels
    rows: list[Row]
    failed: list[tuple[Row, ImageError]]


def compute(
    store: FeatureStore,
    source: ImageSource,
    rows: Sequence[Row],
    config: ImageConfig,
    augment: Augment | None,
    engine: Engine,
    *,
    workers: int | None = None,
    written_by: Mapping[str, str] | None = None,
    wish: Stopping | None = None,
) -> PassReport:
    """Compute rows of features and store them.

    Args:
        store: Where the features go.
        source: Where the images come from.
        rows: What to compute.
        config: How files become pixels.
        augment: How views are made; None if all rows are of view 0.
        engine: What computes.
        workers: Decoding threads; by default as many as read the source best.
        written_by: What the shards say of what computed them.
        wish: Where somebody else says that it shall end early, which is no error, and who quarantines what can't be
            read; by default Ctrl-C and SIGTERM end it.

    Raises:
        StoreError: If the disk is full; what was published stays.
        StoppedError: After Ctrl-C or SIGTERM, with all that was computed stored.
    """
    report = PassReport()
    if not rows:
        return report
    shard = _ShardWriter(store, engine, len(rows), written_by or {})
    shard.check_space()
    order: deque[list[Row]] = deque()
    with nullcontext(wish) if wish else stopping() as stop, progress("Extracting", len(rows)) as advance:
        decoded = _decoded(source, rows, config, augment, engine.batch_size, workers or source.workers)
        batches = _fed(decoded, order, report, stop)
        start = time.perf_counter()
        for features in engine.stream(batches):
            done = order.popleft()
            before = time.perf_counter()
            shard.add(done, features)
            report.write += time.perf_counter() - before
            advance(len(done))
        before = time.perf_counter()
        shard.publish()
        if wish is None:
            quarantine(store, report, config)
        report.write += time.perf_counter() - before
        report.n_computed = shard.n_published
        report.compute = time.perf_counter() - start - report.read - report.write
    if stop.signal is not None and not wish:
        raise StoppedError(
            f"Stopped; {report.n_computed:,} of {len(rows):,} are computed and kept. "
            "The same command again goes on from there.",
            signal=stop.signal,
        )
    return report


def quarantine(store: FeatureStore, report: PassReport, config: ImageConfig) -> None:
    """Remember the images that a pass can never read."""
    reader = images.reader_name(config)
    store.quarantine(
        Quarantined(key.decode(), location, str(error), reader)
        for key, (location, error) in report.unreadable.items()
        if error.lasting
    )


class _ShardWriter:
    """Collects rows in memory and publishes them as shards of bounded size and age."""

    def __init__(self, store: FeatureStore, engine: Engine, n_rows: int, written_by: Mapping[str, str]) -> None:
        self.store = store
        self.written_by = written_by
        self.n_published = 0
        self.dtype = np.dtype(store.spec.dtype)
        self.shape = engine.shape
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.capacity = max(1, min(SHARD_ROWS, SHARD_BYTES // self.row_bytes))
        self.total_bytes = n_rows * self.row_bytes
        self.keys: list[bytes] = []
        self.parts: list[NDArray[np.floating]] = []
        self.started = time.monotonic()

    def check_space(self) -> None:
        """Refuse what the disk can't hold, before hours are spent on it; tell of what is large."""
        folder = self.store.cache
        free = self.store.free_space()
        if self.total_bytes > free:
            raise StoreError(
                f"The features will take {readable_size(self.total_bytes)}, {folder} has {readable_size(free)} free; "
                "make room (tlpipe cache gc), or give another folder with --cache"
            )
        if len(self.shape) > 1 or self.total_bytes > 1e9:
            log.info("The features will take %s of %s", readable_size(self.total_bytes), folder)

    def add(self, rows: list[Row], features: NDArray[np.float32]) -> None:
        stored = features.astype(self.dtype)
        if not np.isfinite(stored).all():
            raise StoreError(
                f"The features of {rows[0].location} or of one of the next {len(rows) - 1} images are not finite in "
                f"{self.dtype}; use --precision float32, and pooled features"
            )
        self.keys += [row.key for row in rows]
        self.parts.append(stored)
        if len(self.keys) >= self.capacity or time.monotonic() - self.started > SHARD_SECONDS:
            self.publish()

    def publish(self) -> None:
        if self.keys:
            self.store.append(self.keys, np.concatenate(self.parts), self.written_by)
            self.n_published += len(self.keys)
        self.keys, self.parts, self.started = [], [], time.monotonic()


def _fed(
    decoded: Iterator[_Batch],
    order: deque[list[Row]],
    report: PassReport,
    stop: Stopping,
) -> Iterator[Pixels]:
    """Hand decoded batches to the engine, note what could not be read, and end early if asked to."""
    while stop.signal is None:
        before = time.perf_counter()
        batch = next(decoded, None)
        report.read += time.perf_counter() - before
        if batch is None:
            return
        for row, error in batch.failed:
            report.unreadable.setdefault(row.image_key, (row.location, error))
        if batch.rows:
            order.append(batch.rows)
            yield batch.pixels


def _decoded(
    source: ImageSource,
    rows: Sequence[Row],
    config: ImageConfig,
    augment: Augment | None,
    batch_size: int,
    workers: int,
) -> Iterator[_Batch]:
    """Decode batches in threads, a bounded number ahead, and give them in order."""

    def load(part: Sequence[Row]) -> _Batch:
        pixels = np.empty((len(part), *config.image_size, 3), np.uint8)
        good: list[Row] = []
        failed = []
        for row in part:
            try:
                pixels[len(good)] = read_pixels(source, row.index, row.image_key, config, augment, row.view)
                good.append(row)
            except ImageError as error:
                failed.append((row, error))
        return _Batch(pixels[: len(good)], good, failed)

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Batch]] = deque()
        try:
            for start in range(0, len(rows), batch_size):
                waiting.append(pool.submit(load, rows[start : start + batch_size]))
                if len(waiting) > workers + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
