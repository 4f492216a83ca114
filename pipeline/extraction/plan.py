"""Rows of features: computed where the store lacks them, for a dataset or for images that belong to none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import Backbone, OnnxFile, Pretrained, is_onnx, open_backbone
from pipeline.config import ExtractConfig, FeatureSpec, ImageConfig
from pipeline.data import KEY_DTYPE, ImageSource, Opened, among, in_order
from pipeline.data.augment import Augment
from pipeline.data.images import reader_name
from pipeline.errors import DataError, EngineError, StoreError
from pipeline.extraction import pass_
from pipeline.extraction.engines import (
    Engine,
    EngineChoice,
    choose,
    for_graph,
    graph_folder,
    in_place_of_openvino,
    open_engine,
)
from pipeline.extraction.pass_ import Missing, PassReport, Row
from pipeline.store.shards import FeatureStore
from pipeline.store.table import row_keys
from pipeline.util import log, machine, runtime
from pipeline.util.memo import Memo
from pipeline.util.text import counted

SEEN = 10_000  # rows that are looked for, of those that other machines computed


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the options come to on this machine; the engine stays compiled, and the store open."""

    cache: Path
    store: FeatureStore
    pretrained: Pretrained | OnnxFile
    choice: EngineChoice
    spec: FeatureSpec
    images: ImageConfig
    augment: Augment | None
    views: int
    _engines: dict[int | None, Engine] = field(default_factory=dict, repr=False)

    def written_by(self) -> dict[str, str]:
        """What the shards say of what computed them."""
        versions = runtime.versions()
        names = ("tlpipe", "keras", "pillow", self.choice.engine)
        return {
            **{name: versions[name] for name in names if name in versions},
            "engine": self.choice.engine,
            "precision": self.choice.precision,
            "processor": machine.processor(),
        }

    def engine(self, batch_size: int | None) -> Engine:
        """Compile the graph, the first time."""
        if batch_size not in self._engines:
            spec, graph, network = self.spec, graph_folder(self.cache, self.spec), self.pretrained.network
            opened = open_engine(self.choice, network, spec.endpoint, spec.pooling, graph, batch_size)
            self._engines[batch_size] = opened
        return self._engines[batch_size]


@dataclass(frozen=True, slots=True)
class Done:
    """Images whose features are all in the store, but for those that can't be read.

    Attributes:
        plan: What was wanted.
        report: Of the pass.
        refused: Why each image has no features that can't be read, by image key.
        n_reused: Rows that the store had already, one for each distinct image and view.
        started: When the engine was ready, by the performance counter.
    """

    plan: Plan
    report: PassReport
    refused: dict[bytes, str]
    n_reused: int
    started: float

    def features(self, keys: NDArray[np.bytes_], view: int = 0) -> NDArray[np.floating]:
        """Features [n, ...] of one view of images that could be read."""
        return self.plan.store.read(row_keys(keys, self.plan.augment, view))


def backbone_for(config: ExtractConfig, cache: Path) -> Pretrained | OnnxFile:
    """The backbone of some options; nothing heavy is loaded, and what is wrong with them is said.

    Raises:
        ConfigError: For illegal options, or such as don't fit each other.
        WeightsError: If there is no such file.
    """
    pretrained = open_backbone(
        config.backbone, config.weights, config.seed, config.image_size, Memo(cache), config.mean, config.std
    )
    for name in config.endpoint.split("+") if config.endpoint else ():
        pretrained.check_name("--endpoint", name)
    settle_backend(config)
    return pretrained


def settle_backend(config: ExtractConfig) -> None:
    """Let Keras run on what the engine of some options needs, if it isn't settled yet.

    Raises:
        ConfigError: For an unknown engine or precision.
        EngineError: If the engine isn't to be had here, or Keras runs on something else already.
    """
    runtime.check_backend(runtime.keras_backend())
    if _choice(config).engine == "jax":
        runtime.keras_on("jax")


def _choice(config: ExtractConfig) -> EngineChoice:
    """Engine and precision of some options on this machine; errors as in `settle_backend`."""
    return choose(config.engine, config.precision, onnx=is_onnx(config.backbone))


