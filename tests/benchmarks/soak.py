"""`extract` and `predict` in turn by eight processes on one cache, killed at random, with `cache gc` in between.

    soak.py [MINUTES]        # an hour, if not given

There is always something to compute, as every minute wants one more version of each picture. In the end no row is lost,
none differs from that of an undisturbed run, and no file is left over.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
LONGEST = 20.0  # seconds until a kill
EACH = 60.0  # seconds after which one more version is wanted


def extracting(data: Path, n_views: int) -> tuple[object, ...]:
    return ("extract", data, *SMALL, "--views", n_views, "--augment", "flip,crop")


def main() -> None:
    end = time.monotonic() + 60 * float(sys.argv[1] if len(sys.argv) > 1 else 60)
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
        places = ("--cache", folder / "cache", "--reports", folder / "reports")
        tlpipe("extract", sets[0], *SMALL, *places)
        run = tlpipe("train-head", "--head", "ridge", *places)["run"]
        start, n_views = time.monotonic(), 0
        running: dict[subprocess.Popen[bytes], float] = {}
        ended: Counter[str] = Counter()
        logs = folder / "log"
        while running or time.monotonic() < end:
            while len(running) < PROCESSES and time.monotonic() < end:
                n_views = 1 + int((time.monotonic() - start) / EACH)
                number = draw.randrange(SETS)
                commands = [
                    ("cache", "gc", "--delete"),
                    ("predict", run, folder / f"pictures{number}"),
                    extracting(sets[number], n_views),
                ]
                (words,) = draw.choices(commands, (1, 4, 5))
                with logs.open("ab") as log:
                    line = [sys.executable, "-m", "pipeline", *map(str, (*words, *places)), "--quiet"]
                    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log)
                dies = time.monotonic() + draw.uniform(0.5, LONGEST) if draw.random() < KILLED else float("inf")
                running[process] = dies
            for process, dies in list(running.items()):
                if process.poll() is not None:
                    ended[f"exit {process.returncode}"] += 1
                    del running[process]
                elif time.monotonic() > dies:
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        print(f"{ended.total()} commands: {dict(ended)}")
        text = logs.read_text(errors="replace")
        verdict("no traceback", "Traceback" not in text)
        verdict("none failed", set(ended) <= {"exit 0", f"exit {-signal.SIGKILL}"})
        if "Traceback" in text or set(ended) - {"exit 0", f"exit {-signal.SIGKILL}"}:
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
    finish()


if __name__ == "__main__":
    main()
