"""Files that are there whole or not at all."""

from __future__ import annotations

import ast
import ctypes
import errno
import io
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.util import archives, disk, files, machine
from pipeline.util.files import PARTIAL_SUFFIX, folder_size, is_abandoned, partial_name, published, published_folder
from pipeline.util.sealed import read_json, sealed, unsealed, write_json


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


class TestSealedJson:
    VALUE = {"name": "Größe", "values": [1, 2.5, None, True], "inside": {"a": "b"}}  # noqa: RUF012

    def test_any_changed_bit_is_noticed_or_harmless(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        write_json(path, self.VALUE)
        data, n_noticed = path.read_bytes(), 0
        for position in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[position] ^= 1 << bit
                path.write_bytes(changed)
                try:
                    assert read_json(path) == self.VALUE, (position, bit)  # a space that became another
                except ValueError:
                    n_noticed += 1
        assert n_noticed > 7 * len(data)

    def test_one_of_before_there_were_seals(self, tmp_path: Path) -> None:
        (tmp_path / "old.json").write_text(json.dumps(self.VALUE))
        assert read_json(tmp_path / "old.json") == self.VALUE

    @pytest.mark.parametrize("lost", ["sealed_by", "seal"])
    def test_half_a_seal(self, lost: str) -> None:
        value = sealed(self.VALUE)
        value.pop(lost)
        with pytest.raises(ValueError, match="changed after it was written"):
            unsealed(value)

    def test_no_object(self) -> None:
        with pytest.raises(ValueError, match="no JSON object"):
            unsealed([1])


class TestLeftOver:
    def partial_of_one_that_is_gone(self, path: Path) -> Path:
        script = f"from pipeline.util.files import partial_name; import pathlib; print(partial_name(pathlib.Path({str(path)!r})))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    def test_of_processes_that_are_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        left, mine = self.partial_of_one_that_is_gone(tmp_path / "a.h5"), partial_name(tmp_path / "a.h5")
        assert is_abandoned(left) and not is_abandoned(mine)
        elsewhere = left.with_name(left.name.replace(files._processes().machine, "0" * 6))
        assert not is_abandoned(elsewhere), "of another machine that shares the folder"
        assert not is_abandoned(tmp_path / f".a.h5.12-34{PARTIAL_SUFFIX}"), "of an older version"
        assert not is_abandoned(tmp_path / f".a.h5.0123abcd-99999-0123abcd{PARTIAL_SUFFIX}"), "of an older version"

    def test_of_before_the_machine_was_started_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever process has the number now; in another container that runs on, its own has it."""
        mine, now = partial_name(tmp_path / "a"), files._processes()
        monkeypatch.setattr(files, "_processes", lambda: now._replace(start="0" * 6, numbers="0" * 6))
        assert is_abandoned(mine)
        mine.write_text("half")
        write_json(tmp_path / "b.json", {})
        assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
        monkeypatch.setattr(files, "_processes", lambda: now._replace(numbers="0" * 6))
        assert not is_abandoned(mine)
        monkeypatch.setattr(files, "_processes", lambda: now._replace(machine="0" * 6, start="0" * 6))
        assert not is_abandoned(mine)

    def test_the_next_to_write_there_removes_them(self, tmp_path: Path) -> None:
        left = self.partial_of_one_that_is_gone(tmp_path / "a")
        left.mkdir()
        (left / "file").write_text("half")
        mine = partial_name(tmp_path / "a")
        mine.write_text("of a process that runs")
        with published(tmp_path / "b") as partial:
            partial.write_text("whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "b"])


OF_PATHS = {"write_bytes", "write_text", "unlink", "rmdir", "rename", "mkdir", "touch", "chmod", "symlink_to"}
OF_SHUTIL = {"rmtree", "copy2", "copyfile", "copyfileobj", "copytree", "move"}
OF_TEMPFILE = {"mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile"}
OF_LIBRARIES = {"connect", "extractall", "writestr", "save", "savez", "savez_compressed", "save_model", "write_table"}
CHANGING = OF_PATHS | OF_SHUTIL | OF_TEMPFILE | OF_LIBRARIES | {"hardlink_to", "save_weights", "tofile"}
OF_THE_SYSTEM = {"remove", "replace", "makedirs", "truncate", "ftruncate", "write", "fsync", "utime", "symlink", "link"}
OPENING = {"open", "fdopen", "File", "ZipFile", "TarFile"}
NOT_ANNOUNCED = {
    ("api/estimators.py", "tempfile.TemporaryDirectory"): "the system's temporary folder",
    ("api/estimators.py", "tempfile.mkdtemp"): "the system's temporary folder",
    ("api/estimators.py", "state.pop('_head').save"): "the system's temporary folder",
    ("api/estimators.py", "(Path(folder) / name).write_bytes"): "the system's temporary folder",
    ("api/loading.py", "tempfile.mkdtemp"): "the system's temporary folder",
    ("commands/bench.py", "tempfile.TemporaryDirectory"): "the system's temporary folder",
    ("commands/doctor.py", "tempfile.TemporaryDirectory"): "the system's temporary folder",
    ("commands/label.py", "tempfile.NamedTemporaryFile"): "a page for the browser, which goes with the command",
    ("runs/formats.py", "tempfile.TemporaryDirectory"): "the system's temporary folder",
    ("util/files.py", "tempfile.TemporaryDirectory"): "the system's temporary folder",
    ("backbones/weights.py", "runtime.keras_home().mkdir"): "Keras's own folder",
    ("data/cifar.py", "runtime.keras_home().mkdir"): "Keras's own folder",
    ("cli/common.py", "os.open"): "/dev/null",
    ("cli/reference/__main__.py", "(Path(sys.argv[1]) / name).write_text"): "the pages of the reference",
    ("pages/pictures.py", "picture.save"): "memory",
    ("store/records.py", "h5py.File"): "memory",
    ("store/shard.py", "h5py.File"): "memory",
    ("commands/cache.py", "partial.open"): "what is published",
    ("commands/cache.py", "np.savez"): "what is published",
    ("commands/cache.py", "h5py.File"): "what is published",
    ("commands/predict.py", "path.open"): "what is published, or a pipe of the user's",
    ("finetuning/checkpoint.py", "partial.open"): "what is published",
    ("finetuning/checkpoint.py", "np.savez"): "what is published",
    ("runs/formats.py", "model.save"): "what is announced by export",
    ("runs/formats.py", "extra.mkdir"): "what is announced by export",
    ("runs/formats.py", "(extra / f'{METADATA}.json').write_text"): "what is announced by export",
    ("runs/formats.py", "onnx.save"): "what is announced by export",
    ("runs/formats.py", "zipfile.ZipFile"): "what is announced by export",
    ("runs/formats.py", "file.writestr"): "what is announced by export",
    ("runs/formats.py", "openvino.save_model"): "what is announced by export",
    ("runs/formats.py", "path.write_bytes"): "what is announced by export",
    ("labelling/files.py", "target.symlink_to"): "announced in the line above",
    ("labelling/files.py", "shutil.copyfile"): "announced in the line above",
    ("labelling/journal.py", "os.open"): "announced in the line above",
    ("labelling/journal.py", "os.ftruncate"): "announced in the line above",
    ("commands/finetune.py", "checkpoint.save"): "publishes",
    ("finetuning/fit.py", "training.save"): "publishes",
    ("data/splits.py", "move"): "moves images between splits, in memory",
    ("util/files.py", "rename"): "renameat2 of the system, announced above",
    ("util/local_copies.py", "os.utime"): "the time of a copy, which nothing depends on",
}


def changes_not_announced(code: str) -> set[str]:
    """The functions called there that change what is on disk without `disk.change` in the same expression."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return {ast.unparse(call.func) for call in calls if changes_the_disk(call) and not is_announced(call)}


def is_announced(call: ast.Call) -> bool:
    inside = [ast.unparse(node.func) for node in ast.walk(call) if isinstance(node, ast.Call)]
    return inside[0].startswith("disk.") or "disk.change" in inside


def changes_the_disk(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name in OPENING and owner != "os":
        texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return any(len(text) < 4 and set(text) & set("wax+") for text in texts)
    if owner == "os":
        return name in OF_THE_SYSTEM | CHANGING or (name == "open" and "os.O_RDONLY" not in map(ast.unparse, values))
    if name == "replace":  # of a path; texts take two
        return bool(owner) and len(call.args) == 1 and not call.keywords
    return name in CHANGING


class TestDisk:
    def test_nothing_else_changes_what_is_on_disk(self) -> None:
        """So that the tests of crashes see every change."""
        root, found = Path(files.__file__).parents[1], set()
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name != "util/disk.py":
                found |= {(name, call) for call in changes_not_announced(path.read_text())}
        assert found == set(NOT_ANNOUNCED)

    @pytest.mark.parametrize(
        "line",
        [
            "path.open('w')",
            "open(path, mode='ab')",
            "os.open(path, os.O_RDWR)",
            "os.replace(old, new)",
            "old.replace(new)",
            "target.symlink_to(path)",
            "shutil.copyfile(path, target)",
            "np.savez(path, a=1)",
            "image.save(path)",
            "h5py.File(path, 'w')",
            "zipfile.ZipFile(path, 'a')",
            "tempfile.TemporaryDirectory()",
        ],
    )
    def test_what_changes_the_disk_is_known(self, line: str) -> None:
        assert len(changes_not_announced(line)) == 1

    @pytest.mark.parametrize(
        "line",
        [
            "path.open()",
            "path.open('rb')",
            "os.open(path, os.O_RDONLY)",
            "text.replace('a', 'b')",
            "replace(config, path=path)",
            "found.remove(one)",
            "disk.remove(path)",
            "disk.change('write', path).open('w')",
            "np.savez(disk.change('write', path), a=1)",
        ],
    )
    def test_what_does_not_or_is_announced(self, line: str) -> None:
        assert not changes_not_announced(line)

    def test_a_disk_that_fails_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(change: str, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(disk, "announce", full)
        with pytest.raises(StoreError, match="No space is left"):
            write_json(tmp_path / "a.json", {})

    def test_a_tree_is_removed_and_links_are_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").write_text("stays")
        (tmp_path / "tree" / "deep").mkdir(parents=True)
        (tmp_path / "tree" / "deep" / "file").write_text("goes")
        (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
        disk.remove_tree(tmp_path / "tree")
        (tmp_path / "run").symlink_to(tmp_path / "kept")  # as of a run that was moved to a larger disk
        files.remove_whole(tmp_path / "run", "run.json")
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
        assert (tmp_path / "kept" / "file").is_file()

    def test_a_tree_that_goes_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where two processes collect garbage: at each change but the first ones there is less than was listed."""
        for n_changes in range(1, 8):
            for deep in ("a/deep", "b"):
                (tmp_path / "tree" / deep).mkdir(parents=True)
                (tmp_path / "tree" / deep / "file").write_text("goes")
            (tmp_path / "tree" / "link").symlink_to(tmp_path)
            left = iter(range(n_changes, 0, -1))

            def other(change: str, path: Path, left: Iterator[int] = left) -> None:
                if next(left, 0) == 1:
                    shutil.rmtree(tmp_path / "tree")

            monkeypatch.setattr(disk, "announce", other)
            files.remove(tmp_path / "tree")
            assert not (tmp_path / "tree").exists()


class TestArchives:
    def test_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", one=np.arange(5), text="some")
        with archives.arrays_of(tmp_path / "a.npz") as found:
            assert found["one"].tolist() == [0, 1, 2, 3, 4]

    def test_more_than_fits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(10**6))
        assert (tmp_path / "bomb.npz").stat().st_size < 20_000
        monkeypatch.setattr(machine, "memory_limit", lambda: 10**6)
        with pytest.raises(ValueError, match="unpacks to 8.0 MB, and 750.0 kB is what fits"):
            archives.check_archive(tmp_path / "bomb.npz")

    def test_an_array_that_claims_to_be_larger(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", header.getvalue())
        with pytest.raises(ValueError, match="larger than the archive says"):
            archives.check_archive(tmp_path / "a.npz")

    def test_no_archive(self) -> None:
        with pytest.raises(ValueError, match="no sound zip file"):
            archives.check_archive(io.BytesIO(b"PK nothing"))
