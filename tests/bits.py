"""One random bit changed in a file that tlpipe wrote: what it says then is right, or it says that something is wrong.

    python tests/bits.py 1000        # so many changes, drawn evenly over the kinds of files

Every kind of file below a cache and a reports folder that is read again is changed, and everything that reads it is
asked. An answer that differs from the one before is wrong, unless it is an error, or says itself what is damaged, or is
left out by a warning that names it. What is read line by line may lack the changed line, with a warning, and nothing
else. Prints a table by kind of file.
"""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import conftest

from pipeline.backbones import open_backbone
from pipeline.commands import cache as care
from pipeline.commands.gc import gc
from pipeline.config import SplitConfig
from pipeline.data import open_dataset
from pipeline.data.corrections import read_corrections
from pipeline.errors import StoreError, TlpipeError
from pipeline.extraction.engines import openvino, verdict
from pipeline.finetuning import Checkpoint
from pipeline.labelling.journal import Answer, Journal
from pipeline.pages import write
from pipeline.runs.classifier import open_classifier
from pipeline.runs.find import all_runs, find_run
from pipeline.runs.predictions import read_history, read_predictions, read_seen
from pipeline.runs.run import FinetuneRun, HeadRun, RatedRun
from pipeline.store.records import find_record
from pipeline.store.shards import FeatureStore, stores
from pipeline.store.table import load_table
from pipeline.util import log
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo

SMALL = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "32")
COMMANDS = (
    ("extract", "shades", *SMALL, "--pooling", "max"),  # an older one, which must not stand in for a newer one
    ("extract", "shades", *SMALL),
    ("train-head", "--head", "ridge"),
    ("train-head", "--head", "knn5"),
    ("train-head", "--head", "mlp8", "--epochs", "2"),
    ("finetune", "--blocks", "none", "--epochs", "1"),
    ("report",),
    ("inspect", "shades"),
)
KINDS = {
    "features/*/shards/*.h5": "shards",
    "features/*/spec.json": "spec.json",
    "features/*/quarantine.jsonl": "quarantine.jsonl",
    "datasets/*.h5": "datasets",
    "tables/*.json": "records",
    "uses/*.json": "uses",
    "graphs/*/*": "converted graphs",
    "graphs/*/verdicts/*": "results of the engine check",
    "memo.sqlite": "memo.sqlite",
    "*/run.json": "run.json",
    "*/predictions.h5": "predictions.h5",
    "*/history.csv": "history.csv",
    "*/seen.npz": "seen.npz",
    "*/head.*": "heads",
    "*/model.keras": "model.keras",
    ".unfinished/*/state.npz": "checkpoints",
    "*/report.html": "pages of runs",
    "*/labels.jsonl": "labels.jsonl",
}

BY_LINES = {"quarantine.jsonl": ("quarantined",), "labels.jsonl": ("labels", "journal")}
"""Answers from which a changed line may be missing, each by its first word."""


def make(folder: Path) -> None:
    """A cache and a reports folder with files of every kind."""
    conftest.draw_shades(folder / "shades")
    for number in range(3):
        (folder / "shades" / "dark" / f"torn{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn %d" % number)
    conftest.age_pictures(folder / "shades")
    for words in COMMANDS:
        subprocess.run([sys.executable, "-m", "pipeline", *words, "--quiet"], cwd=folder, check=True)
    journal = Journal(folder / "reports" / "mine" / "labels.jsonl", "shades")
    journal.name_class("dark")
    journal.append([Answer(f"{number:032x}", f"{number}.png", "dark", "me") for number in range(20)])
    journal.close()
    from pipeline.finetuning import State

    some = [np.arange(5000, dtype=np.float32)]
    state = State({"now": some, "optimizer": some, "best": some}, [{"loss": 1.0}], "a-run")
    Checkpoint(folder / "reports" / ".unfinished" / "some").save(state)


class Warned(logging.Handler):
    """Whether a warning was given."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def answers(folder: Path) -> dict[str, Any]:
    """What everything that reads these files says; an error of tlpipe's own in place of an answer."""
    cache, reports = folder / "cache", folder / "reports"
    found: dict[str, Any] = {}

    def ask(name: str, question: Any) -> None:
        try:
            found[name] = question()
        except TlpipeError as error:
            found[name] = error

    def table(reference: str | None) -> Any:
        record = find_record(cache, reference)
        features = load_table(cache, [record])
        return record.id, digest_of(features.array().tobytes()), features.labels.tolist(), features.splits.tolist()

    def needless() -> list[str]:
        paths = [str(item.path) for item in gc(cache, reports).found]
        return sorted(path for path in paths if not path.endswith(".damaged"))  # which was set aside just now

    ask("newest", partial(table, None))
    ask("named", partial(table, "shades"))
    ask("newest run", lambda: asdict(find_run(reports, None, (HeadRun,))[0]))
    ask("named run", lambda: asdict(find_run(reports, "train-head-ridge", (HeadRun,))[0]))
    ask("keys", lambda: open_dataset(str(folder / "shades"), SplitConfig(), memo=Memo(cache)).dataset.keys.tolist())
    ask("damaged", lambda: [item.path for item in care.verify(cache).damaged])
    ask("needless", needless)
    for store in stores(cache):
        ask(f"quarantined {store.digest}", partial(quarantined_of, store))
    for path in sorted((cache / "graphs").iterdir()):
        ask(f"graph {path.name}", partial(sound, path, openvino.kept(path) is not None))
    for path in sorted((cache / "graphs").glob("*/verdicts/*")):
        ask(f"verdict {path.relative_to(cache)}", partial(sound, path, verdict._read(path) is not None))
    for path in sorted(reports.glob("*/report.html")):
        ask(
            f"page {path.relative_to(reports)}",
            partial(sound, path, write.is_whole(path.read_bytes().decode("utf-8", "replace"))),
        )
    for run in all_runs(reports):
        place = reports / run.id
        ask(run.id, partial(asdict, run))
        if isinstance(run, RatedRun):
            ask(f"{run.id} predictions", partial(predictions_of, run, place))
            ask(f"{run.id} history", partial(read_history, place, run.files))
            ask(f"{run.id} seen", partial(read_seen, place, run.files))
        if isinstance(run, (HeadRun, FinetuneRun)):
            ask(f"{run.id} model", partial(model_of, reports, run.id))
    labels = reports / "mine" / "labels.jsonl"
    ask("labels", lambda: [(one.name, one.label) for one in read_corrections(str(labels))])
    ask("journal", lambda: list(map(repr, answers_of(labels))))
    ask("checkpoint", lambda: repr(Checkpoint(reports / ".unfinished" / "some").load()))
    return found


