"""`extract` and `predict` in turn by eight processes on one cache, killed at random, with `cache gc` in between.

    soak.py [MINUTES]        # an hour, if not given

There is always something to compute, as every minute wants one more version of each picture. Who is killed is killed
while it works: some time after its first change to what is on disk, of the time that such commands take from there to
their end. In the end no row is lost, none differs from that of an undisturbed run, and no file is left over.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import finish, small_set, tlpipe, verdict
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from stored import rows_of

PROCESSES = 8
N = 4_000
SETS = 4  # of pictures, which overlap by half
PICTURES = 500  # of each, as files
SMALL = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "32")
KILLED = 0.3  # share of the processes
AT_FIRST = 5.0  # seconds that a command is taken to work while none of its kind has ended
EACH = 60.0  # seconds after which one more version is wanted
COMMAND = """
import sys
from pathlib import Path
from pipeline.util import disk
changes = Path(sys.argv.pop(1)).open("w", buffering=1)
disk.announce = lambda change, path: changes.write(change + "\\n")
from pipeline.cli import main
sys.argv[0] = "tlpipe"
main()
"""
"""Runs a command that writes each of its changes into a file, which is named before its words."""


@dataclass
class Running:
    """A command that runs.

    Attributes:
        kind: Its first word.
        process: Its process.
        changes: The file of the changes that it has made.
        share: Of the time that it works, after which it is killed; None for one that isn't.
        began: When it made its first change; None before.
    """

    kind: str
    process: subprocess.Popen[bytes]
    changes: Path
    share: float | None
    began: float | None = None

    def worked(self) -> float:
        """Seconds since its first change."""
        if self.began is None and self.changes.is_file() and self.changes.stat().st_size:
            self.began = time.monotonic()
        return 0.0 if self.began is None else time.monotonic() - self.began

    def has_written(self) -> bool:
        """Whether it has written a file, or given one its name."""
        return not {"write", "rename", "append"}.isdisjoint(self.changes.read_text().split())


@dataclass
class Soak:
    """All that runs, and how what ran has ended."""

    folder: Path
    draw: random.Random
    running: list[Running] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    worked: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    started: int = 0
    killed_writing: int = 0

    def start(self, words: tuple[object, ...]) -> None:
        """Start a command."""
        self.started += 1
        changes = self.folder / f"changes{self.started}"
        line = [sys.executable, "-c", COMMAND, changes, *words, "--quiet"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL, stderr=log)
        share = self.draw.random() if self.draw.random() < KILLED else None
        self.running.append(Running(str(words[0]), process, changes, share))

    def look(self) -> None:
        """Kill those whose time has come, and count those that have ended."""
        for one in list(self.running):
            code, seconds = one.process.poll(), one.worked()
            known = self.worked[one.kind] or [AT_FIRST]
            if code is None:
                if one.share is not None and seconds > one.share * sum(known) / len(known):
                    one.process.send_signal(signal.SIGKILL)
                continue
            self.running.remove(one)
            self.ended[f"exit {code}"] += 1
            if code == 0:
                self.worked[one.kind].append(seconds)
            elif code == -signal.SIGKILL:
                self.killed_writing += one.has_written()


def pictures(folder: Path) -> list[Path]:
    """The sets, each an archive of pictures; some of them lie as files in a folder of its number."""
    whole = dict(np.load(small_set(folder / "whole.npz", N)))
    sets = []
    for number in range(SETS):
        rows = np.random.default_rng(number).permutation(N)[: N // 2]
        sets.append(folder / f"set{number}.npz")
        np.savez(sets[-1], images=whole["x_train"][rows], labels=whole["y_train"][rows])
        for row in rows[:PICTURES].tolist():  # what predict is asked about
            path = folder / f"pictures{number}" / f"{row}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(whole["x_train"][row]).save(path)
    return sets


def extracting(data: Path, n_views: int) -> tuple[object, ...]:
    return ("extract", data, *SMALL, "--views", n_views, "--augment", "flip,crop")


def soaked(soak: Soak, sets: list[Path], run: str, places: tuple[object, ...], minutes: float) -> int:
    """Keep all processes at work for some minutes; gives the number of versions that were wanted in the end."""
    start, n_views = time.monotonic(), 0
    while soak.running or time.monotonic() < start + 60 * minutes:
        while len(soak.running) < PROCESSES and time.monotonic() < start + 60 * minutes:
            n_views = 1 + int((time.monotonic() - start) / EACH)
            number = soak.draw.randrange(SETS)
            commands = [
                ("cache", "gc", "--delete"),
                ("predict", run, soak.folder / f"pictures{number}"),
                extracting(sets[number], n_views),
            ]
            (words,) = soak.draw.choices(commands, (1, 4, 5))
            soak.start((*words, *places))
        soak.look()
        time.sleep(0.05)
    return n_views


def check(soak: Soak, sets: list[Path], n_views: int, places: tuple[object, ...]) -> None:
    """See that nothing was lost, and nothing is left."""
    folder, killed = soak.folder, f"exit {-signal.SIGKILL}"
    print(f"{soak.ended.total()} commands: {dict(soak.ended)}")
    print(f"{soak.killed_writing} of the {soak.ended[killed]} that were killed had written something")
    text = (folder / "log").read_text(errors="replace")
    failed = set(soak.ended) - {"exit 0", killed}
    verdict("no traceback", "Traceback" not in text)
    verdict("none failed", not failed)
    if "Traceback" in text or failed:
        print(text[-4000:])
    for data in sets:
        tlpipe(*extracting(data, n_views), *places)
        tlpipe(*extracting(data, n_views), "--cache", folder / "expected")
    tlpipe("cache", "gc", "--delete", *places)
    found, expected = rows_of(folder / "cache"), rows_of(folder / "expected")
    verdict(f"all {len(expected):,} rows are there", expected.keys() <= found.keys())
    verdict("each is that of an undisturbed run", all(found.get(key) == row for key, row in expected.items()))
    left = [path for path in folder.rglob("*") if path.suffix in (".partial", ".damaged")]
    verdict(f"nothing is left over: {len(left)}", not left)


def main() -> None:
    minutes = float(sys.argv[1] if len(sys.argv) > 1 else 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = pictures(folder)
        places = ("--cache", folder / "cache", "--reports", folder / "reports")
        tlpipe("extract", sets[0], *SMALL, *places)
        run = tlpipe("train-head", "--head", "ridge", *places)["run"]
        soak = Soak(folder, random.Random(0))
        n_views = soaked(soak, sets, run, places, minutes)
        check(soak, sets, n_views, places)
    finish()


if __name__ == "__main__":
    main()
