"""Commands that are ended, or whose disk fails, at every single change that they make to it.

    python tests/crash.py extract train-head ...        # all commands without a name

Each command runs in a copy of the same folder, in a process of its own. Before its first, second, third ... change it
is killed (SIGKILL), or the power is cut, or it meets a full disk from there on (ENOSPC), or one that fails (EIO). Where
the power is cut, files keep only half of the bytes that were not flushed yet, and names that were given since their
folder was flushed are there ("cut") or not ("undo"). It is also cut right after the command has ended, when all that it
gave must be there.

Then what is on the disk must be whole, the same command must end well, and what it gives must be what an undisturbed
one gives. Prints a line of JSON for each command: how many changes it makes, how often it was disturbed, and what did
not hold.
"""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import math
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

sys.path.insert(0, str(Path(__file__).parent))

import conftest
import h5py
import pytest
from power import Unflushed
from stored import rows_of

from pipeline.cli.main import app
from pipeline.commands import cache as care
from pipeline.data.corrections import read_journal
from pipeline.errors import TlpipeError
from pipeline.labelling.journal import Answer, Journal
from pipeline.pages.write import is_whole
from pipeline.runs.find import all_runs
from pipeline.runs.predictions import HISTORY
from pipeline.store.records import find_record, load_dataset, records
from pipeline.store.table import load_table
from pipeline.util import disk, files
from pipeline.util.archives import arrays_of
from pipeline.util.files import PARTIAL_SUFFIX, digest_of, digest_of_file
from pipeline.util.memo import YOUNG

ENDED = ("kill", "cut", "undo")
HOWS = (*ENDED, "full", "broken")
Arguments = tuple[str, ...] | Callable[[], None]
DATA, CACHE, REPORTS = "shades", "cache", "reports"
PLACES = ("--cache", CACHE, "--reports", REPORTS)
AFTER = math.inf  # later than any change: when the command has ended
NOT_BEFORE_A_FORK = ("openvino", "nncf", "__")  # they start threads when they are imported
SMALL = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "32")


class Counter:
    """Counts changes, and disturbs at one of them.

    Args:
        at: Which; 0 for none, `AFTER` for the end.
        how: One of `HOWS`.
        unflushed: What a power cut would take.
    """

    def __init__(self, at: float, how: str, unflushed: Unflushed) -> None:
        self.at, self.how, self.n = at, how, 0
        self.written: set[str] = set()  # folders in which something was given its name
        self.unflushed = unflushed

    def end(self) -> None:
        """Kill the process, or cut the power."""
        if self.how != "kill":
            self.unflushed.cut(names=self.how == "undo")
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, change: str, path: Path) -> None:
        self.unflushed.before(change, path)
        self.n += 1
        if change in ("rename", "exchange"):
            self.written.add(str(path.parent.absolute()))
        if not self.at or self.n < self.at or (self.how != "full" and self.n > self.at):
            return
        if self.how in ENDED:
            self.end()
        if change in ("remove", "flush") and self.how == "full":  # which take no room
            return
        if change == "database":
            raise sqlite3.OperationalError("disk I/O error" if self.how == "broken" else "database or disk is full")
        number = errno.ENOSPC if self.how == "full" else errno.EIO
        raise OSError(number, os.strerror(number), str(path))


def counted(at: float, how: str, kept: Path) -> Counter:
    """Count the changes of this process, and disturb one of them."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    unflushed = Unflushed(kept)

    def noting(rename: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def noted(old: Path, new: Path) -> None:
            unflushed.old = old.absolute()
            rename(old, new)

        return noted

    disk.rename, files._exchange = noting(disk.rename), noting(files._exchange)
    disk.announce = counter = Counter(at, how, unflushed)
    return counter


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status, minus the signal that killed it.
        text: What it printed.
        changes: How many it made, or the one at which it was killed.
        written: Folders in which it gave something its name.
    """

    status: int
    text: str
    changes: float
    written: list[str] = field(default_factory=list)


