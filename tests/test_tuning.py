"""The third stage as a whole: small networks with random weights on drawn pictures, from extract to a model file."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import draw_colours, unsealed_anyway
from PIL import Image

from pipeline import commands
from pipeline.backbones import open_backbone
from pipeline.commands import FinetuneOptions, TrainingOptions
from pipeline.config import ExtractConfig, FinetuneConfig, HeadConfig, SplitConfig
from pipeline.errors import (
    CacheMismatchError,
    ConfigError,
    DataError,
    EndpointError,
    RunError,
    StoreError,
    WeightsError,
)
from pipeline.finetuning import Checkpoint, State
from pipeline.runs.find import all_runs
from pipeline.runs.folder import read_run
from pipeline.runs.run import FinetuneRun, Run
from pipeline.store.records import find_record
from pipeline.store.shards import FeatureStore
from pipeline.store.table import load_table
from pipeline.util.sealed import sealed

SMALL = {"backbone": "mobilenet025", "image_size": (32, 32), "weights": "random", "precision": "float32"}
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3}

tuning = importlib.import_module("pipeline.commands.finetune")


def with_head(folder: Path) -> Run:
    """A head on features of a network with random weights."""
    data = draw_colours(folder / "colours")
    commands.extract(ExtractConfig(str(data), **SMALL), folder / "cache")
    return commands.train_head(HeadConfig("logreg"), folder / "cache", folder / "reports")


def with_tuned(folder: Path) -> Run:
    """Without validation images the last epoch is kept."""
    data, cache, reports = draw_colours(folder / "colours"), folder / "cache", folder / "reports"
    commands.extract(ExtractConfig(str(data), **SMALL, splits=SplitConfig(val_fraction=0)), cache)
    commands.train_head(HeadConfig("logreg"), cache, reports)
    config = FinetuneConfig("block12", epochs=2, batch_size=8, learning_rate=1e-3, schedule="none", patience=9)
    return commands.finetune(config, cache, reports)


@pytest.fixture
def made(once: Any) -> tuple[Path, Run]:
    made: tuple[Path, Run] = once(with_head)
    return made


@pytest.fixture
def head(made: tuple[Path, Run]) -> Run:
    return made[1]


@pytest.fixture
def red_and_blue(made: tuple[Path, Run]) -> Path:
    return made[0] / "colours"


@pytest.fixture
def home(made: tuple[Path, Run]) -> Path:
    return made[0]


def served(folder: Path, paths: list[Path]) -> np.ndarray:
    """Probabilities by plain Keras, of pictures resized by plain Pillow."""
    model = keras.models.load_model(folder / "model.keras", compile=False, safe_mode=True)
    size = model.inputs[0].shape[2], model.inputs[0].shape[1]
    pictures = [Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC) for path in paths]
    return np.asarray(model.predict(np.stack([np.asarray(picture) for picture in pictures]), verbose=0))


def test_before_and_after_stand_side_by_side(head: Run, cache: Path, reports: Path) -> None:
    run = commands.finetune(FinetuneConfig("block12", **QUICK), cache, reports)
    assert run.baseline == head.metrics
    assert set(run.metrics) == {"val", "test"}
    assert run.config.blocks == "block12"
    assert (run.head_run, run.cut) == (head.id, "conv_pw_11_relu")
    assert run.notes[0] == f"Before: {head.id}, on frozen features"
    assert run.peak_memory is not None and run.peak_memory > 1e8
    assert 0 < run.seconds["epoch"] < run.seconds["total"]
    rows = (reports / run.id / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,learning_rate,accuracy,loss,val_loss,val_accuracy,epoch_seconds,seconds"
    assert len(rows) == 4
    assert not (reports / ".unfinished").exists()


@pytest.mark.parametrize(
    "how",
    [
        {"augment": "flip"},
        pytest.param({"views": 2}, marks=pytest.mark.slow),
        pytest.param({"blocks": "all"}, marks=pytest.mark.slow),
        {"blocks": "none", "views": 1},
    ],
)
def test_the_saved_model_predicts_what_the_run_says(
    how: dict[str, Any], head: Run, red_and_blue: Path, cache: Path, reports: Path
) -> None:
    import h5py

    run = commands.finetune(FinetuneConfig(**{"blocks": "block12", **QUICK, **how}), cache, reports)
    table = load_table(cache, [find_record(cache, head.features)], 0)
    with h5py.File(reports / run.id / "predictions.h5") as file:
        for split in ("val", "test"):
            rows = table.rows(split)
            assert file[f"{split}/key"][:].tolist() == table.keys[rows].tolist()
            found = served(reports / run.id, [red_and_blue / table.locations[row] for row in rows])
            np.testing.assert_allclose(found, file[f"{split}/probability"][:], atol=1e-3)
    assert find_record(cache, None).id == head.features, "what was extracted for it is not what the next command takes"


def test_new_versions_go_through_the_engine(
    head: Run, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What every epoch sees anew is never stored; at the cut there are the images that rate, and no others."""
    with caplog.at_level("INFO", logger="tlpipe"):
        run = commands.finetune(FinetuneConfig("block12", augment="flip,crop", **QUICK), cache, reports)
    assert f"Computing {run.n_val + run.n_test} of {run.n_val + run.n_test} rows with" in caplog.text
    assert (run.end_to_end, run.cut) == (False, "conv_pw_11_relu")
    assert any(
        note.endswith("on new versions of the images in each epoch, BatchNormalization in inference mode")
        for note in run.notes
    )


