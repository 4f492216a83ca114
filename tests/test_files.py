"""Files that are there whole or not at all."""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

import pytest

from pipeline.util.files import folder_size, published, published_folder, read_json, write_json


def test_published_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with published(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), published(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_published_folder(tmp_path: Path) -> None:
    with published_folder(tmp_path / "run") as partial:
        (partial / "a").write_bytes(b"12345")
    assert folder_size(tmp_path / "run") == 5
    with pytest.raises(RuntimeError), published_folder(tmp_path / "other") as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"name": "Größe", "values": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_replaces_another_is_never_gone(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who looks all the time finds the old files or the new ones; elsewhere than on Linux nearly so."""
    target = tmp_path / "export"
    target.mkdir()
    (target / "version").write_text("0")
    if not exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    looking, gone, seen = True, 0, set()

    def look() -> None:
        nonlocal gone
        while looking:
            try:
                seen.add((target / "version").read_text())
            except FileNotFoundError:
                gone += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(1, 60):
        with published_folder(target, replace=True) as partial:
            (partial / "version").write_text(str(number))
    looking = False
    watcher.join()
    assert (target / "version").read_text() == "59"
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    if exchange and sys.platform == "linux":
        assert gone == 0
