"""The pass: nothing lost, nothing computed twice, whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeEngine, compute_all, rows_of

from pipeline.config import ImageConfig
from pipeline.data import FileSource, file_key
from pipeline.data.augment import Augment
from pipeline.errors import StoppedError, StoreError
from pipeline.extraction import pass_
from pipeline.extraction.pass_ import Row
from pipeline.store.shards import FeatureStore


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (50, 32, 32, 3), np.uint8)


def expected_of(images: np.ndarray) -> np.ndarray:
    return np.concatenate(list(FakeEngine(len(images)).stream([images])))


def stored(store: FeatureStore, images: np.ndarray) -> np.ndarray:
    store.open()
    return store.read(np.array([row.key for row in rows_of(images)[1]], "S32"))


@pytest.mark.parametrize("batch_size", [1, 3, 50, 64])
@pytest.mark.parametrize("workers", [1, 4])
def test_features_are_those_of_each_image(
    store: FeatureStore, images: np.ndarray, config: ImageConfig, batch_size: int, workers: int
) -> None:
    source, rows = rows_of(images)
    report = pass_.compute(store, source, rows, config, None, FakeEngine(batch_size), workers=workers)
    assert report.n_computed == 50
    np.testing.assert_array_equal(stored(store, images), expected_of(images))


def test_only_missing_rows_are_computed(store: FeatureStore, images: np.ndarray, config: ImageConfig) -> None:
    engine = FakeEngine()
    compute_all(store, images[:30], config, engine)
    report = compute_all(store, images, config, engine)
    assert report.n_computed == 20
    assert engine.n_computed == 50
    np.testing.assert_array_equal(stored(store, images), expected_of(images))


def test_views_are_made_from_the_image(store: FeatureStore, images: np.ndarray, config: ImageConfig) -> None:
    source, rows = rows_of(images[:5])
    augment = Augment.parse("flip")
    views = [Row(augment.row_key(row.key, 1), row.key, 1, row.index, row.location) for row in rows]
    pass_.compute(store, source, views, config, augment, FakeEngine())
    store.open()
    found = store.read(np.array([row.key for row in views], "S32"))
    np.testing.assert_array_equal(found, expected_of(images[:5, :, ::-1]))


def test_shards_are_bounded(
    store: FeatureStore, images: np.ndarray, config: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_, "SHARD_ROWS", 8)
    compute_all(store, images, config, FakeEngine())
    store.open()
    assert [len(shard.keys) for shard in store.shards].count(8) == 6
    assert len(store.shards) == 7


def test_slow_work_is_published_after_a_while(
    store: FeatureStore, images: np.ndarray, config: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_, "SHARD_SECONDS", 0.0)
    compute_all(store, images, config, FakeEngine(batch_size=10))
    store.open()
    assert len(store.shards) == 5


def test_bad_images_are_quarantined_and_the_rest_is_computed(
    store: FeatureStore, config: ImageConfig, tmp_path: Path, red_and_blue: Path
) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))[:6]
    paths[1].write_bytes(b"no image")
    paths[4].write_bytes(paths[4].read_bytes()[:100])
    keys = [file_key(path.read_bytes()) for path in paths]
    rows = [Row(key, key, 0, index, paths[index].name) for index, key in enumerate(keys)]
    paths[5].write_bytes(paths[0].read_bytes())  # changed since its key was computed
    report = pass_.compute(store, FileSource([str(path) for path in paths]), rows, config, None, FakeEngine())
    assert report.n_computed == 3
    causes = {location: str(error) for location, error in report.unreadable.values()}
    assert causes[paths[1].name] == "not an image in a format that can be read"
    assert "changed since its key" in causes[paths[5].name]
    assert set(store.quarantined()) == {keys[1], keys[4]}  # the changed one may be fine the next time


def test_all_images_bad(store: FeatureStore, config: ImageConfig, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    key = file_key(b"no image")
    report = pass_.compute(store, FileSource([str(path)]), [Row(key, key, 0, 0, "a")], config, None, FakeEngine())
    assert (report.n_computed, report.images_per_second) == (0, 0.0)


def test_features_that_are_not_finite_are_refused(store: FeatureStore, images: np.ndarray, config: ImageConfig) -> None:
    class Broken(FakeEngine):
        def stream(self, batches: object) -> Iterator[np.ndarray]:
            for features in super().stream(batches):  # type: ignore[arg-type]
                yield features * np.inf

    with pytest.raises(StoreError, match="not finite"):
        compute_all(store, images, config, Broken())
    assert store.open() == []
    assert len(store) == 0


def test_too_little_room_is_refused_before_the_work(
    store: FeatureStore, images: np.ndarray, config: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Huge(FakeEngine):
        shape = (2**40,)  # type: ignore[assignment]

    engine = Huge()
    with pytest.raises(StoreError, match=r"will take .* [GT]B, .* free"):
        compute_all(store, images, config, engine)
    assert engine.n_computed == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_keeps_what_is_done(store: FeatureStore, images: np.ndarray, config: ImageConfig, number: int) -> None:
    class Interrupted(FakeEngine):
        def stream(self, batches: object) -> Iterator[np.ndarray]:
            for count, features in enumerate(super().stream(batches)):  # type: ignore[arg-type]
                if count == 3:
                    signal.raise_signal(number)  # in this thread, so that it is handled before the next batch
                yield features

    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match="16 of 50 are computed and kept") as caught:
        compute_all(store, images, config, Interrupted())
    assert caught.value.signal == number
    assert signal.getsignal(number) == before
    store.open()
    assert len(store) == 16
    assert compute_all(store, images, config, FakeEngine()).n_computed == 34


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_that_fills_up_in_mid_work(
    small_disk: Path, spec: object, images: np.ndarray, config: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_, "SHARD_ROWS", 8)

    class Filling(FakeEngine):
        def stream(self, batches: object) -> Iterator[np.ndarray]:
            for count, features in enumerate(super().stream(batches)):  # type: ignore[arg-type]
                if count == 6:
                    with (
                        (small_disk / "other").open("wb", buffering=0) as file,
                        pytest.raises(OSError, match="No space"),
                    ):
                        while True:
                            file.write(bytes(4096))
                yield features

    store = FeatureStore(small_disk / "cache", spec)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="No space is left.*make room"):
        compute_all(store, images, config, Filling())
    assert not list(small_disk.rglob("*.partial"))
    (small_disk / "other").unlink()
    fresh = FeatureStore(small_disk / "cache", spec)  # type: ignore[arg-type]
    assert fresh.open() == []
    assert len(fresh) == 24
    assert compute_all(fresh, images, config, FakeEngine()).n_computed == 26
    np.testing.assert_array_equal(stored(fresh, images), expected_of(images))


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from conftest import FakeEngine, compute_all
from pipeline.extraction import pass_
from pipeline.config import FeatureSpec, ImageConfig
from pipeline.store.shards import FeatureStore

pass_.SHARD_ROWS = 8

class Slow(FakeEngine):
    def stream(self, batches):
        for features in super().stream(batches):
            with open({log!r}, "a") as file:
                file.write("x" * len(features))
            time.sleep(0.01)
            yield features

spec = FeatureSpec("b", "w", None, "e", "avg", (32, 32), "stretch", "bicubic", "float32", "float32")
images = np.random.default_rng(0).integers(0, 256, ({n}, 32, 32, 3), np.uint8)
store = FeatureStore(Path({cache!r}), spec)
print("ready", flush=True)
compute_all(store, images, ImageConfig((32, 32)), Slow())
"""


