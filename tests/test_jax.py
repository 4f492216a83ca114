"""The JAX engine. Keras runs on one backend in a process, so most of it is seen in processes with KERAS_BACKEND=jax."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_shades, part_of

from pipeline import commands
from pipeline.backbones import open_backbone
from pipeline.commands.cache import verify
from pipeline.config import ExtractConfig, FinetuneConfig
from pipeline.errors import EngineError
from pipeline.extraction import engines
from pipeline.extraction.engines import EngineChoice, call, choose, open_engine
from pipeline.extraction.plan import open_plan
from pipeline.finetuning import assemble, fit
from pipeline.finetuning.fit import _Training
from pipeline.util import machine, runtime
from pipeline.util.stopping import Stopping

pytest.importorskip("jax")

TESTS = Path(__file__).parent
ON_JAX = runtime.keras_backend() == "jax"

on_jax = pytest.mark.skipif(not ON_JAX, reason="run by test_all_that_runs_on_jax, in a process of its own")
elsewhere = pytest.mark.skipif(ON_JAX, reason="Keras runs on JAX here")

WITHOUT_TENSORFLOW = """
import importlib.util
import sys
from dataclasses import replace

HIDDEN = ("tensorflow", "openvino", "nncf")
spec_of = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else spec_of(name, package)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures, and a network in a file, which has the same weights everywhere."""
    folder = tmp_path_factory.mktemp("shades")
    draw_shades(folder / "data")
    if not ON_JAX:
        keras = runtime.keras()
        keras.utils.set_random_seed(0)
        model = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False, input_shape=(64, 64, 3))
        model.save(folder / "network.keras")
    return folder


@pytest.fixture
def run_on_jax(shades: Path, tmp_path: Path) -> Any:
    """Run a command where Keras runs on JAX; its answer, or what it wrote to standard error."""

    def run(words: str, environment: dict[str, str] | None = None) -> Any:
        folders = ["--cache", str(tmp_path / "cache"), "--reports", str(tmp_path / "reports")]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *shlex.split(words), *folders, "--json"],
            cwd=shades,
            env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(TESTS.parent), **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    return run


@elsewhere
@pytest.mark.slow
@pytest.mark.parametrize(("which", "n_passed"), [("not slow", 5 + 6), ("slow", 2)])
def test_all_that_runs_on_jax(which: str, n_passed: int) -> None:
    """The tests of every engine and those below, on two devices that are made of one processor."""
    files = [str(TESTS / name) for name in ("test_jax.py", "test_engines.py::TestEveryEngine")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", which, "-p", "no:cacheprovider", "-p", "no:xdist", *files],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = int(done.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed == n_passed, done.stdout  # of every engine, and below


@elsewhere
@pytest.mark.slow  # each engine is compared with Keras by the test above
def test_features_are_those_of_tensorflow(shades: Path, run_on_jax: Any, tmp_path: Path) -> None:
    """The same digest of the weights, the same rows of the cache, and the same values in them."""
    found = run_on_jax("extract data --backbone network.keras --image-size 64")
    assert (found["engine"], found["precision"], found["n_computed"]) == ("jax", "float32", 120)
    config = ExtractConfig(
        str(shades / "data"), backbone=str(shades / "network.keras"), image_size=(64, 64), engine="tensorflow"
    )
    here = commands.extract(config, tmp_path / "cache")
    assert (here.n_computed, here.n_reused) == (0, 120)
    checked = verify(tmp_path / "cache", recompute=50)
    (one,) = checked.recomputed
    assert (one.n, checked.damaged) == (50, [])
    assert one.relative < 1e-4
    assert one.engine != "jax"


@pytest.fixture(scope="module")
def network() -> Any:
    return open_backbone("mobilenet025", "random", 0, (64, 64)).network


@on_jax
class TestJax:
    """In a process where Keras runs on JAX, with two devices."""

    @pytest.fixture
    def images(self, random: np.random.Generator) -> np.ndarray:
        return random.integers(0, 256, (70, 64, 64, 3), np.uint8)

    def engine(self, network: Any, precision: str = "float32", devices: Any = None) -> Any:
        from pipeline.extraction.engines.base import POLICIES
        from pipeline.extraction.engines.jax import JaxEngine

        return JaxEngine(network(POLICIES[precision]).features("block13", "avg"), precision, 8, devices)

    def test_auto_takes_it(self) -> None:
        assert choose("auto", "auto") == EngineChoice("jax", "float32")
        assert choose("auto", "bfloat16").spec_precision == "jax-bfloat16"
        for engine, precision in (("tensorflow", "auto"), ("openvino", "auto"), ("auto", "int8")):
            with pytest.raises(EngineError, match="in this process Keras runs on JAX; leave it out, or unset KERAS_BA"):
                choose(engine, precision)

    @pytest.mark.parametrize("precision", ["int8", "float16"])
    def test_precisions_it_lacks(self, precision: str) -> None:
        with pytest.raises(EngineError, match=f"jax doesn't compute in {precision} here; use --precision auto"):
            choose("jax", precision)

    @pytest.mark.slow
    def test_devices_share_a_batch(self, network: Any, images: np.ndarray) -> None:
        devices = runtime.jax().devices()
        assert len(devices) == 2
        both, one = self.engine(network), self.engine(network, devices=devices[:1])
        assert both.batch_size == 2 * one.batch_size
        np.testing.assert_array_equal(call(both, images), call(one, images))

    def test_nothing_is_traced_again(self, network: Any, images: np.ndarray) -> None:
        engine = self.engine(network)
        with pytest.raises(TypeError, match="uint8\\[3,64,64,3\\]"):
            engine._run(engine._weights, images[:3])

    def test_bfloat16_is_near(self, network: Any, images: np.ndarray, tmp_path: Path) -> None:
        """Which the verdict asks as well, and keeps."""
        engine = open_engine(EngineChoice("jax", "bfloat16"), network, "block13", "avg", tmp_path / "g")
        exact, found = call(self.engine(network), images), call(engine, images)
        assert found.dtype == np.float32
        assert 0 < np.linalg.norm(found - exact) < 0.3 * np.linalg.norm(exact)
        (kept,) = (tmp_path / "g" / "verdicts").iterdir()
        assert json.loads(kept.read_text())["versions"]["jax"] == runtime.version("jax")

    @pytest.mark.slow
    def test_fine_tuning_from_the_cut(self, network: Any) -> None:
        """Keras's own `fit`; the rates of all layers are multiplied by what the plateau leaves of them."""
        keras = runtime.keras()
        features = network("float32").features("block13", "avg")
        unfrozen = network("float32").unfreeze(features, "block13")
        head = keras.layers.Dense(3, name="logits")
        head.build((None, 256))
        models = assemble(features, unfrozen, [head], 3)
        draw, labels = np.random.default_rng(0), np.arange(160) % 3
        maps = draw.random((160, *models.trained.inputs[0].shape[1:]), np.float32) * (1 + labels[:, None, None, None])
        config = FinetuneConfig("block13", epochs=8, batch_size=16, learning_rate=1e-2, warm_up=0, patience=9)
        still = _Training(models, {"train": part_of(maps, labels)}, config, None)
        before = [weight.copy() for weight in models.whole.get_weights()]
        still.start()
        for _ in range(2):
            still.optimizer.factor.assign(0.0)
            still.epoch(Stopping(), lambda _: None)
        losses = [row["loss"] for row in still.history[1:]]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), "each epoch sees each image once, the first one, too"
        for weight, same in zip(models.whole.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, same)
        tuned = fit(models, {"train": part_of(maps, labels)}, config)
        assert tuned.history[8]["loss"] < 0.9 * tuned.history[1]["loss"]
        pairs = zip(models.whole.weights, models.whole.get_weights(), before, strict=True)
        changed = {weight.path.split("/")[0] for weight, now, then in pairs if (now != then).any()}
        assert changed == {"conv_dw_13", "conv_pw_13", "logits"}
        averaged = _Training(models, {"train": part_of(maps, labels)}, replace(config, ema=0.9), None)
        averaged.start()
        averaged.epoch(Stopping(), lambda _: None)
        for weight, last in zip(averaged.model.get_weights(), averaged.last, strict=True):
            np.testing.assert_array_equal(weight, last)
        assert any((average != last).any() for average, last in zip(averaged.best, averaged.last, strict=True))

    def test_memory_that_ends(self, network: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = self.engine(network)

        def full(*_: Any) -> None:
            raise runtime.jax().errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

        monkeypatch.setattr(engine, "_run", full)
        with pytest.raises(
            EngineError, match="with 16 images in a batch on each of 2 devices; try a --batch-size below 16"
        ):
            call(engine, images)


class TestRefused:
    @elsewhere
    def test_jax_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "installed", lambda name: name != "jax")
        with pytest.raises(EngineError, match="--engine jax needs JAX; install it with: pip install jax"):
            choose("jax", "auto")

    @elsewhere
    def test_keras_runs_on_something_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime.keras()
        with pytest.raises(
            EngineError, match="jax needs Keras on JAX, and .* on tensorflow; start again with KERAS_BA"
        ):
            open_plan(ExtractConfig("digits", backbone="mobilenet025", weights="random", engine="jax"), Path("cache"))

    @elsewhere
    def test_unknown_backend(self, run_on_jax: Any) -> None:
        error = run_on_jax("extract data --backbone mobilenet025 --weights random", {"KERAS_BACKEND": "torch"})
        assert error == "Error: tlpipe doesn't support KERAS_BACKEND=torch; set tensorflow or jax\n"

    @elsewhere
    def test_gpu_that_jax_alone_sees(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`auto` takes JAX there, and else TensorFlow, as ever."""
        monkeypatch.setattr(machine, "has_nvidia_gpu", lambda: True)
        monkeypatch.setattr(runtime, "keras_backend", lambda: None)
        jax = runtime.jax()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        seen = True
        monkeypatch.setattr(engines, "_tensorflow_sees_gpus", lambda: seen)
        assert choose("auto", "auto") == EngineChoice("tensorflow", "float16")
        seen = False
        assert choose("auto", "auto") == EngineChoice("jax", "bfloat16")
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        assert choose("auto", "auto").engine == "tensorflow"


@pytest.mark.slow
@elsewhere
def test_without_tensorflow(run_on_jax: Any, tmp_path: Path) -> None:
    """From pictures to predictions and a fine-tuned network; what needs TensorFlow says so."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TENSORFLOW)
    hidden = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{TESTS.parent}", "KERAS_BACKEND": ""}
    assert run_on_jax("extract data --backbone network.keras --image-size 64", hidden)["engine"] == "jax"
    run = run_on_jax("train-head --head ridge", hidden)
    assert run["metrics"]["test"]["accuracy"] > 0.5
    (found,) = run_on_jax(f"predict {run['run']} data/dark/1.png", hidden)
    assert found["label"] in ("dark", "grey", "light")
    tuned = run_on_jax(f"finetune --head-run {run['run']} --blocks all --epochs 1 --augment flip", hidden)
    assert tuned["baseline"] == run["metrics"]
    again = run_on_jax(f"predict {tuned['run']} data/dark/1.png", hidden)
    assert sum(one["probability"] for one in again[0]["top"]) == pytest.approx(1, abs=1e-5)
    needs = "need TensorFlow, and it isn't installed; install it with: pip install tensorflow\n"
    for words in ("train-head --head linear", "train-head --head mlp8"):
        assert run_on_jax(words, hidden).endswith(needs), words
