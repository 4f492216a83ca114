"""Exports: each format is loaded by its own runtime, and must say what tlpipe says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_shades
from PIL import Image

from pipeline import commands
from pipeline.commands import TrainingOptions
from pipeline.config import ExtractConfig, FinetuneConfig, HeadConfig
from pipeline.errors import ConfigError, DataError, RunError, StoreError
from pipeline.runs import formats
from pipeline.runs.formats import FORMATS
from pipeline.runs.predictions import read_predictions
from pipeline.runs.run import Run
from pipeline.util import runtime

SIZE = (32, 40)
SMALL = {"backbone": "mobilenet025", "image_size": SIZE, "weights": "random", "precision": "float32"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_shades(tmp_path_factory.mktemp("data") / "shades")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def features(pictures: Path, cache: Path) -> str:
    """Features of three classes, by a network with random weights that takes pictures wider than high."""
    return commands.extract(ExtractConfig(str(pictures), **SMALL), cache).record.id


@pytest.fixture(scope="module")
def run(features: str, cache: Path, reports: Path) -> Run:
    """A head with a temperature, which was fitted on val, too."""
    return commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(features, calibrate=True))


@pytest.fixture
def pixels(pictures: Path) -> np.ndarray:
    """Seven pictures, two of them the same, resized by plain Pillow."""
    paths = [pictures / name / f"{number}.png" for number in (0, 1) for name in ("dark", "grey", "light")]
    images = [Image.open(path).resize(SIZE[::-1], Image.Resampling.BICUBIC) for path in [*paths, paths[0]]]
    return np.stack([np.asarray(image) for image in images])


def run_by_keras(path: Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    import keras

    model = keras.models.load_model(path, compile=False, safe_mode=True)
    assert model.inputs[0].dtype == "uint8"
    return np.asarray(model.predict(images, verbose=0)), zipfile.ZipFile(path).read("tlpipe.json").decode()


def run_by_tensorflow(path: Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    import tensorflow as tf

    (found,) = tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(images)).values()
    return found.numpy(), (path / "assets.extra" / "tlpipe.json").read_text()


def run_by_onnxruntime(path: Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("image", "tensor(uint8)", ["n", *SIZE, 3])
    found = session.run(["probabilities"], {"image": images})[0]
    return found, session.get_modelmeta().custom_metadata_map["tlpipe"]


def run_by_openvino(path: Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    import openvino

    model = openvino.Core().read_model(path)
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": images})
    assert "/tmp" not in path.read_text()
    return found["probabilities"], model.get_rt_info(["tlpipe"]).value


def run_by_litert(path: Path, images: np.ndarray) -> tuple[np.ndarray, str]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert taken["dtype"] == np.uint8
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(given["index"]), zipfile.ZipFile(path).read("tlpipe.json").decode()


RUNTIMES: dict[str, Any] = {
    "keras": run_by_keras,
    "savedmodel": run_by_tensorflow,
    "onnx": run_by_onnxruntime,
    "openvino": run_by_openvino,
    "tflite": run_by_litert,
}


def expected_of(run: Run, pixels: np.ndarray, cache: Path, reports: Path) -> np.ndarray:
    return (
        commands.open_classifier(reports, run.id).predict(source_of(pixels), ["x"] * len(pixels), cache).probabilities
    )


def source_of(pixels: np.ndarray) -> Any:
    from pipeline.data import ArraySource

    return ArraySource([(pixels, 1.0)])


def test_every_format_has_its_runtime_here() -> None:
    assert set(RUNTIMES) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_its_own_runtime_says_the_same(
    name: str, run: Run, pixels: np.ndarray, cache: Path, reports: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = commands.export(run.id, name, cache, reports)
    assert capfd.readouterr().out == ""
    assert done.path.parent == reports / run.id / "export" / name
    assert done.agreement == 1
    assert done.difference < 1e-5
    assert done.n == run.n_val + run.n_test
    found, text = RUNTIMES[name](done.path, pixels)
    assert (found.shape, found.dtype) == ((7, 3), np.float32)
    np.testing.assert_allclose(found, expected_of(run, pixels, cache, reports), atol=1e-5)
    metadata = json.loads(text)
    assert metadata["class_names"] == ["dark", "grey", "light"]
    assert (metadata["run"], metadata["image_size"], metadata["resize"]) == (run.id, list(SIZE), "stretch")
    assert metadata["weights_digest"] == run.specs[0].weights_digest
    assert metadata["accuracy"]["test"] == run.metrics["test"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logreg", "centroid", "linear", "mlp8", "bn-mlp8"])
def test_heads(head: str, features: str, pixels: np.ndarray, cache: Path, reports: Path) -> None:
    """What is exported is the head that predicts, which may have seen the validation images."""
    run = commands.train_head(HeadConfig(head), cache, reports, TrainingOptions(features))
    done = commands.export(run.id, "keras", cache, reports)
    found, _ = run_by_keras(done.path, pixels)
    np.testing.assert_allclose(found, expected_of(run, pixels, cache, reports), atol=1e-5)


@pytest.mark.slow
def test_two_classes_and_fine_tuning(red_and_blue: Path, cache: Path, reports: Path) -> None:
    commands.extract(ExtractConfig(str(red_and_blue), **SMALL), cache)
    head = commands.train_head(HeadConfig("logreg"), cache, reports)  # of the newest features
    tuned = commands.finetune(FinetuneConfig("block13", epochs=1, batch_size=16), cache, reports)
    for run in (head, tuned):
        done = commands.export(run.id, "openvino", cache, reports)
        assert done.agreement == 1
        keys = read_predictions(reports / run.id, len(run.class_names), run.files)
        assert done.n == sum(len(part.keys) for part in keys.values())


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_runs_without_tensorflow(name: str, run: Run, pixels: np.ndarray, cache: Path, reports: Path) -> None:
    done = commands.export(run.id, name, cache, reports)
    images = done.path.with_name("images.npy")
    np.save(images, pixels)
    code = {
        "onnx": "import onnxruntime; found = onnxruntime.InferenceSession(path).run(None, {'image': images})[0]",
        "openvino": "import openvino; found = openvino.Core().compile_model("
        "path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(images)[0]",
    }[name]
    script = f"""
        import sys
        sys.modules.update(tensorflow=None, keras=None, pipeline=None)
        import numpy as np
        path, images = sys.argv[1], np.load(sys.argv[2])
        {code}
        np.save(sys.argv[2], found)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(done.path), str(images)]
    subprocess.run(command, check=True, cwd=done.path.parent, capture_output=True)
    np.testing.assert_allclose(np.load(images), expected_of(run, pixels, cache, reports), atol=1e-5)


