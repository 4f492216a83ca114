"""Many settings of one kind of head on the same images: what a kind's `fit_many` gives, and the plain way to do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.errors import RunError
from pipeline.heads.base import Head, predict
from pipeline.store.rows import Part, nothing
from pipeline.util import machine, runtime
from pipeline.util.stopping import deaf_children


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was fitted.

    Attributes:
        number: Which of the settings.
        probabilities: Of each of the parts that were to be predicted, shape [n, classes].
        failure: Why it could not be fitted; empty if it was.
    """

    number: int
    probabilities: list[NDArray[np.floating]]
    failure: str = ""


FitMany = Callable[[Sequence[HeadConfig], Part, Sequence[Part], int, float], Iterator[Trial]]
"""Fit settings that differ in what the kind can vary in one go.

Its arguments: the settings; the training images; the images to predict, a part for each view; the number of classes;
and the most seconds, after which it may give fewer trials than settings, but at least one. No head chooses anything by
the images that it then predicts, so that their figures don't flatter: heads of epochs take the last one.
"""


def _fit_one(
    make: Callable[[HeadConfig], Head],
    config: HeadConfig,
    number: int,
    train: Part,
    vals: Sequence[Part],
    n_classes: int,
    threads: int | None = None,
) -> Trial:
    if threads:
        runtime.limit_threads(threads)
    head = make(config)
    try:
        head.fit(train, nothing(train), n_classes)
    except RunError as error:  # this setting diverged; others needn't
        return Trial(number, [], str(error))
    return Trial(number, [predict(head, val) for val in vals])


def one_by_one(make: Callable[[HeadConfig], Head]) -> FitMany:
    """Fit each setting by itself, one after the other."""

    def fit_many(
        configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
    ) -> Iterator[Trial]:
        end = time.monotonic() + seconds
        for number, config in enumerate(configs):
            if number and time.monotonic() >= end:
                return
            yield _fit_one(make, config, number, train, vals, n_classes)

    return fit_many


def in_processes(make: Callable[[HeadConfig], Head]) -> FitMany:
    """Fit settings at the same time, in a process for each processor; where there is a GPU, one after the other.

    joblib hands large arrays on as files that all processes map, so they are held once. A joblib backend that the
    caller has set (`joblib.parallel_config`) is used.
    """
    alone = one_by_one(make)

    def fit_many(
        configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
    ) -> Iterator[Trial]:
        n_jobs = min(machine.cpu_count(), len(configs))
        if n_jobs == 1 or machine.has_nvidia_gpu():
            yield from alone(configs, train, vals, n_classes, seconds)
            return
        from joblib import Parallel, delayed

        end = time.monotonic() + seconds
        threads = machine.cpu_count() // n_jobs
        with Parallel(n_jobs=n_jobs, return_as="generator") as parallel:
            for start in range(0, len(configs), n_jobs):
                if start and time.monotonic() >= end:
                    return
                batch = range(start, min(start + n_jobs, len(configs)))
                with deaf_children():
                    found = parallel(
                        delayed(_fit_one)(make, configs[number], number, train, vals, n_classes, threads)
                        for number in batch
                    )
                yield from found

    return fit_many
