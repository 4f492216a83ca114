"""A run opened for use: from images to probabilities, with the features that are cached already."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.open import MODEL_FILE
from pipeline.config import ExtractConfig
from pipeline.data import ImageSource
from pipeline.errors import RunError
from pipeline.extraction.plan import Done, Plan, complete, open_plan, pinned
from pipeline.heads import PROBABILITIES
from pipeline.runs.find import find_run
from pipeline.runs.folder import at_hand
from pipeline.runs.run import FinetuneRun, HeadRun
from pipeline.runs.trained_head import TrainedHead, trained_head
from pipeline.util import log
from pipeline.util.memo import Memo

BLOCK = 4096  # images whose features are held at a time


@dataclass(frozen=True, slots=True)
class Predicted:
    """Probabilities of images.

    Attributes:
        probabilities: Shape [n, classes]; rows of images that can't be read are NaN.
        unreadable: Why each image can't be read that can't, by its position.
        n_computed: Rows of features that were not in the cache.
        images_per_second: Rate of the pass; 0 where nothing was computed.
    """

    probabilities: NDArray[np.floating]
    unreadable: dict[int, str]
    n_computed: int
    images_per_second: float

    def readable(self) -> NDArray[np.int64]:
        """Positions of the images that have probabilities."""
        return np.setdiff1d(np.arange(len(self.probabilities)), list(self.unreadable))


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A run opened for use.

    Attributes:
        run: The run.
        folder: Its folder.
        configs: What is extracted of an image, for each set of features the head takes; of a fine-tuned model, its
            probabilities.
        trained: The head; None of a fine-tuned model.
    """

    run: HeadRun | FinetuneRun
    folder: Path
    configs: tuple[ExtractConfig, ...]
    trained: TrainedHead | None
    _plans: dict[Path, list[Plan]] = field(init=False, repr=False, default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the probabilities."""
        return tuple(self.run.class_names)

    @property
    def keeps_train_alone(self) -> bool:
        """Whether the head that was fitted on the training images alone is kept beside that which has seen val."""
        return self.trained is not None and self.trained.head.keeps_train_alone

    def plans(self, cache: Path) -> list[Plan]:
        """How each set of features is computed; what was opened for a cache stays open.

        Raises:
            CacheMismatchError: If the backbone's weights are no longer those the head was trained with.
        """
        if cache not in self._plans:
            plans = [open_plan(config, cache) for config in self.configs]
            if self.trained is not None:
                self.trained.check([plan.spec for plan in plans], None)
            self._plans[cache] = plans
        return self._plans[cache]

    def predict(self, source: ImageSource, locations: Sequence[str], cache: Path, *, final: bool = True) -> Predicted:
        """Probabilities of images; features that are not in the cache are computed and kept there.

        Args:
            source: The images.
            locations: Where they lie, for people.
            cache: The cache folder.
            final: As in `Head.predict_proba`.

        Raises:
            CacheMismatchError: If the backbone's weights are no longer those the head was trained with.
            RunError: If the model or the head is one of other classes.
            StoreError: If the cache can't be written.
            StoppedError: After Ctrl-C or SIGTERM; the same call goes on from there.
        """
        plans = self.plans(cache)
        found = source.keys(Memo(cache), rehash=False)
        unreadable = {number: str(error) for number, error in found.errors.items()}
        numbers = found.readable()
        opened, keys = numbers.tolist(), found.column[numbers]
        there = source.take(numbers)
        passes = [complete(plan, keys, [locations[number] for number in opened], there) for plan in plans]
        for number, key in zip(opened, keys.tolist(), strict=True):
            for done in passes:
                if key in done.refused:
                    unreadable[number] = done.refused[key]
        probabilities = np.full((len(source), len(self.class_names)), np.nan)
        rows = np.array([position for position, number in enumerate(opened) if number not in unreadable], np.int64)
        if len(rows) > BLOCK:  # in the order of the shards each is read once, whatever the order of the images
            places = plans[0].store.places(keys[rows])
            rows = rows[np.lexsort((places[:, 1], places[:, 0]))]
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            probabilities[numbers[block]] = self._probabilities(passes, keys[block], final)
        rate = max(done.report.images_per_second for done in passes)
        return Predicted(probabilities, unreadable, sum(done.report.n_computed for done in passes), rate)

    def _probabilities(self, passes: Sequence[Done], keys: NDArray[np.bytes_], final: bool) -> NDArray[np.floating]:
        views = [
            np.concatenate([done.features(keys, view) for done in passes], axis=1)
            for view in range(self.configs[0].views + 1)
        ]
        if self.trained is not None:
            return self.trained.mean_proba(views, final=final)
        if views[0].shape[1] != len(self.class_names):
            raise RunError(
                f"{self.folder / MODEL_FILE} gives {views[0].shape[1]} probabilities, run.json names "
                f"{len(self.class_names)} classes; one of them was changed. Fine-tune again: {self.run.command}"
            )
        if not np.isfinite(views[0]).all():
            raise RunError(f"{self.folder / MODEL_FILE} gives NaN or infinity; fine-tune again: {self.run.command}")
        return views[0]


def open_classifier(reports: Path, reference: str | None, precision: str | None = None) -> Classifier:
    """Open a run of train-head, sweep or finetune for use.

    Args:
        reports: The reports folder.
        reference: A run, as in `find_run`.
        precision: As in `ExtractConfig`; None for that in which the run was rated.

    Raises:
        RunError: If there is no such run, or a file of it is missing or damaged.
        ConfigError: If the precision is not legal.
    """
    run, folder = find_run(reports, reference, (HeadRun, FinetuneRun))
    trained: TrainedHead | None = None
    if isinstance(run, FinetuneRun):
        configs = [_whole_model(folder, run)]
    else:
        trained = trained_head(run, folder)
        views = run.test_views
        if views:
            log.info("Probabilities are means over %d versions of each image", views + 1)
        configs = [
            replace(pinned(config, spec), views=views, augment=config.augment if views else None)
            for config, spec in zip(run.extracts, run.specs, strict=True)
        ]
    if precision is not None:
        configs = [replace(config, engine="auto", precision=precision) for config in configs]
    return Classifier(run, folder, tuple(configs), trained)


def _whole_model(folder: Path, run: FinetuneRun) -> ExtractConfig:
    """The probabilities of a fine-tuned model, as if they were features; in the precision in which it was rated."""
    path, spec = at_hand(folder, run) / MODEL_FILE, run.specs[0]
    if not path.is_file():
        raise RunError(f"{folder} has no {MODEL_FILE} any more; fine-tune again: {run.command}")
    if not zipfile.is_zipfile(path):
        raise RunError(f"{path} is damaged; fine-tune again: {run.command}")
    return ExtractConfig(
        backbone=str(path),
        endpoint=PROBABILITIES,
        image_size=spec.image_size,
        resize=spec.resize,
        interpolation=spec.interpolation,
        pixel_limit=run.extracts[0].pixel_limit,
        precision="float32",
    )
