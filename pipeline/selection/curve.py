"""Accuracy against the number of labelled images, and what more of them would buy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import HeadConfig
from pipeline.evaluation.metrics import scores
from pipeline.heads import make_head
from pipeline.runs.run import Point
from pipeline.selection.trials import mean_over_views
from pipeline.store.rows import Part, nothing

STEPS = (1, 2, 5)
FIT_POINTS = 4  # the law holds for the end of the curve; few images per class follow another


def point(per_class: int, n_train: int, accuracies: list[float]) -> Point:
    """A point of the curve, of the accuracy of each draw."""
    mean = float(np.mean(accuracies))
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
    return Point(per_class=per_class, n_train=n_train, accuracy=mean, std=deviation, accuracies=accuracies)


def sizes_for(train: Part) -> list[int]:
    """1, 2, 5, 10, ... images per class, up to all that the largest class has."""
    most = int(np.bincount(train.labels[train.views == 0]).max())
    sizes = [step * 10**power for power in range(len(str(most))) for step in STEPS]
    return [size for size in sizes if size < most] + [most]


def draw_subset(train: Part, per_class: int, draw: int, seed: int) -> Part:
    """All views of so many images of each class, drawn at random; larger subsets of a draw hold the smaller ones."""
    images = np.flatnonzero(train.views == 0)
    images = images[np.unique(train.keys[images], return_index=True)[1]]  # a twin is no further image
    order = images[np.random.default_rng([seed, draw]).permutation(len(images))]
    kept = [order[train.labels[order] == label][:per_class] for label in np.unique(train.labels)]
    return train.select(np.isin(train.keys, train.keys[np.concatenate(kept)]))


def accuracy_of(config: HeadConfig, subset: Part, parts: Sequence[Part], n_classes: int) -> float:
    """Accuracy of a head that was fitted on a subset, on images that decided nothing of it, a part for each view."""
    head, _ = make_head(config)
    head.fit(subset, nothing(subset), n_classes)
    return scores(mean_over_views(head, parts), parts[0].labels)["accuracy"]


def gain_of_doubling(points: list[Point]) -> float | None:
    """What twice as many images would add to the accuracy, by a power law of the error through the last points.

    None where no law can be fitted: fewer than three points, no error left, or an error that doesn't fall.

    Source: Hestness et al. 2017, arXiv:1712.00409, section 3.
    """
    last = points[-FIT_POINTS:]
    errors = np.array([1 - point["accuracy"] for point in last])
    if len(last) < 3 or errors.min() <= 0:
        return None
    slope, height = np.polyfit(np.log([point["n_train"] for point in last]), np.log(errors), 1)
    if slope >= 0:
        return None
    now, then = np.exp(height + slope * np.log(np.array([1.0, 2.0]) * last[-1]["n_train"]))
    return float(now - then)
