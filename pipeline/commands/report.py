"""Report: what the pages of runs are made of, gathered from the reports, the cache and the data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Columns, ExtractConfig, FeatureSpec
from pipeline.data import UNLABELLED, Opened, open_labelled
from pipeline.data.augment import Augment
from pipeline.errors import ConfigError, DataError, RunError, StoreError
from pipeline.pages.pictures import Pictures
from pipeline.pages.run_page import Map, RunData
from pipeline.pages.write import RUN_PAGE, is_made_of, write_curve, write_index, write_run
from pipeline.runs.class_maps import Maps, cached_class_maps, cached_shards
from pipeline.runs.find import all_runs, find_run
from pipeline.runs.predictions import read_history, read_predictions
from pipeline.runs.run import CurveRun, EvaluateRun, FinetuneRun, HeadRun, RatedRun, Run
from pipeline.runs.trained_head import trained_head
from pipeline.store.records import find_records, load_dataset
from pipeline.store.shards import FeatureStore
from pipeline.util import log, runtime
from pipeline.util.addresses import asking
from pipeline.util.files import digest_of, matching
from pipeline.util.memo import Memo
from pipeline.util.options import one_of
from pipeline.util.progress import progress

MAPS = ("pca", "tsne")
MAP_IMAGES = 1500
SAMPLES = 6
DRAWN_VIEWS = 3  # shown of a run that drew new ones in each epoch


@dataclass(frozen=True, slots=True)
class Report:
    """Where the pages are.

    Attributes:
        index: The leaderboard.
        pages: Of each run that was asked for, by run id.
        n_drawn: Pages that were drawn; the others are as they were.
        seconds: In all.
    """

    index: Path
    pages: dict[str, Path]
    n_drawn: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        pages = {run: str(page) for run, page in self.pages.items()}
        return {"index": str(self.index), "pages": pages, "n_drawn": self.n_drawn, "seconds": self.seconds}


@dataclass(slots=True)
class _Shelf:
    """What several runs share, opened once: data with their pictures, features, and maps."""

    cache: Path
    method: str
    seed: int
    data: dict[tuple[str, Columns, int], tuple[Pictures, dict[bytes, str]] | str] = field(default_factory=dict)
    stores: dict[FeatureSpec, FeatureStore] = field(default_factory=dict)
    maps: dict[tuple[str, bytes], NDArray[np.floating]] = field(default_factory=dict)

    def store(self, spec: FeatureSpec) -> FeatureStore:
        """The features of a spec."""
        if spec not in self.stores:
            self.stores[spec] = FeatureStore(self.cache, spec)
            self.stores[spec].open()
        return self.stores[spec]

    def pictures(self, data: str, config: ExtractConfig) -> tuple[Pictures, dict[bytes, str]] | str:
        """Pictures and locations of some data; why there are none, if they can't be opened."""
        columns = config.columns_of(data)
        name = (data, columns, config.pixel_limit)
        if name not in self.data:
            try:
                opened: Opened = open_labelled(data, columns=columns, memo=Memo(self.cache))
            except DataError as error:
                self.data[name] = str(error)
            else:
                keys = opened.dataset.keys
                named = dict(zip(reversed(keys.tolist()), reversed(opened.dataset.locations), strict=True))
                self.data[name] = (Pictures(opened.source, keys, config.pixel_limit), named)
        return self.data[name]


def report(references: Sequence[str], cache: Path, reports: Path, *, method: str = "pca", seed: int = 0) -> Report:
    """Write the leaderboard of all runs, and the pages and figures of some.

    Args:
        references: Runs, as in `find_run`; none for all of them.
        cache: The cache folder, for the map of the features.
        reports: The reports folder.
        method: Of the map: "pca" or "tsne".
        seed: Of t-SNE.

    Raises:
        RunError: If there are no runs, or one that was named can't be read.
        ConfigError: If the method is not legal.
    """
    start = time.perf_counter()
    one_of("--map", method, MAPS)
    known = all_runs(reports)
    if not known:
        raise RunError(f"There are no runs in {reports} yet; make one with: tlpipe train-head")
    chosen = [_inside(reports, *find_run(reports, reference, (Run,))) for reference in references] or known
    by_id = {run.id: run for run in known}
    shelf = _Shelf(cache, method, seed)
    pages: dict[str, Path] = {}
    n_drawn = 0
    with progress("Drawing", len(chosen), "pages") as advance:
        for run in chosen:
            try:
                with asking(reports):
                    pages[run.id], drawn = _page(run, reports, by_id, shelf)
                n_drawn += drawn
            except (RunError, ConfigError, FileNotFoundError) as error:  # the last of one that was removed meanwhile
                if references:
                    raise
                log.warning("There is no page for %s: %s", run.id, error)
            advance(1)
    inspections = [path.name for path in matching(reports, "inspect-*.html")]
    with asking(reports):
        index = write_index(reports, known, inspections)
    return Report(index, pages, n_drawn, time.perf_counter() - start)


