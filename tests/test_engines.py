"""Engines: the same features whatever runs beside an image, and near each other across engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import commands
from pipeline.backbones import Pretrained, open_backbone
from pipeline.commands.doctor import examine
from pipeline.config import ExtractConfig, ImageConfig
from pipeline.data.images import decode, from_array, resize
from pipeline.errors import ConfigError, EngineError
from pipeline.extraction.engines import EngineChoice, call, choose, open_engine
from pipeline.extraction.engines.openvino import OpenvinoEngine
from pipeline.extraction.engines.tensorflow import TensorflowEngine
from pipeline.util import machine, runtime

needs_openvino = pytest.mark.skipif(not runtime.installed("openvino"), reason="OpenVINO is not installed")

ON_JAX = runtime.keras_backend() == "jax"  # in the process that test_jax.py starts

CHOICES = (
    [pytest.param(EngineChoice("jax", "float32"), id="jax")]
    if ON_JAX
    else [
        pytest.param(EngineChoice("tensorflow", "float32"), id="tensorflow"),
        pytest.param(EngineChoice("openvino", "float32"), id="openvino", marks=needs_openvino),
    ]
)

BFLOAT16 = runtime.installed("openvino") and not ON_JAX and choose("openvino", "auto").precision == "bfloat16"


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return open_backbone("mobilenet025", "random", 0, (64, 64))


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (21, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("choice", CHOICES)
class TestEveryEngine:
    def test_batch_size_and_neighbours_change_no_bit(
        self, choice: EngineChoice, pretrained: Pretrained, images: np.ndarray, tmp_path: Path
    ) -> None:
        def features(batch_size: int, some: np.ndarray) -> np.ndarray:
            return call(open_engine(choice, pretrained.network, "block13", "avg", tmp_path / "g", batch_size), some)

        reference = features(8, images)
        assert reference.dtype == np.float32
        assert reference.std(axis=0).mean() > 0
        for batch_size in (1, 3, 16):
            np.testing.assert_array_equal(features(batch_size, images), reference)
        engine = open_engine(choice, pretrained.network, "block13", "avg", tmp_path / "g", 8)
        alone = np.concatenate([call(engine, image[None]) for image in images[:5]])
        np.testing.assert_array_equal(alone, reference[:5])
        np.testing.assert_array_equal(call(engine, images[::-1])[::-1], reference)

    def test_shape_is_declared(self, choice: EngineChoice, pretrained: Pretrained, tmp_path: Path) -> None:
        for pooling, shape in (("avg", (128,)), ("none", (4, 4, 128))):
            engine = open_engine(choice, pretrained.network, "block11", pooling, tmp_path / pooling, 2)
            assert engine.shape == shape
            assert call(engine, np.zeros((3, 64, 64, 3), np.uint8)).shape == (3, *shape)

    def test_features_are_those_of_keras(
        self, choice: EngineChoice, pretrained: Pretrained, images: np.ndarray, tmp_path: Path
    ) -> None:
        engine = open_engine(choice, pretrained.network, "block13", "max", tmp_path / "g")
        expected = np.asarray(pretrained.network().features("block13", "max")(images, training=False))
        found = call(engine, images)
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)

    def test_results_come_in_order_while_batches_are_drawn(
        self, choice: EngineChoice, pretrained: Pretrained, images: np.ndarray, tmp_path: Path
    ) -> None:
        engine = open_engine(choice, pretrained.network, "block13", "avg", tmp_path / "g", 4)
        expected = call(engine, images)
        sizes = (1, 4, 2, 4, 4, 3, 3)
        starts = np.cumsum((0, *sizes))
        batches = (images[start : start + size] for start, size in zip(starts, sizes, strict=False))
        results = list(engine.stream(batches))
        assert [len(result) for result in results] == list(sizes)
        np.testing.assert_array_equal(np.concatenate(results), expected)

    def test_error_in_the_input_comes_through(
        self, choice: EngineChoice, pretrained: Pretrained, images: np.ndarray, tmp_path: Path
    ) -> None:
        def batches() -> object:
            yield images[:2]
            raise RuntimeError("no more")

        engine = open_engine(choice, pretrained.network, "block13", "avg", tmp_path / "g", 2)
        with pytest.raises(RuntimeError, match="no more"):
            list(engine.stream(batches()))  # type: ignore[arg-type]
        assert len(call(engine, images)) == 21


def test_tensorflow_traces_once(pretrained: Pretrained, images: np.ndarray) -> None:
    engine = TensorflowEngine(pretrained.network().features("block13", "avg"), 4)
    for n in (1, 2, 3, 4, 5, 21):
        call(engine, images[:n])
    assert engine.traces == 1


@pytest.mark.slow
def test_several_devices_share_the_work() -> None:
    """Two logical processors stand for two GPUs; in a process of their own, as devices are set once."""
    import subprocess
    import sys

    code = """
