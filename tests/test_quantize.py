"""int8: a graph that is near to the one in float32, the same everywhere, and refused where it isn't near."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import commands
from pipeline.config import ExtractConfig
from pipeline.errors import EngineError
from pipeline.extraction.engines import EngineChoice, call, choose, graph_folder, open_engine
from pipeline.extraction.engines.pictures import crops
from pipeline.extraction.plan import open_plan, pinned
from pipeline.util import machine, runtime

if not (runtime.installed("openvino") and runtime.installed("nncf")):
    pytest.skip("OpenVINO or NNCF is not installed", allow_module_level=True)

from pipeline.extraction.engines import openvino, quantize

SIDE = 48


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with what DenseNets have: joined maps of very different size, and means."""
    keras = runtime.keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    pixels = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="first")(
        layers.Rescaling(1 / 255, name="shares")(pixels)
    )
    for number in range(3):
        new = layers.Conv2D(8, 3, padding="same", activation="relu", name=f"conv{number}")(x)
        x = layers.Concatenate()([x, layers.Rescaling(30.0)(new)])
    x = layers.Conv2D(32, 1, activation="relu", name="last")(x)
    path = tmp_path_factory.mktemp("network") / "small.keras"
    keras.Model(pixels, x).save(path)
    return path


@pytest.fixture
def config(network: Path) -> ExtractConfig:
    return ExtractConfig("digits", backbone=str(network), image_size=(SIDE, SIDE), precision="int8")


def graph_in_float32(config: ExtractConfig, cache: Path) -> Path:
    """The folder of the graph in float32, which is made with that in int8."""
    return graph_folder(cache, open_plan(config, cache).spec)


def test_what_multiplies_is_in_int8_and_all_else_is_not(config: ExtractConfig, cache: Path) -> None:
    folder = graph_in_float32(config, cache)
    found = quantize.facts(folder / "int8")
    assert found is not None
    assert (found.n_int8, found.n_layers) == (4, 5)
    assert found.mean_cosine >= quantize.LEAST_MEAN_COSINE and found.least_cosine >= quantize.LEAST_COSINE
    graph = openvino.kept(folder / "int8")
    assert graph is not None
    sources = [layer.input(0).get_source_output().get_node() for layer in quantize._layers(graph)]
    assert [source.get_type_name() == "FakeQuantize" for source in sources] == [False, True, True, True, True]
    weights = [node for node in graph.get_ops() if node.get_type_name() == "Constant" and node.output(0).shape]
    assert sum(node.output(0).get_element_type().get_type_name() in ("i8", "u8") for node in weights) >= 4


