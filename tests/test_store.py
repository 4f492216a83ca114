"""Shards: what was written is what is read, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import FeatureSpec
from pipeline.errors import StoreError
from pipeline.store.shard import Shard, SoundShards, states
from pipeline.store.shards import FeatureStore, Quarantined, stores
from pipeline.util import checked as checked_files
from pipeline.util import files
from pipeline.util.memo import YOUNG, Memo, Stamp
from pipeline.util.sealed import decoded


def keys_of(*numbers: int) -> list[bytes]:
    return [f"{number:032d}".encode() for number in numbers]


def column(*numbers: int) -> np.ndarray:
    return np.array(keys_of(*numbers), "S32")


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=10, unique=True), min_size=1, max_size=5), st.randoms()
)
@settings(max_examples=25, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], shuffle: object) -> None:
    spec = FeatureSpec("b", "w", None, "e", "avg", (1, 1), "stretch", "bicubic", "float32", "float32")
    store = FeatureStore(tmp_path_factory.mktemp("cache"), spec)
    for numbers in shards:
        store.append(keys_of(*numbers), np.array([[number, number / 3] for number in numbers], np.float32))
    reader = FeatureStore(store.cache, spec)
    assert reader.open() == []
    numbers = sorted({number for shard in shards for number in shard})
    shuffle.shuffle(numbers)  # type: ignore[attr-defined]
    assert len(reader) == len(numbers)
    expected = np.array([[number, number / 3] for number in numbers], np.float32)
    np.testing.assert_array_equal(reader.read(column(*numbers)), expected)
    assert reader.has(column(*numbers, 99)).tolist() == [True] * len(numbers) + [False]


def test_empty_store(store: FeatureStore) -> None:
    assert store.open() == []
    assert len(store) == 0
    assert store.has(column(1)).tolist() == [False]
    with pytest.raises(StoreError, match="1 rows are not in"):
        store.read(column(1))


def test_files_are_as_documented(store: FeatureStore) -> None:
    shard = store.append(keys_of(1, 2), np.ones((2, 3, 3, 4), np.float32))
    assert decoded(FeatureSpec, json.loads((store.folder / "spec.json").read_text())) == store.spec
    with h5py.File(shard.path) as file:
        assert file["features"].shape == (2, 3, 3, 4)
        assert file["features"].chunks is None
        assert file["key"][:].tolist() == keys_of(1, 2)
        assert file.attrs["spec"] == store.digest
    assert [path.name for path in (store.folder / "shards").iterdir()] == [shard.path.name]


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "text", "other spec"])
def test_damage_is_noticed_and_set_aside(
    store: FeatureStore, spec: FeatureSpec, damage: str, random: np.random.Generator
) -> None:
    features = random.random((50, 20), np.float32)
    good = store.append(keys_of(*range(100, 150)), features)
    shard = store.append(keys_of(*range(50)), features)
    content = bytearray(shard.path.read_bytes())
    if damage == "torn":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "flipped":
        content[bytes(content).index(features.tobytes()) + 1234] ^= 1
    elif damage == "text":
        content = bytearray(b"no shard")
    shard.path.write_bytes(content)
    if damage == "other spec":
        shard.path.unlink()
        other = FeatureStore(store.cache / "other", replace(spec, endpoint="conv1")).append(keys_of(1), features[:1])
        shard = replace(shard, path=other.path.rename(shard.path.with_name(other.path.name)))
    reader = FeatureStore(store.cache, store.spec)
    assert [item.path for item in reader.verify()] == [shard.path]
    assert [item.path for item in reader.open(set_aside=False)] == [shard.path]
    assert shard.path.exists()
    assert [item.path for item in reader.open()] == [shard.path]
    assert not shard.path.exists()
    assert shard.path.with_name(shard.path.name + ".damaged").exists()
    assert [item.path for item in reader.shards] == [good.path]
    assert not reader.has(column(*range(50))).any()
    assert reader.open() == []


def test_every_flipped_bit_of_a_shard_is_noticed(store: FeatureStore, random: np.random.Generator) -> None:
    """HDF5's own bytes too: on some damaged ones it would hang, so it must never see them."""
    shard = store.append(keys_of(1, 2, 3, 4), random.random((4, 8), np.float32))
    content = shard.path.read_bytes()
    for offset in range(0, len(content), 7):
        changed = bytearray(content)
        changed[offset] ^= 1 << (offset % 8)
        shard.path.write_bytes(changed)
        assert len(store.verify()) == 1


