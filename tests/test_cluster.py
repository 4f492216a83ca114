"""The pass on a Ray cluster: the same features as on one machine, whoever dies."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine, rows_of

from pipeline import commands
from pipeline.config import (
    ExtractConfig,
    ExtractOptions,
    FeatureSpec,
    FinetuneConfig,
    FinetuneOptions,
    HeadConfig,
    ImageConfig,
    TrainingOptions,
)
from pipeline.data import ArraySource
from pipeline.errors import ConfigError, EngineError, ImageError, StoppedError, StoreError
from pipeline.extraction import cluster, pass_
from pipeline.extraction.cluster import Opened, Versions
from pipeline.extraction.pass_ import Row
from pipeline.runs.run import FinetuneRun
from pipeline.store.shards import FeatureStore
from pipeline.util import ray_cluster

ray = pytest.importorskip("ray")

N = 90


@pytest.fixture(scope="module", autouse=True)
def cluster_of_two() -> Iterator[None]:
    """A cluster of two processors on this machine, for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.cloudpickle.register_pickle_by_value(sys.modules["conftest"])
        yield
        ray.shutdown()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8)


def opener(store: FeatureStore, config: ImageConfig, before: Callable[[], None] = lambda: None) -> Opened:
    """What opens a fake engine; `before` is called on the node, before a block is computed."""

    class Engine(FakeEngine):
        def stream(self, batches: Any) -> Any:
            before()
            return super().stream(batches)

    def opened() -> Any:
        plan = SimpleNamespace(store=store, images=config, augment=None, written_by=lambda: {"engine": "fake"})
        return plan, Engine()

    return opened


def compute(store: FeatureStore, config: ImageConfig, images: np.ndarray, **more: Any) -> pass_.PassReport:
    source, rows = rows_of(images)
    return cluster.compute("ray", opener(store, config, **more), source, rows, cpus=1)


def expected(images: np.ndarray, spec: FeatureSpec, config: ImageConfig, folder: Path) -> np.ndarray:
    store = FeatureStore(folder, spec)
    source, rows = rows_of(images)
    pass_.compute(store, source, rows, config, None, FakeEngine())
    return store.read(np.array([row.key for row in rows], "S32"))


def stored(store: FeatureStore, images: np.ndarray) -> np.ndarray:
    _, rows = rows_of(images)
    assert store.open() == []
    return store.read(np.array([row.key for row in rows], "S32"))


def test_the_same_features(
    store: FeatureStore, config: ImageConfig, images: np.ndarray, spec: FeatureSpec, tmp_path: Path
) -> None:
    report = compute(store, config, images)
    assert report.n_computed == N and report.unreadable == {}
    np.testing.assert_array_equal(stored(store, images), expected(images, spec, config, tmp_path / "here"))


def test_several_actors_take_blocks_in_turn(store: FeatureStore, config: ImageConfig, images: np.ndarray) -> None:
    def note() -> None:
        time.sleep(0.3)
        (Path(str(store.cache)) / f"by {os.getpid()}").touch()

    store.cache.mkdir(exist_ok=True)
    compute(store, config, images, before=note)
    assert len(list(store.cache.glob("by *"))) == 2


def test_what_can_not_be_read_is_told(store: FeatureStore, config: ImageConfig, images: np.ndarray) -> None:
    class Torn(ArraySource):
        def read(self, index: int) -> Any:
            if index == 7:
                raise ImageError("torn")
            return super().read(index)

    source, rows = rows_of(images)
    report = cluster.compute("ray", opener(store, config), Torn(source.parts), rows, cpus=1)
    assert report.n_computed == N - 1
    ((key, (location, error)),) = report.unreadable.items()
    assert key == rows[7].key and str(error) == "torn" and location == rows[7].location
    assert store.quarantined() == {}  # actors would overwrite each other's lists
    pass_.quarantine(store, report, config)
    assert set(store.quarantined()) == {rows[7].key}