def start_worker(cache: Path, log: Path, n: int) -> subprocess.Popen[str]:
    code = WORKER.format(tests=str(Path(__file__).parent), cache=str(cache), log=str(log), n=n)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def check_worker_result(cache: Path, n: int) -> None:
    from pipeline.config import FeatureSpec

    spec = FeatureSpec("b", "w", None, "e", "avg", (32, 32), "stretch", "bicubic", "float32", "float32")
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    store = FeatureStore(cache, spec)
    assert store.verify() == []
    np.testing.assert_array_equal(stored(store, images), expected_of(images))


@pytest.mark.slow  # tests/crash.py kills it at chosen ones in the quick part
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    """The features are those of an undisturbed run, and each kill costs one shard at most."""
    n, kills = 600, 20
    draw = np.random.default_rng(1)
    cache, log = tmp_path / "cache", tmp_path / "log"
    log.touch()
    for _ in range(kills):
        with start_worker(cache, log, n) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            time.sleep(draw.uniform(0, 0.12))
            worker.send_signal(signal.SIGKILL)
            assert worker.wait() in (-signal.SIGKILL, 0)
    with start_worker(cache, log, n) as worker:
        assert worker.wait() == 0
    check_worker_result(cache, n)
    computed = log.stat().st_size
    # A shard of 8 rows, and the batch of 4 that was in the engine.
    assert n <= computed <= n + kills * (8 + 4)


def test_two_processes_at_once(tmp_path: Path) -> None:
    with start_worker(tmp_path / "cache", tmp_path / "log", 200) as one:
        with start_worker(tmp_path / "cache", tmp_path / "log", 200) as two:
            assert two.wait() == 0
        assert one.wait() == 0
    check_worker_result(tmp_path / "cache", 200)