def quarantined_of(store: FeatureStore) -> list[str]:
    return sorted(map(repr, store.quarantined().values()))


def answers_of(labels: Path) -> list[Answer]:
    journal = Journal(labels, "shades")
    journal.close()
    return journal.answers


def sound(path: Path, is_sound: bool) -> None:
    """What is made again where it isn't sound."""
    if not is_sound:
        raise StoreError(f"{path} is damaged")


def predictions_of(run: RatedRun, place: Path) -> Any:
    predictions = read_predictions(place, len(run.class_names), run.files)
    return {name: digest_of(part.probabilities.tobytes() + part.keys.tobytes()) for name, part in predictions.items()}


def model_of(reports: Path, run: str) -> Any:
    """What a head answers, or the digest of a fine-tuned model, opened as `predict` does."""
    classifier = open_classifier(reports, run)
    if classifier.trained is None:
        (config,) = classifier.configs
        return open_backbone(config.backbone, config.weights, config.seed, config.image_size).digest()
    head = classifier.trained.head
    features = np.random.default_rng(0).normal(size=(4, head.n_features)).astype(np.float32)
    with np.errstate(all="ignore"):
        return np.round(head.predict_proba(features), 5).tolist()


def is_left_out(answer: str, found: dict[str, Any], told: list[str]) -> bool:
    """Whether there is no such answer, and a warning names the run or the store that it would be of."""
    names = [word for word in answer.split() if len(word) > 15]  # a run's id or a store's digest
    return answer not in found and any(name in warning for name in names for warning in told)


def lacks_lines(kind: str, answer: str, before: Any, now: Any, n_lines: int) -> bool:
    """Whether an answer is that of before, but for as many lines as were changed."""
    if answer.split()[0] not in BY_LINES.get(kind, ()) or not isinstance(now, list):
        return False
    return now == [line for line in before if line in now] and len(now) >= len(before) - n_lines


def judged(
    kind: str, expected: dict[str, Any], found: dict[str, Any], told: list[str], n_lines: int
) -> tuple[bool, list[str]]:
    """Whether a change was noticed, and the names of answers that are wrong."""
    noticed, wrong = bool(told), []
    for name, before in expected.items():
        now = found.get(name)
        if repr(now) == repr(before) or is_left_out(name, found, told):
            continue
        if isinstance(now, TlpipeError) or (name == "damaged" and now):
            noticed = True
            if kind == "memo.sqlite":  # without which all works
                wrong.append(name)
        elif not (told and lacks_lines(kind, name, before, now, n_lines)):
            wrong.append(name)
    return noticed, wrong


def changed(path: Path, draw: random.Random) -> int:
    """Change a bit; gives the number of lines that are no longer there, two if it was the end of one."""
    before = path.read_bytes()
    data = bytearray(before)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return len(set(before.splitlines(keepends=True)) - set(bytes(data).splitlines(keepends=True)))


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    warned = Warned()
    log.handlers, log.propagate = [warned], False
    with tempfile.TemporaryDirectory() as name:
        start, work = Path(name) / "start", Path(name) / "work"
        work.mkdir()
        make(work)  # runs know the place of their data
        shutil.copytree(work, start)
        expected = answers(work)
        by_kind: dict[str, list[Path]] = defaultdict(list)
        for pattern, kind in KINDS.items():
            place = start / ("reports" if pattern.startswith(("*/", ".unfinished")) else "cache")
            by_kind[kind] += [path for path in sorted(place.glob(pattern)) if path.is_file()]
        results: dict[str, Counter[str]] = {kind: Counter() for kind in by_kind}
        wrong = []
        for number in range(n):
            kind = list(by_kind)[number % len(by_kind)]
            path = draw.choice(by_kind[kind])
            shutil.rmtree(work)
            shutil.copytree(start, work)
            n_lines = changed(work / path.relative_to(start), draw)
            warned.told.clear()
            try:
                found = answers(work)
            except Exception as error:
                results[kind]["traceback"] += 1
                wrong.append(f"{path.relative_to(start)}: {error!r}")
                continue
            noticed, differ = judged(kind, expected, found, warned.told, n_lines)
            results[kind]["wrong" if differ else "noticed" if noticed else "harmless"] += 1
            if differ:
                wrong.append(f"{path.relative_to(start)}: {', '.join(differ)}")
    print("| kind of file | bits changed | noticed | harmless | wrong |\n| --- | --- | --- | --- | --- |")
    for kind, counts in results.items():
        bad = counts["wrong"] + counts["traceback"]
        print(f"| {kind} | {counts.total()} | {counts['noticed']} | {counts['harmless']} | {bad} |")
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