@pytest.mark.slow
def test_a_fast_engine_does_not_bend_the_figures(red_and_blue: Path, cache: Path, reports: Path) -> None:
    """Trained on activations in bfloat16, rated in float32, as the saved model runs."""
    import h5py

    config = ExtractConfig(str(red_and_blue), **{**SMALL, "engine": "tensorflow", "precision": "bfloat16"})
    head = commands.extract(config, cache).record.id
    commands.train_head(HeadConfig("logreg"), cache, reports)
    run = commands.finetune(FinetuneConfig("block12", **QUICK), cache, reports)
    assert "Rated in float32, as the saved model runs; the frozen head was rated in tensorflow-bfloat16" in run.notes
    table = load_table(cache, [find_record(cache, head)], 0)
    rows = table.rows("val")
    found = served(reports / run.id, [red_and_blue / table.locations[row] for row in rows])
    with h5py.File(reports / run.id / "predictions.h5") as file:
        assert file["val/key"][:].tolist() == table.keys[rows].tolist()
        np.testing.assert_allclose(found, file["val/probability"][:], atol=1e-3)


def test_views_are_cached_and_trained_on(
    head: Run, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    fit = tuning.fit

    def spied(models: Any, examples: Any, *more: Any) -> Any:
        seen.update({split: len(part) for split, part in examples.items()})
        return fit(models, examples, *more)

    monkeypatch.setattr(tuning, "fit", spied)
    with caplog.at_level("INFO", logger="tlpipe"):
        run = commands.finetune(FinetuneConfig("block13", views=2, **QUICK), cache, reports)
    assert seen == {"train": 3 * run.n_train, "val": run.n_val, "test": run.n_test}
    assert run.config.augment == "flip,crop"
    assert "Computing 120 of 120 rows with openvino in float32" in caplog.text
    assert "The features will take" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="tlpipe"):
        commands.finetune(FinetuneConfig("block13", **QUICK), cache, reports)
    assert "rows with" not in caplog.text, "the images themselves are there already"


def test_a_disk_that_cannot_hold_the_activations(
    head: Run, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureStore, "free_space", lambda _: 1000)
    with pytest.raises(StoreError, match="The features will take 41.0 kB, .* has 1.0 kB free; make room"):
        commands.finetune(FinetuneConfig("block13", **QUICK), cache, reports)


