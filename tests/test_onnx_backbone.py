"""Backbones from ONNX files: what they give is what ONNX Runtime gives, from the picture to the exported file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import draw_shades
from onnx import TensorProto, helper, numpy_helper

from pipeline import commands
from pipeline.backbones import OnnxFile, open_backbone
from pipeline.backbones.tokens import prefix_of
from pipeline.commands import TrainingOptions
from pipeline.commands.bench import bench
from pipeline.config import ExtractConfig, FinetuneConfig, FinetuneOptions, HeadConfig
from pipeline.errors import ConfigError, EndpointError, EngineError, WeightsError
from pipeline.extraction.engines import EngineChoice, choose, judge, open_engine
from pipeline.extraction.engines.base import call
from pipeline.extraction.plan import open_plan
from pipeline.store.table import load_table
from pipeline.util import runtime

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SCALED: dict[str, Any] = {"mean": MEAN, "std": STD}


def build(
    path: Path,
    *,
    channels_last: bool = False,
    sides: tuple[Any, Any] = ("h", "w"),
    batch: Any = "n",
    dtype: type = np.float32,
    channels: Any = 3,
    opset: int = 17,
    seed: int = 0,
) -> Path:
    """A file with two maps (`low`, `top`) and the tokens of 8-px patches after a class token (`tokens`)."""
    draw = np.random.default_rng(seed)

    def kernel(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(draw.normal(0, 0.3, shape).astype(dtype), name)

    weights = [kernel("w1", 8, 3, 3, 3), kernel("w2", 16, 8, 3, 3), kernel("w3", 12, 3, 8, 8), kernel("w4", 12, 12)]
    shape = numpy_helper.from_array(np.array([0, 12, -1]), "flat")
    start = "first" if channels_last else "pixels"
    nodes = [
        *([helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2])] if channels_last else []),
        helper.make_node("Conv", [start, "w1"], ["one"], "stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["one"], ["low"]),
        helper.make_node("Conv", ["low", "w2"], ["two"], "last", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["two"], ["relu"]),
        helper.make_node("Conv", [start, "w3"], ["patches"], strides=[8, 8]),
        helper.make_node("Reshape", ["patches", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["columns", "w4"], ["mixed"]),
        helper.make_node("ReduceMax", ["mixed"], ["class"], axes=[1], keepdims=1),
        helper.make_node("Concat", ["class", "mixed"], ["tokens"], axis=1),
    ]
    last = "relu"
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["relu"], ["top"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Identity", [last], ["top"]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    axes = [batch, *sides, channels] if channels_last else [batch, channels, *sides]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in ("tokens", "low", "top")]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("pixels", kind, axes)], outputs, [*weights, shape]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def run_by_onnxruntime(path: Path, images: np.ndarray, name: str, *, channels_last: bool = False) -> np.ndarray:
    """What a program gets that scales pixels itself."""
    scaled = (images / 255 - np.array(MEAN)) / np.array(STD)
    scaled = (scaled if channels_last else scaled.transpose(0, 3, 1, 2)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].type == "tensor(float16)":
        scaled = scaled.astype(np.float16)
    one_by_one = session.get_inputs()[0].shape[0] == 1
    batches = [scaled[row : row + 1] for row in range(len(scaled))] if one_by_one else [scaled]
    return np.concatenate([session.run([name], {"pixels": batch})[0] for batch in batches]).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return build(tmp_path / "small.onnx")


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (5, 32, 48, 3), np.uint8)


def opened(path: Path, image_size: tuple[int, int] | None = (32, 48), **options: Any) -> OnnxFile:
    found = open_backbone(str(path), "imagenet", 0, image_size, None, **{**SCALED, **options})
    assert isinstance(found, OnnxFile)
    return found


def features(found: OnnxFile, folder: Path, images: np.ndarray, endpoint: str, pooling: str, by: str) -> np.ndarray:
    engine = open_engine(EngineChoice(by, "float32"), found.network, endpoint, pooling, folder / "graph")
    given = call(engine, images)
    assert given.shape[1:] == tuple(engine.shape)
    return given


@pytest.mark.parametrize("by", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pooled_features_are_those_of_onnxruntime(
    by: str, channels_last: bool, tmp_path: Path, images: np.ndarray
) -> None:
    path = build(tmp_path / "small.onnx", channels_last=channels_last)
    maps = run_by_onnxruntime(path, images, "top", channels_last=channels_last)
    maps = maps if channels_last else maps.transpose(0, 2, 3, 1)
    found = opened(path)
    for pooling, expected in (("avg", maps.mean((1, 2))), ("max", maps.max((1, 2))), ("none", maps)):
        given = features(found, tmp_path / pooling, images, "top", pooling, by)
        np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())


def test_tokens(tmp_path: Path, file: Path, images: np.ndarray) -> None:
    """The class token stands before 4 x 6 patches, and is no part of their mean."""
    tokens = run_by_onnxruntime(file, images, "tokens")
    assert tokens.shape == (5, 25, 12)
    wanted = {
        "cls": tokens[:, 0],
        "avg": tokens[:, 1:].mean(1),
        "max": tokens[:, 1:].max(1),
        "cls+avg": np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], axis=1),
        "none": tokens,
    }
    for pooling, expected in wanted.items():
        given = features(opened(file), tmp_path / pooling, images, "tokens", pooling, "onnxruntime")
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("n_tokens", "image_size", "expected"),
    [
        (197, (224, 224), 1),
        (196, (224, 224), 0),
        (261, (224, 224), 5),
        (50, (224, 224), 1),
        (1370, (518, 518), 1),
        (25, (32, 48), 1),
        (77, (224, 224), None),
    ],
)
def test_tokens_before_those_of_patches(n_tokens: int, image_size: tuple[int, int], expected: int | None) -> None:
    assert prefix_of(n_tokens, image_size) == expected


def test_several_endpoints_stand_side_by_side(tmp_path: Path, file: Path, images: np.ndarray) -> None:
    low, top = (run_by_onnxruntime(file, images, name).mean((2, 3)) for name in ("low", "top"))
    given = features(opened(file), tmp_path, images, "low+top", "avg", "openvino")
    np.testing.assert_allclose(given, np.concatenate([low, top], axis=1), rtol=1e-4, atol=1e-5)


def test_tensor_that_is_no_output(tmp_path: Path, file: Path, images: np.ndarray) -> None:
    given = features(opened(file), tmp_path, images, "two", "avg", "onnxruntime")
    assert (given < 0).any(), "this one lies below the activation"
    assert given.shape == (5, 16)


@pytest.mark.parametrize("by", ["openvino", "onnxruntime"])
def test_file_that_takes_one_image(by: str, tmp_path: Path, images: np.ndarray) -> None:
    path = build(tmp_path / "one.onnx", batch=1, sides=(32, 48))
    found = opened(path, None)
    assert found.image_size == (32, 48)
    given = features(found, tmp_path, images, "top", "avg", by)
    np.testing.assert_allclose(given, run_by_onnxruntime(path, images, "top").mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_half_precision(tmp_path: Path, images: np.ndarray) -> None:
    path = build(tmp_path / "half.onnx", dtype=np.float16)
    given = features(opened(path), tmp_path, images, "top", "avg", "onnxruntime")
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, run_by_onnxruntime(path, images, "top").mean((2, 3)), rtol=0.01, atol=0.01)


def test_weights_in_a_file_of_their_own(tmp_path: Path, file: Path, images: np.ndarray) -> None:
    parted = tmp_path / "parted.onnx"
    onnx.save(onnx.load(file), parted, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first = opened(parted)
    given = features(first, tmp_path, images, "top", "avg", "onnxruntime")
    np.testing.assert_allclose(given, run_by_onnxruntime(file, images, "top").mean((2, 3)), rtol=1e-4, atol=1e-5)
    before, data = first.digest(), bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert opened(parted).digest() != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(WeightsError, match="weights that can't be read"):
        opened(parted).digest()


def test_digest_is_of_weights_and_scaling(tmp_path: Path, file: Path) -> None:
    other = build(tmp_path / "other.onnx", seed=1)
    ways = [opened(file), opened(other), opened(file, mean=(0, 0, 0)), opened(file, std=(1, 1, 1))]
    assert len({one.digest() for one in ways}) == 4
    assert opened(file, (64, 64)).digest() == ways[0].digest()


class TestJsonBeside:
    FORM = {  # noqa: RUF012
        "input_size": [3, 40, 32],
        "mean": list(MEAN),
        "std": list(STD),
        "crop_pct": 0.9,
        "interpolation": "bilinear",
    }

    @pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"pretrained_cfg": value}])
    def test_it_says_how_pictures_are_prepared(self, file: Path, wrap: Callable[[Any], Any]) -> None:
        file.with_suffix(".json").write_text(json.dumps(wrap(self.FORM)))
        found = opened(file, None, mean=None, std=None)
        assert (found.image_size, found.resize, found.interpolation) == ((40, 32), "crop0.9", "bilinear")
        assert found.digest() == opened(file).digest()

    def test_options_come_before_it(self, file: Path) -> None:
        file.with_suffix(".json").write_text(json.dumps({**self.FORM, "mean": [0, 0, 0]}))
        assert opened(file).digest() != opened(file, None, mean=None, std=None).digest()
        assert opened(file, (64, 64)).image_size == (64, 64)

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"mean": [0.5]}, None),
            ({"mean": [0.5, 0.5]}, "give three numbers"),
            ({"mean": "grey"}, "give three numbers"),
            ({"std": [1, 0, 1]}, "give numbers above 0"),
            ({"input_size": [1, 28, 28]}, "input_size"),
            ({"interpolation": "area"}, "'area'"),
            ({"crop_pct": 2}, "crop_pct"),
        ],
    )
    def test_what_can_not_be(self, file: Path, change: dict[str, Any], word: str | None) -> None:
        file.with_suffix(".json").write_text(json.dumps({**self.FORM, **change}))
        if word is None:
            return opened(file, None, mean=None, std=None) and None
        with pytest.raises(ConfigError, match=word):
            opened(file, None, mean=None, std=None)

    @pytest.mark.parametrize("text", ["{", "[1]", '{"mean": [0, 0, 0]}'])
    def test_other_texts(self, file: Path, text: str) -> None:
        file.with_suffix(".json").write_text(text)
        with pytest.raises(ConfigError, match="in the form of timm"):
            opened(file)


class TestRefusals:
    @pytest.mark.parametrize(
        ("how", "word"),
        [
            ({"channels": "c"}, "can't be told. Export it with a fixed number of channels"),
            ({"sides": (32, 3)}, "channels come first or last can't be told"),
            ({"channels": 1}, "can't be told"),
            ({"batch": 4}, "takes 4 images at a time"),
            ({"dtype": np.float64}, "in float64"),
        ],
    )
    def test_inputs(self, tmp_path: Path, how: dict[str, Any], word: str) -> None:
        with pytest.raises(ConfigError, match=word):
            opened(build(tmp_path / "odd.onnx", **how))

    def test_text_model(self, tmp_path: Path) -> None:
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ]
        outputs = [helper.make_tensor_value_info("sum", TensorProto.INT64, ["n", "t"])]
        nodes = [helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"])]
        onnx.save(helper.make_model(helper.make_graph(nodes, "text", inputs, outputs)), tmp_path / "text.onnx")
        with pytest.raises(ConfigError, match=r"2 inputs \(input_ids, attention_mask\)"):
            opened(tmp_path / "text.onnx")
        one = [helper.make_node("Identity", ["input_ids"], ["sum"])]
        onnx.save(helper.make_model(helper.make_graph(one, "text", inputs[:1], outputs)), tmp_path / "text.onnx")
        with pytest.raises(ConfigError, match="in int64, which are no images"):
            opened(tmp_path / "text.onnx")

    def test_scaling_that_nobody_tells(self, file: Path) -> None:
        with pytest.raises(ConfigError, match="give --mean and --std.*small.json"):
            opened(file, mean=None, std=None)
        with pytest.raises(ConfigError, match="belong together"):
            opened(file, std=None)
        with pytest.raises(ConfigError, match="--mean and --std are for ONNX files"):
            open_backbone("densenet121", "random", 0, None, None, MEAN, STD)

    @pytest.mark.parametrize("content", [b"no network", b""])
    def test_damaged_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(WeightsError, match="bad.onnx can't be read as an ONNX file"):
            opened(tmp_path / "bad.onnx")

    def test_sizes_weights_and_names(self, tmp_path: Path, file: Path) -> None:
        fixed = build(tmp_path / "fixed.onnx", sides=(32, 48))
        with pytest.raises(ConfigError, match="takes images of 32x48 pixels; leave --image-size out"):
            opened(fixed, (64, 64))
        with pytest.raises(ConfigError, match="brings its own weights"):
            open_backbone(str(file), "random", 0, None, None, MEAN, STD)
        with pytest.raises(EndpointError, match="no tensor 'topp'. Did you mean top"):
            opened(file).check_name("--endpoint", "topp")
        with pytest.raises(EndpointError, match="low .* is a map with height and width"):
            opened(file).network().features("low", "cls")
        with pytest.raises(EndpointError, match="joins several tensors"):
            opened(file).network().features("low+top", "none")

    def test_libraries_that_are_missing(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "installed", lambda name: name != "onnxruntime")
        with pytest.raises(ConfigError, match=r"needs onnxruntime; .* pip install 'tlpipe\[onnx\]'"):
            opened(file)

    def test_engines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for engine in ("tensorflow", "jax"):
            with pytest.raises(EngineError, match=f"--engine {engine} doesn't run ONNX files"):
                choose(engine, "auto", onnx=True)
        with pytest.raises(EngineError, match="doesn't compute in bfloat16"):
            choose("onnxruntime", "bfloat16", onnx=True)
        with pytest.raises(EngineError, match="runs ONNX files, and this backbone isn't one"):
            choose("onnxruntime", "auto")
        assert choose("auto", "float32", onnx=True).engine == "openvino"
        monkeypatch.setattr(runtime, "installed", lambda name: name != "openvino")
        assert choose("auto", "auto", onnx=True) == EngineChoice("onnxruntime", "float32")
        with pytest.raises(EngineError, match="needs OpenVINO"):
            choose("auto", "int8", onnx=True)

    def test_measuring(self, file: Path) -> None:
        with pytest.raises(ConfigError, match="has no gradients and no layers"):
            bench(str(file), None, 0.1)


def test_auto_takes_what_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that OpenVINO can't read is run by ONNX Runtime."""
    config = ExtractConfig("", backbone=str(file), image_size=(32, 48), **SCALED)
    refusing = Mock(side_effect=RuntimeError("unknown operator"))
    monkeypatch.setattr("pipeline.extraction.engines.openvino._from_onnx", refusing)
    assert open_plan(config, tmp_path).choice == EngineChoice("onnxruntime", "float32")


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_fewer_bits(precision: str, batch: Any, tmp_path: Path) -> None:
    """Verdicts of the other precisions hold against ONNX Runtime."""
    try:
        choice = choose("openvino", precision, onnx=True)
    except EngineError as error:
        pytest.skip(str(error))
    found = opened(build(tmp_path / "small.onnx", batch=batch, sides=(32, 48)), None)
    assert judge(choice, found.network, "top", "avg", tmp_path / "graph").holds
    engine = open_engine(choice, found.network, "top", "avg", tmp_path / "graph")
    assert engine.batch_size == 1 if batch == 1 else engine.batch_size > 1