def pinned(config: ExtractConfig, spec: FeatureSpec) -> ExtractConfig:
    """The options with the engine and precision that some features were computed in.

    What was trained on these features is rated and used in them. Where the machine can't compute so, float32 is taken,
    with a warning that says so.
    """
    engine, precision = spec.precision.split("-")[:2] if "-" in spec.precision else ("auto", spec.precision)
    wanted = replace(config, engine=engine, precision=precision)
    try:
        _choice(wanted)
    except EngineError as error:
        log.warning("%s. Features are computed in float32; figures were measured in %s", error, spec.precision)
        return replace(config, engine="auto", precision="float32")
    return wanted


def plan_for(config: ExtractConfig, cache: Path, pretrained: Pretrained | OnnxFile) -> Plan:
    """Resolve all options; nothing heavy is loaded if the memo knows the weights, and the graph if it is in int8.

    Args:
        config: What to extract; `data` and `splits` are not used.
        cache: The cache folder.
        pretrained: What `backbone_for` gave.
    """
    choice = _choice(config)
    if (choice.precision, config.precision, config.weights) == ("float16", "auto", "random"):
        choice = replace(choice, precision="float32")  # half precision can't hold features of random weights
    spec = FeatureSpec(
        backbone=pretrained.name,
        weights_digest=pretrained.digest(),
        weights_seed=pretrained.seed if config.weights == "random" else None,
        endpoint=config.endpoint or pretrained.default_endpoint(),
        pooling=config.pooling,
        image_size=pretrained.image_size,
        resize=config.resize or pretrained.resize,
        interpolation=config.interpolation or pretrained.interpolation,
        precision=choice.spec_precision,
        dtype=config.dtype or _dtype(config),
    )
    graph = pretrained.network, spec.endpoint, spec.pooling, graph_folder(cache, spec)
    free = config.engine == "auto" and choice.engine == "openvino" and config.precision != "int8"
    if free and not isinstance(pretrained.row, Backbone):  # OpenVINO converts all of the table
        choice = in_place_of_openvino(config.precision, *graph, pretrained.memo) or choice
    choice = for_graph(choice, *graph)
    spec = replace(spec, precision=choice.spec_precision)
    augment = Augment.parse(config.augment) if config.augment else None
    images = ImageConfig(spec.image_size, spec.resize, spec.interpolation, config.pixel_limit)
    return Plan(cache, FeatureStore(cache, spec), pretrained, choice, spec, images, augment, config.views)


def _dtype(config: ExtractConfig) -> str:
    """Type of stored features: activations are many, and half precision holds them, but for those of random weights.

    Nothing brings those to a scale: from layer to layer they shrink below what half precision can hold.
    """
    return "float16" if config.pooling == "none" and config.weights != "random" else "float32"


def complete(
    plan: Plan,
    keys: NDArray[np.bytes_],
    locations: Sequence[str],
    source: ImageSource,
    batch_size: int | None = None,
    workers: int | None = None,
    elsewhere: Callable[[Sequence[Row]], PassReport] | None = None,
) -> Done:
    """Compute what the store lacks of some images.

    Args:
        plan: What to compute.
        keys: Image keys, shape [n]; one may stand there several times.
        locations: Where the images lie, for people.
        source: The images, in this order.
        batch_size: Images in a batch; changes no feature.
        workers: Decoding threads.
        elsewhere: Computes rows on other machines and stores them; by default they are computed here.

    Raises:
        StoreError: If the disk is full, where what was published stays; or if other machines write to another cache.
        StoppedError: After Ctrl-C or SIGTERM, with all that was computed stored.
    """
    store = plan.store
    for damage in store.refresh():
        log.warning("%s %s; it was set aside, and its rows are computed again", damage.path, damage.cause)
    order, begins = in_order(keys)
    first = np.sort(order[begins])
    n_wanted = len(first) * (plan.views + 1)
    reader = reader_name(plan.images)
    known = {key: entry.cause for key, entry in store.quarantined().items() if entry.reader == reader}
    refused = {key: known[key] for key in keys[among(keys, known)].tolist()}
    rows = _missing(plan, keys, first, locations, refused)
    n_reused = n_wanted - len(refused) * (plan.views + 1) - len(rows)
    if not rows:
        return Done(plan, PassReport(), refused, n_reused, time.perf_counter())
    by = f"{plan.choice.engine} in {plan.choice.precision}"
    log.info("Computing %s of %s with %s", f"{len(rows):,}", counted(n_wanted, "row"), by)
    if elsewhere:
        started, report = time.perf_counter(), elsewhere(rows)
        pass_.quarantine(store, report, plan.images)
    else:
        engine, started = plan.engine(batch_size), time.perf_counter()
        report = pass_.compute(
            store, source, rows, plan.images, plan.augment, engine, workers=workers, written_by=plan.written_by()
        )
    refused |= {key: str(error) for key, (_, error) in report.unreadable.items()}
    store.refresh()
    if elsewhere and report.n_computed:
        _check_shared(store, rows, report)
    return Done(plan, report, refused, n_reused, started)


