"""What heads are fitted on and rated by: the splits as they are, or folds, with one seed or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.store.rows import Part

INNER_FOLDS = 6  # one of which chooses: about the share of val by default
TRIES = 10  # divisions into folds


@dataclass(frozen=True, slots=True)
class Round:
    """One fit and its rating; features are copied only when they are asked for.

    Attributes:
        pool: All rows.
        train_rows: Rows of all views of the training images.
        val_rows: Rows of the validation images for each view, in the same order of images.
        seed: Added to the seed of each head.
    """

    pool: Part
    train_rows: NDArray[np.int64]
    val_rows: list[NDArray[np.int64]]
    seed: int = 0

    def train(self, views: int | None) -> Part:
        """The training images with so many views beside view 0; None for all."""
        rows = self.train_rows
        return self.pool.select(rows if views is None else rows[self.pool.views[rows] <= views])

    def inner(self) -> Round:
        """A round within the training images, by which something can be chosen.

        It has no validation images where none can be spared: a class would be left without any to train on.
        """
        images = self.train_rows[self.pool.views[self.train_rows] == 0]
        fewest = fewest_bundles(self.pool, images)
        if fewest > 1:
            for turns in _divisions(self.pool, self.train_rows, min(INNER_FOLDS, fewest), 0, self.seed):
                for turn in turns:
                    if turn.has_classes_of(self.train_rows):
                        return turn
        return Round(self.pool, self.train_rows, [self.train_rows[:0]], self.seed)

    def has_classes_of(self, rows: NDArray[np.int64]) -> bool:
        """Whether the training images are of all classes that these rows are of."""
        labels = self.pool.labels
        return bool(np.isin(labels[rows], labels[self.train_rows]).all())

    def vals(self) -> list[Part]:
        """The validation images, a part for each view."""
        return [self.pool.select(rows) for rows in self.val_rows]


def folds(pool: Part, rows: NDArray[np.int64], k: int, test_views: int, seed: int) -> list[Round]:
    """K-fold cross-validation, stratified by label; views, twins and the images of a group stay together.

    Each fold leaves images of every class to train on.

    Args:
        pool: All rows of a table.
        rows: Those to use: all views of some images.
        k: Number of folds.
        test_views: Views over which probabilities are averaged, beside the image itself.
        seed: Of the folds.

    Raises:
        ConfigError: If a class has fewer images, or groups, than folds, or if groups of several classes can't be
            divided into them.
    """
    fewest = fewest_bundles(pool, rows[pool.views[rows] == 0])
    if fewest < k:
        what = "images" if pool.groups is None else "groups of images"
        raise ConfigError(f"--cv {k} needs {k} different {what} of each class, and one has {fewest}; take fewer folds")
    for turns in _divisions(pool, rows, k, test_views, seed):
        if all(turn.has_classes_of(rows) for turn in turns):
            return turns
    more = f"take up to {fewest} folds, or " if fewest > k else ""
    raise ConfigError(
        f"--cv {k} would leave a class without training images, as images that belong together are of several classes; "
        f"{more}leave --cv out"
    )


def _divisions(pool: Part, rows: NDArray[np.int64], k: int, test_views: int, seed: int) -> Iterator[list[Round]]:
    """Divisions into folds, each drawn anew; bundles of several classes may take all of a class into one fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    images = rows[pool.views[rows] == 0]
    keys = pool.keys[images]
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=np.random.RandomState(seed))
    for _ in range(TRIES):
        found = []
        for _, held in splitter.split(images, pool.labels[images], pool.bundles[images]):
            inside = rows[np.isin(pool.keys[rows], keys[held])]
            vals = [_sorted(pool, inside[pool.views[inside] == view]) for view in range(test_views + 1)]
            found.append(Round(pool, np.setdiff1d(rows, inside), vals, seed))
        yield found


def fewest_bundles(pool: Part, images: NDArray[np.int64]) -> int:
    """The number of bundles of the class that has the fewest."""
    labels, bundles = pool.labels[images], pool.bundles[images]
    return min(len(np.unique(bundles[labels == label])) for label in np.unique(labels))


def _sorted(pool: Part, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of one view, in an order that the images alone decide."""
    return rows[np.lexsort((pool.labels[rows], pool.keys[rows]))]