def test_a_node_that_dies_costs_its_block_alone(
    store: FeatureStore, config: ImageConfig, images: np.ndarray, spec: FeatureSpec, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def die() -> None:
        if len(list(deaths.iterdir())) < 2:
            (deaths / str(os.getpid())).touch()
            os._exit(1)

    report = compute(store, config, images, before=die)
    assert len(list(deaths.iterdir())) == 2
    assert report.n_computed == N
    np.testing.assert_array_equal(stored(store, images), expected(images, spec, config, tmp_path / "here"))


@pytest.mark.slow
def test_no_room_is_told(
    store: FeatureStore,
    config: ImageConfig,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @ray.remote(num_cpus=1)
    class Other:
        def there(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.there.remote())
    monkeypatch.setattr(cluster, "ROOM", 0.5)
    threading.Timer(3, lambda: ray.kill(other)).start()
    source, rows = rows_of(images)
    report = cluster.compute("ray", opener(store, config), source, rows, cpus=2)
    assert report.n_computed == N
    assert "room for an actor yet, which takes 2 processors; free in all are 1 processor and 0 GPUs" in caplog.text


@pytest.mark.slow
def test_a_block_that_always_kills_is_an_error(store: FeatureStore, config: ImageConfig, images: np.ndarray) -> None:
    with pytest.raises(EngineError, match="An actor of the cluster died 6 times"):
        compute(store, config, images, before=lambda: os._exit(1))


def test_errors_there_are_errors_here(store: FeatureStore, config: ImageConfig, images: np.ndarray) -> None:
    def full() -> None:
        raise StoreError("No space is left")

    def broken() -> None:
        raise RuntimeError("odd\nand long")

    with pytest.raises(StoreError, match="^No space is left$"):
        compute(store, config, images, before=full)
    with pytest.raises(EngineError, match="A node of the cluster failed: odd; it needs tlpipe"):
        compute(store, config, images, before=broken)


def test_stopped(store: FeatureStore, config: ImageConfig, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wish:
        """Ctrl-C when there is a shard."""

        @property
        def signal(self) -> int | None:
            return 2 if any(store.folder.glob("shards/*.h5")) else None

    class Stopping:
        def __enter__(self) -> Wish:
            return Wish()

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(cluster, "stopping", Stopping)
    with pytest.raises(StoppedError, match=rf"Stopped; ([\d,]+) of {N} are computed and kept"):
        compute(store, config, images, before=lambda: time.sleep(1.0))
    store.open()
    assert 0 < len(store) < N


def test_other_versions_are_refused(
    store: FeatureStore, config: ImageConfig, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Versions, "here", classmethod(lambda cls: cls("0.0.1", "3.9")))
    with pytest.raises(
        EngineError, match=r"has tlpipe \S+ on Python 3\.\d+, this machine tlpipe 0\.0\.1 on Python 3\.9"
    ):
        compute(store, config, images)


def test_blocks_are_made_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Actor:
        versions = SimpleNamespace(remote=lambda: (Versions.here(), object()))
        stop = SimpleNamespace(remote=lambda: None)

    ray_ = SimpleNamespace(
        wait=lambda asked, timeout: (asked[:1], asked[1:]),
        get=lambda asked: answers.get(asked, asked[0]),
        kill=lambda actor: None,
        exceptions=ray.exceptions,
    )

    def blocks() -> Iterator[list[Row]]:
        for number in range(5000):
            made.append(number)
            yield [Row(b"", b"", 0, number, "")]

    answers: dict[Any, cluster.Computed] = {}
    ahead = n_asked = 0

    def ask(actor: Any, rows: list[Row]) -> Any:
        nonlocal ahead, n_asked
        n_asked += 1
        ahead = max(ahead, len(made) - n_asked)
        answers[name := ("block", n_asked)] = cluster.Computed("node", pass_.PassReport(n_computed=len(rows)))
        return name

    report = cluster._Pool(ray_, Actor, 4, 4).run(ask, blocks(), 5000)
    assert report.n_computed == 5000
    assert ahead <= 1


@pytest.mark.parametrize("on", ["dask", "ray:/host", "host:10001", "", "ray://", "ray://host"])
def test_what_is_no_cluster(on: str) -> None:
    with pytest.raises(ConfigError, match="--on is"):
        ray_cluster.check_on(on)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'tlpipe\[ray\]'"):
        ray_cluster.check_on("ray")


def test_a_cluster_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not reach it\nat all")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(EngineError, match=r"The Ray cluster ray://127.0.0.1:1 can't be reached: .*refused"):
        ray_cluster.connected("ray://127.0.0.1:1")
    monkeypatch.setattr(ray_cluster, "_check_answers", lambda address: None)
    with pytest.raises(
        EngineError, match="The Ray cluster ray://host:1 can't be reached: Could not reach it; .*ray status"
    ):
        ray_cluster.connected("ray://host:1")


def test_a_cache_that_is_not_shared(
    extracted: Any, cache: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "dark" / "0.png").write_bytes((pictures / "light" / "1.png").read_bytes() + b"more")
    done = pass_.PassReport(n_computed=1)
    monkeypatch.setattr(cluster, "compute", lambda *args, **options: done)
    with pytest.raises(
        StoreError, match="computed 1 row, and 1 of 1 that were looked for are not in .* give a --cache"
    ):
        commands.extract(ExtractConfig(str(pictures)), cache, ExtractOptions(on="ray"))


@pytest.mark.slow
def test_folds_seeds_and_settings_are_fitted_there(extracted: Any, cache: Path, reports: Path) -> None:
    def fitted(on: str | None) -> tuple[Any, Any]:
        options = TrainingOptions(cv=2, seeds=2, on=on)
        run = commands.train_head(HeadConfig("ridge"), cache, reports, options)
        mlps = HeadConfig("mlp8", epochs=2)
        swept = commands.sweep(["mlp8"], "small", mlps, cache, reports, TrainingOptions(on=on))
        return run.repeats, {str(one["settings"]): one["val_accuracy"] for one in swept.candidates}

    (repeats, rated), (repeats_there, rated_there) = fitted(None), fitted("ray")
    assert repeats_there["rounds"] == repeats["rounds"]
    assert rated_there == pytest.approx(rated, abs=0.05)
    assert len(rated) > 2


@pytest.mark.slow
def test_extract_with_a_real_network(pictures: Path, tmp_path: Path) -> None:
    config = ExtractConfig(str(pictures), backbone="mobilenet025", weights="random", image_size=(32, 32))
    here = commands.extract(config, tmp_path / "here")
    there = commands.extract(config, tmp_path / "there", ExtractOptions(on="ray"))
    assert there.n_computed == here.n_computed == 120
    assert there.record.spec == here.record.spec and there.record.dataset == here.record.dataset
    stores = [FeatureStore(tmp_path / name, here.record.spec) for name in ("here", "there")]
    for store in stores:
        store.open()
    keys = np.unique(np.concatenate([shard.keys for shard in stores[0].shards]))
    np.testing.assert_array_equal(stores[0].read(keys), stores[1].read(keys))
    assert commands.extract(config, tmp_path / "there").n_computed == 0


@pytest.mark.slow
def test_fine_tuning_with_several_settings(pictures: Path, cache: Path, reports: Path) -> None:
    commands.extract(ExtractConfig(str(pictures), "mobilenet025", "random", image_size=(32, 32)), cache)
    commands.train_head(HeadConfig("ridge"), cache, reports)
    configs = [FinetuneConfig("block13", epochs=1, learning_rate=rate) for rate in (1e-3, 1e-4)]
    here = commands.finetune_each(configs, cache, reports)
    there = commands.finetune_each(configs, cache, reports, FinetuneOptions(on="ray"))
    for config in configs:
        one, other = here[config], there[config]
        assert isinstance(one, FinetuneRun) and isinstance(other, FinetuneRun)
        assert other.metrics["test"]["accuracy"] == pytest.approx(one.metrics["test"]["accuracy"], abs=0.05)
        assert (reports / other.id / "model.keras").is_file()
        assert "--learning-rate 0.001" in other.command or config.learning_rate == 1e-4


def test_one_that_dies_ends_no_other_and_none_runs_here() -> None:
    """Also where the cluster has room for only one at a time."""

    def work(number: int) -> int:
        if number == 1:
            os._exit(1)
        if number == 2:
            raise ConfigError("no such thing")
        return os.getpid()

    first, died, refused, last = ray_cluster.each_there("ray", work, [(number,) for number in range(4)])
    assert os.getpid() not in (first, last) and isinstance(first, int) and isinstance(last, int)
    assert isinstance(died, EngineError) and "died" in str(died)
    assert isinstance(refused, ConfigError) and str(refused) == "no such thing"
