"""A cache at an address: several machines put whole files there, and each reads them through copies of its own."""

from __future__ import annotations

import importlib
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine

from pipeline import commands
from pipeline.commands import cache as care
from pipeline.commands.gc import gc
from pipeline.config import ExtractConfig, HeadConfig
from pipeline.errors import StoreError
from pipeline.store.records import load_dataset, records, save_dataset
from pipeline.store.shards import FeatureStore, stores
from pipeline.util import local_copies, remote
from pipeline.util.checked import here, publish_checked
from pipeline.util.files import matching

N = 120  # pictures of the fixture `pictures`


@pytest.fixture
def cache(bucket: Any) -> Path:
    """A cache in the bucket."""
    return remote.shared("s3://pictures/cache")


@pytest.fixture
def extracted(pictures: Path, cache: Path, fake_engine: FakeEngine) -> Any:
    return commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), cache)


def on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine keeps for itself is not there."""
    monkeypatch.setenv("TLPIPE_LOCAL_CACHE", str(tmp_path / "another machine"))


def features_of(cache: Path, extracted: Any) -> np.ndarray:
    store = FeatureStore(cache, extracted.record.spec)
    assert store.open() == []
    return store.read(np.unique(np.concatenate([shard.keys for shard in store.shards])))


class TestIsAsOneOfThisMachine:
    def test_same_features_and_record(
        self, extracted: Any, pictures: Path, cache: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        here_too = commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), tmp_path / "cache")
        assert extracted.record.id == here_too.record.id and extracted.n_computed == here_too.n_computed
        np.testing.assert_array_equal(features_of(cache, extracted), features_of(tmp_path / "cache", here_too))

    def test_another_machine_computes_nothing_again(
        self, extracted: Any, pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = features_of(cache, extracted)
        on_another_machine(monkeypatch, tmp_path)
        again = commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), cache)
        assert again.n_computed == 0 and again.record.id == extracted.record.id
        np.testing.assert_array_equal(features_of(cache, extracted), expected)

    def test_heads_are_trained_and_asked(
        self, extracted: Any, pictures: Path, cache: Path, reports: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), tmp_path / "cache")
        same = commands.train_head(HeadConfig("logreg"), tmp_path / "cache", tmp_path / "other reports")
        assert run.metrics == same.metrics
        pages = commands.report([], cache, reports).pages
        assert pages

    def test_parts_on_several_machines(
        self, pictures: Path, cache: Path, tmp_path: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipeline.config import ExtractOptions

        config = ExtractConfig(str(pictures))
        computed = 0
        for number in (1, 2, 3):
            monkeypatch.setenv("TLPIPE_LOCAL_CACHE", str(tmp_path / f"machine {number}"))
            computed += commands.extract(config, cache, ExtractOptions(part=f"{number}/3")).n_computed
        on_another_machine(monkeypatch, tmp_path)
        last = commands.extract(config, cache)
        assert computed == N and last.n_computed == 0

    def test_the_memo_and_graphs_are_not_shared(self, extracted: Any, cache: Path, bucket: Any) -> None:
        names = bucket.find("pictures/cache")
        assert names
        assert not [name for name in names if "memo" in name or "graphs" in name or "partial" in name]


class TestCare:
    def test_ls_and_verify(self, extracted: Any, cache: Path) -> None:
        (row,) = care.ls(cache, writers=True)
        assert row["features_id"] == extracted.record.id and row["images"] == N and row["bytes"] > 0
        found = care.verify(cache)
        assert found.n_files >= 3 and found.damaged == []

    def test_a_damaged_shard_is_computed_again(
        self,
        extracted: Any,
        pictures: Path,
        cache: Path,
        bucket: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        expected = features_of(cache, extracted)
        (path,) = list((cache / "features").glob("*/shards/*.h5"))
        data = bytearray(bucket.cat_file(path.path))
        data[len(data) // 2] ^= 1
        bucket.pipe_file(path.path, bytes(data))
        on_another_machine(monkeypatch, tmp_path)
        assert len(care.verify(cache).damaged) == 1
        again = commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), cache)
        assert again.n_computed == extracted.n_computed
        np.testing.assert_array_equal(features_of(cache, extracted), expected)
        assert [str(item.path) for item in gc(cache, tmp_path / "reports").found] == [f"{path}.damaged"]

    def test_what_can_not_be_had_now_is_not_taken_for_damaged(
        self,
        extracted: Any,
        cache: Path,
        reports: Path,
        server: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        on_another_machine(monkeypatch, tmp_path)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        type(cache.fs).clear_instance_cache()  # type: ignore[attr-defined]
        again = remote.shared(str(cache))
        server.fails = lambda number, method, address: method == "GET" and "shards" in address and ".h5" in address
        with pytest.raises(StoreError, match=r"can't be (read|written): .*"):
            commands.train_head(HeadConfig("logreg"), again, reports)
        server.calm()
        assert not matching(again / "features", "*/shards/*.damaged")
        assert commands.train_head(HeadConfig("logreg"), again, reports).metrics

    def test_gc_in_the_middle_of_an_extract_takes_nothing_of_it(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = importlib.import_module("pipeline.commands.extract")

        def then_gc(function: Any) -> Any:
            def called(*arguments: Any) -> Any:
                found = function(*arguments)
                gc(cache, reports, delete=True)
                return found

            return called

        for name in ("save_dataset", "save_record", "complete"):
            monkeypatch.setattr(module, name, then_gc(getattr(module, name)))
        commands.extract(ExtractConfig(str(pictures)), cache)
        monkeypatch.undo()
        assert commands.train_head(HeadConfig("centroid"), cache, reports).metrics

    def test_two_that_save_the_same_dataset_keep_it(self, extracted: Any, cache: Path) -> None:
        dataset = load_dataset(cache, extracted.record.dataset)
        save_dataset(cache, replace(dataset, name="another name"))
        assert len(matching(cache / "datasets", "*.h5")) == 2
        assert len(load_dataset(cache, extracted.record.dataset)) == len(dataset)

    def test_runs_of_another_machine_keep_their_features(
        self, extracted: Any, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        commands.train_head(HeadConfig("logreg"), cache, reports)
        monkeypatch.setattr("platform.node", lambda: "another")
        shutil.rmtree(reports)
        assert gc(cache, reports).away != []

    def test_a_copy_that_was_damaged_here_is_fetched_again(self, extracted: Any, cache: Path, bucket: Any) -> None:
        expected = features_of(cache, extracted)
        (path,) = list((cache / "features").glob("*/shards/*.h5"))
        copy = here(path)
        copy.write_bytes(b"\0" * (copy.stat().st_size - 1))
        np.testing.assert_array_equal(features_of(cache, extracted), expected)
        assert bucket.cat_file(path.path) == here(path).read_bytes()

    def test_gc_removes_what_nothing_needs(
        self, extracted: Any, pictures: Path, cache: Path, bucket: Any, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (pictures / "dark" / "0.png").unlink()
        commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), cache)
        module = importlib.import_module("pipeline.commands.gc")
        monkeypatch.setattr(module, "ABANDONED", -100.0)
        found = gc(cache, reports, delete=True)
        assert {item.path.parent.name for item in found.found} == {"tables", "datasets"}
        assert all(item.size > 0 for item in found.found)
        assert not any(bucket.exists(item.path.path) for item in found.found)
        assert len(records(cache)) == 1
        assert features_of(cache, extracted).shape[0] > 0

    def test_export(self, extracted: Any, cache: Path, tmp_path: Path) -> None:
        care.export(cache, None, tmp_path / "all.npz")
        with np.load(tmp_path / "all.npz") as file:
            assert len(file["features"]) == len(file["labels"]) > N


class TestTrouble:
    def test_every_seventh_request_fails(
        self, pictures: Path, cache: Path, fake_engine: FakeEngine, server: Any, reports: Path
    ) -> None:
        server.fails = lambda number, method, address: number % 7 == 0
        result = commands.extract(ExtractConfig(str(pictures)), cache)
        assert result.n_computed == N
        assert commands.train_head(HeadConfig("centroid"), cache, reports).metrics
        assert care.verify(cache).damaged == []

    def test_what_can_not_be_put_is_an_error_and_nothing_half_is_there(
        self,
        pictures: Path,
        cache: Path,
        fake_engine: FakeEngine,
        server: Any,
        bucket: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        type(bucket).clear_instance_cache()
        cache = remote.shared(str(cache))
        server.fails = lambda number, method, address: method == "PUT" and address.partition("?")[0].endswith(".h5")
        with pytest.raises(StoreError, match=r"s3://pictures/cache/\S+\.h5 can't be written: .*check the address"):
            commands.extract(ExtractConfig(str(pictures)), cache)
        server.calm()
        assert not [name for name in bucket.find("pictures/cache") if name.endswith(".h5")]
        assert commands.extract(ExtractConfig(str(pictures)), cache).n_computed == N

    def test_little_room_for_copies(
        self, pictures: Path, cache: Path, fake_engine: FakeEngine, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pass_ = importlib.import_module("pipeline.extraction.pass_")
        monkeypatch.setattr(pass_, "SHARD_ROWS", 16)
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE_GB", "0.00002")  # 20,000 bytes: a few shards
        result = commands.extract(ExtractConfig(str(pictures)), cache)
        assert result.n_computed == N
        features = features_of(cache, result)
        copies = list((local_copies.folder() / "copies").rglob("*.h5"))
        shards = list((cache / "features").glob("*/shards/*.h5"))
        assert len(features) == N and len(copies) < len(shards)
        assert sum(path.stat().st_size for path in copies) < 2 * 20_000
        assert commands.train_head(HeadConfig("logreg"), cache, reports).metrics

    @pytest.mark.slow
    def test_killed_at_random_moments(self, pictures: Path, cache: Path, tmp_path: Path, server: Any) -> None:
        network = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "32", "--quiet")
        command = [sys.executable, "-m", "pipeline", "extract", str(pictures), *network, "--cache"]
        subprocess.run([*command, str(tmp_path / "cache")], check=True)
        server.seconds = 0.02
        draw = random.Random(0)
        for _ in range(5):
            process = subprocess.Popen([*command, str(cache)])
            time.sleep(draw.uniform(1, 6))
            process.kill()
            process.wait()
        subprocess.run([*command, str(cache)], check=True)
        (expected,), (found,) = stores(tmp_path / "cache"), stores(cache)
        assert expected.open() == found.open() == []
        keys = np.unique(np.concatenate([shard.keys for shard in expected.shards]))
        np.testing.assert_array_equal(found.read(keys), expected.read(keys))
        assert care.verify(cache).damaged == []

    def test_no_bucket(self, bucket: Any, pictures: Path, fake_engine: FakeEngine) -> None:
        with pytest.raises(StoreError, match="s3://nowhere/cache/.* can't be .*: .*bucket.*check the address"):
            commands.extract(ExtractConfig(str(pictures)), remote.shared("s3://nowhere/cache"))

    def test_no_bucket_to_look_into(self, bucket: Any) -> None:
        with pytest.raises(StoreError, match="s3://nowhere/cache.* can't be read: there is no bucket nowhere"):
            care.ls(remote.shared("s3://nowhere/cache"))
        assert care.ls(remote.shared("s3://pictures/new")) == []

    def test_what_is_published_twice_is_put_once(self, cache: Path, server: Any) -> None:
        first = publish_checked(cache / "some", b"data", ".h5")
        server.calm()
        assert publish_checked(cache / "some", b"data", ".h5") == first
        assert not [address for method, address in server.asked if method == "PUT"]
        shutil.rmtree(local_copies.folder())
        assert here(first).read_bytes() == b"data"
