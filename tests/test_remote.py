"""Pictures at addresses: the same rows as of the same files on this machine, whatever the network does."""

from __future__ import annotations

import http.server
import importlib
import io
import os
import pickle
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from conftest import FakeEngine, write_picture
from object_store import ObjectStore
from pyarrow import parquet

from pipeline import commands
from pipeline.config import COMMON, ExtractConfig, HeadConfig, SplitConfig
from pipeline.data import Opened, list_images, list_source, open_dataset
from pipeline.errors import ConfigError, DataError, ImageError
from pipeline.store.shards import FeatureStore
from pipeline.util import fetching, local_copies, remote, stamps
from pipeline.util.files import digest_of
from pipeline.util.memo import Memo, Stamp

N = 24


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 24 pictures, one of them no picture, and what is never data."""
    folder = tmp_path_factory.mktemp("remote") / "colours"
    draw = np.random.default_rng(0)
    for row in range(N):
        red = row % 2
        name = f"{('blue', 'red')[red]}/{row:02d}.jpg"
        write_picture(draw, folder / name, colour=(200, 60, 60) if red else (60, 60, 200))
    (folder / "red" / "torn.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "red" / "empty.jpg").write_bytes(b"")
    (folder / "red" / ".hidden.jpg").write_bytes(b"hidden")
    (folder / "red" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def put(bucket: Any, colours: Path) -> str:
    """The address of the same pictures in the bucket."""
    bucket.put(str(colours), "pictures/colours", recursive=True)
    return "s3://pictures/colours"


def opened(data: str | Path, memo: Memo | None = None) -> Opened:
    return open_dataset(str(data), SplitConfig(), memo=memo)


def put_tar(bucket: Any, file: Path, pictures: Iterable[Path]) -> None:
    """Put a tar of some pictures into the bucket, by the name of the file that is written here first."""
    with tarfile.open(file, "w") as tar:
        for path in pictures:
            tar.add(path, path.name)
    bucket.put_file(str(file), f"pictures/{file.name}")


def same(found: Opened, expected: Opened) -> None:
    assert found.dataset.keys.tolist() == expected.dataset.keys.tolist()
    assert found.dataset.labels.tolist() == expected.dataset.labels.tolist()
    assert found.dataset.splits.tolist() == expected.dataset.splits.tolist()
    assert found.dataset.class_names == expected.dataset.class_names
    for row in range(0, len(expected.dataset), 5):
        assert found.source.read(row) == expected.source.read(row)


class TestFolder:
    def test_is_the_same_as_on_this_machine(self, put: str, colours: Path) -> None:
        found, expected = opened(put), opened(colours)
        same(found, expected)
        assert list(found.dataset.locations) == list(expected.dataset.locations)
        assert found.dataset.name == "colours"
        assert found.notes == expected.notes

    def test_nothing_is_computed_again_when_pictures_move_there(
        self, put: str, colours: Path, cache: Path, fake_engine: FakeEngine
    ) -> None:
        first = commands.extract(ExtractConfig(data=str(colours)), cache)
        second = commands.extract(ExtractConfig(data=put), cache)
        assert first.n_computed == N
        assert second.n_computed == 0 and second.n_images == first.n_images
        assert second.unreadable == first.unreadable and len(second.unreadable) == 2
        assert second.record.config.data == put

    def test_features_are_those_of_this_machine(
        self, put: str, colours: Path, cache: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        there = commands.extract(ExtractConfig(data=put), cache)
        here = commands.extract(ExtractConfig(data=str(colours)), tmp_path / "other cache")
        assert there.record.dataset == here.record.dataset
        assert there.n_computed == here.n_computed == N
        stores = [FeatureStore(folder, here.record.spec) for folder in (cache, tmp_path / "other cache")]
        keys = opened(colours).dataset.keys[:5]
        for store in stores:
            store.open()
        np.testing.assert_array_equal(stores[0].read(keys), stores[1].read(keys))

    def test_a_second_visit_reads_only_what_changed(
        self, put: str, cache: Path, fake_engine: FakeEngine, server: ObjectStore, bucket: Any, colours: Path
    ) -> None:
        commands.extract(ExtractConfig(data=put), cache)
        server.calm()
        again = commands.extract(ExtractConfig(data=put), cache)
        assert again.n_computed == 0
        assert server.read() == []
        bucket.pipe_file("pictures/colours/red/01.jpg", (colours / "blue" / "02.jpg").read_bytes())
        server.calm()
        commands.extract(ExtractConfig(data=put), cache)
        assert [address.partition("?")[0] for address in server.read()] == ["/pictures/colours/red/01.jpg"]

    def test_each_picture_is_fetched_once(
        self, put: str, cache: Path, fake_engine: FakeEngine, server: ObjectStore
    ) -> None:
        server.calm()
        commands.extract(ExtractConfig(data=put), cache)
        fetched = server.read()
        assert len(fetched) == len(set(fetched)) == N + 2

    def test_large_pictures_are_asked_for_in_short_lists(self, put: str, colours: Path, bucket: Any) -> None:
        names = sorted(path.relative_to(colours).as_posix() for path in colours.rglob("*.*"))
        asked: list[int] = []
        root = remote.place(put)

        class Listed:
            async_impl = True

            def cat_ranges(self, paths: list[str], *args: Any, **options: Any) -> list[bytes | Exception]:
                asked.append(len(paths))
                return root.fs.cat_ranges(paths, *args, **options)  # type: ignore[attr-defined, no-any-return]

            def info(self, path: str) -> dict[str, Any]:
                return root.fs.info(path)  # type: ignore[attr-defined, no-any-return]

        class Folder:
            fs, path, protocol = Listed(), root.path, "s3"  # type: ignore[attr-defined]

        sizes = [fetching.MANY_BYTES // 2, fetching.MANY_BYTES // 2, 2 * fetching.MANY_BYTES, *[100] * (len(names) - 3)]
        found = list(fetching.read_many(Folder(), names, sizes))  # type: ignore[arg-type]
        assert found == [(colours / name).read_bytes() for name in names]
        assert asked == [2, 1, len(names) - 3]

    def test_folders_of_one_level_are_listed_at_the_same_time(
        self, bucket: Any, colours: Path, server: ObjectStore
    ) -> None:
        names = [f"pictures/many/class{number:02d}/{row}.jpg" for number in range(30) for row in range(2)]
        bucket.pipe({name: (colours / "blue" / "00.jpg").read_bytes() for name in names})
        server.calm()
        server.seconds = 0.2
        root = remote.place("s3://pictures/many")
        remote.look_through(root)
        assert len(server.asked) == 31
        assert len(remote.entries(root)) == 30
        assert len(server.asked) == 31  # and are remembered
        assert server.at_once > 2

    def test_splits_and_a_bucket_itself(self, bucket: Any, colours: Path) -> None:
        for path in sorted(colours.rglob("[0-9]*.jpg")):
            split = "test" if int(path.stem) % 4 == 0 else "train"
            bucket.put_file(str(path), f"pictures/{split}/{path.parent.name}/{path.name}")
        found = opened("s3://pictures")
        assert found.dataset.name == "pictures"
        assert sorted(set(found.given.tolist())) == [0, 2]
        assert found.dataset.counts()["test"] == N // 4

    def test_predict(self, put: str, cache: Path, reports: Path, fake_engine: FakeEngine) -> None:
        commands.extract(ExtractConfig(data=put), cache)
        commands.train_head(HeadConfig("logreg"), cache, reports)
        locations, source = list_images([put, f"{put}/red/01.jpg"])
        assert len(locations) == N + 2 + 1 and len(source) == len(locations)
        assert locations[-1] == f"{put}/red/01.jpg"
        found = source.keys(None, rehash=False)
        assert found.column[-1] in found.column[:-1].tolist()


class TestPacks:
    def test_parquet_tars_and_manifests(self, bucket: Any, colours: Path, tmp_path: Path, server: ObjectStore) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        expected = {digest_of(path.read_bytes()).encode() for path in files}
        table = pyarrow.table(
            {"image": [path.read_bytes() for path in files], "label": [path.parent.name for path in files]}
        )
        parquet.write_table(table, tmp_path / "all.parquet", row_group_size=10)
        bucket.put_file(str(tmp_path / "all.parquet"), "pictures/parquet/train-00000-of-00001.parquet")
        for number in range(2):
            with tarfile.open(tmp_path / f"s-{number}.tar", "w") as tar:
                for path in files[number::2]:
                    tar.add(path, f"{path.stem}.jpg")
                    label = tmp_path / "label"
                    label.write_text(path.parent.name)
                    tar.add(label, f"{path.stem}.cls")
            bucket.put_file(str(tmp_path / f"s-{number}.tar"), f"pictures/tars/s-{number}.tar")
        rows = "\n".join(f"{path.parent.name}/{path.name},{path.parent.name}" for path in files)
        bucket.pipe_file("pictures/set/list.csv", f"path,label\n{rows}\n".encode())
        for path in files:
            bucket.put_file(str(path), f"pictures/set/{path.parent.name}/{path.name}")
        (tmp_path / "mixed").mkdir()
        shutil.copy(files[0], tmp_path / "mixed" / "own.jpg")
        lines = [f"own.jpg,{files[0].parent.name}"]
        lines += [f"s3://pictures/set/{path.parent.name}/{path.name},{path.parent.name}" for path in files[1:]]
        (tmp_path / "mixed" / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
        memo = Memo(tmp_path / "cache")
        for data in (
            "s3://pictures/parquet",
            "s3://pictures/parquet/train-00000-of-00001.parquet",
            "s3://pictures/tars",
            "s3://pictures/tars/s-{0..1}.tar",
            "s3://pictures/tars/s-*.tar",
            "s3://pictures/set/list.csv",
            tmp_path / "mixed" / "list.csv",
        ):
            found = opened(data, memo)
            assert set(found.dataset.keys.tolist()) == expected, data
            assert set(found.dataset.class_names) == {"blue", "red"}
            for row in (0, N // 2, N - 1):
                content = found.source.read(row)
                assert isinstance(content, bytes)
                assert digest_of(content).encode() == found.dataset.keys[row]
            server.calm()
            opened(data, memo)
            assert server.read() == [], data

    def test_a_table_that_changes_is_read_anew_in_the_same_process(self, put: str, bucket: Any) -> None:
        for names in (["red/01.jpg", "blue/00.jpg"], ["red/03.jpg", "blue/02.jpg", "blue/04.jpg"]):
            rows = "".join(f"{name},{name[:3]}\n" for name in names)
            bucket.pipe_file("pictures/colours/list.csv", f"path,label\n{rows}".encode())
            bucket.ls("pictures/colours", refresh=False)
            assert list(opened(f"{put}/list.csv").dataset.locations) == names

    def test_a_copy_that_went_is_fetched_again(self, bucket: Any, colours: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            tar.add(colours / "red" / "01.jpg", "a.jpg")
            tar.add(colours / "blue" / "00.jpg", "b.jpg")
        bucket.put_file(str(tmp_path / "s.tar"), "pictures/s.tar")
        _, source = list_images(["s3://pictures/s.tar"])
        shutil.rmtree(local_copies.folder())
        assert source.read(0) == (colours / "red" / "01.jpg").read_bytes()

    def test_of_a_tar_that_finds_no_room_only_parts_are_fetched(
        self, bucket: Any, colours: Path, tmp_path: Path, server: ObjectStore
    ) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        put_tar(bucket, tmp_path / "s.tar", files)
        _, source = list_images(["s3://pictures/s.tar"])
        shutil.rmtree(local_copies.folder())
        server.calm()
        keys = [digest_of(path.read_bytes()).encode() for path in files]
        assert sorted(source.keys(None, rehash=False).column.tolist()) == sorted(keys)
        assert len(server.read()) == 1, "whoever reads all of it fetches the whole of it"
        shutil.rmtree(local_copies.folder())
        server.calm()
        found = [digest_of(source.read(row)).encode() for row in range(len(source))]
        assert sorted(found) == sorted(keys)
        assert len(server.read()) == len(files)
        assert not list(local_copies.folder().rglob("*.tar"))
        server.calm()
        sent = pickle.loads(pickle.dumps(source))
        assert [digest_of(sent.read(row)).encode() for row in range(len(sent))] == found
        assert len(server.read()) == 1, "on another machine there was no copy yet"

    def test_an_empty_picture_is_no_part_that_is_asked_for(
        self, bucket: Any, colours: Path, tmp_path: Path, server: ObjectStore
    ) -> None:
        files = [colours / "red" / "empty.jpg", *sorted(colours.rglob("0[0-9].jpg"))]
        put_tar(bucket, tmp_path / "one.tar", files)
        _, source = list_images(["s3://pictures/one.tar"])
        source.keys(None, rehash=False)
        assert source.workers > 16, "each part is waited for"
        shutil.rmtree(local_copies.folder())
        server.calm()
        assert [source.read(row) for row in range(len(source))] == [path.read_bytes() for path in files]
        assert len(server.read()) == len(files) - 1
        assert not list(local_copies.folder().rglob("*.tar"))

    def test_roots_that_can_not_be_reached_leave_the_other_rows(
        self, put: str, colours: Path, tmp_path: Path, cache: Path, fake_engine: FakeEngine
    ) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        lines = [f"{put}/{path.parent.name}/{path.name},{path.parent.name}" for path in files]
        lines += [f"zip://b.jpg::{tmp_path}/none.zip,blue", "s3://none/c.jpg,red"]
        (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
        result = commands.extract(ExtractConfig(data=str(tmp_path / "list.csv")), cache)
        assert result.n_computed == N
        assert [line.partition(" can't be read")[0] for line in result.unreadable.values()] == [
            f"zip://::{tmp_path}/none.zip",
            "s3://none/c.jpg",
        ]

    def test_zip_and_web_servers(self, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE", str(tmp_path / "local copies"))
        expected = opened(colours)
        with tarfile.open(tmp_path / "some.tar", "w") as tar:
            tar.add(colours / "red" / "01.jpg", "01.jpg")
        (tmp_path / "test").mkdir()
        with zipfile.ZipFile(tmp_path / "test" / "tars.zip", "w") as archive:
            for split in ("train", "val"):
                archive.write(tmp_path / "some.tar", f"{split}/0.tar")
        assert list_source(f"zip://::{tmp_path}/test/tars.zip", COMMON).splits == ["train", "val"]
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for path in sorted(colours.rglob("*.*")):
                archive.write(path, f"colours/{path.relative_to(colours)}")
        same(opened(f"zip://colours::{tmp_path}/all.zip"), expected)
        same(opened(f"zip://colours::file://{tmp_path}/all.zip", Memo(tmp_path / "cache")), expected)
        handler = partial(Quiet, directory=str(tmp_path))
        files = sorted(colours.rglob("[0-9]*.jpg"))
        shutil.copytree(colours, tmp_path / "colours")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
            thread = threading.Thread(target=web.serve_forever)
            thread.start()
            try:
                host = f"http://127.0.0.1:{web.server_port}"
                lines = [f"{host}/colours/{path.parent.name}/{path.name},{path.parent.name}" for path in files]
                (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
                pictures = {digest_of(path.read_bytes()).encode() for path in files}
                for data in (f"{host}/list.csv", tmp_path / "list.csv"):
                    assert {*opened(data).dataset.keys.tolist()} == pictures, data
                with tarfile.open(tmp_path / "all.tar", "w") as tar:
                    for path in files:
                        tar.add(path, path.name)
                assert {*list_images([f"{host}/all.tar"])[1].keys(None, rehash=False).column.tolist()} == pictures
                shutil.copy(tmp_path / "all.tar", tmp_path / "all-2.tar")
                found = opened(f"{host}/all{{,-2}}.tar")
                assert {*found.dataset.keys.tolist()} == pictures
                shutil.rmtree(local_copies.folder())  # this server gives the whole of a file for each part of it
                system = remote.place(f"{host}/all.tar").fs  # type: ignore[attr-defined]
                monkeypatch.setattr(system, "cat_file", None)  # which would hold the whole in memory
                for row in range(0, len(found.dataset), 5):
                    content = found.source.read(row)
                    assert isinstance(content, bytes)
                    assert digest_of(content).encode() == found.dataset.keys[row]
            finally:
                web.shutdown()
                thread.join()


class TestStamps:
    def test_pictures_of_a_mixed_table_are_fetched_once(
        self, put: str, colours: Path, tmp_path: Path, server: ObjectStore
    ) -> None:
        (tmp_path / "own.jpg").write_bytes((colours / "blue" / "00.jpg").read_bytes())
        names = [f"{put}/{path.parent.name}/{path.name}" for path in sorted(colours.rglob("[0-9]*.jpg"))]
        rows = "".join(f"{name},{'ab'[number % 2]}\n" for number, name in enumerate([*names, "own.jpg"]))
        (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
        server.calm()
        found = opened(tmp_path / "list.csv")
        for row in range(len(found.dataset)):
            found.source.read(row)
        assert len(server.read()) == len(names)

    def test_of_the_web_are_times(self) -> None:
        info = {"size": 7, "Last-Modified": "Sun, 22 Nov 2026 08:00:00 GMT"}
        assert stamps._stamp(info) == (7, 1795334400 * 10**9)
        assert stamps._stamp({"size": 7, "Last-Modified": "odd"}) is None
        assert stamps._stamp({"size": 7, "ETag": "b"}) != stamps._stamp({"size": 7, "ETag": "a"})

    def test_where_folders_are_not_listed_each_file_is_asked_for(
        self, put: str, server: ObjectStore, colours: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        type(bucket).clear_instance_cache()
        root = remote.place(put)
        names = [f"blue/{path.name}" for path in (colours / "blue").iterdir()]
        server.fails = lambda number, method, address: "list-type" in address
        assert set(stamps.stamps_of(root, names)) == set(names)

    def test_what_nothing_tells_of_is_fetched_by_each_process(self, tmp_path: Path) -> None:
        held = fetching.Held(remote.place("memory://somewhere/a.csv"))
        assert held.stamp is None and fetching._PROCESS in held._state

    @pytest.mark.parametrize("age", [1, 10])
    def test_what_was_changed_a_moment_before_is_no_copy_for_later(
        self, age: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it may be changed again within the same second, which is all that a web server tells."""
        monkeypatch.setattr(fetching, "stamp_of", lambda path: Stamp(100, time.time_ns() - age * 10**9))
        held = fetching.Held(remote.place("memory://somewhere/a.csv"))
        assert (fetching._PROCESS in held._state) == (age == 1)

    def test_chains_end_in_whole_paths(self) -> None:
        assert remote.whole_address("zip://a::b.zip") == f"zip://a::{Path.cwd()}/b.zip"
        assert remote.whole_address("zip://a::s3://b/c.zip") == "zip://a::s3://b/c.zip"
        assert remote.whole_address("S3://b/c/") == "S3://b/c"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that says nothing of what it is asked."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class TestTrouble:
    def test_every_seventh_request_fails(
        self, put: str, colours: Path, cache: Path, fake_engine: FakeEngine, server: ObjectStore
    ) -> None:
        server.calm()
        server.fails = lambda number, method, address: number % 7 == 0
        result = commands.extract(ExtractConfig(data=put), cache)
        assert result.n_computed == N and len(result.unreadable) == 2
        assert result.record.dataset == commands.extract(ExtractConfig(data=str(colours)), cache).record.dataset
        assert len(server.asked) > N + 2 + 3

    def test_what_is_refused_is_not_taken_for_empty(
        self, put: str, cache: Path, fake_engine: FakeEngine, server: ObjectStore
    ) -> None:
        """s3fs gives the number of an empty range to a token that expired, too."""
        server.refuses = lambda number, method, address: method == "GET" and address.partition("?")[0].endswith(".jpg")
        with pytest.raises(
            DataError, match=r"No image of the class 'blue' can be opened .*/00.jpg can't be read: .*token"
        ):
            commands.extract(ExtractConfig(data=put), cache)
        server.calm()
        assert commands.extract(ExtractConfig(data=put), cache).n_computed == N, "nothing was remembered"

    def test_a_listing_that_is_cut_short_is_an_error(
        self,
        put: str,
        bucket: Any,
        cache: Path,
        fake_engine: FakeEngine,
        server: ObjectStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else trying takes a minute
        type(bucket).clear_instance_cache()
        server.fails = lambda number, method, address: "list-type" in address and "red%2F" in address
        with pytest.raises(DataError, match=r"s3://pictures/colours/red can't be read: .*check the address"):
            commands.extract(ExtractConfig(data=put), cache)
        assert not (cache / "tables").exists()

    def test_what_changes_between_listing_and_reading_is_told(
        self, put: str, bucket: Any, cache: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = opened(put)
        shutil.rmtree(local_copies.folder())
        bucket.pipe_file("pictures/colours/red/01.jpg", b"something else")
        bucket.rm_file("pictures/colours/red/03.jpg")
        module = importlib.import_module("pipeline.commands.extract")
        monkeypatch.setattr(module, "open_dataset", lambda *args, **options: found)
        result = commands.extract(ExtractConfig(data=put), cache)
        assert result.n_computed == N - 2
        assert "changed since its key was computed" in result.unreadable["red/01.jpg"]
        assert "can't be read" in result.unreadable["red/03.jpg"]

    def test_a_tar_that_is_replaced_while_it_is_read(self, bucket: Any, colours: Path, tmp_path: Path) -> None:
        def put_of(name: str) -> None:
            put_tar(bucket, tmp_path / "one.tar", sorted((colours / name).glob("[0-9]*.jpg")))

        def keys_of(name: str) -> list[bytes]:
            return sorted(digest_of(path.read_bytes()).encode() for path in (colours / name).glob("[0-9]*.jpg"))

        memo = Memo(tmp_path / "cache")
        put_of("red")
        found = list_source("s3://pictures/one.tar", COMMON, memo=memo)
        put_of("blue")
        assert sorted(found.source.keys(memo, rehash=False).column.tolist()) == keys_of("red"), "those of its copy"
        shutil.rmtree(local_copies.folder())
        changed = found.source.keys(memo, rehash=True)
        assert len(changed.errors) == len(found.source)
        assert "one.tar changed while it was read" in str(changed.errors[0])
        assert sorted(opened("s3://pictures/one.tar", memo).dataset.keys.tolist()) == keys_of("blue")
        held = fetching.Held(remote.place("s3://pictures/one.tar"))
        put_of("red")
        shutil.rmtree(local_copies.folder())
        with pytest.raises(DataError, match=r"s3://pictures/one.tar changed while it was read"):
            held.file()

    def test_a_tar_that_got_shorter_while_parts_are_read(
        self, bucket: Any, colours: Path, tmp_path: Path, server: ObjectStore
    ) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        for some in (files, files[:1]):
            put_tar(bucket, tmp_path / "one.tar", some)
            if some is files:
                _, source = list_images(["s3://pictures/one.tar"])
                source.keys(None, rehash=False)
        shutil.rmtree(local_copies.folder())
        with pytest.raises(ImageError, match=r"s3://pictures/one.tar changed while it was read"):
            source.read(len(files) - 1)
        server.refuses = lambda number, method, address: True
        with pytest.raises(ImageError, match=r"s3://pictures/one.tar can't be read: .*token"):
            source.read(0)

    def test_a_damaged_copy_is_fetched_again_when_all_is_read_again(
        self, bucket: Any, colours: Path, tmp_path: Path
    ) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        put_tar(bucket, tmp_path / "one.tar", files)
        memo = Memo(tmp_path / "cache")
        expected = opened("s3://pictures/one.tar", memo)
        (copy,) = local_copies.folder().rglob("*.tar")
        content = bytearray(copy.read_bytes())
        content[content.index(files[0].read_bytes()) + 200] ^= 1
        copy.write_bytes(content)
        again = open_dataset("s3://pictures/one.tar", SplitConfig(), memo=memo, rehash=True)
        assert again.dataset.keys.tolist() == expected.dataset.keys.tolist()
        assert copy.read_bytes() != bytes(content)

    def test_a_damaged_copy_of_parquet_is_fetched_again_once(
        self, bucket: Any, colours: Path, tmp_path: Path, server: ObjectStore
    ) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        rows = {"image": [path.read_bytes() for path in files], "label": [path.parent.name for path in files]}
        parquet.write_table(pyarrow.table(rows), tmp_path / "some.parquet")
        bucket.put_file(str(tmp_path / "some.parquet"), "pictures/some.parquet")
        expected = opened("s3://pictures/some.parquet")
        (copy,) = local_copies.folder().rglob("*.parquet")
        copy.write_bytes(copy.read_bytes()[:-4] + b"PARE")
        server.calm()
        again = open_dataset("s3://pictures/some.parquet", SplitConfig(), rehash=True)
        assert again.dataset.keys.tolist() == expected.dataset.keys.tolist()
        assert len(server.read()) == 1
        assert again.source.workers < 48, "threads would each read another row group, of which few are kept"

    @pytest.mark.parametrize(("column", "what"), [("label", "class 'cow'"), ("split", "split 'test'")])
    def test_a_class_or_a_split_that_can_not_be_reached_is_an_error(
        self, column: str, what: str, colours: Path, bucket: Any
    ) -> None:
        lines = [f"{path},{path.parent.name},train" for path in sorted(colours.rglob("[0-9]*.jpg"))]
        lines += [f"s3://none/{row}.jpg,{'cow' if column == 'label' else 'red'},test" for row in range(4)]
        if column == "label":
            lines = [line.rpartition(",")[0] + "," for line in lines]
        (colours.parent / "list.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
        with pytest.raises(DataError, match=f"No image of the {what} can be opened .s3://none/0.jpg"):
            opened(colours.parent / "list.csv")

    def test_tars_as_file_systems_are_read_by_one_thread_at_a_time(self, tmp_path: Path) -> None:
        content = {f"{'ab'[row % 2]}/{row}.png": bytes([row]) * 5000 for row in range(200)}
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for name, data in content.items():
                member = tarfile.TarInfo(f"d/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        found = list_source(f"tar://d::{tmp_path}/all.tar", COMMON)
        keys = found.source.keys(None, rehash=False).column.tolist()
        expected = {name: digest_of(data).encode() for name, data in content.items()}
        assert dict(zip(found.locations, keys, strict=True)) == expected

    def test_files_of_this_machine_as_addresses(self, colours: Path) -> None:
        files = sorted(colours.rglob("[0-9]*.jpg"))
        for protocol in ("file", "local"):
            lines = [f"{protocol}://{path},{path.parent.name}" for path in files]
            (colours.parent / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
            assert len(opened(colours.parent / "list.csv").dataset) == N
        (colours.parent / "list.csv").write_text("path,label\nfile:///etc/hostname,x\n")
        with pytest.raises(DataError, match="leaves the folder"):
            opened(colours.parent / "list.csv")

    def test_a_zip_in_a_table_lies_in_its_folder(self, colours: Path, tmp_path: Path) -> None:
        table, lines = colours.parent / "list.csv", []
        for path in sorted(colours.rglob("[0-9]*.jpg")):
            with zipfile.ZipFile(colours.parent / "some.zip", "a") as archive:
                archive.write(path, f"{path.parent.name}-{path.name}")
            lines.append(f"zip://{path.parent.name}-{path.name}::{{place}}some.zip,{path.parent.name}")
        for place in ("", "./", f"{colours.parent}/", f"file://{colours.parent}/"):
            table.write_text("\n".join(["path,label", *lines]).format(place=place) + "\n")
            found = opened(table)
            assert len(found.dataset) == N
            assert found.source.read(0) == min(colours.rglob("[0-9]*.jpg")).read_bytes()
        outside = tmp_path / "outside.zip"
        shutil.copy(colours.parent / "some.zip", outside)
        (colours.parent / "link.zip").symlink_to(outside)
        for end in (outside, f"file://{outside}", "../outside.zip", "link.zip"):
            table.write_text(f"path,label\nzip://red-0.jpg::{end},red\n")
            with pytest.raises(DataError, match="leaves the folder"):
                opened(table)

    @pytest.mark.parametrize(
        "name",
        [
            "reference://a::https://host/all.json",
            "git:///home:a.jpg",
            "dir://etc::file:///",
            "zip://a.jpg::reference::https://host/all.json",
            "zip://a.jpg::file:///outside.zip::memory://x",
            "zip://a.jpg::LOCAL::memory:///outside.zip",
            "zip://a.jpg::/outside.zip::memory://x",
        ],
    )
    def test_what_may_lead_to_any_file_is_refused_in_a_table(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(f"path,label\n{name},x\n")
        with pytest.raises(DataError, match=r"may lead to any file of this machine.*Copy these pictures"):
            opened(tmp_path / "list.csv")

    @pytest.mark.parametrize("content", [None, b"no zip"])
    def test_zips_that_can_not_be_opened(self, content: bytes | None, tmp_path: Path) -> None:
        path = tmp_path / "some.zip"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"zip://::.*some.zip can't be read"):
            opened(f"zip://::{path}")
        with pytest.raises(DataError, match=f"names no zip file; put it behind ::, as in zip://::{path}"):
            opened(f"zip://{path}")
        with pytest.raises(DataError, match=f"zip://::{path}" if content else "There is no"):
            opened(path)
        (tmp_path / "list.csv").write_text(f"path,label\nzip://a.jpg::{path},x\nzip://b.jpg::{path},y\n")
        with pytest.raises(DataError, match=r"some.zip can't be read"):
            opened(tmp_path / "list.csv")

    def test_a_chain_without_a_place_in_it(self) -> None:
        with pytest.raises(DataError, match="for all of it, give zip://::file:///a.zip"):
            opened("zip::file:///a.zip")

    @pytest.mark.parametrize("data", ["simplecache::s3://pictures/a", "filecache::https://host/a.tar"])
    def test_caches_of_fsspec_are_not_used(self, data: str) -> None:
        with pytest.raises(DataError, match=f"so give {data.partition('::')[2]}"):
            opened(data)
        with pytest.raises(DataError, match="names a cache of fsspec"):
            remote.shared(data)

    def test_caches_of_fsspec_in_a_table(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("path,label\nsimplecache::http://host/a.jpg,x\n")
        with pytest.raises(DataError, match=r"names a cache of fsspec.* so give http://host/a.jpg"):
            opened(tmp_path / "list.csv")

    @pytest.mark.parametrize("address", ["zip://some::http://u:secret@host/z.zip", "zip://a b::s3://k:secret@b/z.zip"])
    def test_a_password_in_a_chain_is_not_taken(self, address: str, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(f"path,label\n{address},x\n")
        for data in (address, tmp_path / "list.csv"):
            with pytest.raises(DataError, match="holds a password") as error:
                opened(data)
            assert "secret" not in str(error.value)

    def test_a_password_is_not_taken(self) -> None:
        with pytest.raises(DataError, match=r"^https://\.\.\. holds a password") as error:
            opened("https://someone:hunter2@host/list.csv")
        assert "hunter2" not in str(error.value)
        with pytest.raises(DataError, match="holds a password"):
            remote.check_address("ftp://someone@home.org:hunter2@host/a.jpg")
        for address in ("zip://::my@pictures.zip", "zip://12:30 me@home.jpg::a.zip", "github://org:repo@main/pictures"):
            remote.check_address(address)

    def test_names_with_colons(self, bucket: Any, colours: Path) -> None:
        for number, path in enumerate(sorted(colours.rglob("[0-9]*.jpg"))):
            bucket.put_file(str(path), f"pictures/odd/{path.parent.name}/a::b {number}%#?.jpg")
        found = opened("s3://pictures/odd")
        assert sorted(found.dataset.keys.tolist()) == sorted(
            digest_of(path.read_bytes()).encode() for path in colours.rglob("[0-9]*.jpg")
        )
        bucket.put_file(str(path), "pictures/odd/c::d/1.jpg")
        with pytest.raises(DataError, match="holds the folder 'c::d', whose name can't stand in an address"):
            opened("s3://pictures/odd")

    def test_no_bucket_no_account_no_server(
        self, put: str, server: ObjectStore, bucket: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(DataError, match="There is no 's3://elsewhere/colours'"):
            opened("s3://elsewhere/colours")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        type(bucket).clear_instance_cache()
        with pytest.raises(DataError, match=r"s3://pictures/colours can't be read: .*credentials.*the account"):
            opened(put)

    @pytest.mark.parametrize("data", ["nothing://pictures", "s3x://pictures/a.tar"])
    def test_an_address_of_no_kind_that_is_known(self, data: str) -> None:
        with pytest.raises(DataError, match=rf"{data} can't be opened: .*tlpipe\[remote\]"):
            opened(data)

    def test_without_the_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "upath", None)
        with pytest.raises(DataError, match=r"s3://pictures can't be opened: .*pip install 'tlpipe\[remote\]'"):
            remote.place("s3://pictures")

    def test_arrays_are_of_this_machine(self, bucket: Any) -> None:
        bucket.pipe_file("pictures/a.npz", b"PK")
        with pytest.raises(DataError, match=r"no kind of data that can be read.*\(on this machine\) .npz"):
            opened("s3://pictures/a.npz")

    def test_a_manifest_names_nothing_above_its_folder(self, bucket: Any) -> None:
        bucket.pipe_file("pictures/set/list.csv", b"path,label\n../other/a.jpg,x\n")
        with pytest.raises(DataError, match="leaves the folder"):
            opened("s3://pictures/set/list.csv")


class TestLocalCopies:
    @pytest.fixture(autouse=True)
    def own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE", str(tmp_path / "copies"))

    def test_the_least_recently_used_go_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE_GB", "0.00001")  # 10,000 bytes
        blocks = [bytes([number]) * 1000 for number in range(30)]
        for number, block in enumerate(blocks):
            local_copies.keep(block, digest_of(block))
            os.utime(local_copies._path(digest_of(block)), (number, number))
            assert local_copies.kept(digest_of(blocks[0])) == blocks[0]  # used again and again
        kept = [number for number, block in enumerate(blocks) if local_copies._path(digest_of(block)).exists()]
        assert 0 in kept and 29 in kept
        assert len(kept) <= 10
        assert sorted(kept)[1] >= 20

    @pytest.mark.parametrize("stays", [True, False])
    def test_what_another_machine_left_unfinished_goes(self, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE_GB", "0.00001")
        left = local_copies._path("ab" * 16).with_name("some.0123abcd-17-0123abcd.partial")
        left.parent.mkdir(parents=True)
        left.write_bytes(bytes(20_000))
        changed = time.time() - (60 if stays else 2 * local_copies.STILL)
        os.utime(left, (changed, changed))
        for number in range(3):
            local_copies.local_copy(f"{number}", lambda path: path.write_bytes(bytes(1000)))
        assert left.exists() == stays

    def test_what_changed_is_not_given(self) -> None:
        local_copies.keep(b"picture", digest_of(b"picture"))
        assert local_copies.kept(digest_of(b"picture")) == b"picture"
        local_copies._path(digest_of(b"picture")).write_bytes(b"Picture")
        assert local_copies.kept(digest_of(b"picture")) is None

    def test_what_others_pushed_out_is_fetched_again(self, bucket: Any) -> None:
        bucket.pipe_file("pictures/a.tar", b"content")
        held = fetching.Held(remote.place("s3://pictures/a.tar"))
        asked: list[Path] = []

        def opening(path: Path) -> bytes:
            asked.append(path)
            if len(asked) < 3:
                path.unlink()
            return path.read_bytes()

        assert held.opened(opening) == b"content" and len(asked) == 3

    def test_what_is_being_written_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE_GB", "0.0001")

        def fetch(path: Path) -> None:
            path.write_bytes(bytes(90_000))
            local_copies.local_copy("b", lambda other: other.write_bytes(bytes(90_000)))
            assert path.exists()

        assert local_copies.local_copy("a", fetch).read_bytes() == bytes(90_000)

    def test_many_threads_fetch_once(self) -> None:
        fetched: list[Path] = []

        def fetch(path: Path) -> None:
            time.sleep(0.05)
            fetched.append(path)
            path.write_bytes(b"pack")

        threads = [threading.Thread(target=local_copies.local_copy, args=("a", fetch)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(fetched) == 1

    @pytest.mark.parametrize("size", ["none", "0", "-1", "nan"])
    def test_a_size_that_is_none(self, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TLPIPE_LOCAL_CACHE_GB", size)
        with pytest.raises(ConfigError, match="TLPIPE_LOCAL_CACHE_GB"):
            local_copies.most_bytes()
