"""One random bit changed in a file that tlpipe wrote: what it says then is right, or it says that something is wrong.

    python tests/bits.py 1000        # so many changes, drawn evenly over the kinds of files

Every kind of file below a cache and a reports folder is changed, and everything that reads it is asked. An answer that
differs from the one before, without an error or a warning, is wrong. Prints a table by kind of file.
"""

from __future__ import annotations

import logging
import os
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

from pipeline.commands import cache as care
from pipeline.commands.gc import gc
from pipeline.config import SplitConfig
from pipeline.data import open_dataset
from pipeline.errors import TlpipeError
from pipeline.extraction.engines import openvino
from pipeline.finetuning import Checkpoint
from pipeline.runs.find import all_runs
from pipeline.runs.predictions import read_history, read_predictions, read_seen
from pipeline.runs.run import FinetuneRun, HeadRun, RatedRun
from pipeline.runs.trained_head import trained_head
from pipeline.store.records import find_record
from pipeline.store.shards import FeatureStore, stores
from pipeline.store.table import load_table
from pipeline.util import log
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo

SMALL = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "32")
COMMANDS = (
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
    "graphs/*/verdicts/*": "verdicts",
    "memo.sqlite": "memo.sqlite",
    "*/run.json": "run.json",
    "*/predictions.h5": "predictions.h5",
    "*/history.csv": "history.csv",
    "*/seen.npz": "seen.npz",
    "*/head.*": "heads",
    "*/model.keras": "model.keras",
    ".unfinished/*/state.npz": "checkpoints",
    "**/*.html": "pages",
}


def make(folder: Path) -> None:
    """A cache and a reports folder with files of every kind."""
    conftest.draw_shades(folder / "shades")
    (folder / "shades" / "dark" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for path in (folder / "shades").rglob("*.png"):
        os.utime(path, (1.7e9, 1.7e9))  # the memo takes what is older than two seconds
    for words in COMMANDS:
        subprocess.run([sys.executable, "-m", "pipeline", *words, "--quiet"], cwd=folder, check=True)
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

    def table() -> Any:
        features = load_table(cache, [find_record(cache, None)])
        return digest_of(features.array().tobytes()), features.labels.tolist(), features.splits.tolist()

    ask("keys", lambda: open_dataset(str(folder / "shades"), SplitConfig(), memo=Memo(cache)).dataset.keys.tolist())
    ask("table", table)
    ask("damaged", lambda: [item.path for item in care.verify(cache).damaged])
    ask("needless", lambda: sorted(str(item.path) for item in gc(cache, reports).found))
    for store in stores(cache):
        ask(f"quarantined {store.digest}", partial(quarantined_of, store))
    for path in sorted((folder / "cache" / "graphs").iterdir()):
        ask(f"graph {path.name}", partial(graph_of, path))
    for run in all_runs(reports):
        place = reports / run.id
        ask(run.id, partial(asdict, run))
        if isinstance(run, RatedRun):
            ask(f"{run.id} predictions", partial(predictions_of, run, place))
            ask(f"{run.id} history", partial(read_history, place, run.files))
            ask(f"{run.id} seen", partial(read_seen, place, run.files))
            ask(f"{run.id} model", partial(model_of, run, place))
    ask("checkpoint", lambda: repr(Checkpoint(reports / ".unfinished" / "some").load()))
    return found


def quarantined_of(store: FeatureStore) -> list[str]:
    return sorted(map(repr, store.quarantined().values()))


def graph_of(path: Path) -> bool:
    return openvino.kept(path) is not None


def predictions_of(run: RatedRun, place: Path) -> Any:
    predictions = read_predictions(place, len(run.class_names), run.files)
    return {name: digest_of(part.probabilities.tobytes() + part.keys.tobytes()) for name, part in predictions.items()}


def model_of(run: Any, place: Path) -> Any:
    """What a head, or a fine-tuned model, answers."""
    if isinstance(run, HeadRun):
        head = trained_head(run, place).head
        features = np.random.default_rng(0).normal(size=(4, head.n_features)).astype(np.float32)
        with np.errstate(all="ignore"):
            return np.round(head.predict_proba(features), 5).tolist()
    if isinstance(run, FinetuneRun):
        from pipeline.backbones.build import _load_model

        return digest_of(b"".join(array.tobytes() for array in _load_model(place / "model.keras").get_weights()))
    return None


def changed(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


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
            place = start / ("reports" if pattern.startswith(("*/", ".unfinished", "**")) else "cache")
            by_kind[kind] += [path for path in sorted(place.glob(pattern)) if path.is_file()]
        results: dict[str, Counter[str]] = {kind: Counter() for kind in by_kind}
        wrong = []
        for number in range(n):
            kind = list(by_kind)[number % len(by_kind)]
            path = draw.choice(by_kind[kind])
            shutil.rmtree(work)
            shutil.copytree(start, work)
            changed(work / path.relative_to(start), draw)
            warned.told.clear()
            try:
                found = answers(work)
            except Exception as error:
                results[kind]["traceback"] += 1
                wrong.append(f"{path.relative_to(start)}: {error!r}")
                continue
            told = warned.told or any(isinstance(one, TlpipeError) for one in found.values()) or found.get("damaged")
            told = told or any(name.startswith("graph") and not one for name, one in found.items())
            same = all(name in found and repr(found[name]) == repr(one) for name, one in expected.items())
            results[kind]["noticed" if told else "harmless" if same else "wrong"] += 1
            if not told and not same:
                differ = [name for name in expected if repr(found.get(name)) != repr(expected[name])]
                wrong.append(f"{path.relative_to(start)}: {', '.join(differ)}")
    print("| kind of file | bits changed | noticed | harmless | wrong |\n| --- | --- | --- | --- | --- |")
    for kind, counts in results.items():
        bad = counts["wrong"] + counts["traceback"]
        print(f"| {kind} | {counts.total()} | {counts['noticed']} | {counts['harmless']} | {bad} |")
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
