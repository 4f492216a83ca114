"""What was extracted and trained, loaded for use: features, heads, models, and the runs of a folder."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import commands
from pipeline.api.images import Images, source_of
from pipeline.api.options import FeaturesLike, Place, RunLike, folders_of, joined, reference_to
from pipeline.api.results import frame
from pipeline.api.runs import CurveResult, RunResult, Runs
from pipeline.commands import TrainedHead
from pipeline.commands import runs as commands_of_runs
from pipeline.config import FeatureSpec, Folders
from pipeline.errors import ConfigError, DataError
from pipeline.runs.run import CurveRun, RatedRun
from pipeline.store.records import find_records
from pipeline.store.table import load_table
from pipeline.util.text import counted

USUAL = "auto"
"""The cache that commands use: $TLPIPE_CACHE, else the user's cache folder."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a dataset as arrays; row i of each belongs to the same image.

    Attributes:
        X: Features, shape [n, d], or [n, h, w, c] without pooling.
        y: Index into `class_names`, shape [n]; -1 for an image without a label.
        split: "train", "val" or "test", shape [n].
        view: 0 for the image itself, else the number of its augmented view, shape [n].
        class_names: Names of the classes, sorted.
        paths: Where each image lies, length n.
        others: Further columns of a manifest by name, each with n texts.
        specs: What the features are, for `load_head(...).predict_proba`.
    """

    X: NDArray[np.floating]
    y: NDArray[np.int64]
    split: NDArray[np.str_]
    view: NDArray[np.int64]
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    others: dict[str, tuple[str, ...]]
    specs: tuple[FeatureSpec, ...]

    def __repr__(self) -> str:
        return f"<features {list(self.X.shape)} of {counted(len(self.class_names), 'class', 'classes')}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each image or view, with its path, label, split and view before its features.

        Further columns of a manifest follow the view, but for those whose name is taken.

        Raises:
            ConfigError: If the features keep height and width, or pandas isn't installed.
        """
        if self.X.ndim != 2:
            raise ConfigError(f"Features of shape {list(self.X.shape)} are no rows; extract them with pooling='avg'")
        names = np.array([*self.class_names, ""])  # the last is that of -1, an image without a label
        facts = {"path": self.paths, "label": names[self.y], "split": self.split, "view": self.view}
        table = frame(self.X, columns=[f"feature_{number}" for number in range(self.X.shape[1])])
        others = {name: column for name, column in self.others.items() if name not in (*facts, *table.columns)}
        for place, (name, column) in enumerate((facts | others).items()):
            table.insert(place, name, column)
        return table


def load_features(
    features_id: FeaturesLike = None,
    *,
    cache: Place = None,
    views: int | None = None,
) -> Features:
    """Load features as arrays.

    Args:
        features_id: What `extract` returned, or the id of features or a part of it; several in a list or joined by
            commas; None for the newest.
        cache: The cache folder; None for that of the features, else the usual one.
        views: Number of augmented views of the training images; None for all there are.

    Raises:
        StoreError: If there are no such features.
    """
    folder = folders_of(cache, None, features_id).cache
    table = load_table(folder, find_records(folder, joined(features_id)), views, labelled=False)
    return Features(
        X=table.array(),
        y=table.labels,
        split=table.splits,
        view=table.views,
        class_names=table.class_names,
        paths=tuple(table.locations),
        others=table.others,
        specs=table.specs,
    )


def load_runs(*, reports: Place = None, cache: Place = None) -> Runs:
    """Load the runs of a reports folder, the newest first; those that can't be read are skipped, with a warning.

    Args:
        reports: The reports folder; None for ./reports.
        cache: The cache folder that further commands on them use.
    """
    folders = folders_of(cache, reports)
    return Runs(tuple(_result(run, folders) for run in commands_of_runs.ls(folders.reports)))


def _result(run: Any, folders: Folders) -> RunResult[RatedRun] | CurveResult:
    return CurveResult(run, folders) if isinstance(run, CurveRun) else RunResult(run, folders)