def test_a_file_that_says_something_else_is_not_kept(
    run: Run, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = commands.export(run.id, "keras", cache, reports)
    written = good.path.read_bytes()
    right = FORMATS["keras"]

    def load(path: Path) -> Any:
        return lambda images: right.load(path)(images)[:, ::-1]

    monkeypatch.setitem(formats.FORMATS, "keras", formats.Format("keras", right.file, (), "", right.write, load))
    with pytest.raises(RunError, match=r"probabilities up to 0\.\d\d apart from.* more than 0.1; it was not kept"):
        commands.export(run.id, "keras", cache, reports)
    with pytest.raises(RunError, match="it was not kept"):
        commands.export(run.id, None, cache, reports, reports / "new" / "deep" / "m.keras")
    assert not (reports / "new").exists()
    monkeypatch.setattr(importlib.import_module("pipeline.commands.export"), "CHECKED", 20)
    with pytest.raises(RunError, match=r"same label as tlpipe predict on \d.* less than 99 %; it was not kept"):
        commands.export(run.id, "keras", cache, reports)
    assert good.path.read_bytes() == written
    assert not [path for path in good.path.parent.parent.iterdir() if path.name not in FORMATS]


@pytest.mark.parametrize(
    ("found", "word"), [(np.nan, "gives no probabilities"), (0.9, "gives no probabilities"), (None, "broken runtime")]
)
def test_runtimes_that_fail(
    found: float | None,
    word: str,
    run: Run,
    tmp_path: Path,
    cache: Path,
    reports: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(path: Path) -> Any:
        if found is None:
            raise ValueError("broken runtime\nand more")
        return lambda images: np.full((len(images), 3), found, np.float32)

    write = FORMATS["keras"].write
    monkeypatch.setitem(formats.FORMATS, "keras", formats.Format("keras", "classifier.keras", (), "", write, load))
    with pytest.raises(RunError, match=f"{word}.*Try another --format"):
        commands.export(run.id, "keras", cache, reports, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_predict_does_otherwise_is_told(
    pictures: Path, cache: Path, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file computes in float32, and takes each image once; of a few images that shows in the probabilities."""
    monkeypatch.setattr(importlib.import_module("pipeline.commands.export"), "MOST_APART", 1e-3)
    fast = {**SMALL, "engine": "tensorflow", "precision": "bfloat16", "views": 1, "augment": "contrast"}
    record = commands.extract(ExtractConfig(str(pictures), **fast), cache / "fast").record
    half = commands.train_head(HeadConfig("ridge", views=0), cache / "fast", reports, TrainingOptions(record.id))
    with pytest.raises(RunError, match="computes in tensorflow-bfloat16, a file in float32.*--precision float32"):
        commands.export(half.id, "keras", cache / "fast", reports, tmp_path / "half")
    done = commands.export(half.id, "keras", cache / "fast", reports, tmp_path / "half", "float32")
    assert done.agreement == 1
    mean = commands.train_head(
        HeadConfig("ridge", views=0), cache / "fast", reports, TrainingOptions(record.id, test_views=1)
    )
    with pytest.raises(RunError, match="the mean over 2 versions of each image.*without --test-views"):
        commands.export(mean.id, "keras", cache / "fast", reports, tmp_path / "mean", "float32")


def test_mirror_images_are_averaged_inside_the_file(
    pictures: Path, pixels: np.ndarray, cache: Path, reports: Path, tmp_path: Path
) -> None:
    config = ExtractConfig(str(pictures), **{**SMALL, "views": 1, "augment": "flip"})
    record = commands.extract(config, cache / "views").record
    run = commands.train_head(
        HeadConfig("ridge"), cache / "views", reports, TrainingOptions(record.id, test_views=1, calibrate=True)
    )
    done = commands.export(run.id, None, cache / "views", reports, tmp_path / "mean.onnx")
    assert (done.agreement, done.path) == (1.0, tmp_path / "mean.onnx")
    assert done.difference < 1e-4
    found, _ = run_by_onnxruntime(done.path, pixels)
    mirrored, _ = run_by_onnxruntime(done.path, pixels[:, :, ::-1])
    np.testing.assert_allclose(found, mirrored, atol=1e-5)
    np.testing.assert_allclose(found, expected_of(run, pixels, cache / "views", reports), atol=1e-4)


@pytest.mark.slow
def test_a_file_of_ones_own(run: Run, tmp_path: Path, cache: Path, reports: Path) -> None:
    """Its suffix tells the format, and what lies beside it stays."""
    (tmp_path / "other.txt").write_text("mine")
    done = commands.export(run.id, None, cache, reports, tmp_path / "m.xml")
    assert (done.format, done.path) == ("openvino", tmp_path / "m.xml")
    assert {path.name for path in tmp_path.iterdir()} == {"other.txt", "m.xml", "m.bin", "m_usage.py"}
    with pytest.raises(ConfigError, match=r"--format keras and --output .*q\.tflite, the name of a tflite file"):
        commands.export(run.id, "keras", cache, reports, tmp_path / "q.tflite")
    with pytest.raises(ConfigError, match=r"There is .*m\.xml already"):
        commands.export(run.id, None, cache, reports, tmp_path / "m.xml")
    for taken in ("n_usage.py", "n.bin"):
        (tmp_path / taken).write_text("mine")
        with pytest.raises(ConfigError, match=f"There is .*{taken} already"):
            commands.export(run.id, None, cache, reports, tmp_path / "n.xml")
        assert (tmp_path / taken).read_text() == "mine"
        assert not (tmp_path / "n.xml").exists()
        (tmp_path / taken).unlink()
    with pytest.raises(StoreError, match="can't be written"):
        commands.export(run.id, None, cache, reports, tmp_path / "other.txt" / "n.xml")
    for output in (None, tmp_path / "m"):
        with pytest.raises(ConfigError, match="--format is missing; it can be keras, .* or give an --output that ends"):
            commands.export(run.id, None, cache, reports, output)


@pytest.mark.parametrize(
    "name",
    ["onnx", "openvino", *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "savedmodel", "tflite"))],
)
def test_the_script_beside_it_uses_it_rightly(
    name: str, run: Run, cache: Path, reports: Path, tmp_path: Path, draw: Any
) -> None:
    """On JPEGs so large that the decoder shrinks them, which is what a user would forget."""
    paths = []
    for number in range(6):
        path = draw(tmp_path / "large" / f"{number}.png", size=(600, 420), colour=(60 + 25 * number,) * 3)
        Image.open(path).save(path.with_suffix(".jpg"), quality=92)
        paths.append(str(path.with_suffix(".jpg")))
    done = commands.export(run.id, name, cache, reports)
    script = done.path.parent / "usage.py"
    answers = commands.predict(run.id, paths, cache, reports)
    said = subprocess.run(
        [sys.executable, script.name, *paths], cwd=script.parent, capture_output=True, text=True, check=True
    )
    lines = [line.rsplit(" ", 2) for line in said.stdout.splitlines()]
    assert [line[0] for line in lines] == paths
    assert [line[1] for line in lines] == [image.top[0][0] for image in answers.images]
    expected = [image.top[0][1] for image in answers.images]
    assert [float(line[2]) for line in lines] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop", "crop0.8"])
def test_the_script_resizes_as_tlpipe(resize: str, draw: Any, tmp_path: Path) -> None:
    """The lines of the script, run on a picture, give the pixels that tlpipe gives."""
    from pipeline.config import ImageConfig
    from pipeline.data import images
    from pipeline.runs.usage import usage

    metadata = {"class_names": ["a"], "image_size": [48, 64], "resize": resize, "interpolation": "bicubic"}
    lines = usage("onnx", "m.onnx", metadata).splitlines()
    start = next(number for number, line in enumerate(lines) if "picture = Image.open" in line)
    end = next(number for number, line in enumerate(lines) if "np.asarray" in line)
    code = textwrap.dedent("\n".join(lines[start : end + 1]))
    for size in ((500, 300), (300, 500), (70, 50)):
        path = draw(tmp_path / f"{size}.png", size=size)
        Image.open(path).save(path.with_suffix(".jpg"), quality=92)
        from PIL import ImageOps

        found: dict[str, Any] = {"path": path.with_suffix(".jpg"), "Image": Image, "ImageOps": ImageOps, "np": np}
        exec(code, found)
        config = ImageConfig((48, 64), resize)
        expected = images.resize(images.decode(path.with_suffix(".jpg").read_bytes(), config), config)
        np.testing.assert_array_equal(found["images"][0], expected)


def test_few_images_are_compared_by_their_probabilities(
    run: Run, cache: Path, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same labels, and yet another model."""
    right = FORMATS["keras"]

    def load(path: Path) -> Any:
        def softer(images: np.ndarray) -> np.ndarray:
            found = right.load(path)(images)
            return 0.5 * found + 0.5 / found.shape[1]

        return softer

    monkeypatch.setitem(formats.FORMATS, "keras", formats.Format("keras", right.file, (), "", right.write, load))
    with pytest.raises(RunError, match=r"probabilities up to 0\.\d+ apart from those of tlpipe predict on \d+ images"):
        commands.export(run.id, "keras", cache, reports, tmp_path / "soft")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own(run: Run, tmp_path: Path, cache: Path, reports: Path) -> None:
    done = commands.export(run.id, "keras", cache, reports, tmp_path / "mine")
    assert done.path == tmp_path / "mine" / "classifier.keras"
    with pytest.raises(ConfigError, match="already"):
        commands.export(run.id, "keras", cache, reports, tmp_path / "mine")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.extra])
def test_libraries_that_are_not_there(name: str, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "installed", lambda module: False)
    with pytest.raises(ConfigError, match=rf"pip install 'tlpipe\[{FORMATS[name].extra}\]'"):
        commands.export(None, name, cache, reports)


def test_what_cannot_be_exported(
    run: Run, features: str, pictures: Path, cache: Path, reports: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--format is 'pickle'"):
        commands.export(run.id, "pickle", cache, reports)
    knn = commands.train_head(HeadConfig("knn3"), cache, reports, TrainingOptions(features))
    with pytest.raises(ConfigError, match="knn3 is no network"):
        commands.export(knn.id, "keras", cache, reports)
    away = pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="checked on images of its run, and these are gone"):
        commands.export(run.id, "keras", cache, reports)
    away.rename(pictures)
