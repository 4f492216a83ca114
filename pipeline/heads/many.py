"""Many settings of one kind of head on the same images: what a kind's `fit_many` gives, and the plain way to do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.errors import RunError
from pipeline.heads.base import Head, predict
from pipeline.store.rows import Part, nothing
from pipeline.util import machine, runtime
from pipeline.util.stopping import deaf_children

T = TypeVar("T")


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


def _returned(backend: Any) -> str:
    """How a joblib backend gives results: one by one if it can."""
    return "generator" if backend.supports_return_generator else "list"


def one_each(function: Callable[..., T], each: Iterable[tuple[Any, ...]]) -> Iterable[T]:
    """Call a function with one set of arguments after the other; on a cluster, if the caller has set one, at once."""
    from joblib import Parallel, delayed
    from joblib.parallel import get_active_backend

    with_all: Iterable[T] = Parallel(return_as=_returned(get_active_backend()[0]))(
        delayed(function)(*one) for one in each
    )
    return with_all


def in_processes(make: Callable[[HeadConfig], Head]) -> FitMany:
    """Fit settings at the same time, in a process for each processor; where there is a GPU, one after the other.

    joblib hands large arrays on as files that all processes map, so they are held once. A joblib backend that the
    caller has set (`joblib.parallel_config`) is used.
    """
    alone = one_by_one(make)

    def fit_many(
        configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
    ) -> Iterator[Trial]:
        from joblib import Parallel, delayed
        from joblib.parallel import get_active_backend

        backend, given = get_active_backend()  # of a cluster, if the caller has set one
        n_jobs = min(given or machine.cpu_count(), len(configs))
        if n_jobs == 1 or (given is None and machine.has_nvidia_gpu()):
            yield from alone(configs, train, vals, n_classes, seconds)
            return
        end = time.monotonic() + seconds
        threads = max(1, machine.cpu_count() // n_jobs)
        with Parallel(n_jobs=n_jobs, return_as=_returned(backend)) as parallel:
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
