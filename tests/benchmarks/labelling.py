"""A person at the page of `tlpipe label`, played by a script in headless Chromium, with the keyboard alone.

    python tests/benchmarks/labelling.py speed                    # 10,000 and 100,000 drawn pictures
    python tests/benchmarks/labelling.py person alien-predator    # by the labels of the data, 2 % of the answers wrong

`speed` measures `tlpipe label` itself, with features in the cache: how soon the page opens, a key gives the next picture
and a head is fitted again, and the memory of the server; also of a set that is labelled and checked, once each tab was
looked at. `person` prints the accuracy on held-out images after so many answers, against pictures chosen at random.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import finish, verdict

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import started

from pipeline.labelling.session import AT_ONCE

SIZES = (20, 50, 100, 200)
DRAWS, MISTAKES = 5, 0.02
FITS = 5  # of which the median time is told
CLASSES = 9
NETWORK = ("--backbone", "densenet121", "--weights", "random", "--image-size", "32", "--quiet")  # 1,024 features

SERVER = """
import json, sys, time
import numpy as np
from pathlib import Path
from pipeline.data import ArraySource, Dataset
from pipeline.labelling import learner
from pipeline.labelling.journal import Journal
from pipeline.labelling.server import Desk, application, serving
from pipeline.labelling.session import Session
from pipeline.pages.pictures import Pictures

folder, random = Path(sys.argv[1]), sys.argv[2] == "random"
if random:
    learner.START = learner.THEN = "random"
found = np.load(folder / "known.npz")
features, labels = np.load(folder / "features.npy"), found["labels"]
keys = found["keys"]
images = np.load(folder / "images.npy", mmap_mode="r")
locations = [f"{label + 1}-{row}" for row, label in enumerate(labels.tolist())]
names = [str(name) for name in range(1, int(labels.max()) + 2)]
dataset = Dataset("drawn", keys, found["given"], np.full(len(keys), "train"), locations, tuple(names))
desk = Desk()
pictures = Pictures(ArraySource([(images, 1.0)]), keys, 10**6)
journal = Journal(folder / "labels.jsonl", "drawn")
desk.session = Session(dataset, features, pictures, journal, seed=int(sys.argv[3]))
with serving(application(desk, ["127.0.0.1"]), "127.0.0.1", 0) as port:
    print(f"http://127.0.0.1:{port}/?token={desk.token}", flush=True)
    for _ in sys.stdin:
        desk.session.settle()
        fit = desk.session.learner.fit
        print(json.dumps({"seconds": fit.seconds if fit else None}), flush=True)
