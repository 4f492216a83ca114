"""What the tests share: drawn images, an engine that needs no network, and the folders of real data."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import chromium
import numpy as np
import pytest
from PIL import Image

from pipeline import commands
from pipeline.backbones import BACKBONES, Backbone
from pipeline.commands import ExtractResult
from pipeline.config import ExtractConfig, FeatureSpec, ImageConfig
from pipeline.data import ArraySource, array_key
from pipeline.extraction import pass_
from pipeline.extraction.pass_ import Row
from pipeline.store.rows import Part
from pipeline.store.shards import FeatureStore
from pipeline.util import machine
from pipeline.util.sealed import SEAL, WRITER, sealed

T = TypeVar("T")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with threads for each processor would wait for each other; what they start inherits this.
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs real data or weights where there are none, with the reason."""
    missing = {
        "data": None if _folder("TLPIPE_TEST_DATA") else "no folder of real images in $TLPIPE_TEST_DATA",
        "weights": None if _folder("TLPIPE_WEIGHTS") else "no folder of real weights in $TLPIPE_WEIGHTS",
        "gpu": None if machine.has_nvidia_gpu() else "no GPU",
        "browser": None if chromium.program() else f"none of {', '.join(chromium.NAMES)} is installed",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Let the collector pass over what was imported: Keras asks for whole collections, which took a second each."""
    gc.collect()
    gc.freeze()


def _folder(variable: str) -> Path | None:
    path = Path(os.environ.get(variable) or "/nowhere")
    return path if path.is_dir() else None


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Give back the log and what SIGTERM does: a command that a test runs in this process takes both for itself."""
    log = logging.getLogger("tlpipe")
    before, handler = (log.level, log.handlers, log.propagate), signal.getsignal(signal.SIGTERM)
    yield
    log.setLevel(before[0])
    log.handlers, log.propagate = before[1:]
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def data() -> Path:
    """The folder of real images; for tests marked `data`."""
    folder = _folder("TLPIPE_TEST_DATA")
    assert folder is not None
    return folder


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def draw(random: np.random.Generator) -> Callable[..., Path]:
    """Write a picture of one colour with noise on it, and give its path back."""
    return functools.partial(write_picture, random)


def write_picture(
    random: np.random.Generator,
    path: Path,
    size: tuple[int, int] = (40, 30),
    colour: tuple[int, int, int] = (200, 40, 40),
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.integers(-30, 30, (size[1], size[0], 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def red_and_blue(tmp_path: Path) -> Path:
    """A folder of two classes that any features tell apart, 20 pictures each."""
    return draw_colours(tmp_path / "colours")


def draw_colours(folder: Path) -> Path:
    draw = functools.partial(write_picture, np.random.default_rng(0))
    for number in range(20):
        draw(folder / "red" / f"{number}.png", colour=(200, 60, 60))
        draw(folder / "blue" / f"{number}.png", colour=(60, 60, 200))
    return folder


def age_pictures(folder: Path) -> None:
    """Let pictures be older than the two seconds within which the memo doesn't take them."""
    for path in folder.rglob("*.png"):
        os.utime(path, (1.7e9, 1.7e9))


class FakeEngine:
    """Means of the four quarters of each channel: quick, deterministic, and different for different pictures."""

    shape = (12,)

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size
        self.n_computed = 0

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            assert 0 < len(batch) <= self.batch_size
            self.n_computed += len(batch)
            n, height, width, channels = batch.shape
            quarters = batch.reshape(n, 2, height // 2, 2, width // 2, channels)
            yield quarters.mean(axis=(2, 4)).reshape(n, -1).astype(np.float32)


@dataclass
class FakePretrained:
    """A backbone that is never built."""

    name: str = "densenet121"
    row: Backbone = BACKBONES["densenet121"]
    image_size: tuple[int, int] = (32, 32)
    seed: int = 0
    resize: str = "stretch"
    interpolation: str = "bicubic"

    def digest(self) -> str:
        return "0" * 32

    def default_endpoint(self) -> str:
        return "conv5"

    def check_name(self, option: str, name: str) -> None:
        pass

    def network(self, policy: str = "float32") -> None:
        raise AssertionError("the network isn't needed here")


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Let the stages run with an engine and a backbone that need no network."""
    return use_fake_engine(monkeypatch)


def use_fake_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    from pipeline.extraction import plan

    engine = FakeEngine()
    monkeypatch.setattr(plan, "open_engine", lambda *_: engine)
    monkeypatch.setattr(plan, "open_backbone", lambda *_: FakePretrained())
    return engine


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], T]], tuple[Path, T]]:
    """Make a folder by a function the first time; later put it back as it was then, in the same place.

    Networks that were converted for OpenVINO since then stay, as they are named by all that they depend on.
    """
    made: dict[Callable[[Path], T], tuple[Path, T]] = {}

    def folder_of(make: Callable[[Path], T]) -> tuple[Path, T]:
        if make not in made:
            folder = tmp_path_factory.mktemp(make.__name__) / "work"
            folder.mkdir()
            made[make] = folder, make(folder)
            shutil.copytree(folder, folder.with_name("kept"))
        else:
            folder, kept = made[make][0], made[make][0].with_name("kept")
            if (folder / "cache" / "graphs").is_dir():
                shutil.copytree(folder / "cache" / "graphs", kept / "cache" / "graphs", dirs_exist_ok=True)
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
        return made[make]

    return folder_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the cache and the reports lie; another folder where that is made once for several tests."""
    return tmp_path


@pytest.fixture
def cache(home: Path) -> Path:
    return home / "cache"


@pytest.fixture
def reports(home: Path) -> Path:
    return home / "reports"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes that overlap a little, 40 pictures each."""
    return draw_shades(tmp_path / "shades")


def draw_shades(folder: Path) -> Path:
    random, shade = np.random.default_rng(0), np.random.default_rng(5)
    for number in range(40):
        for name, level in (("dark", 90), ("grey", 130), ("light", 170)):
            value = int(level + shade.normal(0, 17))
            write_picture(random, folder / name / f"{number}.png", colour=(value, value, value))
    return folder


@pytest.fixture
def extracted(pictures: Path, cache: Path, fake_engine: FakeEngine) -> ExtractResult:
    return commands.extract(ExtractConfig(str(pictures), views=1, augment="flip"), cache)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server of the S3 protocol, of which the tests of a module have one."""
    from object_store import ObjectStore

    server = ObjectStore()
    yield server
    server.stop()


@pytest.fixture
def bucket(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of an empty bucket `pictures`, and local copies that nobody else has."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "TLPIPE_LOCAL_CACHE": str(tmp_path / "local copies"),
    }.items():
        monkeypatch.setenv(name, value)
    from s3fs import S3FileSystem

    from pipeline.util import remote

    server.calm()
    S3FileSystem.clear_instance_cache()  # of another server, which a test without this fixture may have asked
    fs = remote.place("s3://pictures").fs  # type: ignore[attr-defined]
    if fs.exists("pictures"):
        fs.rm("pictures", recursive=True)
    fs.mkdir("pictures")
    yield fs
    server.calm()
    type(fs).clear_instance_cache()


@pytest.fixture
def spec() -> FeatureSpec:
    return FeatureSpec(
        backbone="densenet121",
        weights_digest="0" * 32,
        weights_seed=None,
        endpoint="conv5",
        pooling="avg",
        image_size=(32, 32),
        resize="stretch",
        interpolation="bicubic",
        precision="float32",
        dtype="float32",
    )


@pytest.fixture
def store(tmp_path: Path, spec: FeatureSpec) -> FeatureStore:
    return FeatureStore(tmp_path / "cache", spec)


@pytest.fixture
def config() -> ImageConfig:
    return ImageConfig((32, 32))


def change_run(folder: Path, **values: Any) -> None:
    """Write other values into run.json, each where it stands."""
    path = folder / "run.json"
    value = json.loads(path.read_text())
    for name, item in values.items():
        (value if name in value else value["payload"])[name] = item
    path.write_text(json.dumps(sealed(unsealed_anyway(value))))


def unsealed_anyway(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object without its seal, whatever was changed."""
    return {name: one for name, one in value.items() if name not in (WRITER, SEAL)}


def part_of(features: np.ndarray, labels: np.ndarray, keys: np.ndarray | None = None) -> Part:
    """Rows of view 0, each an image of its own unless keys are given."""
    if keys is None:
        keys = np.array([f"{row}" for row in range(len(labels))], "S32")
    return Part(features, labels, keys, np.zeros(len(labels), np.int64))


def blobs(n: int, n_classes: int, seed: int, d: int = 12) -> Part:
    """Clouds around one corner for each class, on scales that differ a thousandfold, and a constant feature."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, n_classes, n)
    centres = np.random.default_rng(9).normal(0, 1.5, (n_classes, d))
    features = (centres[labels] + draw.normal(0, 1, (n, d))) * np.geomspace(0.03, 30, d)
    features = np.concatenate([features, np.full((n, 1), 3.0)], axis=1).astype(np.float32)
    return part_of(features, labels, np.array([f"{seed}-{row}" for row in range(n)], "S32"))


def rows_of(images: np.ndarray) -> tuple[ArraySource, list[Row]]:
    """A source and the rows of view 0 of images held in memory."""
    source = ArraySource([(images, 1.0)])
    keys = [array_key(image) for image in images]
    return source, [Row(key, key, 0, index, f"image {index}") for index, key in enumerate(keys)]


def compute_all(store: FeatureStore, images: np.ndarray, config: ImageConfig, engine: object) -> pass_.PassReport:
    """Run the pass over those images that the store lacks."""
    source, rows = rows_of(images)
    store.open()
    there = store.has(np.array([row.key for row in rows], "S32"))
    missing = [row for row, stored in zip(rows, there, strict=True) if not stored]
    return pass_.compute(store, source, missing, config, None, engine)  # type: ignore[arg-type]