def ended(arguments: Arguments) -> tuple[int, str]:
    """Run a command in this process: its exit status, and what it printed."""
    text, status = io.StringIO(), 99
    try:
        with redirect_stdout(text), redirect_stderr(text):
            arguments() if callable(arguments) else app(list(arguments), standalone_mode=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 98
    except BaseException:
        text.write(traceback.format_exc())
    return status, text.getvalue()


def call(arguments: Arguments, folder: Path, at: float = 0, how: str = "kill") -> Ended:
    """Run a command in a folder, in a process of its own that has all libraries already."""
    told = folder.with_name("told")
    told.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.chdir(folder)
        counter = counted(at, how, folder.with_name("kept"))
        files._looked_through.clear()
        found = ended(arguments)
        if at == AFTER:  # right after the command said that it was done
            counter.unflushed.look()
            counter.end()
        told.write_text(json.dumps([*found, counter.n, sorted(counter.written), list(sys.modules)]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Ended(-os.WTERMSIG(status), "", at)
    *found, modules = json.loads(told.read_text())
    for name in modules:  # what is imported here is there in the processes to come
        if name not in sys.modules and not name.startswith(NOT_BEFORE_A_FORK):
            with suppress(ImportError):
                importlib.import_module(name)
    return Ended(*found)


def check_whole(folder: Path) -> None:
    """What lies there can be read, and is what was written."""
    cache, reports = folder / CACHE, folder / REPORTS
    assert care.verify(cache).damaged == []
    rows_of(cache)
    for record in records(cache, strict=True):
        if record.complete:
            load_dataset(cache, record.dataset)
    for run in all_runs(reports, strict=True):
        for name, digest in run.files.items():
            assert digest_of_file(reports / run.id / name) == digest, name
    if (told := folder / "told").is_file():
        n_told = len(told.read_text().split())
        assert answers_of(folder)[:n_told] == [f"{number}.png" for number in range(n_told)], "an answer is lost"


def features_of(folder: Path) -> tuple[str, Any]:
    """All rows of the cache, and labels and splits of the newest record."""
    rows = sorted(rows_of(folder / CACHE).items())
    table = load_table(folder / CACHE, [find_record(folder / CACHE, None)])
    return digest_of(b"".join(key + row for key, row in rows)), [table.labels.tolist(), table.splits.tolist()]


def run_of(folder: Path) -> dict[str, Any]:
    """What the newest run found, and what its files hold."""
    run = all_runs(folder / REPORTS)[-1]
    files = {name: contents_of(folder / REPORTS / run.id / name) for name in run.files}
    return {"stage": run.stage, "head": getattr(run, "head", ""), "metrics": getattr(run, "metrics", None), **files}


def contents_of(path: Path) -> str:
    """Digest of what a file holds; not of how long it took, nor of the archive around arrays, which tells the time."""
    arrays: dict[str, Any] = {}
    if path.name == HISTORY:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return digest_of(repr([{name: row[name] for name in row if "seconds" not in name} for row in rows]).encode())
    if path.suffix == ".npz":
        with arrays_of(path) as file:
            arrays = {name: file[name] for name in file.files}
    elif path.suffix == ".keras":
        with ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
            file.visititems(lambda name, one: arrays.update({name: one[()]} if isinstance(one, h5py.Dataset) else {}))
    else:
        return digest_of_file(path)
    return digest_of(b"".join(name.encode() + array.tobytes() for name, array in sorted(arrays.items())))


def pages_of(folder: Path) -> list[tuple[str, bool, str]]:
    pages = sorted((folder / REPORTS).rglob("*.html"))
    return [(str(page.relative_to(folder)), is_whole(page.read_bytes().decode()), contents_of(page)) for page in pages]


def tree_of(folder: Path) -> list[str]:
    """Names of the runs, and of the files of the cache, but for what a machine keeps for itself."""
    cache = [str(path.relative_to(folder)) for path in (folder / CACHE).rglob("*") if path.is_file()]
    return sorted(name for name in cache if "memo" not in name) + [run.id for run in all_runs(folder / REPORTS)]


def csv_of(folder: Path) -> str:
    return (folder / "labels.csv").read_text()


def labelled(folder: Path) -> None:
    """A table of labels: the two classes of the data, exchanged for a few pictures."""
    paths = sorted((folder / DATA).rglob("*.png"))[::7]
    rows = [f"{path.relative_to(folder / DATA)},{('dark', 'light')[path.parent.name == 'dark']}" for path in paths]
    (folder / "given.csv").write_text("\n".join(["path,label", *rows]))


def sorted_of(folder: Path) -> list[tuple[str, str]]:
    files = [path for path in (folder / "sorted").rglob("*") if path.is_file()]
    return sorted((str(path.relative_to(folder)), digest_of_file(path)) for path in files)


def answering() -> None:
    """Keep a few answers, as `tlpipe label` does; how many of them are told to be on disk is noted in another file."""
    try:
        journal = Journal(Path("labels.jsonl"), "/data")
        with closing(journal), Path("told").open("w") as told:
            for number in range(len(journal.answers), 5):
                journal.append([Answer(f"{number:032x}", f"{number}.png", "rose", "me")])
                told.write(f"{number + 1}\n")
                told.flush()
    except TlpipeError as error:
        print(error)
        sys.exit(1)


def answers_of(folder: Path) -> list[str]:
    path = folder / "labels.jsonl"
    lines = read_journal(path) if path.is_file() else []
    return [line["path"] for line in lines if "key" in line]


def exports_of(folder: Path) -> list[tuple[str, str]]:
    paths = sorted([*folder.rglob("export/*/*"), *folder.glob("model*")])
    return [(str(path.relative_to(folder)), contents_of(path)) for path in paths]


@dataclass
class Case:
    """A command.

    Attributes:
        arguments: Of the command line; or a function, for what no command does alone.
        before: Commands that make what it starts from.
        given: What it gives, which must be the same in the end.
        first: Changes the folder before the command, if need be.
        done: What it says, in an error, where it has been run already; "" where it can be run again.
    """

    arguments: Arguments
    before: tuple[tuple[str, ...], ...]
    given: Callable[[Path], Any]
    first: Callable[[Path], None] = field(default=lambda _: None)
    done: str = ""


def remove_pictures(folder: Path) -> None:
    """So that a second extract leaves rows that nothing needs."""
    for path in sorted((folder / DATA / "dark").iterdir())[:20]:
        path.unlink()


def make_old(folder: Path) -> None:
    """What is younger than a day is kept by gc."""
    for path in (folder / CACHE).rglob("*"):
        if "memo" not in path.name:
            os.utime(path, (1e9, 1e9))


EXTRACT = ("extract", DATA, *PLACES)
RIDGE = ("train-head", "--head", "ridge", *PLACES)
LABEL = ("label", DATA, "--labels", "given.csv", "--cache", CACHE)
CASES = {
    "extract": Case(EXTRACT, (), features_of),
    "train-head": Case(RIDGE, (EXTRACT,), run_of),
    "sweep": Case(("sweep", "--head", "ridge", *PLACES), (EXTRACT,), run_of),
    "evaluate": Case(("evaluate", "latest", *PLACES), (EXTRACT, RIDGE), run_of),
    "predict": Case(("predict", "latest", DATA, "--csv", "labels.csv", *PLACES), (EXTRACT, RIDGE), csv_of),
    "report": Case(("report", *PLACES), (EXTRACT, RIDGE), pages_of),
    "runs-rm": Case(("runs", "rm", "train-head-ridge", *PLACES), (EXTRACT, RIDGE), tree_of, done="is not among"),
    "cache-gc": Case(("cache", "gc", "--delete", *PLACES), (EXTRACT,), tree_of, make_old),
    "label-export": Case((*LABEL, "--export", "labels.csv"), (), csv_of, labelled),
    "label-to-folders": Case((*LABEL, "--to-folders", "sorted"), (), sorted_of, labelled, done="is not empty"),
    "answers": Case(answering, (), answers_of),
    # These need Keras.
    "export": Case(("export", "latest", "--format", "keras", *PLACES), (EXTRACT, RIDGE), exports_of),
    "export-file": Case(
        ("export", "latest", "--output", "model.keras", *PLACES), (EXTRACT, RIDGE), exports_of, done="There is"
    ),
    "finetune": Case(
        ("finetune", "--blocks", "block13", "--epochs", "2", "--resume", *PLACES),
        (EXTRACT, ("train-head", "--head", "linear", "--epochs", "2", *PLACES)),
        run_of,
    ),
}
REAL = ("export", "export-file", "finetune")


def prepared(case: Case, folder: Path, real: bool) -> None:
    """Make what a command starts from."""
    conftest.draw_shades(folder / DATA)
    conftest.age_pictures(folder / DATA)  # so that each time there are as many changes
    for arguments in case.before:
        done = call(with_network(arguments, real), folder)
        assert done.status == 0, done.text
    if case is CASES["cache-gc"]:
        remove_pictures(folder)
        assert call(with_network(EXTRACT, real), folder).status == 0
    case.first(folder)
    time.sleep(YOUNG / 1e9)  # so that what the memo takes does not depend on when a command begins


def with_network(arguments: Arguments, real: bool) -> Arguments:
    return (*arguments, *SMALL) if real and isinstance(arguments, tuple) and arguments[0] == "extract" else arguments


def tried(name: str, hows: tuple[str, ...] = HOWS, every: int = 1) -> dict[str, Any]:
    """Disturb a command at every change, or every so many, in each way."""
    case, real = CASES[name], name in REAL
    arguments = with_network(case.arguments, real)
    problems: list[str] = []
    points: list[float] = []
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        if not real:
            conftest.use_fake_engine(patch)
        start, work = Path(place) / "start", Path(place) / "work"
        start.mkdir()
        prepared(case, start, real)

        def disturbed(at: float, how: str) -> bool:
            """Disturb it once; False if it ends before that change."""
            shutil.rmtree(work)
            shutil.copytree(start, work, symlinks=True)
            done = call(arguments, work, at, how)
            if done.changes < at:
                return False
            points.append(at)
            try:
                check(case, arguments, work, done, at, expected)
            except Exception as error:
                line = traceback.extract_tb(error.__traceback__)[-1].line
                where = "after the end" if at == AFTER else f"at change {at}"
                problems.append(f"{how} {where}: {type(error).__name__}: {str(error)[-2000:]} ({line})")
            return True

        shutil.copytree(start, work, symlinks=True)
        whole = call(arguments, work)
        assert whole.status == 0, whole.text
        expected = case.given(work)
        for how in hows:
            at = 1
            while (
                disturbed(at, how) or at < whole.changes
            ):  # the memo takes what is not young, so their number may vary
                at += every
            if how in ("cut", "undo"):
                disturbed(AFTER, how)
    return {"command": name, "changes": whole.changes, "tried": len(points), "problems": problems}


def check(case: Case, arguments: Arguments, work: Path, done: Ended, at: float, expected: Any) -> None:
    """See that nothing was lost by a disturbance, and that the same command gives all of it then."""
    killed = done.status == -signal.SIGKILL
    assert killed or done.status in (0, 1), f"it ended with {done.status}: {done.text}"
    assert "Traceback" not in done.text, done.text
    check_whole(work)
    if done.status == 0 or at == AFTER:
        assert case.given(work) == expected, "it ended well, and what it gives is not there"
    again = call(arguments, work)
    was_done = case.done and again.status == 1 and case.done in again.text
    assert again.status == 0 or was_done, f"again: {again.text}"
    check_whole(work)
    assert (given := case.given(work)) == expected, f"it gives something else: {given}"
    left = [str(path) for folder in again.written for path in Path(folder).glob(f".*{PARTIAL_SUFFIX}")]
    assert not left, f"left by the next command that writes there: {left}"
    assert call(("cache", "gc", "--delete", *PLACES), work).status == 0
    left = [str(path) for place in (CACHE, REPORTS) for path in (work / place).rglob(f"*{PARTIAL_SUFFIX}")]
    assert not left, f"left by gc: {left}"


def main() -> None:
    strange = [word for word in sys.argv[1:] if word not in (*CASES, *HOWS) and not word.isdecimal()]
    if strange:
        sys.exit(f"{strange[0]} is none of {', '.join((*CASES, *HOWS))}, and no number")
    names = [name for name in sys.argv[1:] if name in CASES] or list(CASES)
    every = next((int(word) for word in sys.argv[1:] if word.isdecimal()), 1)
    hows = tuple(how for how in HOWS if how in sys.argv[1:]) or HOWS
    problems = False
    for name in names:
        found = tried(name, hows, every)
        problems |= bool(found["problems"])
        print(json.dumps(found), flush=True)
    sys.exit(problems)


if __name__ == "__main__":
    main()