def test_features_are_near_and_cached_apart(config: ExtractConfig, cache: Path, random: np.random.Generator) -> None:
    plan = open_plan(config, cache)
    assert plan.spec.precision == f"openvino-int8-{plan.choice.graph}"
    images = random.integers(0, 256, (12, 6, 6, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    found = call(plan.engine(4), images)
    precise = EngineChoice("openvino", "float32")
    folder = graph_folder(cache, plan.spec)
    expected = call(open_engine(precise, plan.pretrained.network, plan.spec.endpoint, "avg", folder), images)
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.98
    assert not np.allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(call(plan.engine(8), images), found)


def test_it_is_made_once_and_mended(config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = graph_in_float32(config, cache) / "int8"
    before = (folder / "model.bin").read_bytes()
    made = quantize._quantize

    def not_needed(*_: Any) -> Any:
        raise AssertionError("the graph is there")

    monkeypatch.setattr(quantize, "_quantize", not_needed)
    open_plan(config, cache).engine(None)
    monkeypatch.setattr(quantize, "_quantize", made)
    facts = json.loads((folder / "facts.json").read_text())
    (folder / "facts.json").write_text(json.dumps({**facts, "mean_cosine": 1.0, "digest": "0" * 12}))
    assert open_plan(config, cache).choice.graph == facts["digest"]
    assert json.loads((folder / "facts.json").read_text()) == facts
    assert (folder / "model.bin").read_bytes() == before


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_other_processors_make_the_same_graph(
    config: ExtractConfig, cache: Path, tmp_path: Path, instructions: str
) -> None:
    folder = graph_in_float32(config, cache)
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.extraction.engines import openvino, quantize\n"
        "print(quantize.quantized(lambda: openvino.kept(Path(sys.argv[1])), Path(sys.argv[2]))[1].digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "int8")],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=True,
    )
    found = quantize.facts(folder / "int8")
    assert found is not None
    assert done.stdout.split() == [found.digest]
    assert (tmp_path / "int8" / "model.bin").read_bytes() == (folder / "int8" / "model.bin").read_bytes()


def test_layers_go_back_until_it_is_refused(
    config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantize, "LEAST_MEAN_COSINE", 2.0)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(
            EngineError, match=r"cosine \(\d\.\d+ on average, \d\.\d+ at least\) stays below 2.0.*--precision float32"
        ),
    ):
        open_plan(config, cache)
    counts = [record.args[1].n_int8 for record in caplog.records if record.msg.startswith("In int8 but for")]
    assert counts == [4, 3, 3, 2]
    assert not list(cache.rglob("int8"))


def test_costly_layers_go_back_first(config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = openvino.kept(graph_in_float32(config, cache))
    assert graph is not None
    check = crops(8, (SIDE, SIDE), seed=1, varied=False)
    names = [node.get_friendly_name() for node in quantize._layers(graph)]
    reference = quantize._features(graph, check)
    calibration = crops(16, (SIDE, SIDE), seed=0, varied=True)
    ranked = quantize._by_cost(quantize._quantize(graph, calibration, names[:1]), check, reference)
    assert sorted(ranked) == sorted(names[1:])
    assert ranked[0] == names[-1], "it reads all joined maps at once, for few multiply-adds"


def test_what_cannot_be_quantised(config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="nothing to gain by int8"):
        open_plan(replace(config, endpoint="shares"), cache)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such operation\nand more")

    monkeypatch.setattr(runtime.nncf(), "quantize", refuse)
    with pytest.raises(EngineError, match="NNCF can't bring .* no such operation; use --precision float32"):
        open_plan(config, cache)


class TestAuto:
    """On a processor with instructions for int8 and none for bfloat16."""

    @pytest.fixture(autouse=True)
    def without_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino, "supports", lambda precision: precision in ("float32", "int8"))
        monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: False)
        monkeypatch.setattr(quantize, "TURN", 0.01)

    @pytest.mark.parametrize(("least", "precision"), [(0.0, "int8"), (1e9, "float32")])
    def test_taken_where_it_is_much_faster(
        self,
        least: float,
        precision: str,
        config: ExtractConfig,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(quantize, "LEAST_GAIN", least)
        with caplog.at_level(logging.INFO):
            plan = open_plan(replace(config, precision="auto"), cache)
        assert plan.choice.precision == precision
        assert plan.spec.precision == (f"openvino-int8-{plan.choice.graph}" if least == 0 else "float32")
        assert f"times the rate of float32 here, so {'it' if least == 0 else 'float32'} is taken" in caplog.text

    def test_measured_once(self, config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        auto = replace(config, precision="auto")
        turns, measured = quantize.turns, []

        def counting(ways: dict[str, Any], *about: Any) -> dict[str, float]:
            measured.extend(ways)
            return turns(ways, *about)

        monkeypatch.setattr(quantize, "turns", counting)
        first = open_plan(auto, cache).spec
        assert (open_plan(auto, cache).spec, len(measured)) == (first, 2)
        (path,) = cache.rglob("gain.json")
        path.write_text("{}")
        open_plan(auto, cache)
        assert len(measured) == 4
        monkeypatch.setattr(machine, "processor", lambda: "another")
        open_plan(auto, cache)
        assert len(measured) == 6

    def test_float32_where_features_would_be_far(
        self, config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quantize, "LEAST_MEAN_COSINE", 2.0)
        monkeypatch.setattr(quantize, "_by_cost", None)  # which would take long, and is for those who ask for int8
        assert open_plan(replace(config, precision="auto"), cache).spec.precision == "float32"

    def test_float32_without_nncf(self, config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "installed", lambda name: name != "nncf")
        assert open_plan(replace(config, precision="auto"), cache).spec.precision == "float32"


class TestChoice:
    def test_only_where_asked_for(self) -> None:
        assert choose("auto", "int8") == EngineChoice("openvino", "int8")
        assert choose("auto", "auto").precision != "int8"
        with pytest.raises(EngineError, match="--engine tensorflow doesn't compute in int8; leave it out"):
            choose("tensorflow", "int8")

    @pytest.mark.parametrize("module", ["openvino", "nncf"])
    def test_without_a_library(self, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "installed", lambda name: name != module)
        with pytest.raises(EngineError, match=f"pip install {module}"):
            choose("auto", "int8")

    def test_a_slow_processor_is_told(
        self, config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(machine, "processor_flags", lambda: {"avx2"})
        open_plan(config, cache).engine(None)
        assert "no instructions for int8 (VNNI)" in caplog.text

    def test_a_run_serves_in_int8(
        self, config: ExtractConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        spec = open_plan(config, cache).spec
        served = open_plan(pinned(config, spec), cache)
        assert served.spec == spec
        monkeypatch.setattr(runtime, "installed", lambda name: name != "nncf")
        assert pinned(config, spec).precision == "float32"
        assert "Features are computed in float32; figures were measured in openvino-int8-" in caplog.text


def test_cache_gc_keeps_the_graph(config: ExtractConfig, cache: Path, reports: Path) -> None:
    from pipeline.commands.gc import gc

    result = commands.extract(config, cache)
    assert result.to_json()["precision"] == "int8"
    assert gc(cache, reports).found == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.data
def test_real_features_in_int8(cache: Path) -> None:
    """DenseNet121 on 40 photographs that calibrated nothing."""
    from pipeline.config import ImageConfig
    from pipeline.data.images import decode, resize

    size = ImageConfig((224, 224))
    folder = Path(os.environ["TLPIPE_TEST_DATA"]) / "alien-predator" / "validation"
    files = [folder / name / f"{number}.jpg" for name in ("alien", "predator") for number in range(1, 21)]
    images = np.stack([resize(decode(file.read_bytes(), size), size) for file in files])
    found, expected = (
        call(open_plan(ExtractConfig("digits", precision=name), cache).engine(None), images)
        for name in ("int8", "float32")
    )
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.mean() > 0.997
    assert cosines.min() > 0.99