def name_run(run: RunLike, to: str | None = None, *, reports: Place = None) -> None:
    """Give a run a name by which it can be found again, as `tlpipe runs name` does; None takes the name away.

    Raises:
        ConfigError: If the name is not legal, or another run has it.
        RunError: If there is no such run.
    """
    commands_of_runs.name(str(reference_to(run)), to, folders_of(None, reports, run).reports)


def remove_runs(runs: RunLike | Sequence[RunLike], *, reports: Place = None) -> None:
    """Remove runs, with their models and pages, as `tlpipe runs rm` does.

    Raises:
        RunError: If there is no such run, or another one needs it.
    """
    several = runs if isinstance(runs, (list, tuple)) else [runs]
    commands_of_runs.rm([str(reference_to(one)) for one in several], folders_of(None, reports, several).reports)


def load_head(run: RunLike | None = None, *, reports: Place = None) -> TrainedHead:
    """Load the head of a run of `train_head` or `sweep`.

    Args:
        run: What they returned, the id of a run or a part of it, a name, a folder, "latest" or "best"; None for the
            newest.
        reports: The reports folder; None for that of the run, else ./reports.

    Returns:
        A head whose `predict_proba(features.X, features.specs)` gives probabilities [n, classes] in the order of its
        `class_names`, and refuses features of another spec.

    Raises:
        RunError: If there is no such run, or its files are damaged.
    """
    return commands.open_head(folders_of(None, reports, run).reports, reference_to(run))[0]


@dataclass(frozen=True)
class Model:
    """A trained run that takes images, as scikit-learn's classifiers take features.

    Attributes:
        run: Id of the run.
        class_names: Names of the classes, in the order of the probabilities.
        cache: Folder where features are looked up and kept.
    """

    run: str
    class_names: tuple[str, ...]
    cache: Path
    _classifier: commands.Classifier = field(repr=False)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of estimators: this one is a classifier that is fitted already."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, single_output=True),
            classifier_tags=ClassifierTags(),
            requires_fit=False,
        )

    @property
    def classes_(self) -> NDArray[np.str_]:
        """The class names as scikit-learn has them, shape [classes]."""
        return np.array(self.class_names)

    def predict_proba(self, X: Images) -> NDArray[np.floating]:
        """Probabilities of images.

        Args:
            X: Paths, uint8 arrays of any size and Pillow images, in any mixture; or one uint8 array
                [n, height, width] or [n, height, width, channels].

        Returns:
            Shape [n, classes], in the order of `class_names`.

        Raises:
            DataError: If an image can't be read, as no row may be missing here. `predict` lists such images.
            ValueError: If X is none of these.
        """
        source, locations = source_of(X)
        predicted = self._classifier.predict(source, locations, self.cache)
        for number in sorted(predicted.unreadable):
            raise DataError(f"{locations[number]} can't be read: {predicted.unreadable[number]}")
        return predicted.probabilities

    def predict(self, X: Images) -> NDArray[np.str_]:
        """Class names [n] of images; arguments and errors as in `predict_proba`."""
        labels: NDArray[np.str_] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def score(self, X: Images, y: Sequence[str] | NDArray[np.str_]) -> float:
        """Share of images whose class name is the right one; arguments and errors as in `predict_proba`."""
        return float((self.predict(X) == np.asarray(y)).mean())


def load_model(run: RunLike | None = None, *, reports: Place = None, cache: Place = USUAL) -> Model:
    """Load a run of `train_head`, `sweep` or `finetune` that takes images.

    Args:
        run: What they returned, the id of a run or a part of it, a name, a folder, "latest" or "best"; None for the
            newest.
        reports: The reports folder; None for that of the run, else ./reports.
        cache: Where features are looked up and kept: "auto" for the cache of the run, else the usual one; None for a
            folder that goes with the model.

    Raises:
        RunError: If there is no such run, or its files are missing or damaged.
    """
    folders = folders_of(None if cache == USUAL else cache, reports, run)
    classifier = commands.open_classifier(folders.reports, reference_to(run))
    folder = Path(tempfile.mkdtemp(prefix="tlpipe-")) if cache is None else folders.cache
    model = Model(classifier.run.id, classifier.class_names, folder, classifier)
    if cache is None:
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model