@pytest.fixture(scope="module", params=["any number", "one at a time"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder, pictures in it, a file that takes so many images, features by it, and a head on them."""
    work, one = tmp_path_factory.mktemp("work"), request.param != "any number"
    data = draw_shades(work / "shades")
    path = build(work / "small.onnx", batch=1 if one else "n", sides=(32, 48) if one else ("h", "w"))
    options = {**SCALED, "image_size": (32, 48), "precision": "float32"}
    extracted = commands.extract(ExtractConfig(str(data), backbone=str(path), **options), work / "cache")
    training = TrainingOptions(extracted.record.id)
    run = commands.train_head(HeadConfig("ridge"), work / "cache", work / "reports", training)
    return work, data, path, extracted, run


class TestAllTheWay:
    def test_features_in_the_cache(self, head: Any) -> None:
        from PIL import Image

        work, data, path, extracted, _ = head
        assert extracted.record.spec.backbone == "small"
        assert extracted.record.spec.endpoint == "top"
        table = load_table(work / "cache", [extracted.record], 0, memory=10**9)
        picture = Image.open(data / "dark" / "0.png").resize((48, 32), Image.Resampling.BICUBIC)
        expected = run_by_onnxruntime(path, np.asarray(picture)[None], "top").mean((2, 3))[0]
        row = [str(location) for location in table.locations].index("dark/0.png")
        np.testing.assert_allclose(table.features[row], expected, rtol=1e-4, atol=1e-5)
        again = commands.extract(extracted.record.config, work / "cache")
        assert again.n_computed == 0

    def test_predict_evaluate_and_export(self, head: Any, capsys: pytest.CaptureFixture[str]) -> None:
        work, data, _, _, run = head
        cache, reports = work / "cache", work / "reports"
        assert run.metrics["test"]["accuracy"] > 0.6
        answers = commands.predict(run.id, [str(data / "dark")], cache, reports)
        assert len(answers.images) == 40
        rated = commands.evaluate(run.id, str(data), cache, reports)
        assert rated.metrics["test"]["accuracy"] == run.metrics["test"]["accuracy"]
        made = commands.export(run.id, "onnx", cache, reports, work / "out.onnx")
        assert made.agreement == 1
        assert made.difference < 1e-4
        model = onnx.load(made.path)
        assert [value.name for value in model.graph.input] == ["image"]
        assert json.loads(model.metadata_props[0].value)["class_names"] == ["dark", "grey", "light"]
        assert not {"file/w3", "file/w4"} & {one.name for one in model.graph.initializer}, (
            "what isn't needed is left out"
        )
        for form in ("keras", "openvino"):
            with pytest.raises(ConfigError, match="comes from an ONNX file; .* --format onnx"):
                commands.export(run.id, form, cache, reports, work / "other")

    def test_fine_tuning_is_refused(self, head: Any) -> None:
        work, _, _, extracted, run = head
        for options in (FinetuneOptions(head_run=run.id), FinetuneOptions(head="ridge", features=extracted.record.id)):
            with pytest.raises(ConfigError, match=r"small.onnx is an ONNX file.*no gradients"):
                commands.finetune(FinetuneConfig("all"), work / "cache", work / "reports", options)

    def test_exported_file_is_a_backbone(self, head: Any) -> None:
        """It takes uint8, and wants no scaling."""
        work, data, _, _, run = head
        if not (work / "out.onnx").exists():
            commands.export(run.id, "onnx", work / "cache", work / "reports", work / "out.onnx")
        config = ExtractConfig(str(data), backbone=str(work / "out.onnx"), precision="float32")
        found = commands.extract(config, work / "cache")
        table = load_table(work / "cache", [found.record], 0, memory=10**9)
        np.testing.assert_allclose(np.asarray(table.features[:]).sum(axis=1), 1, rtol=1e-5)
        with pytest.raises(ConfigError, match="normalises it itself"):
            open_backbone(str(work / "out.onnx"), "imagenet", 0, None, None, MEAN, STD)


def test_file_of_newer_operators_is_exported(tmp_path: Path) -> None:
    """The head is brought to the version of the file."""
    import keras

    from pipeline.runs.formats import FORMATS, Joined

    path = tmp_path / "small.onnx"
    model = onnx.version_converter.convert_version(onnx.load(build(path)), 21)
    onnx.save(model, path)
    graph = opened(path).network().features("top", "avg")
    start = keras.Input((16,))
    head = keras.Model(start, keras.layers.Dense(3, activation="softmax", name="probabilities")(start))
    FORMATS["onnx"].write(Joined(graph, head), tmp_path / "out.onnx", {})
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    given = FORMATS["onnx"].load(tmp_path / "out.onnx")(images)
    expected = head(run_by_onnxruntime(path, images, "top").mean((2, 3)))
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_from_python(file: Path, images: np.ndarray, tmp_path: Path) -> None:
    """The transformer of scikit-learn takes such a file, too."""
    from sklearn.base import clone

    from pipeline import FeatureExtractor

    made = clone(FeatureExtractor(str(file), image_size=(32, 48), mean=MEAN, std=STD, precision="float32", cache=None))
    expected = run_by_onnxruntime(file, images, "top").mean((2, 3))
    np.testing.assert_allclose(made.fit_transform(images), expected, rtol=1e-4, atol=1e-5)
