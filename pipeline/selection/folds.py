"""What heads are fitted on and rated by: the splits as they are, or folds, with one seed or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError
from pipeline.parts import Part

__all__ = ["Round", "folds"]


@dataclass(frozen=True, slots=True)
class Round:
    """One fit and its rating.

    Attributes:
        train: All views of the training images.
        vals: The validation images, a part for each view, in the same order.
        seed: Added to the seed of each head.
    """

    train: Part
    vals: list[Part]
    seed: int = 0


def folds(pool: Part, k: int, test_views: int, seed: int) -> list[Round]:
    """K-fold cross-validation, stratified by label and grouped by image key: views and twins stay together.

    Args:
        pool: All views of all images to use.
        k: Number of folds.
        test_views: Views over which probabilities are averaged, beside the image itself.
        seed: Of the folds.

    Raises:
        ConfigError: If a class has fewer images than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if k < 2:
        raise ConfigError(f"--cv is {k}; give 2 folds or more")
    images = np.flatnonzero(pool.views == 0)
    fewest = min(len(np.unique(pool.keys[images][pool.labels[images] == label])) for label in np.unique(pool.labels))
    if fewest < k:
        raise ConfigError(f"--cv {k} needs {k} images of each class, and one has {fewest}; take fewer folds")
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    found = []
    for _, held in splitter.split(images, pool.labels[images], pool.keys[images]):
        inside = np.isin(pool.keys, pool.keys[images[held]])
        vals = [pool.select(inside & (pool.views == view)) for view in range(test_views + 1)]
        found.append(Round(pool.select(~inside), _aligned(vals)))
    return found


def _aligned(parts: Sequence[Part]) -> list[Part]:
    """Each view's images in the order of the first."""
    order = [np.lexsort((part.labels, part.keys)) for part in parts]
    return [part.select(rows) for part, rows in zip(parts, order, strict=True)]