def _check_shared(store: FeatureStore, rows: Missing, report: PassReport) -> None:
    """Refuse a cluster some of whose machines keep what they compute where it can't be found here."""
    keys = [row.key for row in rows[:: max(1, len(rows) // SEEN)] if row.image_key not in report.unreadable]
    lacks = int(np.count_nonzero(~store.has(np.array(keys, KEY_DTYPE))))
    if lacks:
        raise StoreError(
            f"Other machines computed {counted(report.n_computed, 'row')}, and {lacks:,} of {len(keys):,} that were "
            f"looked for are not in {store.cache} here; give a --cache that all machines share"
        )


def _missing(
    plan: Plan,
    keys: NDArray[np.bytes_],
    first: NDArray[np.int64],
    locations: Sequence[str],
    refused: Collection[bytes],
) -> Missing:
    """The rows that the store lacks, view by view, of images that are not refused."""
    distinct = keys if len(first) == len(keys) else keys[first]
    wanted = ~among(distinct, refused)
    places = []
    for view in range(plan.views + 1):
        indices = first[wanted & ~plan.store.has(row_keys(distinct, plan.augment, view))]
        places.append(np.stack([indices, np.full_like(indices, view)], axis=1))
    return Missing(keys, locations, plan.augment, np.concatenate(places))


def open_plan(config: ExtractConfig, cache: Path) -> Plan:
    """Resolve all options; arguments and errors as in `backbone_for` and `plan_for`."""
    return plan_for(config, cache, backbone_for(config, cache))


def features_of(plan: Plan, source: ImageSource, locations: Sequence[str]) -> NDArray[np.floating]:
    """Features of images that belong to no dataset, in their order, shape [n, d].

    Args:
        plan: What to compute.
        source: The images.
        locations: Where they lie, for people.

    Raises:
        DataError: If an image can't be read.
    """
    keys = keys_of_all(source, locations, plan.cache)
    return complete_all(plan, keys, locations, source).features(keys)


def keys_of_all(source: ImageSource, locations: Sequence[str], cache: Path) -> NDArray[np.bytes_]:
    """Keys of images all of which must be there, shape [n].

    Raises:
        DataError: If one can't be read.
    """
    keys = source.keys(Memo(cache), rehash=False)
    for position, error in sorted(keys.errors.items()):
        raise DataError(f"{locations[position]} can't be read: {error}")
    return keys.column


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
    keys, locations = opened.dataset.keys[rows], [opened.dataset.locations[row] for row in rows.tolist()]
    plan = open_plan(config, cache)
    return complete_all(plan, keys, locations, opened.source.take(rows)).plan.store


def complete_all(plan: Plan, keys: NDArray[np.bytes_], locations: Sequence[str], source: ImageSource) -> Done:
    """As `complete`, but every image must be one that can be read.

    Raises:
        DataError: If one can't.
    """
    done = complete(plan, keys, locations, source)
    for key, location in zip(keys.tolist(), locations, strict=True):
        if key in done.refused:
            raise DataError(f"{location} can't be read: {done.refused[key]}")
    return done
