"""Commands that are ended at any moment, changed bits, and changed files: the scripts beside this file, with small numbers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

HERE = Path(__file__).parent
FINDINGS = sorted((HERE / "findings").glob("*+*"))


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A process of its own: the crash tests fork, which a process with threads can't do safely."""
    command = [sys.executable, str(HERE / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def crashed(*words: object) -> list[dict[str, Any]]:
    done = run("crash.py", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_killed_now_and_then() -> None:
    """At every twelfth change, by power cuts; the slow tests try each, in all ways."""
    for found in crashed("extract", "train-head", "cut", "undo", 12):
        assert found["changes"] > 20 and found["tried"] > 2
        assert found["problems"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "command",
    [
        "extract",
        "train-head",
        "sweep",
        "evaluate",
        "predict",
        "report",
        "runs-rm",
        "cache-gc",
        "label-export",
        "label-to-folders",
        "answers",
    ],
)
def test_every_change_disturbed(command: str) -> None:
    """Killed, without power, on a full disk, and on one that fails.

    At every eighth change of report, which draws for seconds, and of what copies many files alike.
    """
    (found,) = crashed(command, 8 if command in ("report", "label-to-folders") else 1)
    print(f"{command}: {found['changes']} changes, disturbed {found['tried']} times")
    assert found["problems"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["export", "export-file", "finetune"])
def test_commands_of_keras_disturbed(command: str) -> None:
    """At every fourth change, as each of these takes seconds."""
    (found,) = crashed(command, 4)
    print(f"{command}: {found['changes']} changes, disturbed {found['tried']} times")
    assert found["problems"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_single_bits() -> None:
    done = run("bits.py", 170)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_changed_files() -> None:
    done = run("fuzz.py", 3000)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.name)
def test_what_once_failed(path: Path, tmp_path: Path) -> None:
    """Each file is named by its kind, a number, and the name by which it is read."""
    import fuzz

    kind, _, name = path.name.split("+", 2)
    assert fuzz.problem_of(kind, fuzz.fresh(tmp_path / "work", name, path.read_bytes())) == ""


def test_what_takes_too_long_or_too_much_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though Pillow's errors of any kind are errors of the picture."""
    import fuzz

    def endless(*_: Any, **__: Any) -> None:
        while True:
            pass

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    for opened, problem in ((endless, "more than 1 s"), (full, "more memory than it may")):
        monkeypatch.setattr("PIL.Image.open", opened)
        assert problem in fuzz.problem_of("picture", fuzz.fresh(tmp_path / "work", "a.png", b"no picture"))


def test_what_a_warning_excuses() -> None:
    """An answer without the changed line; no other answer, no other value, and nothing without a warning."""
    import bits

    before = {"labels": ["a", "b", "c"], "newest": ["x", "y"]}

    def wrong(told: list[str], **now: list[str]) -> list[str]:
        return bits.judged("labels.jsonl", before, {**before, **now}, told, n_lines=1)[1]

    assert wrong(["cut off"], labels=["a", "b"]) == []
    assert wrong([], labels=["a", "b"]) == ["labels"]
    assert wrong(["cut off"], labels=["a"]) == ["labels"]
    assert wrong(["cut off"], labels=["a", "b", "z"]) == ["labels"]
    assert wrong(["cut off"], newest=["x"]) == ["newest"]


def test_what_a_model_file_holds(tmp_path: Path) -> None:
    """Whenever it was packed; other arrays are another model, which a command that was ended must not leave."""
    import crash

    for name, coefficients in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "head.npz", coefficients=coefficients)
        with zipfile.ZipFile(tmp_path / name / "model.keras", "w") as file:
            weights = io.BytesIO()
            with h5py.File(weights, "w") as inside:
                inside["layers/dense"] = coefficients
            file.writestr(zipfile.ZipInfo("model.weights.h5", (2026, 1, 1, 0, 0, 2 * len(name))), weights.getvalue())
    for model in ("head.npz", "model.keras"):
        one, same, other = (crash.contents_of(tmp_path / name / model) for name in ("one", "same", "other"))
        assert one == same != other


def test_what_a_power_cut_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what was not flushed; the last name of a file, if its folder was not, and then it has the one before."""
    from power import Unflushed

    from pipeline.util import disk

    (tmp_path / "kept").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    unflushed = Unflushed(tmp_path / "kept")
    monkeypatch.setattr(disk, "announce", unflushed.before)
    place = Path.cwd()
    (place / "new").write_bytes(b"old")
    disk.write(place / "torn", b"12345678")
    disk.write(place / "partial", b"fresh")
    disk.flush(place / "partial")
    with (place / "lines").open("ab") as file:
        disk.append(file.fileno(), place / "lines", b"whole.")
        unflushed.before("append", place / "lines")
        file.write(b"half")
    unflushed.old = place / "partial"
    disk.rename(place / "partial", place / "new")
    unflushed.look()
    unflushed.cut(names=False)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "new": b"fresh",
        "torn": b"1234",
        "lines": b"whole.ha",
    }
    unflushed.cut(names=True)
    assert (place / "new").read_bytes() == b"old" and (place / "partial").read_bytes() == b"fresh"