def test_full_disk_leaves_nothing_behind(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append(keys_of(1), np.ones((1, 4), np.float32))
    before = sorted((store.folder / "shards").iterdir())

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="No space is left.*--cache"):
        store.append(keys_of(2), np.ones((1, 4), np.float32))
    assert sorted((store.folder / "shards").iterdir()) == before


def test_quarantine_round_trip(store: FeatureStore) -> None:
    first = Quarantined("a" * 32, "x/1.jpg", "cut off", "pillow 1")
    store.quarantine([first, Quarantined("b" * 32, "x/2.jpg", "no image", "pillow 1")])
    store.quarantine([Quarantined("b" * 32, "y/2.jpg", "no image at all", "pillow 2")])
    with (store.folder / "quarantine.jsonl").open("a") as file:
        file.write("half a li")
    found = FeatureStore(store.cache, store.spec).quarantined()
    assert found[b"a" * 32] == first
    assert found[b"b" * 32].cause == "no image at all"
    assert len(found) == 2


def test_stores_of_a_cache(store: FeatureStore) -> None:
    store.append(keys_of(1), np.ones((1, 4), np.float32))
    for name, text in (("bad", "no json"), ("0" * 32, (store.folder / "spec.json").read_text())):
        (store.cache / "features" / name).mkdir()
        (store.cache / "features" / name / "spec.json").write_text(text)
    assert [found.digest for found in stores(store.cache)] == [store.digest]


