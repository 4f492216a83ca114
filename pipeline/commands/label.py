"""Label: a page in the browser on which pictures are labelled."""

from __future__ import annotations

import html
import socket
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.commands.extract import extract
from pipeline.config import ExtractConfig, ExtractOptions, LabelOptions
from pipeline.data import check_there, open_dataset
from pipeline.errors import ConfigError, DataError
from pipeline.labelling.files import copy_to_folders, export_labels
from pipeline.labelling.journal import Journal
from pipeline.pages.pictures import Pictures
from pipeline.store.records import TableRecord, load_dataset, newest_pooled, place_of, records_of_data
from pipeline.store.shards import FeatureStore
from pipeline.util import log
from pipeline.util.memo import Memo
from pipeline.util.progress import watched
from pipeline.util.remote import of_this_machine
from pipeline.util.stopping import stopping

if TYPE_CHECKING:
    from pipeline.labelling.session import Session

LOOPBACK = ("127.0.0.1", "localhost")
EVERYWHERE = "0.0.0.0"  # all addresses of this machine
POLL = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Labelled:
    """What there is after a labelling.

    Attributes:
        labels: The journal.
        n_labels: Pictures that have a label.
        n_dropped: Pictures that are left out.
        rating: Of the newest head, as `Rating`; None if it was never rated.
        written: The table or folder that was made of the labels; None for none.
        config: How the features behind the page were extracted; None where there was no page.
    """

    labels: Path
    n_labels: int
    n_dropped: int = 0
    rating: dict[str, Any] | None = None
    written: Path | None = None
    config: ExtractConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        written = None if self.written is None else str(self.written)
        counts = {"n_labels": self.n_labels, "n_dropped": self.n_dropped}
        return {"labels": str(self.labels), **counts, "rating": self.rating, "written": written}


def label(config: ExtractConfig, cache: Path, options: LabelOptions = LabelOptions()) -> Labelled:
    """Serve a page on which the pictures of a dataset are labelled, until Ctrl-C or SIGTERM; or make files of labels.

    Features that are missing are extracted first; without any option, those of the newest extract of the data are
    taken.

    Args:
        config: What to extract from what.
        cache: The cache folder.
        options: Where the page is served and answers go, or what is made of them.

    Raises:
        ConfigError: If Starlette and uvicorn are not installed, the port is taken, or a file can't be made.
        DataError: If the data, or the journal, can't be used.
        StoreError: If the journal can't be written, or another process writes to it.
    """
    labels = of_this_machine(options.labels)
    if options.export is not None:
        target = of_this_machine(options.export)
        return Labelled(labels, export_labels(config.data, labels, target, cache, config.columns), written=target)
    if options.to_folders is not None:
        target = of_this_machine(options.to_folders)
        n = copy_to_folders(config.data, labels, target, cache, config.columns, link=options.link)
        return Labelled(labels, n, written=target)
    try:
        from pipeline.labelling.server import Desk, application, serving
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(f"tlpipe label needs {error.name}; install it: pip install 'tlpipe[label]'") from error
    check_there(config.data)
    journal, desk = Journal(labels, place_of(config.data)), Desk()
    name = socket.gethostname() if options.host == EVERYWHERE else options.host
    app = application(desk, [*LOOPBACK, name.lower()])  # as browsers write it
    try:
        with ExitStack() as opened, serving(app, options.host, options.port) as port:
            address = f"http://{name}:{port}/?token={desk.token}"
            log.warning("Open       %s", address)
            if not options.no_open:
                opened.enter_context(_in_browser(address, labels.parent))
            with watched(lambda what, done, total: setattr(desk, "doing", (what, done, total))):
                record = _extracted(config, cache, labels)
            desk.session = _session(record, journal, cache, options.class_names, config.seed)
            log.info("%s", journal)
            log.info("Ctrl-C ends it; every answer is on disk already")
            _wait()
            state = desk.session.state()
            used = replace(record.config, data=config.data)
            return Labelled(labels, state["labelled"], state["dropped"], state["rating"], config=used)
    finally:
        if desk.session is not None:
            desk.session.close()
        journal.close()


@contextmanager
def _in_browser(address: str, folder: Path) -> Iterator[None]:
    """Open an address by a file that only this user can read, as all users see what a program is started with.

    It lies beside the labels, as browsers that are packed by themselves see no temporary folder. Where it can't be
    written, the address that was printed has to do.
    """
    with ExitStack() as kept:
        try:
            page = kept.enter_context(
                tempfile.NamedTemporaryFile("wb", 0, dir=folder, prefix=".tlpipe-label-", suffix=".html")
            )
            page.write(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">'.encode())
            webbrowser.open(Path(page.name).resolve().as_uri())
        except OSError as error:
            log.warning("No browser is opened, as no file can be written beside the labels: %s", error)
        yield


def _wait() -> None:
    """Until Ctrl-C or SIGTERM."""
    with stopping() as wish:
        while wish.signal is None:
            time.sleep(POLL)


def _extracted(config: ExtractConfig, cache: Path, labels: Path) -> TableRecord:
    """The features of the pictures; those that are missing are computed. Only labels of the journal count."""
    earlier = newest_pooled(records_of_data(cache, config.data))
    given = earlier.config.columns.labels if earlier is not None else None
    if given is not None and Path(given).expanduser().resolve() != labels.resolve():
        log.warning("%s is left aside here: the labels of the data are shown, and what you answer counts", given)
    if earlier is not None and earlier.spec.pooling != "none" and not config.options():
        config = replace(earlier.config, columns=replace(earlier.config.columns, labels=None))
    return extract(config, cache, ExtractOptions(), made_by="label").record


def _session(record: TableRecord, journal: Journal, cache: Path, classes: Sequence[str], seed: int) -> Session:
    """All pictures that have features, each of identical ones once."""
    from pipeline.labelling.session import Session

    dataset, store, config = load_dataset(cache, record.dataset), FeatureStore(cache, record.spec), record.config
    store.open()
    opened = open_dataset(config.data, config.splits, columns=config.columns, memo=Memo(cache))
    row_of = {key: row for row, key in reversed(list(enumerate(opened.dataset.keys.tolist())))}
    first = np.zeros(len(dataset), np.bool_)
    first[np.unique(dataset.keys, return_index=True)[1]] = True
    there = np.array([key in row_of for key in dataset.keys.tolist()], np.bool_)
    dataset = dataset.without(~(first & there & store.has(dataset.keys)))
    if not len(dataset):
        raise DataError(f"{config.data} has no picture that can be shown")
    keys = dataset.keys
    pictures = Pictures(opened.source.take([row_of[key] for key in keys.tolist()]), keys, config.pixel_limit)
    return Session(
        dataset, store.read(keys).astype(np.float32, copy=False), pictures, journal, classes, seed, record.spec.digest()
    )
