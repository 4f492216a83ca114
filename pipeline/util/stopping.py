"""Ctrl-C and SIGTERM, heard as a wish to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from pipeline.util import log


class Stopping:
    """Whether Ctrl-C or SIGTERM has asked for an end.

    Attributes:
        signal: Number of the signal, None while there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Turn the first Ctrl-C or SIGTERM into a wish that the block can look at; a second one acts as ever.

    Outside the main thread, where Python lets no signal be handled, the wish is never made.
    """
    wish = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        wish.signal = number
        restore()
        log.info("Stopping ...")

    for number in before:
        signal.signal(number, handle)
    try:
        yield wish
    finally:
        restore()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that the block starts not hear Ctrl-C: this one hears it, once they have started, and ends them.

    Python's and joblib's trackers of resources are started first: when Python 3.13 or older starts its own, it lets all
    that is started afterwards hear Ctrl-C.
    """
    from joblib.externals.loky.backend import resource_tracker as tracker_of_joblib

    for tracker in (resource_tracker, tracker_of_joblib):
        tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with stopping() as wish:  # another thread may take the signal, which would end a start that is half done
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if wish.signal is not None:
        signal.raise_signal(wish.signal)