def _inside(reports: Path, run: Run, folder: Path) -> Run:
    """A run, if its folder is one of the reports folder, whose pages lead to each other."""
    if folder.resolve().parent != reports.resolve():
        raise RunError(
            f"{folder} lies outside of the reports folder {reports}; name its own: --reports {folder.parent}"
        )
    return run


def _page(run: Run, reports: Path, by_id: dict[str, Run], shelf: _Shelf) -> tuple[Path, bool]:
    """The page of a run, and whether it was drawn: one that is made of the same is left as it is."""
    folder = reports / run.id
    if isinstance(run, CurveRun):
        made_of = digest_of((folder / "run.json").read_bytes() + f"{runtime.version('tlpipe')}".encode())
        if is_made_of(folder, made_of):
            return folder / RUN_PAGE, False
        return write_curve(folder, run, made_of), True
    if not isinstance(run, RatedRun):
        raise RunError(f"{folder} is a run of tlpipe {run.stage}, which has no page")
    made_of = _made_of(run, folder, by_id, shelf)
    if is_made_of(folder, made_of):
        read_predictions(folder, len(run.class_names), run.files)  # a damaged run is named all the same
        read_history(folder, run.files)
        return folder / RUN_PAGE, False
    return write_run(folder, _run_data(run, reports, by_id, shelf), made_of), True


def _made_of(run: RatedRun, folder: Path, by_id: dict[str, Run], shelf: _Shelf) -> str:
    """Digest of all that decides what the page of a run shows."""
    features = _features_for_map(run, by_id)
    labels = run.extracts[0].columns_of(run.data).labels
    there = [
        _modified(Path(run.data)),
        labels is not None and _modified(Path(labels)),
        [(shelf.cache / "tables" / f"{name}.json").exists() for name in features.split(",")],
        isinstance(run, HeadRun) and cached_shards(run.specs, shelf.cache),
        [other in by_id for other in _others(run)],
    ]
    text = json.dumps([there, shelf.method, shelf.seed, runtime.version("tlpipe"), str(shelf.cache)])
    return digest_of((folder / "run.json").read_bytes() + text.encode())


def _modified(path: Path) -> int | None:
    """When a file or folder was changed, in nanoseconds; None if there is none on this machine."""
    return path.stat().st_mtime_ns if path.exists() else None


def _others(run: RatedRun) -> list[str]:
    """Runs that the page of a run shows something of: of an evaluation what was rated, of a fine-tuned run its head."""
    if isinstance(run, EvaluateRun):
        return [run.of]
    return [run.head_run] if isinstance(run, FinetuneRun) else []


def _run_data(run: RatedRun, reports: Path, by_id: dict[str, Run], shelf: _Shelf) -> RunData:
    folder = reports / run.id
    predictions = read_predictions(folder, len(run.class_names), run.files)
    missing = []
    frozen = by_id.get(run.head_run) if isinstance(run, FinetuneRun) else None
    if isinstance(run, FinetuneRun) and frozen is None:
        missing.append("The run before fine-tuning is gone, and with it its learning curve.")
    found = shelf.pictures(run.data, run.extracts[0])
    pictures, locations = (None, {}) if isinstance(found, str) else found
    if isinstance(found, str):
        missing.append(f"There are no pictures: {found}.")
    drawn = None
    if split := run.shown_split:
        if split not in predictions:
            raise RunError(f"{folder}/predictions.h5 has no {split} images, run.json does; one of them was changed")
        try:
            drawn = _map(_features_for_map(run, by_id), predictions[split].keys, shelf)
        except (StoreError, ConfigError) as error:
            missing.append(f"There is no map: {error}.")
    augment, views = _views(run)
    before = None
    if isinstance(frozen, RatedRun):
        before = (frozen, read_history(reports / frozen.id, frozen.files))
    return RunData(
        run=run,
        history=read_history(folder, run.files),
        predictions=predictions,
        frozen=before,
        pictures=pictures,
        locations=locations,
        augment=augment,
        views=views,
        samples=_samples(run, shelf.cache),
        map=drawn,
        seen=_seen(run, folder, shelf.cache),
        missing=missing,
    )