class TestStart:
    def test_a_head_is_trained_first(self, head: Run, cache: Path, reports: Path) -> None:
        run = commands.finetune(FinetuneConfig("block13", **QUICK), cache, reports, FinetuneOptions(head="mlp8"))
        first = read_run(reports / run.head_run)
        assert (first.stage, first.head, run.head) == ("train-head", "mlp8", "mlp8")
        assert run.baseline == first.metrics

    def test_cold_head(self, head: Run, cache: Path, reports: Path) -> None:
        config = FinetuneConfig("none", cold_head=True, epochs=1, learning_rate=1e-6)
        run = commands.finetune(config, cache, reports)
        assert "The head started from random weights" in run.notes
        assert run.metrics["val"]["log_loss"] > 2 * head.metrics["val"]["log_loss"]
        assert run.notes[-1].endswith(f"use the head: {head.id}")

    @pytest.mark.slow
    def test_from_scratch(self, head: Run, cache: Path, reports: Path) -> None:
        config = FinetuneConfig("all", weights="random", epochs=1, batch_size=16, seed=4)
        run = commands.finetune(config, cache, reports)
        assert run.config.train_bn is True
        assert any("random weights" in note for note in run.notes)
        with_bn = open_backbone("mobilenet025", "random", 4, (32, 32)).network().model
        assert run.trainable_parameters == sum(np.prod(w.shape) for w in with_bn.trainable_weights) + 257

    @pytest.mark.parametrize(
        ("config", "options", "message"),
        [
            ({"blocks": "all", "views": 1}, {}, "nothing lies there; give --augment alone"),
            ({"blocks": "block13", "mixup": 0.2}, {}, "--mixup 0.2 mixes images"),
            ({}, {"head_run": "a", "head": "logreg"}, "give one of them"),
            ({}, {"features": "a"}, "--features a needs --head"),
            ({"blocks": "block99"}, {}, "there is no block or layer 'block99'"),
            ({"blocks": ""}, {}, "there is no block or layer ''"),
            ({"blocks": "All"}, {}, "Did you mean all"),
            ({"blocks": "conv_pw_13_bn"}, {}, "trains nothing of the backbone"),
            ({}, {"head": "knn5"}, "knn5 is no network"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, config: dict[str, Any], options: dict[str, Any], message: str, head: Run, cache: Path, reports: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            commands.finetune(FinetuneConfig(**config), cache, reports, FinetuneOptions(**options))
        assert len(all_runs(reports)) == 1

    def test_tensorboard_that_is_not_installed(
        self, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipeline.util.runtime.installed", lambda _: False)
        with pytest.raises(ConfigError, match="pip install tensorboard"):
            commands.finetune(FinetuneConfig("none"), cache, reports, FinetuneOptions(tensorboard=True))

    def test_data_that_changed(self, head: Run, red_and_blue: Path, cache: Path, reports: Path) -> None:
        (red_and_blue / "red" / "3.png").unlink()
        for blocks in ("block13", "all"):
            with pytest.raises(CacheMismatchError, match="has changed since"):
                commands.finetune(FinetuneConfig(blocks, **QUICK), cache, reports)

    def test_an_image_that_goes_away_while_it_trains(
        self, head: Run, red_and_blue: Path, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit = tuning.fit

        def gone(*arguments: Any) -> Any:
            max(red_and_blue.rglob("*.png")).write_bytes(b"gone")
            return fit(*arguments)

        monkeypatch.setattr(tuning, "fit", gone)
        with pytest.raises(DataError, match=r"\.png could be read when its features were computed"):
            commands.finetune(FinetuneConfig("all", **QUICK), cache, reports)


@pytest.mark.slow
def test_a_backbone_cut_short_in_all_stages(red_and_blue: Path, cache: Path, reports: Path) -> None:
    """VGG16's first three blocks: frozen below a head, trained from a cut, and trained as a whole."""
    config = ExtractConfig(str(red_and_blue), **{**SMALL, "backbone": "vgg16"}, endpoint="block3")
    commands.extract(config, cache)
    head = commands.train_head(HeadConfig("logreg"), cache, reports)
    for blocks, cut in ((None, "block2_pool"), ("all", "pixels")):
        run = commands.finetune(FinetuneConfig(blocks, epochs=1), cache, reports, FinetuneOptions(head.id))
        assert run.cut == cut
        model = keras.models.load_model(reports / run.id / "model.keras", compile=False)
        assert model.get_layer("pooled_0").output.shape == (None, 256)
    again = ExtractConfig(str(red_and_blue), backbone=str(reports / run.id), precision="float32")
    assert commands.extract(again, cache).record.spec.endpoint == "block3"
    with pytest.raises(ConfigError, match="lies above the last layer"):
        commands.extract(ExtractConfig(str(red_and_blue), backbone=str(reports / run.id), endpoint="block5"), cache)


class TestAsBackbone:
    @pytest.fixture
    def made(self, once: Any) -> tuple[Path, Run]:
        made: tuple[Path, Run] = once(with_tuned)
        return made

    @pytest.fixture
    def tuned(self, made: tuple[Path, Run]) -> Run:
        return made[1]

    def test_its_features_are_those_below_its_head(
        self, tuned: Run, red_and_blue: Path, cache: Path, reports: Path
    ) -> None:
        result = commands.extract(
            ExtractConfig(str(red_and_blue), backbone=str(reports / tuned.id), precision="float32"), cache
        )
        spec = result.record.spec
        assert (spec.backbone, spec.endpoint, spec.image_size) == ("mobilenet025", "block13", (32, 32))
        table = load_table(cache, [result.record], 0)
        model = keras.models.load_model(reports / tuned.id / "model.keras", compile=False)
        below = keras.Model(model.inputs[0], model.get_layer("pooled_0").output)
        paths = [red_and_blue / location for location in table.locations]
        pictures = [Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for path in paths]
        expected = below.predict(np.stack([np.asarray(picture) for picture in pictures]), verbose=0)
        np.testing.assert_allclose(table.array(), expected, atol=1e-4)
        assert spec.weights_digest != tuned.specs[0].weights_digest
        assert commands.extract(result.record.config, cache).n_computed == 0

    def test_all_stages_go_on_from_it(self, tuned: Run, red_and_blue: Path, cache: Path, reports: Path) -> None:
        config = ExtractConfig(str(red_and_blue), backbone=str(reports / tuned.id), precision="float32")
        features = commands.extract(config, cache).record.id
        commands.train_head(HeadConfig("logreg"), cache, reports, TrainingOptions(features))
        again = commands.finetune(FinetuneConfig("block11", epochs=1, learning_rate=1e-5), cache, reports)
        assert again.cut == "conv_pw_10_relu", "what was frozen before can be trained now"
        assert again.trainable_parameters > tuned.trainable_parameters
        third = ExtractConfig(str(red_and_blue), backbone=str(reports / again.id), engine="tensorflow")
        assert commands.extract(third, cache).n_computed == 40

    def test_what_is_no_fine_tuned_run_is_refused(
        self, tuned: Run, red_and_blue: Path, cache: Path, reports: Path
    ) -> None:
        head = tuned.head_run

        def extract(name: Path, **more: Any) -> None:
            commands.extract(ExtractConfig(str(red_and_blue), backbone=str(name), **more), cache)

        with pytest.raises(RunError, match="one of tlpipe finetune is needed"):
            extract(reports / head)
        with pytest.raises(WeightsError, match="the folder of a run of tlpipe finetune"):
            extract(reports / "nowhere")
        with pytest.raises(ConfigError, match="takes images of 32x32 pixels"):
            extract(reports / tuned.id, image_size=(64, 64))
        with pytest.raises(ConfigError, match="brings its own weights"):
            extract(reports / tuned.id, weights="random")
        file = reports / tuned.id / "run.json"
        text = file.read_text()
        value = unsealed_anyway(json.loads(text))
        for top, error in ((3, RunError), ("nothing", WeightsError)):
            value["payload"]["top"] = top
            file.write_text(json.dumps(sealed(value)))
            with pytest.raises(error, match=r"run.json is not what|has no layer 'nothing'"):
                extract(reports / tuned.id)
        value["payload"]["specs"][0]["backbone"] = "../../passwords"
        file.write_text(json.dumps(sealed(value)))
        with pytest.raises(RunError, match="doesn't say what its backbone is"):
            extract(reports / tuned.id)
        file.write_text(text)
        (reports / tuned.id / "model.keras").unlink()
        with pytest.raises(RunError, match=r"has no model\.keras any more"):
            extract(reports / tuned.id)


def interrupted(config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions) -> None:
    """Fine-tune until the first epoch is kept."""
    save = Checkpoint.save

    def killed(self: Checkpoint, state: State) -> None:
        save(self, state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", killed)
        commands.finetune(config, cache, reports, options)


class TestResume:
    def test_the_head_it_began_with_is_found_again(
        self, head: Run, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = FinetuneConfig("block13", epochs=3, batch_size=8)
        interrupted(config, cache, reports, FinetuneOptions())
        newer = commands.train_head(HeadConfig("ridge"), cache, reports)
        with caplog.at_level("INFO", logger="tlpipe"):
            run = commands.finetune(config, cache, reports, FinetuneOptions(resume=True))
        assert run.head_run == head.id != newer.id
        assert "Resumed after epoch 1" in run.notes
        assert "Continuing after epoch 1 of 3" in caplog.text
        assert [read.stage for read in all_runs(reports)] == ["train-head", "train-head", "finetune"]

    def test_two_at_once_are_refused(
        self, head: Run, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, fit = FinetuneConfig("none", epochs=1), tuning.fit

        def again(*arguments: Any) -> Any:
            with pytest.raises(RunError, match="running already"):
                commands.finetune(config, cache, reports)
            return fit(*arguments)

        monkeypatch.setattr(tuning, "fit", again)
        assert commands.finetune(config, cache, reports).stage == "finetune"

    def test_a_disk_that_is_full_at_the_end(
        self, head: Run, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        config, save = FinetuneConfig("none", epochs=1), tuning.save_run

        def full(*_: Any, **__: Any) -> None:
            raise StoreError("No space is left")

        monkeypatch.setattr(tuning, "save_run", full)
        with pytest.raises(StoreError, match="The epochs are kept: once there is room"):
            commands.finetune(config, cache, reports)
        monkeypatch.setattr(tuning, "save_run", save)
        run = commands.finetune(config, cache, reports, FinetuneOptions(resume=True))
        assert "Resumed after epoch 1" in run.notes
        monkeypatch.setattr(tuning, "save_run", full)
        with pytest.raises(StoreError):
            commands.finetune(config, cache, reports)
        monkeypatch.setattr(tuning, "save_run", save)
        commands.finetune(config, cache, reports)
        assert "--resume would keep its epochs" in caplog.text

    def test_nothing_to_resume(self, head: Run, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="tlpipe"):
            run = commands.finetune(FinetuneConfig("none", epochs=1), cache, reports, FinetuneOptions(resume=True))
        assert "left no checkpoint with these options" in caplog.text
        assert not any("Resumed" in note for note in run.notes)

    @pytest.mark.slow
    def test_killed_and_resumed_from_the_command_line(self, pictures: Path, cache: Path, reports: Path) -> None:
        """SIGKILL after the second epoch; the same command with --resume ends with the same weights."""
        commands.extract(ExtractConfig(str(pictures), **SMALL), cache)
        head = commands.train_head(HeadConfig("logreg"), cache, reports)
        options = ["finetune", "--blocks", "block13", "--epochs", "4", "--batch-size", "8", "--patience", "9"]
        options += ["--learning-rate", "0.001", "--cache", str(cache), "--json", "--head-run", head.id]
        script = textwrap.dedent(
            """
            import os, signal, sys
            from pipeline.finetuning import Checkpoint
            from pipeline.cli.main import app
            save = Checkpoint.save
            def killed(self, state):
                save(self, state)
                if len(state.history) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
            if "--kill" in sys.argv:
                sys.argv.remove("--kill")
                Checkpoint.save = killed
            app()
            """
        )

        def run(*more: str, folder: Path) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", script, *options, "--reports", str(folder), *more]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        assert run("--kill", folder=reports).returncode == -9
        resumed = run("--resume", folder=reports)
        assert resumed.returncode == 0, resumed.stderr
        other = reports.parent / "undisturbed"
        other.mkdir()
        (other / head.id).symlink_to(reports / head.id)
        undisturbed = run(folder=other)
        assert undisturbed.returncode == 0, undisturbed.stderr
        weights = []
        for done, folder in ((resumed, reports), (undisturbed, other)):
            path = folder / json.loads(done.stdout)["run"] / "model.keras"
            weights.append(keras.models.load_model(path, compile=False).get_weights())
        for one, another in zip(*weights, strict=True):
            np.testing.assert_allclose(one, another, atol=1e-6)
        assert "Resumed after epoch 2" in resumed.stdout


def test_tensorboard(head: Run, cache: Path, reports: Path) -> None:
    """Logs of an interrupted command go on where they ended."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, options = FinetuneConfig("none", **QUICK), FinetuneOptions(tensorboard=True)
    interrupted(config, cache, reports, options)
    run = commands.finetune(config, cache, reports, replace(options, resume=True))
    found = EventAccumulator(str(reports / run.id / "tensorboard"))
    found.Reload()
    assert {"loss", "val_accuracy", "val_loss", "learning_rate"} <= set(found.Tags()["tensors"])
    assert [event.step for event in found.Tensors("loss")] == [1, 2]


@pytest.mark.slow
def test_several_devices_train_the_same(pictures: Path, cache: Path, reports: Path) -> None:
    """Two logical processors, each with half of every batch: the losses of one, where all batches are full."""
    commands.extract(ExtractConfig(str(pictures), **SMALL, splits=SplitConfig(0, 0)), cache)
    head = commands.train_head(HeadConfig("logreg"), cache, reports)
    assert head.n_train % 8 == 0
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from pipeline.util import runtime
        from pipeline import commands
        from pipeline.config import FinetuneConfig
        from pipeline.commands import FinetuneOptions
        cache, reports, head, devices = sys.argv[1:]
        tf = runtime.tensorflow()
        if devices == "2":
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
            strategy = runtime.strategy(["CPU:0", "CPU:1"])
            assert strategy.num_replicas_in_sync == 2
            runtime.strategy = lambda: strategy
            from pipeline.errors import ConfigError
            for refused in ({"accumulate": 2}, {"batch_size": 7}):
                try:
                    commands.finetune(FinetuneConfig(**refused), Path(cache), Path(reports), FinetuneOptions(head))
                except ConfigError as error:
                    assert "as 2 GPUs are visible" in str(error)
                else:
                    raise AssertionError(refused)
            mixed = FinetuneConfig("block13", epochs=1, batch_size=14, augment="flip", mixup=0.2)
            commands.finetune(mixed, Path(cache), Path(reports), FinetuneOptions(head))
        config = FinetuneConfig("block13", epochs=2, batch_size=8, learning_rate=1e-3)
        print(commands.finetune(config, Path(cache), Path(reports), FinetuneOptions(head)).id)
        """
    )
    losses = []
    for devices in ("1", "2"):
        command = [sys.executable, "-c", script, str(cache), str(reports), head.id, devices]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = (reports / done.stdout.split()[-1] / "history.csv").read_text().splitlines()
        columns = rows[0].split(",")
        losses.append([dict(zip(columns, row.split(","), strict=True)) for row in rows[1:]])
    for row, other in zip(*losses, strict=True):
        for name in ("loss", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3, nan_ok=True), name
    assert float(losses[0][2]["loss"]) < 0.95 * float(losses[0][1]["loss"])


class TestSeveralSettings:
    def test_each_is_a_run_of_its_own(self, head: Run, cache: Path, reports: Path) -> None:
        configs = [FinetuneConfig("block13", **{**QUICK, "learning_rate": rate}) for rate in (1e-3, 1e-4)]
        alone = commands.finetune(configs[1], cache, reports)
        found = commands.finetune_each(configs, cache, reports)
        assert list(found) == configs
        runs = [one for one in found.values() if isinstance(one, FinetuneRun)]
        assert [run.config.learning_rate for run in runs] == [1e-3, 1e-4]
        assert {run.head_run for run in runs} == {head.id}
        assert runs[1].metrics == alone.metrics
        assert f"--learning-rate 0.001 --head-run {head.id}" in runs[0].command

    def test_one_that_fails_ends_no_other(self, head: Run, cache: Path, reports: Path) -> None:
        good, bad = (FinetuneConfig(block, epochs=1) for block in ("block13", "block99"))
        found = commands.finetune_each([bad, good], cache, reports)
        assert isinstance(found[bad], EndpointError) and "block99" in str(found[bad])
        assert isinstance(found[good], FinetuneRun)

    def test_resumed_those_that_ended_are_not_trained_again(self, head: Run, cache: Path, reports: Path) -> None:
        configs = [FinetuneConfig("none", epochs=1, seed=seed) for seed in (0, 1)]
        first = commands.finetune_each(configs[:1], cache, reports)
        both = commands.finetune_each(configs, cache, reports, FinetuneOptions(resume=True))
        assert both[configs[0]] == first[configs[0]]
        assert isinstance(both[configs[1]], FinetuneRun)

    def test_a_head_is_trained_once_for_all(self, head: Run, cache: Path, reports: Path) -> None:
        configs = [FinetuneConfig("none", epochs=1, seed=seed) for seed in (0, 1)]
        found = commands.finetune_each(configs, cache, reports, FinetuneOptions(head="mlp8"))
        heads = {one.head_run for one in found.values() if isinstance(one, FinetuneRun)}
        assert len(heads) == 1 and heads != {head.id}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (FinetuneOptions(name="best-one"), "--name best-one names one run, and these settings make 2"),
            (FinetuneOptions(head="mlp8", resume=True), "--resume needs the same: --head-run RUN"),
            (FinetuneOptions(on="dask"), "--on is 'dask'"),
        ],
    )
    def test_refused(self, options: FinetuneOptions, message: str, head: Run, cache: Path, reports: Path) -> None:
        configs = [FinetuneConfig("none", epochs=1, seed=seed) for seed in (0, 1)]
        with pytest.raises(ConfigError, match=message):
            commands.finetune_each(configs, cache, reports, options)