import numpy as np
from pipeline.util import machine, runtime
tf = runtime.tensorflow()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pipeline.backbones import open_backbone
from pipeline.extraction.engines import call
from pipeline.extraction.engines.tensorflow import TensorflowEngine
model = open_backbone("mobilenet025", "random", 0, (32, 32)).network().features("block13", "avg")
images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
both = TensorflowEngine(model, 8, ["/CPU:0", "/CPU:1"])
assert both.traces == 2
np.testing.assert_array_equal(call(both, images), call(TensorflowEngine(model, 8, ["/CPU:0"]), images))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mixed_precision_gives_float32_features(pretrained: Pretrained, images: np.ndarray, tmp_path: Path) -> None:
    choice = EngineChoice("tensorflow", "bfloat16")
    found = call(open_engine(choice, pretrained.network, "block11", "avg", tmp_path), images)
    expected = call(
        open_engine(EngineChoice("tensorflow", "float32"), pretrained.network, "block11", "avg", tmp_path), images
    )
    assert found.dtype == np.float32
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.1


@needs_openvino
def test_conversions_are_not_reported_over_the_network() -> None:
    code = "from pipeline.util import runtime; print(runtime.openvino().tools.ovc.utils.tm.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


@needs_openvino
def test_converted_graph_is_kept_and_found_again(pretrained: Pretrained, images: np.ndarray, tmp_path: Path) -> None:
    choice = EngineChoice("openvino", "float32")
    folder = tmp_path / "graphs" / "one"
    expected = call(open_engine(choice, pretrained.network, "block13", "avg", folder), images)
    assert {path.name for path in folder.iterdir()} == {"checksums.json", "model.bin", "model.xml", "verdicts"}

    def not_needed(_: str) -> object:
        raise AssertionError("the graph is there")

    again = open_engine(choice, not_needed, "block13", "avg", folder)  # type: ignore[arg-type]
    np.testing.assert_array_equal(call(again, images), expected)
    weights = bytearray((folder / "model.bin").read_bytes())
    weights[len(weights) // 2] ^= 64
    (folder / "model.bin").write_bytes(weights)
    mended = open_engine(choice, pretrained.network, "block13", "avg", folder)
    np.testing.assert_array_equal(call(mended, images), expected)
    assert (folder / "model.bin").read_bytes() != bytes(weights)


@needs_openvino
class TestVerdict:
    """An engine is asked once on a machine whether it computes a graph rightly."""

    CHOICE = EngineChoice("openvino", "float32")

    def open(self, network: Callable[[str], Any], folder: Path, choice: EngineChoice = CHOICE) -> Any:
        return open_engine(choice, network, "block13", "avg", folder)

    @pytest.fixture
    def folder(self, pretrained: Pretrained, tmp_path: Path) -> Path:
        """A graph that was judged."""
        self.open(pretrained.network, tmp_path / "g")
        return tmp_path / "g"

    @pytest.fixture
    def asked(self, pretrained: Pretrained) -> list[str]:
        """Each time the network itself was wanted, which only a new verdict does."""
        return []

    @pytest.fixture
    def network(self, pretrained: Pretrained, asked: list[str]) -> Callable[[str], Any]:
        def network(policy: str) -> Any:
            asked.append(policy)
            return pretrained.network(policy)

        return network

    def spoil(self, monkeypatch: pytest.MonkeyPatch, how: Callable[[np.ndarray], np.ndarray]) -> None:
        stream = OpenvinoEngine.stream
        monkeypatch.setattr(OpenvinoEngine, "stream", lambda *args: (how(part) for part in stream(*args)))

    def test_is_kept(self, folder: Path, network: Callable[[str], Any], asked: list[str]) -> None:
        (path,) = (folder / "verdicts").iterdir()
        kept = json.loads(path.read_text())
        assert (kept["engine"], kept["precision"], kept["device"]) == ("openvino", "float32", machine.processor())
        assert 0 < kept["difference"] < 1e-4
        assert kept["versions"]["openvino"] == runtime.version("openvino")
        self.open(network, folder)
        assert asked == []

    @pytest.mark.parametrize("change", ["a byte", "no JSON", "another machine", "another version"])
    def test_another_is_asked_for(
        self,
        folder: Path,
        network: Callable[[str], Any],
        asked: list[str],
        change: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (path,) = (folder / "verdicts").iterdir()
        if change == "a byte":
            path.write_text(path.read_text().replace("difference", "differenze"))
        elif change == "no JSON":
            path.write_text("nothing")
        elif change == "another machine":
            monkeypatch.setattr(machine, "processor", lambda: "another processor")
        else:
            version = runtime.version
            monkeypatch.setattr(runtime, "version", lambda name: "0" if name == "keras" else version(name))
        self.open(network, folder)
        assert asked == ["float32"]

    @pytest.mark.parametrize(
        "how", [lambda part: 2 * part, lambda part: part * np.nan, np.zeros_like, lambda part: part[:, ::-1]]
    )
    def test_wrong_features_are_refused(
        self,
        pretrained: Pretrained,
        tmp_path: Path,
        how: Callable[[np.ndarray], np.ndarray],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.spoil(monkeypatch, how)
        for _ in range(2):  # no verdict is kept of it
            with pytest.raises(EngineError, match=r"^openvino in float32 computes .* wrongly .* --engine tensorflow"):
                self.open(pretrained.network, tmp_path / "g")
        assert not (tmp_path / "g" / "verdicts").exists()

    @pytest.mark.skipif(not BFLOAT16, reason="OpenVINO or the processor has no bfloat16")
    def test_each_precision_has_its_own(self, folder: Path, network: Callable[[str], Any], asked: list[str]) -> None:
        self.open(network, folder, EngineChoice("openvino", "bfloat16"))
        assert asked == ["float32"]
        differences = sorted(json.loads(path.read_text())["difference"] for path in (folder / "verdicts").iterdir())
        assert differences[0] < 1e-4 < differences[1] < 0.1

    def test_nothing_wrong_comes_into_the_cache(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.spoil(monkeypatch, lambda part: part + 1)
        config = ExtractConfig(
            str(pictures), "mobilenet025", "random", (32, 32), engine="openvino", precision="float32"
        )
        with pytest.raises(EngineError, match="nothing was computed"):
            commands.extract(config, tmp_path / "cache")
        assert list((tmp_path / "cache").glob("features/*/shards/*")) == []

    def test_the_doctor_tells_what_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("the driver is broken\nat length")

        monkeypatch.setattr(OpenvinoEngine, "__init__", broken)
        monkeypatch.setattr("pipeline.commands.doctor._verdicts_of_jax", list)
        found = {(one["engine"], one["precision"]): one for one in examine(tmp_path, tmp_path)["verdicts"]}
        assert found["openvino", "float32"]["error"] == "the driver is broken"
        assert not found["openvino", "float32"]["holds"]
        assert found["tensorflow", "float32"]["holds"]
        monkeypatch.setattr("pipeline.commands.doctor.open_keras", broken)
        assert {one["error"] for one in examine(tmp_path, tmp_path)["verdicts"]} == {"the driver is broken"}

    def test_the_doctor_tells(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil(monkeypatch, lambda part: part * 3)
        monkeypatch.setattr("pipeline.commands.doctor._verdicts_of_jax", list)
        found = examine(tmp_path, tmp_path)["verdicts"]
        assert {one["holds"] for one in found if one["engine"] == "openvino"} == {False}
        assert {one["holds"] for one in found if one["engine"] == "tensorflow"} == {True}
        exact = {one["engine"]: one["difference"] for one in found if one["precision"] == "float32"}
        assert exact["openvino"] == pytest.approx(2, rel=1e-3)
        assert exact["tensorflow"] == 0


class TestChoice:
    def test_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: False)
        assert choose("tensorflow", "auto") == EngineChoice("tensorflow", "float32")
        assert choose("auto", "float32").engine == ("openvino" if runtime.installed("openvino") else "tensorflow")

    def test_half_precision_needs_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: False)
        with pytest.raises(EngineError, match="in float16 on a GPU, and there is none here"):
            choose("tensorflow", "float16")

    def test_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: True)
        assert choose("auto", "auto") == EngineChoice("tensorflow", "float16")
        assert choose("auto", "auto").spec_precision == "tensorflow-float16"

    def test_gpu_that_tensorflow_cannot_use(self, pretrained: Pretrained, tmp_path: Path) -> None:
        if runtime.tensorflow().config.list_physical_devices("GPU"):
            pytest.skip("there is a GPU")
        with pytest.raises(EngineError, match=r"tensorflow\[and-cuda\]"):
            open_engine(EngineChoice("tensorflow", "float16"), pretrained.network, "block13", "avg", tmp_path)

    def test_float32_is_shared_between_engines(self) -> None:
        assert {EngineChoice(name, "float32").spec_precision for name in ("tensorflow", "openvino")} == {"float32"}

    def test_openvino_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "installed", lambda name: name == "tensorflow")
        monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: False)
        assert choose("auto", "auto") == EngineChoice("tensorflow", "float32")
        with pytest.raises(EngineError, match="pip install openvino"):
            choose("openvino", "auto")

    def test_unknown_names(self) -> None:
        with pytest.raises(ConfigError, match="auto, tensorflow, openvino"):
            choose("onnx", "auto")
        with pytest.raises(ConfigError, match="bfloat16"):
            choose("auto", "int4")

    @needs_openvino
    def test_precision_the_processor_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.extraction.engines.openvino.supports", lambda precision: precision == "float32")
        assert choose("openvino", "auto").precision == "float32"
        with pytest.raises(EngineError, match="doesn't compute in bfloat16"):
            choose("openvino", "bfloat16")


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    folder = Path(os.environ["TLPIPE_TEST_DATA"]) / "alien-predator" / "validation"
    return [(folder / name / f"{n}.jpg").read_bytes() for name in ("alien", "predator") for n in range(1, 13)]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def features(graphs: Path) -> Callable[..., np.ndarray]:
    def compute(images: list[np.ndarray], engine: str, precision: str) -> np.ndarray:
        height, width = images[0].shape[:2]
        pretrained = open_backbone("densenet121", "imagenet", 0, (height, width))
        choice, folder = EngineChoice(engine, precision), graphs / f"{height}x{width}"
        return call(open_engine(choice, pretrained.network, "conv5", "avg", folder), np.stack(images))

    return compute