def test_a_damaged_shard_in_a_cache_that_can_only_be_read_is_named(
    store: FeatureStore, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the refusal is made up; its rows count as missing."""
    keys = np.array([f"{number:032x}" for number in range(6)], "S32")
    store.append(keys[:3].tolist(), random.random((3, 4), np.float32))
    bad = store.append(keys[3:].tolist(), random.random((3, 4), np.float32)).path
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    (damage,) = store.open()
    assert (damage.path, damage.cause.split(":")[0]) == (bad, "differs from its checksum")
    assert bad.is_file()
    assert store.has(keys).tolist() == [True] * 3 + [False] * 3
    assert store.read(keys[:3]).shape == (3, 4)


def test_shards_keep_what_computed_them(store: FeatureStore, random: np.random.Generator) -> None:
    written_by = {"tlpipe": "9.9", "processor": "Größe™"}
    store.append([b"0" * 32], random.random((1, 4), np.float32), written_by)
    again = FeatureStore(store.cache, store.spec)
    assert again.open() == []
    assert [shard.written_by for shard in again.shards] == [written_by]


def set_time(path: Path, mtime_ns: int) -> None:
    """Give a file the time of its last writing."""
    os.utime(path, ns=(mtime_ns, mtime_ns))


class TestVerifiedOnce:
    """A shard is read whole when it is first read; what is remembered of it never hides a change."""

    @pytest.fixture
    def shard(self, store: FeatureStore, random: np.random.Generator) -> Shard:
        """A shard that was written long ago, and read once."""
        shard = store.append(keys_of(*range(50)), random.random((50, 20), np.float32), {"engine": "fake"})
        set_time(shard.path, time.time_ns() - 10 * YOUNG)
        assert FeatureStore(store.cache, store.spec).open() == []
        return shard

    @pytest.fixture
    def read_whole(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The files that were read whole."""
        found: list[Path] = []

        def read_checked(path: Path) -> bytes | None:
            found.append(path)
            return checked_files.read_checked(path)

        monkeypatch.setattr("pipeline.store.shard.read_checked", read_checked)
        return found

    def test_and_then_remembered(self, store: FeatureStore, shard: Shard, read_whole: list[Path]) -> None:
        again = FeatureStore(store.cache, store.spec)
        assert again.open() == []
        assert read_whole == []
        assert [(one.path, one.row_shape, one.written_by) for one in again.shards] == [
            (shard.path, (20,), {"engine": "fake"})
        ]
        np.testing.assert_array_equal(again.read(column(7, 3)), store.read_at(np.array([[0, 7], [0, 3]])))

    @pytest.mark.parametrize("change", ["replaced", "written in place", "touched"])
    def test_another_file_of_the_same_size_and_time_is_verified(
        self, store: FeatureStore, shard: Shard, change: str, read_whole: list[Path]
    ) -> None:
        stat, content = shard.path.stat(), bytearray(shard.path.read_bytes())
        if change != "touched":
            content[len(content) // 2] ^= 1
        target = shard.path if change != "replaced" else shard.path.with_name("other")
        target.write_bytes(content)
        target.replace(shard.path)
        set_time(shard.path, stat.st_mtime_ns)
        again = FeatureStore(store.cache, store.spec)
        damaged = [damage.path for damage in again.open()]
        assert read_whole == [shard.path]
        assert damaged == ([] if change == "touched" else [shard.path])
        assert again.has(column(1)).tolist() == [change == "touched"]

    def believed(self, store: FeatureStore, shard: Shard, content: bytes) -> FeatureStore:
        """The store as it is if bytes of a shard went bad with no trace in the file system."""
        stat = shard.path.stat()
        shard.path.write_bytes(content)
        set_time(shard.path, stat.st_mtime_ns)
        SoundShards(store.cache).remember([shard], states([shard.path]), time.time_ns())
        again = FeatureStore(store.cache, store.spec)
        assert again.open() == [], "it is taken to be sound"
        return again

    def test_verify_reads_all_and_ends_the_belief(self, store: FeatureStore, shard: Shard) -> None:
        content = bytearray(shard.path.read_bytes())
        content[-1] ^= 1
        again = self.believed(store, shard, bytes(content))
        assert [damage.path for damage in again.verify()] == [shard.path]
        assert [damage.path for damage in again.open()] == [shard.path]
        assert len(again) == 0

    def test_a_shard_that_fails_to_be_read_is_verified_again(self, store: FeatureStore, shard: Shard) -> None:
        again = self.believed(store, shard, b"no HDF5 " * 100)
        with pytest.raises(StoreError, match="can't be read"):
            again.read(column(1))
        assert [damage.path for damage in again.open()] == [shard.path]

    def test_whatever_a_shard_raises_is_told(
        self, store: FeatureStore, shard: Shard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for error in (TypeError("odd"), ValueError("odd"), RuntimeError("odd")):
            again = self.believed(store, shard, shard.path.read_bytes())

            def fail(*_: object, error: Exception = error) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr("pipeline.store.shards.h5py.File", fail)
                with pytest.raises(StoreError, match="can't be read: odd"):
                    again.read(column(1))
        short = store.append(keys_of(200), np.zeros((1, 20), np.float32))
        store.shards = [replace(short, keys=column(200, 201))]
        with pytest.raises(StoreError, match="has no row 1"):
            store.read(column(201))

    def test_of_a_row_in_several_shards_the_same_is_read_whatever_is_remembered(self, store: FeatureStore) -> None:
        for value in range(4):
            path = store.append(keys_of(1), np.full((1, 20), value, np.float32)).path
            if value % 2:
                set_time(path, time.time_ns() - 10 * YOUNG)
        found = []
        for _ in range(3):
            again = FeatureStore(store.cache, store.spec)
            again.open()
            found.append(float(again.read(column(1))[0, 0]))
        assert len(set(found)) == 1

    @pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", "no JSON\n", "{header}\nodd", "{header}\n"])
    def test_a_memo_that_makes_no_sense_is_not_believed(
        self, store: FeatureStore, shard: Shard, text: str, read_whole: list[Path]
    ) -> None:
        stat = shard.path.stat()
        header = {"inode": stat.st_ino, "changed_ns": stat.st_ctime_ns, "row_shape": [20], "written_by": {}}
        header["keys"] = files.digest_of(shard.keys.tobytes())
        planted = text.replace("{header}", json.dumps(header))
        Memo(store.cache).remember("shard", {shard.path: (Stamp.of(stat), planted)}, time.time_ns())
        assert FeatureStore(store.cache, store.spec).open() == []
        assert read_whole == [shard.path]