def _seen(
    run: RatedRun, folder: Path, cache: Path
) -> Callable[[NDArray[np.bytes_], NDArray[np.int64]], Mapping[bytes, Maps]] | None:
    """What tells where a class is seen, where activations of the run's features are cached, and its head tells it."""
    if not isinstance(run, HeadRun) or not cached_shards(run.specs, cache):
        return None
    try:
        trained = trained_head(run, folder)
        trained.head.gradients(np.zeros((1, trained.head.n_features), np.float32), np.zeros(1, np.int64))
    except (ConfigError, RunError) as error:
        log.info("%s shows no places: %s", run.id, error)
        return None
    return lambda keys, labels: cached_class_maps(trained, keys, labels, cache)


def _features_for_map(run: RatedRun, by_id: dict[str, Run]) -> str:
    """Pooled features of the images of a run: those that its head took, before any fine-tuning."""
    while (others := _others(run)) and isinstance(other := by_id.get(others[0]), RatedRun):
        run = other
    return run.features


def _map(features_id: str, keys: NDArray[np.bytes_], shelf: _Shelf) -> Map:
    """Some images as points, by their features."""
    records = find_records(shelf.cache, features_id)
    stores = [shelf.store(record.spec) for record in records]
    keys = np.unique(keys)
    there = np.logical_and.reduce([store.has(keys) for store in stores])
    if there.sum() < 3:
        raise StoreError(f"fewer than three of the images have features {features_id} in {shelf.cache}")
    # Keys are digests, so that the first ones in their order are a random choice, and always the same.
    keys = keys[there][:MAP_IMAGES]
    name = (features_id, keys.tobytes())
    if name not in shelf.maps:
        features = np.concatenate([store.read(keys) for store in stores], axis=-1)
        if features.ndim > 2:  # activations, where the head that was fine-tuned is gone
            features = features.mean(axis=(1, 2), dtype=np.float32)
        shelf.maps[name] = _flat(features, shelf.method, shelf.seed)
    how = {"pca": "on their first two principal components", "tsne": "by t-SNE"}[shelf.method]
    return Map(keys, shelf.maps[name], how, features_id)


def _flat(features: NDArray[np.floating], method: str, seed: int) -> NDArray[np.floating]:
    """Two numbers from -1 to 1 for each image, shape [n, 2].

    Source of t-SNE: van der Maaten and Hinton 2008, JMLR 9, p. 2579; here on 50 principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n_components = 2 if method == "pca" else min(50, *features.shape)
    points: NDArray[np.floating] = PCA(n_components, random_state=seed).fit_transform(features.astype(np.float32))
    if method == "tsne":
        points = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(points)
    largest = np.abs(points).max()
    return points / largest if largest > 0 else points


def _views(run: RatedRun) -> tuple[Augment | None, int]:
    """How views of the training images were made, and how many of each were seen; those of the run itself."""
    extract = run.extracts[0]
    text, views = extract.augment, extract.views
    if isinstance(run, FinetuneRun):
        text, views = run.config.augment, run.config.views or DRAWN_VIEWS  # else new ones are drawn in each epoch
    elif isinstance(run, HeadRun) and run.config.views is not None:
        views = run.config.views
    if not text or isinstance(run, EvaluateRun):
        return None, 0
    return Augment.parse(text), views


def _samples(run: RatedRun, cache: Path) -> list[bytes]:
    """Keys of some training images; none where the dataset is not in the cache."""
    if isinstance(run, EvaluateRun):
        return []
    try:
        dataset = load_dataset(cache, run.dataset)
    except StoreError:
        return []
    used = (dataset.splits == "train") & (dataset.labels != UNLABELLED)
    return [bytes(key) for key in np.unique(dataset.keys[used])[:SAMPLES].tolist()]