"""


@contextmanager
def served(folder: Path, how: str, seed: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page of some pictures, served by a process of its own."""
    (folder / "labels.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-c", SERVER, str(folder), how, str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        sys.exit("the server has no output")
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()


@contextmanager
def commanded(data: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page of some pictures, served by `tlpipe label`."""
    (data.parent / "labels.jsonl").unlink(missing_ok=True)
    names = ",".join(str(label + 1) for label in range(CLASSES))
    words = ["label", data.name, *NETWORK, "--classes", names, "--no-open", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words], cwd=data.parent, stderr=subprocess.PIPE, text=True
    )
    if process.stderr is None:
        sys.exit("the command says nothing")
    try:
        while not (found := re.search(r"http\S+", process.stderr.readline())):
            if process.poll() is not None:
                sys.exit("the command has ended")
        yield found[0], process
    finally:
        process.kill()
        process.wait()


def memory(process: subprocess.Popen[str]) -> float:
    """Largest resident memory of a process, GB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9  # type: ignore[index]


def named(name: str) -> str:
    """The true class of a picture, with which its name begins."""
    return name.split("-")[0]


def answer(page: Any, class_of: Callable[[str], str], random: np.random.Generator | None = None) -> float:
    """Label the picture that is shown, rightly but for a few mistakes; seconds until the next one is there."""
    name = page.eval_on_selector("#large img", "image => image.alt")
    label = class_of(name)
    if random is not None and random.random() < MISTAKES:
        wrong = int(random.integers(1, page.locator("#classes button").count() - 1))  # the last button leaves out
        label = str(wrong + (wrong >= int(label)))
    if len(label) > 1:  # which no key gives
        page.keyboard.press("/")
        page.keyboard.type(label)
        page.keyboard.press("Enter")
        page.wait_for_function("name => document.querySelector('#large img')?.alt !== name", arg=name)
        return float("nan")
    # The page tells the time itself, as the script that plays the person is slower than one.
    return float(
        page.evaluate(
            """([key, name]) => new Promise((done) => {
                const start = performance.now();
                const look = () => {
                    const image = document.querySelector("#large img");
                    if (image && image.alt !== name && image.complete) done((performance.now() - start) / 1000);
                    else requestAnimationFrame(look);
                };
                document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
                look();
            })""",
            [label, name],
        )
    )


def write(folder: Path, features: Any, labels: Any, *, given: Any = None) -> None:
    """What the server reads: pictures that are named by their true labels, and the labels that they have already."""
    from pipeline.data import UNLABELLED, array_key

    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    if given is None:
        given = np.full(len(labels), UNLABELLED)
    np.save(folder / "features.npy", features.astype(np.float32))
    np.save(folder / "images.npy", images)
    keys = np.array([array_key(image) for image in images], "S32")
    np.savez(folder / "known.npz", labels=labels, keys=keys, given=given)


def answers(folder: Path) -> dict[int, int]:
    """Rows that were answered, and the label that counts of each."""
    row_of = {key.decode(): row for row, key in enumerate(np.load(folder / "known.npz")["keys"].tolist())}
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    return {row_of[line["key"]]: int(line["label"]) - 1 for line in lines if "key" in line}


def drawn(folder: Path, n: int) -> tuple[Path, np.ndarray]:
    """Pictures of 32 px in nine tints, whose features are in the cache; the file and the classes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, n)
    tints = random.integers(0, 192, (CLASSES, 1, 1, 3))
    images = (tints[labels] + random.integers(0, 64, (n, 32, 32, 3))).astype(np.uint8)
    folder.mkdir()
    np.savez(folder / "drawn.npz", images=images)
    subprocess.run([sys.executable, "-m", "pipeline", "extract", "drawn.npz", *NETWORK], cwd=folder, check=True)
    return folder / "drawn.npz", labels


def opened(page: Any, address: str) -> float:
    """Seconds until a page shows pictures."""
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#grid [role=option]", timeout=300_000)
    return time.perf_counter() - start


def refitted(address: str, give: Callable[[], object]) -> float:
    """Seconds from an answer after which a head is due until it is fitted and rated, and has chosen what is shown next."""
    for _ in range(AT_ONCE):
        start = time.perf_counter()
        give()
        state = once_fitted(address)
        if (state["rating"] or {}).get("n_labels") == state["labelled"]:
            return time.perf_counter() - start
    sys.exit("no head was fitted")


def once_fitted(address: str) -> dict[str, Any]:
    """What the page is told of the labelling, once no head is being fitted."""
    page, _, token = address.partition("?token=")
    request = urllib.request.Request(f"{page}state", headers={"X-Token": token})
    while True:
        state: dict[str, Any] = json.load(urllib.request.urlopen(request))
        if not state["fitting"]:
            return state
        time.sleep(0.01)


def speed() -> None:
    """Seconds and memory by the number of pictures."""
    with tempfile.TemporaryDirectory() as name, started() as chromium:
        for n in (10_000, 100_000):
            data, labels = drawn(Path(name) / str(n), n)
            with commanded(data) as (address, process):
                page = chromium.new_page()
                ready = opened(page, address)
                again = opened(page, address)
                give = partial(answer, page, partial(class_of_row, labels=labels))
                seconds = sorted(give() for _ in range(100))
                fitted = median(refitted(address, give) for _ in range(FITS))
                size = memory(process)
                page.close()
            late, middle = seconds[94], seconds[49]
            print(
                f"{n:,} pictures: served after {ready:.1f} s, then opens in {again:.2f} s; next picture after "
                f"{1000 * middle:.0f} ms, 95 of 100 within {1000 * late:.0f} ms; head of 100 labels in {fitted:.2f} s; "
                f"{size:.2f} GB",
                flush=True,
            )
            verdict("opens under 2 s", again < 2)
            verdict("server under 1.5 GB", size < 1.5)
            if n == 10_000:
                verdict("next picture under 100 ms, 95 of 100", late < 0.1)
                verdict("head under 1.5 s", fitted < 1.5)
            fitted, size = checked(chromium, data, labels)
            print(
                f"{n:,} pictures that are labelled: head in {fitted:.2f} s; {size:.2f} GB after a look at each tab",
                flush=True,
            )
            verdict("server under 1.5 GB", size < 1.5)
            if n == 10_000:
                verdict("head under 1.5 s", fitted < 1.5)
    finish()


def class_of_row(name: str, labels: np.ndarray) -> str:
    """The true class of a picture whose name is its row, as in images[12]."""
    return str(labels[int(re.findall(r"\d+", name)[-1])] + 1)


def checked(chromium: Any, data: Path, labels: np.ndarray) -> tuple[float, float]:
    """Look at each tab of a set that has labels, and correct some: seconds until a head is fitted on all, and GB."""
    with np.load(data) as file:
        np.savez(data.with_name("labelled.npz"), images=file["images"], labels=labels)
    with commanded(data.with_name("labelled.npz")) as (address, process):
        page = chromium.new_page()
        page.goto(address)
        page.locator("#tabs button").first.wait_for(timeout=300_000)
        for tab in page.locator("#tabs button").all():
            with page.expect_response(re.compile("/show$"), timeout=300_000):
                tab.click()
        page.locator("#tabs button", has_text="One class").click()
        page.locator("#grid [role=option]").nth(AT_ONCE).wait_for()
        options = page.locator("#grid [role=option]").all()[:AT_ONCE]
        keys = [one.get_attribute("data-key") for one in options]
        once_fitted(address)
        seconds = []
        for label in range(FITS):
            corrections = {"answers": [[key, str(label + 1)] for key in keys], "shown": {"tab": "class"}}
            start = time.perf_counter()
            page.evaluate("corrections => ask('answer', corrections)", corrections)
            once_fitted(address)
            seconds.append(time.perf_counter() - start)
        size = memory(process)
        page.close()
    return median(seconds), size


def settled(process: subprocess.Popen[str]) -> float:
    """Seconds in which the newest head was fitted, once it is."""
    if process.stdin is None or process.stdout is None:
        sys.exit("the server can't be asked")
    process.stdin.write("\n")
    process.stdin.flush()
    return float(json.loads(process.stdout.readline())["seconds"] or 0)


def person(data: str) -> None:
    """Accuracy on held-out images after so many answers."""
    from pipeline import extract, load_features
    from pipeline.heads import make_head
    from pipeline.labelling.model import HEAD
    from pipeline.store.rows import Part, nothing

    found = load_features(extract(data))
    held = found.split == "test" if data.endswith(".npz") else found.split != "train"
    features, labels = found.X[~held], found.y[~held]
    print(f"{Path(data).stem}: {len(labels):,} pictures to label, {int(held.sum()):,} held out\n")
    print(f"| pictures are | {' | '.join(f'{n} labels' for n in SIZES)} |\n| --- |{' --- |' * len(SIZES)}")
    with tempfile.TemporaryDirectory() as name, started() as chromium:
        folder = Path(name)
        write(folder, features, labels)
        for how in ("chosen", "random"):
            accuracies: list[list[float]] = []
            for seed in range(DRAWS):
                with served(folder, how, seed) as (address, process):
                    page = chromium.new_page()
                    page.goto(address)
                    page.wait_for_selector("#grid [role=option]")
                    random, row = np.random.default_rng(seed), []
                    for n in range(1, SIZES[-1] + 1):
                        answer(page, named, random)
                        if n % 5 == 0:
                            settled(process)  # a person is slower than a script
                        if n not in SIZES:
                            continue
                        given = answers(folder)
                        rows, said = np.array(list(given)), np.array(list(given.values()))
                        known = np.unique(said)
                        keys = np.array([f"{one:032x}" for one in rows], "S32")
                        part = Part(features[rows], np.searchsorted(known, said), keys, np.zeros(len(rows), np.int64))
                        head, _ = make_head(HEAD)
                        head.fit(part, nothing(part), len(known))
                        predicted = known[head.predict_proba(found.X[held]).argmax(axis=1)]
                        row.append(100 * float((predicted == found.y[held]).mean()))
                    page.close()
                accuracies.append(row)
            means, deviations = np.mean(accuracies, axis=0), np.std(accuracies, axis=0, ddof=1)
            cells = [f"{mean:.1f} ± {deviation:.1f} %" for mean, deviation in zip(means, deviations, strict=True)]
            print(f"| {how} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    {"speed": speed, "person": person}[sys.argv[1]](*sys.argv[2:])
