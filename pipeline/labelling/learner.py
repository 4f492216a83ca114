"""What learns beside a labelling: heads, fitted in a thread of their own, and the choice of what is shown next."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data import UNLABELLED
from pipeline.errors import StoreError
from pipeline.labelling.model import Fit, Rating, fit
from pipeline.labelling.queries import STRATEGIES, Pool
from pipeline.util import log
from pipeline.util.machine import cpu_count

START, THEN = "typiclust", "margin"  # strategies before and after there is a head
START_LABELS = 10  # for each class, until which the first strategy chooses
DRAWN = 5  # of so many pictures one is drawn at random, and rates the head
ROUND = 20  # pictures that are chosen first, as many as the page shows
QUEUE, AHEAD = 64, 32  # pictures that are chosen at a time, and that must be left of them, as the page holds some


@dataclass(frozen=True, slots=True)
class Labels:
    """What was said of all pictures, at one moment.

    Attributes:
        numbers: Of the classes, or `UNLABELLED`, shape [n].
        dropped: Whether a picture is left out, shape [n].
        led: Whether its label was first given where it had been looked for, so that it doesn't rate, shape [n].
        n_classes: Classes that there are, with labels or without.
    """

    numbers: NDArray[np.int64]
    dropped: NDArray[np.bool_]
    led: NDArray[np.bool_]
    n_classes: int


class Learner:
    """Learns from the labels that there are whenever it is told to.

    Args:
        features: Of length 1, shape [n, d].
        keys: Image keys, shape [n].
        bundles: What belongs together, as `bundles_of` has it, shape [n].
        seed: Of what is drawn at random.
        keep: Is given the rating of each head.

    Attributes:
        drawn: Whether a picture was drawn to rate the head, with all that belong to it, shape [n]; by their least key
            alone, so that it is the same in every session.
        fit: The newest head; None before there is one.
        queue: Rows that are to be labelled next.
        has_chosen: Set once there is a queue, or was to be one.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        keys: NDArray[np.bytes_],
        bundles: NDArray[np.bytes_],
        seed: int,
        keep: Callable[[Rating], None],
    ) -> None:
        self._features, self._keys, self._bundles, self._keep = features, keys, bundles, keep
        self._random = np.random.default_rng(seed)
        self._worker = ThreadPoolExecutor(1, "fitting")
        self._task: Future[None] | None = None
        self._numbers = itertools.count(1)
        self.drawn = np.array([int(key[-8:], 16) % DRAWN == 0 for key in bundles.tolist()], np.bool_)
        self.fit: Fit | None = None
        self.queue: list[int] = []
        self.has_chosen = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a head is being fitted, or waits for that."""
        return self._task is not None and not self._task.done()

    def learn(self, labels: Callable[[], Labels]) -> None:
        """Fit a head in the background, unless one waits for that already.

        Args:
            labels: Gives the labels when the fit begins.
        """
        if self._task is None or self._task.done() or self._task.running():
            self._task = self._worker.submit(self._learn, labels)

    def settle(self) -> None:
        """Wait until all is fitted that was to be."""
        while self._task is not None and not self._task.done():
            self._task.result()

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _learn(self, labels: Callable[[], Labels]) -> None:
        from threadpoolctl import threadpool_limits

        try:
            start, known = time.perf_counter(), labels()
            # One processor is left to the page and to whoever looks at it: threads that wait busily slow all of them.
            with threadpool_limits(max(1, cpu_count() - 1), user_api="blas"):
                fitted = fit(self._features, known.numbers, self._keys, self._bundles, self.drawn & ~known.led)
                if fitted is not None:
                    fitted = replace(fitted, seconds=time.perf_counter() - start, number=next(self._numbers))
                queue = self._choose(known, fitted)
            self.queue, self.fit = queue, fitted  # the page asks for the queue once it knows of the fit
            if fitted is not None and fitted.rating is not None:
                self._keep(fitted.rating)
        except StoreError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("The head can't be fitted")
        finally:
            self.has_chosen.set()

    def _choose(self, known: Labels, fitted: Fit | None) -> list[int]:
        """The next pictures to be labelled: drawn at random until these are a fifth of all labels, or by a strategy.

        At first each round doubles the pictures that are labelled or chosen. What is typical doesn't depend on answers,
        but of many pictures chosen at once the first are from the largest of many clusters, often all of one class.
        """
        labelled = known.numbers != UNLABELLED
        free = ~labelled & ~known.dropped
        start = fitted is None or int(labelled.sum()) < START_LABELS * known.n_classes
        queue = [row for row in self.queue if free[row]] if start else []
        if len(queue) >= AHEAD:
            return queue
        labelled[queue], free[queue] = True, False  # as good as labelled
        n, n_drawn, last = int(labelled.sum()), int((labelled & self.drawn & ~known.led).sum()), False
        size = min(QUEUE, len(queue) + max(ROUND, n)) if start else QUEUE
        probabilities = None if fitted is None else fitted.probabilities
        pool = Pool(self._features, labelled, free & ~self.drawn, probabilities, self._random)
        chosen = STRATEGIES[START if start else THEN](pool, size - len(queue)).tolist()
        drawn = self._random.permutation(np.flatnonzero(free & self.drawn)).tolist()
        while (chosen or drawn) and len(queue) < size:
            # After many were confirmed at once, those that rate the head come every second time, not all in a row.
            wanted = n_drawn < (n + 1) // DRAWN and not last
            turn = drawn if drawn and (wanted or not chosen) else chosen
            queue.append(turn.pop(0))
            last = turn is drawn
            n, n_drawn = n + 1, n_drawn + last
        return queue
