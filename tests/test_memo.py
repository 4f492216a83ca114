"""The memo saves work and is never believed when a file has changed."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from pathlib import Path

import pytest

from pipeline.util import disk
from pipeline.util.memo import ASKED, YOUNG, Memo, Stamp


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    past = time.time_ns() - 10 * YOUNG
    os.utime(path, ns=(past, past))
    return path


def test_unchanged_file_is_recalled(tmp_path: Path, old_file: Path) -> None:
    memo, stamp = Memo(tmp_path), Stamp.of(old_file)
    assert memo.recall("image", {old_file: stamp}) == {}
    memo.remember("image", {old_file: (stamp, "digest")}, time.time_ns())
    assert Memo(tmp_path).recall("image", {old_file: Stamp.of(old_file)}) == {old_file: "digest"}
    assert memo.recall("other", {old_file: stamp}) == {}


@pytest.mark.parametrize("change", ["size", "time"])
def test_changed_file_is_not_recalled(tmp_path: Path, old_file: Path, change: str) -> None:
    memo, stamp = Memo(tmp_path), Stamp.of(old_file)
    memo.remember("image", {old_file: (stamp, "digest")}, time.time_ns())
    old_file.write_text("two" if change == "time" else "longer")
    if change == "size":
        os.utime(old_file, ns=(stamp.mtime_ns, stamp.mtime_ns))
    assert memo.recall("image", {old_file: Stamp.of(old_file)}) == {}


def test_file_of_this_moment_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    memo = Memo(tmp_path)
    memo.remember("image", {path: (Stamp.of(path), "digest")}, time.time_ns())
    assert memo.recall("image", {path: Stamp.of(path)}) == {}


def test_damaged_memo_is_started_anew(tmp_path: Path, old_file: Path) -> None:
    memo, stamp = Memo(tmp_path), Stamp.of(old_file)
    memo.path.write_bytes(b"no database" * 1000)
    assert memo.recall("image", {old_file: stamp}) == {}
    memo.remember("image", {old_file: (stamp, "digest")}, time.time_ns())
    assert memo.recall("image", {old_file: stamp}) == {old_file: "digest"}


def test_one_file_under_two_names(tmp_path: Path, old_file: Path) -> None:
    stamp, memo = Stamp.of(old_file), Memo(tmp_path)
    memo.remember("image", {old_file: (stamp, "digest")}, time.time_ns())
    names = [str(old_file), f"{tmp_path}/deep/../{old_file.name}"]
    assert memo.recall("image", dict.fromkeys(names, stamp)) == dict.fromkeys(names, "digest")


def test_a_damaged_memo_that_cannot_be_replaced_is_left_alone(
    tmp_path: Path, old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    memo, stamp = Memo(tmp_path), Stamp.of(old_file)
    memo.path.write_bytes(b"no database" * 1000)
    monkeypatch.setattr(Path, "unlink", refuse)
    memo.remember("image", {old_file: (stamp, "digest")}, time.time_ns())
    assert memo.recall("image", {old_file: stamp}) == {}


def test_texts_under_a_name(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    assert memo.recall_text("random weights") is None
    memo.remember_text("random weights", "one")
    memo.remember_text("random weights", "two")
    assert memo.recall_text("random weights") == "two"


def test_asked_by_path_for_more_files_than_one_question_holds(tmp_path: Path, old_file: Path) -> None:
    stamp, memo = Stamp.of(old_file), Memo(tmp_path)
    paths = [tmp_path / f"{number}" for number in range(2 * ASKED + 1)]
    memo.remember("image", {path: (stamp, path.name) for path in paths}, time.time_ns())
    assert memo.recall("image", dict.fromkeys(paths, stamp)) == {path: path.name for path in paths}
    assert memo.recall("image", {paths[7]: stamp}) == {paths[7]: "7"}
    memo.forget("image", paths[:-1])
    assert memo.recall("image", dict.fromkeys(paths, stamp)) == {paths[-1]: paths[-1].name}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("disk I/O error")]
)
def test_without_a_database_everything_works(
    error: Exception, tmp_path: Path, old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, stamp = Memo(tmp_path), Stamp.of(old_file)
    memo.remember("image", {old_file: (stamp, "digest")}, time.time_ns())

    def fail(change: str, path: Path) -> None:
        raise error

    monkeypatch.setattr(disk, "announce", fail)
    assert memo.recall("image", {old_file: stamp}) == {}
    memo.remember("image", {old_file: (stamp, "other")}, time.time_ns())
    monkeypatch.undo()
    assert memo.recall("image", {old_file: stamp}) == {old_file: "digest"}


def test_a_row_that_was_changed_is_not_believed(tmp_path: Path, old_file: Path) -> None:
    memo, stamp = Memo(tmp_path), Stamp.of(old_file)
    memo.remember("image", {old_file: (stamp, "a digest of 32 letters")}, time.time_ns())
    data = memo.path.read_bytes()
    assert data.count(b"a digest of 32 letters") == 1
    memo.path.write_bytes(data.replace(b"a digest of 32 letters", b"b digest of 32 letters"))
    assert memo.recall("image", {old_file: stamp}) == {}
