"""Report: what the pages of runs are made of, gathered from the reports, the cache and the data."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExtractConfig, FeatureSpec, one_of
from pipeline.data import UNLABELLED, Opened, open_labelled
from pipeline.data.augment import Augment
from pipeline.errors import ConfigError, DataError, RunError, StoreError
from pipeline.pages import Map, Pictures, RunData, shown_split, write_index, write_run
from pipeline.runs.predictions import read_history, read_predictions
from pipeline.runs.run import Run, find_run, runs
from pipeline.store.records import find_records, load_dataset
from pipeline.store.shards import FeatureStore
from pipeline.util.memo import Memo
from pipeline.util.progress import progress

MAPS = ("pca", "tsne")
MAP_IMAGES = 1500
SAMPLES = 6
DRAWN_VIEWS = 3  # shown of a run that drew new ones in each step
STAGES = ("train-head", "sweep", "finetune", "evaluate")

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class Report:
    """Where the pages are.

    Attributes:
        index: The leaderboard.
        pages: Of each run that was asked for, by run id.
        seconds: In all.
    """

    index: Path
    pages: dict[str, Path]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        pages = {run: str(page) for run, page in self.pages.items()}
        return {"index": str(self.index), "pages": pages, "seconds": self.seconds}


@dataclass(slots=True)
class _Shelf:
    """What several runs share, opened once: data with their pictures, features, and maps."""

    cache: Path
    method: str
    seed: int
    data: dict[str, tuple[Pictures, dict[bytes, str]] | str] = field(default_factory=dict)
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
        if data not in self.data:
            try:
                opened: Opened = open_labelled(data, columns=config.columns_of(data), memo=Memo(self.cache))
            except DataError as error:
                self.data[data] = str(error)
            else:
                keys = opened.dataset.keys
                named = dict(zip(reversed(keys.tolist()), reversed(opened.dataset.locations), strict=True))
                self.data[data] = (Pictures(opened.source, keys, config.pixel_limit), named)
        return self.data[data]


def report(references: Sequence[str], cache: Path, reports: Path, *, method: str = "pca", seed: int = 0) -> Report:
    """Write the leaderboard of all runs, and the pages and figures of some.

    Args:
        references: Run ids, starts of them, or paths of run folders; none for all runs.
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
    known = runs(reports)
    if not known:
        raise RunError(f"There are no runs in {reports} yet; make one with: tlpipe train-head")
    chosen = [_inside(reports, *find_run(reports, reference, STAGES)) for reference in references] or known
    by_id = {run.id: run for run in known}
    shelf, pages = _Shelf(cache, method, seed), {}
    with progress("Drawing", len(chosen), "pages") as advance:
        for run in chosen:
            try:
                pages[run.id] = write_run(reports / run.id, _run_data(run, reports, by_id, shelf))
            except (RunError, ConfigError) as error:
                if references:
                    raise
                log.warning("No page of %s: %s", run.id, error)
            advance(1)
    inspections = sorted(path.name for path in reports.glob("inspect-*.html"))
    index = write_index(reports, known, inspections)
    return Report(index, pages, time.perf_counter() - start)


def _inside(reports: Path, run: Run, folder: Path) -> Run:
    """A run, if its folder is one of the reports folder, whose pages lead to each other."""
    if folder.resolve().parent != reports.resolve():
        raise RunError(
            f"{folder} lies outside of the reports folder {reports}; name its own: --reports {folder.parent}"
        )
    return run


def _run_data(run: Run, reports: Path, by_id: dict[str, Run], shelf: _Shelf) -> RunData:
    folder = reports / run.id
    for spec in run.specs:
        FeatureSpec.from_json(spec)  # what can't be told of the features is said before the page is made
    predictions = read_predictions(folder, len(run.class_names))
    missing = []
    frozen = by_id.get(str(run.settings.get("head_run"))) if run.stage == "finetune" else None
    if run.stage == "finetune" and frozen is None:
        missing.append("The run before fine-tuning is gone, and with it its learning curve.")
    found = shelf.pictures(run.data, _config(run))
    pictures, locations = (None, {}) if isinstance(found, str) else found
    if isinstance(found, str):
        missing.append(f"There are no pictures: {found}.")
    drawn = None
    if split := shown_split(run):
        if split not in predictions:
            raise RunError(f"{folder}/predictions.h5 has no {split} images, run.json does; one of them was changed")
        try:
            drawn = _map(_features_for_map(run, by_id), predictions[split].keys, shelf)
        except (StoreError, ConfigError) as error:
            missing.append(f"There is no map: {error}.")
    augment, views = _views(run)
    return RunData(
        run=run,
        history=read_history(folder),
        predictions=predictions,
        frozen=None if frozen is None else (frozen, read_history(reports / frozen.id)),
        pictures=pictures,
        locations=locations,
        augment=augment,
        views=views,
        samples=_samples(run, shelf.cache),
        map=drawn,
        missing=missing,
    )


def _features_for_map(run: Run, by_id: dict[str, Run]) -> str:
    """Pooled features of the images of a run: those that its head took, before any fine-tuning."""
    for setting in ("of", "head_run"):  # of an evaluation, the run; of a fine-tuned run, its head
        run = by_id.get(str(run.settings.get(setting)), run)
    return run.features


def _map(features_id: str, keys: NDArray[np.bytes_], shelf: _Shelf) -> Map:
    """Some images as points, by their features.

    Raises:
        StoreError: If the features are not in the cache.
    """
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


def _views(run: Run) -> tuple[Augment | None, int]:
    """How views of the training images were made, and how many of each were seen; those of the run itself."""
    config, settings = _config(run), run.settings
    if run.stage == "finetune":
        text, views = settings.get("augment"), settings.get("views")
        views = views or DRAWN_VIEWS  # end to end new ones are drawn in each step
    else:
        head = settings.get("head")
        text, views = config.augment, head.get("views") if isinstance(head, dict) else None
        views = config.views if views is None else views
    if not text or not isinstance(views, int) or run.stage == "evaluate":
        return None, 0
    return Augment.parse(str(text)), views


def _samples(run: Run, cache: Path) -> list[bytes]:
    """Keys of some training images; none where the dataset is not in the cache."""
    if run.stage == "evaluate":
        return []
    try:
        dataset = load_dataset(cache, run.dataset)
    except StoreError:
        return []
    return [
        bytes(key)
        for key in np.unique(dataset.keys[(dataset.splits == "train") & (dataset.labels != UNLABELLED)])[
            :SAMPLES
        ].tolist()
    ]


def _config(run: Run) -> ExtractConfig:
    return ExtractConfig.from_json(run.extracts[0])
