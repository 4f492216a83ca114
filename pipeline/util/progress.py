"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from pipeline.util import log

LINE_EVERY = 15.0  # seconds between two lines where there is no terminal

_shown: ContextVar[bool] = ContextVar("shown", default=False)

Watcher = Callable[[str, int, int], object]
"""Called with what is being done, how many items are finished, and of how many."""

_watcher: ContextVar[Watcher | None] = ContextVar("who watches", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let somebody else know how far the work inside the block has come, too."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class Advance(Protocol):
    """Called with the number of items that were finished since the last call."""

    def __call__(self, count: int, /) -> None: ...  # noqa: D102


@contextmanager
def progress(what: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Show how far work has come, with rate and time left, if the log shows information at all.

    Inside another progress nothing is shown: the outer one tells how far the whole has come.

    Args:
        what: What is being done, in a word or two.
        total: Number of items.
        unit: What the items are.
    """
    if total == 0 or _shown.get():
        yield lambda _: None
        return
    token = _shown.set(True)
    try:
        if not log.isEnabledFor(logging.INFO):
            yield _told(what, total, lambda _: None)
        elif sys.stderr.isatty():
            with _bar(what, total, unit) as advance:
                yield _told(what, total, advance)
        else:
            yield _told(what, total, _lines(what, total, unit))
    finally:
        _shown.reset(token)


def _told(what: str, total: int, advance: Advance) -> Advance:
    """The same, with whoever watches told as well."""
    watcher = _watcher.get()
    if watcher is None:
        return advance
    done = 0

    def tell(count: int, /) -> None:
        nonlocal done
        done += count
        watcher(what, done, total)
        advance(count)

    return tell


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(count: int, /) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            if speed:
                bar.update(task, rate=f"{speed:,.1f} {unit}/s" if speed < 10 else f"{speed:,.0f} {unit}/s")

        yield advance


def _lines(what: str, total: int, unit: str) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(count: int, /) -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last >= LINE_EVERY and 0 < done < total:
            last = now
            rate = done / (now - start)
            come, left = f"{done:,} of {total:,} {unit}", (total - done) / rate
            log.info("%s: %s, %.3g/s, about %.0f s left", what, come, rate, left)

    return advance