@pytest.mark.weights
@pytest.mark.data
class TestRealFeatures:
    """Bounds on what engines, precisions and JPEG's own shrinking change, with real weights and pictures."""

    CONFIG = ImageConfig((224, 224))

    @staticmethod
    def compare(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
        """Relative error, and mean cosine."""
        products = (found * expected).sum(axis=1)
        cosines = products / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected)), float(cosines.mean())

    @needs_openvino
    @pytest.mark.slow
    def test_engines_and_precisions(self, files: list[bytes], features: Callable[..., np.ndarray]) -> None:
        images = [resize(decode(data, self.CONFIG), self.CONFIG) for data in files]
        reference = features(images, "tensorflow", "float32")
        error, _ = self.compare(features(images, "openvino", "float32"), reference)
        assert error < 1e-4
        if choose("openvino", "auto").precision == "bfloat16":
            error, cosine = self.compare(features(images, "openvino", "bfloat16"), reference)
            assert error < 0.06
            assert cosine > 0.999

    @pytest.mark.skipif(not BFLOAT16, reason="OpenVINO or the processor has no bfloat16")
    @pytest.mark.slow
    def test_bfloat16_depends_on_neither_batch_nor_neighbours(self, files: list[bytes], graphs: Path) -> None:
        images = np.stack([resize(decode(data, self.CONFIG), self.CONFIG) for data in files[:9]])
        pretrained = open_backbone("densenet121", "imagenet", 0, (224, 224))
        choice = EngineChoice("openvino", "bfloat16")
        found = [
            call(open_engine(choice, pretrained.network, "conv5", "avg", graphs / "224x224", size), images)
            for size in (1, 4, 8)
        ]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])

    @pytest.mark.slow
    def test_shrinking_while_decoding(self, files: list[bytes], features: Callable[..., np.ndarray]) -> None:
        """On those pictures that are at least twice as large as needed."""
        import io

        from PIL import Image

        config = ImageConfig((96, 96))
        shrunk, whole = [], []
        for data in files:
            small = decode(data, config)
            full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            if small.size[0] < full.shape[1]:
                shrunk.append(resize(small, config))
                whole.append(resize(from_array(full), config))
        assert len(shrunk) >= 4
        error, cosine = self.compare(
            features(shrunk, "tensorflow", "float32"), features(whole, "tensorflow", "float32")
        )
        assert error < 0.2
        assert cosine > 0.98


def test_converted_graphs_are_the_same_in_every_process(tmp_path: Path) -> None:
    """OpenVINO numbers operations by all that it converted before; int8 chooses layers by what their names decide."""
    from pipeline.extraction.engines import openvino

    keras = runtime.keras()
    pixels = keras.Input((16, 16, 3))
    model = keras.Model(pixels, keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(pixels)))
    graphs = [openvino.converted(lambda: model, tmp_path / name) for name in ("first", "second")]
    names = [[node.get_friendly_name() for node in graph.get_ordered_ops()] for graph in graphs]
    assert names[0] == names[1]
    assert any(name.startswith("Convolution_") for name in names[0])
