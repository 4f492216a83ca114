"""Query strategies: which pictures teach a head most if they are labelled next.

Letters: n pictures, d features, c classes. Features are brought to length 1, so that distances are those of cosines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_CLUSTERS = 200  # of typiclust; more are not made however many labels there are
SAMPLE, ITERATIONS = 4096, 20  # pictures among which clusters are sought, and steps that takes at most
TYPICAL = 20  # neighbours within a cluster, of which the mean distance tells how typical a picture is
ROWS = 4096  # pictures that are compared at a time


@dataclass(frozen=True, slots=True)
class Pool:
    """What a strategy chooses from.

    Attributes:
        features: Of length 1, shape [n, d].
        labelled: Whether a picture has a label, shape [n].
        open: Whether a picture may be chosen, shape [n]; none that is labelled is.
        probabilities: Of the newest head, shape [n, c]; None before there is one.
        random: For what is drawn at random.
    """

    features: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    open: NDArray[np.bool_]
    probabilities: NDArray[np.floating] | None
    random: np.random.Generator

    @property
    def rows(self) -> NDArray[np.int64]:
        """Positions of the pictures that may be chosen."""
        return np.flatnonzero(self.open)


Strategy = Callable[[Pool, int], NDArray[np.int64]]
"""Chooses up to so many pictures of a pool, those first that teach most."""


def at_random(pool: Pool, n: int) -> NDArray[np.int64]:
    """Any."""
    return pool.random.permutation(pool.rows)[:n]


def entropy(pool: Pool, n: int) -> NDArray[np.int64]:
    """Those of whose class the head is least certain, by the entropy of its probabilities (Shannon 1948)."""
    if pool.probabilities is None:
        return farthest_first(pool, n)
    found = pool.probabilities[pool.rows]
    return pool.rows[np.argsort((found * np.log(np.maximum(found, 1e-12))).sum(axis=1), kind="stable")[:n]]


def margins(probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    """The difference of the largest two probabilities, shape [n]."""
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    found: NDArray[np.floating] = first - second
    return found


def margin(pool: Pool, n: int) -> NDArray[np.int64]:
    """Those whose two most probable classes are nearest to each other (Scheffer et al. 2001)."""
    if pool.probabilities is None:
        return farthest_first(pool, n)
    return pool.rows[np.argsort(margins(pool.probabilities[pool.rows]), kind="stable")[:n]]


def farthest_first(pool: Pool, n: int) -> NDArray[np.int64]:
    """Each the farthest from all that are labelled or chosen already; also known as k-center greedy, or coreset.

    Source: Gonzalez 1985, Theoretical Computer Science 38, p. 293; Sener & Savarese 2018, arXiv:1708.00489.
    """
    features, rows = pool.features, pool.rows
    if not len(rows):
        return rows
    nearest = np.full(len(features), -np.inf, np.float32)  # the cosine with the nearest of those
    chosen: list[int] = []
    if pool.labelled.any():
        for start in range(0, len(features), ROWS):
            block = slice(start, start + ROWS)
            nearest[block] = (features[block] @ features[pool.labelled].T).max(axis=1)
    else:  # the picture that is most like all others
        chosen = [int(rows[np.argmax(features[rows] @ features.mean(axis=0))])]
        nearest = features @ features[chosen[0]]
    while len(chosen) < min(n, len(rows)):
        left = np.where(pool.open, nearest, np.inf)
        left[chosen] = np.inf
        chosen.append(int(np.argmin(left)))
        nearest = np.maximum(nearest, features @ features[chosen[-1]])
    return np.array(chosen, np.int64)


def badge(pool: Pool, n: int) -> NDArray[np.int64]:
    """Seeds of k-means++ among gradients of the head's last layer, which are long where it is uncertain, and diverse.

    The gradient of a picture is the outer product of p - onehot(argmax p) and its features, whose inner products are
    those of its two factors, so that it is never written out.

    Source: Ash et al. 2020, arXiv:1906.03671.
    """
    if pool.probabilities is None:
        return farthest_first(pool, n)
    rows = pool.rows
    features, errors = pool.features[rows], pool.probabilities[rows].astype(np.float32)
    errors[np.arange(len(rows)), errors.argmax(axis=1)] -= 1
    lengths = (errors**2).sum(axis=1)
    if not len(rows):
        return rows
    chosen = [int(lengths.argmax())]
    distances = np.full(len(rows), np.inf, np.float32)
    while len(chosen) < min(n, len(rows)):
        last = chosen[-1]
        products = (errors @ errors[last]) * (features @ features[last])
        distances = np.minimum(distances, np.maximum(lengths + lengths[last] - 2 * products, 0))
        distances[chosen] = 0
        total = float(distances.sum())
        if total <= 0:
            rest = np.setdiff1d(np.arange(len(rows)), chosen)
            chosen += pool.random.permutation(rest)[: min(n, len(rows)) - len(chosen)].tolist()
            break
        chosen.append(int(pool.random.choice(len(rows), p=distances / total)))
    return rows[chosen]


def typiclust(pool: Pool, n: int) -> NDArray[np.int64]:
    """The most typical picture of each of the largest clusters that have the fewest labels.

    Of many pictures only a sample is looked at: clusters are as well found in four thousand of them.

    Source: Hacohen et al. 2022, arXiv:2202.02794.
    """
    from sklearn.cluster import KMeans

    some = np.concatenate([pool.random.permutation(pool.rows)[:SAMPLE], np.flatnonzero(pool.labelled)])
    n_labelled, n = int(pool.labelled.sum()), min(n, len(some) - int(pool.labelled.sum()))
    n_clusters = min(n_labelled + n, MOST_CLUSTERS, len(some))
    if n_clusters < 2:
        return farthest_first(pool, n)
    features, free = pool.features[some], ~pool.labelled[some]
    seed = int(pool.random.integers(2**31))
    cluster = KMeans(n_clusters, n_init=1, max_iter=ITERATIONS, random_state=seed).fit_predict(features)
    labels_in = np.bincount(cluster[~free], minlength=n_clusters)
    sizes = np.bincount(cluster, minlength=n_clusters)
    chosen: list[int] = []
    while len(chosen) < n:
        free_in = np.bincount(cluster[free], minlength=n_clusters)
        order = np.lexsort((-sizes, labels_in))
        number = next(one for one in order.tolist() if free_in[one])
        inside = np.flatnonzero(free & (cluster == number))
        chosen.append(int(inside[_typicality(features[inside]).argmax()]))
        free[chosen[-1]] = False
        labels_in[number] += 1
    return some[chosen]


def _typicality(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """How near the pictures of a cluster are to their nearest neighbours in it, shape [n]."""
    cosines = features @ features.T
    np.fill_diagonal(cosines, -np.inf)
    n = min(TYPICAL, len(features) - 1)
    if n < 1:
        return np.zeros(len(features), np.float32)
    found: NDArray[np.float32] = np.partition(cosines, -n, axis=1)[:, -n:].mean(axis=1)
    return found


STRATEGIES: dict[str, Strategy] = {
    "random": at_random,
    "entropy": entropy,
    "margin": margin,
    "coreset": farthest_first,
    "badge": badge,
    "typiclust": typiclust,
}
"""Strategies by the names that they have in the field; what is used is chosen by `tests/benchmarks/queries.py`."""
