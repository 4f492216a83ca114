"""Using a run: predict, evaluate, and a model from Python."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import FakeEngine, change_run, draw_colours

from pipeline import commands, load_model
from pipeline.commands import ExtractResult, TrainingOptions
from pipeline.config import ExtractConfig, FinetuneConfig, HeadConfig, SplitConfig
from pipeline.errors import CacheMismatchError, ConfigError, DataError, RunError
from pipeline.runs.folder import read_run
from pipeline.runs.predictions import read_predictions
from pipeline.runs.run import Run
from pipeline.store.records import load_dataset

SMALL = {"backbone": "mobilenet025", "image_size": (32, 32), "weights": "random", "precision": "float32"}


@pytest.fixture
def head(extracted: ExtractResult, cache: Path, reports: Path) -> Run:
    """A logistic regression on three classes that overlap a little."""
    return commands.train_head(HeadConfig("logreg", views=0), cache, reports)


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """Those that are single numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


class TestPredict:
    def test_gives_what_the_run_predicted(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        dataset = load_dataset(cache, head.dataset)
        places = dict(zip(dataset.keys.tolist(), dataset.locations, strict=True))
        test = read_predictions(reports / head.id, len(head.class_names), head.files)["test"]
        paths = [str(pictures / places[key]) for key in test.keys.tolist()]
        answers = commands.predict(head.id, paths, cache, reports, top=3)
        assert answers.n_computed == 0
        for image, expected in zip(answers.images, test.probabilities, strict=True):
            found = dict(image.top)
            assert [share for _, share in image.top] == sorted(found.values(), reverse=True)
            np.testing.assert_allclose([found[name] for name in head.class_names], expected, atol=1e-6)

    def test_computes_what_is_new_and_keeps_it(
        self, head: Run, draw: Any, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        for number in range(5):
            draw(tmp_path / "new" / "deep" / f"{number}.png", colour=(175, 175, 175))
        before = fake_engine.n_computed
        first = commands.predict(head.id, [str(tmp_path / "new")], cache, reports)
        assert (first.n_computed, fake_engine.n_computed - before) == (5, 5)
        assert [image.top[0][0] for image in first.images] == ["light"] * 5
        assert first.images[0].path == str(tmp_path / "new" / "deep" / "0.png")
        again = commands.predict(head.id, [str(tmp_path / "new")], cache, reports)
        assert again.n_computed == 0
        assert again.images == first.images

    def test_bad_images_are_listed(
        self, head: Run, draw: Any, tmp_path: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        good = draw(tmp_path / "a.png", colour=(90, 90, 90))
        (tmp_path / "b.jpg").write_text("no picture")
        answers = commands.predict(head.id, [str(good), str(tmp_path / "b.jpg"), str(good)], cache, reports)
        assert [image.error is None for image in answers.images] == [True, False, True]
        bad = answers.images[1].to_json()
        assert bad == {
            "path": str(tmp_path / "b.jpg"),
            "label": None,
            "probability": None,
            "top": [],
            "error": "not an image in a format that can be read",
        }
        assert "1 of 3 images can't be read" in caplog.text
        answers.write_csv(tmp_path / "out.csv")
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == ["dark", "", "dark"]
        assert float(rows[0]["probability"]) + float(rows[0]["probability_2"]) + float(
            rows[0]["probability_3"]
        ) == pytest.approx(1, abs=1e-5)
        assert rows[1]["error"] == "not an image in a format that can be read"
        commands.predict(head.id, [str(tmp_path / "b.jpg")], cache, reports).write_csv(tmp_path / "bad.csv")
        assert (tmp_path / "bad.csv").read_text().splitlines()[0] == "path,label,probability,error"
        assert (
            (tmp_path / "bad.csv").read_text().splitlines()[1].endswith(",,,not an image in a format that can be read")
        )

    def test_a_manifest_needs_no_labels(
        self, head: Run, pictures: Path, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        manifest = tmp_path / "some.csv"
        name = pictures.relative_to(tmp_path)
        manifest.write_text(f"path\n{name}/dark/0.png\n{name}/gone.png\n{name}/dark/0.png\n")
        answers = commands.predict(head.id, [str(manifest)], cache, reports)
        dark = str(pictures / "dark/0.png")
        assert [image.path for image in answers.images] == [dark, str(pictures / "gone.png"), dark]
        assert answers.images[1].error == "No such file or directory"

    def test_a_manifest_stays_in_its_folder(self, head: Run, tmp_path: Path, cache: Path, reports: Path) -> None:
        manifest = tmp_path / "inner" / "some.csv"
        manifest.parent.mkdir()
        manifest.write_text("path\n../../etc/passwd\n")
        with pytest.raises(DataError, match="leaves the folder"):
            commands.predict(head.id, [str(manifest)], cache, reports)

    @pytest.mark.parametrize(
        ("name", "word"), [("nowhere.jpg", "There is no"), ("", "There is no"), ("empty", "no images")]
    )
    def test_names_that_lead_nowhere(
        self, name: str, word: str, head: Run, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=word):
            commands.predict(head.id, [name and str(tmp_path / name)], cache, reports)

    def test_views_and_temperature_count_as_they_did_in_training(
        self, extracted: ExtractResult, pictures: Path, cache: Path, reports: Path
    ) -> None:
        run = commands.train_head(HeadConfig("logreg"), cache, reports, TrainingOptions(test_views=1, calibrate=True))
        assert run.calibration is not None and run.calibration["temperature"] != 1
        again = commands.evaluate(run.id, str(pictures), cache, reports)
        expected = read_predictions(reports / run.id, len(run.class_names), run.files)["test"]
        found = read_predictions(reports / again.id, len(again.class_names), again.files)["test"]
        order = {key: row for row, key in enumerate(expected.keys.tolist())}
        rows = [order[key] for key in found.keys.tolist()]
        np.testing.assert_allclose(found.probabilities, expected.probabilities[rows], atol=1e-6)

    def test_what_is_no_file_is_not_waited_for(self, head: Run, tmp_path: Path, cache: Path, reports: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        answers = commands.predict(head.id, [str(tmp_path / "pipe.jpg"), "/dev/zero"], cache, reports)
        assert [image.error for image in answers.images] == ["not a regular file"] * 2

    def test_csv_follows_links(self, head: Run, pictures: Path, tmp_path: Path, cache: Path, reports: Path) -> None:
        answers = commands.predict(head.id, [str(pictures / "dark")], cache, reports)
        (tmp_path / "link.csv").symlink_to(tmp_path / "labels.csv")
        answers.write_csv(tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert len((tmp_path / "labels.csv").read_text().splitlines()) == 41
        answers.write_csv(Path("/dev/null"))
        assert Path("/dev/null").is_char_device()

    def test_names_that_terminals_obey_are_escaped(
        self, head: Run, draw: Any, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        draw(tmp_path / "odd" / "red\x1b[31m\n.png")
        draw(tmp_path / "odd" / os.fsdecode(b"caf\xe9.png"))
        paths = [image.path for image in commands.predict(head.id, [str(tmp_path / "odd")], cache, reports).images]
        assert [Path(path).name for path in paths] == ["caf\\udce9.png", "red\\x1b[31m\\n.png"]
        assert all(path.isprintable() for path in paths)

    def test_a_sound_file_of_another_run_is_refused(
        self, head: Run, pictures: Path, cache: Path, reports: Path
    ) -> None:
        other = commands.train_head(HeadConfig("logreg", class_weight="none"), cache, reports)
        shutil.copy(reports / other.id / "head.npz", reports / head.id / "head.npz")
        with pytest.raises(RunError, match=r"head.npz was changed after it was written; make the run again: \S"):
            commands.predict(head.id, [str(pictures)], cache, reports)

    def test_a_head_that_gives_no_numbers(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        path = reports / head.id / "head.npz"
        with np.load(path) as file:
            arrays = {**file, "final_mean": np.full_like(file["final_mean"], 3e38)}
        arrays["final_scale"] = np.full_like(arrays["final_scale"], 1e-38)
        np.savez(path, **arrays)
        change_run(reports / head.id, files={})  # of before version 0.2, without digests
        with pytest.raises(RunError, match="gives NaN or infinity for these features; its files were changed"):
            commands.predict(head.id, [str(pictures)], cache, reports)

    def test_several_sets_of_features(
        self, extracted: ExtractResult, pictures: Path, cache: Path, reports: Path
    ) -> None:
        other = commands.extract(ExtractConfig(str(pictures), resize="crop"), cache).record.id
        run = commands.train_head(
            HeadConfig("ridge", views=0), cache, reports, TrainingOptions(f"{extracted.record.id},{other}")
        )
        found = commands.evaluate(run.id, str(pictures), cache, reports)
        assert figures(found.metrics["test"]) == pytest.approx(figures(run.metrics["test"]), rel=1e-6)

    def test_another_backbone_than_that_of_training(
        self, head: Run, pictures: Path, cache: Path, reports: Path
    ) -> None:
        specs = [{**head.specs[0].to_json(), "weights_digest": "1" * 32}]
        change_run(reports / head.id, specs=specs)
        with pytest.raises(CacheMismatchError, match="weights_digest"):
            commands.predict(head.id, [str(pictures)], cache, reports)


def with_tuned(folder: Path) -> Run:
    data, cache, reports = draw_colours(folder / "colours"), folder / "cache", folder / "reports"
    commands.extract(ExtractConfig(str(data), **SMALL), cache)
    commands.train_head(HeadConfig("logreg"), cache, reports)
    return commands.finetune(FinetuneConfig("block13", epochs=1, batch_size=16, learning_rate=1e-3), cache, reports)


class TestFinetuned:
    @pytest.fixture
    def made(self, once: Any) -> tuple[Path, Run]:
        made: tuple[Path, Run] = once(with_tuned)
        return made

    @pytest.fixture
    def tuned(self, made: tuple[Path, Run]) -> Run:
        return made[1]

    @pytest.fixture
    def red_and_blue(self, made: tuple[Path, Run]) -> Path:
        return made[0] / "colours"

    @pytest.fixture
    def home(self, made: tuple[Path, Run]) -> Path:
        return made[0]

    def test_figures_are_those_of_the_run(self, tuned: Run, red_and_blue: Path, cache: Path, reports: Path) -> None:
        run = commands.evaluate(tuned.id, str(red_and_blue), cache, reports)
        for split in ("val", "test"):
            assert run.metrics[split]["accuracy"] == tuned.metrics[split]["accuracy"]
            assert run.metrics[split]["log_loss"] == pytest.approx(tuned.metrics[split]["log_loss"], abs=1e-4)
        assert commands.predict(tuned.id, [str(red_and_blue)], cache, reports).n_computed == 0
        model = load_model(tuned.id, reports=reports, cache=None)
        paths = [red_and_blue / "red" / "0.png", red_and_blue / "blue" / "0.png"]
        found = model.predict_proba(paths)
        answers = commands.predict(tuned.id, [str(path) for path in paths], cache, reports)
        for row, image in zip(found, answers.images, strict=True):
            assert dict(image.top) == pytest.approx(dict(zip(model.class_names, row.tolist(), strict=True)), abs=1e-5)

    def test_missing_and_foreign_models(self, tuned: Run, red_and_blue: Path, cache: Path, reports: Path) -> None:
        path = reports / tuned.id / "model.keras"
        change_run(reports / tuned.id, class_names=["a", "b", "c"])
        with pytest.raises(RunError, match="gives 2 probabilities"):
            commands.predict(tuned.id, [str(red_and_blue)], cache, reports)
        path.write_text("junk")
        with pytest.raises(RunError, match="model.keras was changed after it was written; make the run again"):
            commands.predict(tuned.id, [str(red_and_blue)], cache, reports)
        with pytest.raises(RunError, match="model.keras was changed after it was written; fine-tune again"):
            commands.extract(ExtractConfig(str(red_and_blue), backbone=str(reports / tuned.id)), cache)
        change_run(reports / tuned.id, files={})  # of before version 0.2, without digests
        with pytest.raises(RunError, match="model.keras is damaged; fine-tune again"):
            commands.predict(tuned.id, [str(red_and_blue)], cache, reports)
        path.unlink()
        with pytest.raises(RunError, match="no model.keras any more"):
            commands.predict(tuned.id, [str(red_and_blue)], cache, reports)

    def test_code_in_a_model_is_not_run(self, tuned: Run, red_and_blue: Path, cache: Path, reports: Path) -> None:
        inputs = keras.Input((32, 32, 3), dtype="uint8")
        features = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(inputs))
        evil = keras.layers.Lambda(lambda x: x, output_shape=(3,))(features)
        outputs = keras.layers.Dense(2, name="probabilities")(evil)
        keras.Model(inputs, outputs).save(reports / tuned.id / "model.keras")
        change_run(reports / tuned.id, files={})
        with pytest.raises(Exception, match="can't be loaded.* no code is run from a file") as caught:
            commands.predict(tuned.id, [str(red_and_blue)], cache, reports)
        assert type(caught.value).__module__ == "pipeline.errors"


class TestEvaluate:
    def test_same_data_same_figures(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        run = commands.evaluate(head.id, str(pictures), cache, reports)
        assert figures(run.metrics["test"]) == pytest.approx(figures(head.metrics["test"]), rel=1e-6)
        assert run.metrics["test"]["confusion_matrix"] == head.metrics["test"]["confusion_matrix"]
        assert (run.n_train, run.n_val, run.n_test) == (head.n_train, head.n_val, head.n_test)
        assert (run.stage, run.head, run.of) == ("evaluate", "logreg", head.id)
        assert read_run(reports / run.id) == run

    def test_carved_images_keep_their_split(
        self, head: Run, pictures: Path, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        """Where the data have a train folder, the images that were carved from it are no training images."""
        shutil.copytree(pictures, tmp_path / "again" / "train")
        run = commands.evaluate(head.id, str(tmp_path / "again"), cache, reports)
        assert figures(run.metrics["test"]) == pytest.approx(figures(head.metrics["test"]), rel=1e-6)

    def test_data_in_a_folder_that_is_no_unicode(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        folder = pictures.rename(pictures.with_name(os.fsdecode(b"caf\xe9")))
        run = commands.evaluate(head.id, str(folder), cache, reports)
        assert run.data.endswith("caf\\udce9")
        assert "caf" in commands.inspect(str(folder), cache, reports).to_json()["data"]

    def test_classes_are_matched_by_name(
        self, head: Run, draw: Any, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        """In other data, "light" comes first and has the index 0, and "red" is unknown."""
        for number in range(4):
            draw(tmp_path / "other" / "light" / f"{number}.png", colour=(175, 175, 175))
            draw(tmp_path / "other" / "red" / f"{number}.png", colour=(200, 20, 20))
        run = commands.evaluate(head.id, str(tmp_path / "other"), cache, reports)
        assert run.metrics["test"]["n"] == 4
        assert run.metrics["test"]["accuracy"] == 1
        assert run.metrics["test"]["confusion_matrix"][2] == [0, 0, 4]
        assert "4 images without a label or of a class that the run doesn't know left out: red" in run.notes
        assert any(note.startswith("No images of dark, grey: their recall isn't known") for note in run.notes)

    def test_no_class_in_common(self, head: Run, red_and_blue: Path, cache: Path, reports: Path) -> None:
        with pytest.raises(DataError, match="has no class that the run .* knows: it has blue, red"):
            commands.evaluate(head.id, str(red_and_blue), cache, reports)

    def test_images_that_were_trained_on_are_told(
        self, head: Run, pictures: Path, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        shutil.copytree(pictures, tmp_path / "again" / "train")
        shutil.copytree(pictures, tmp_path / "again" / "test")
        run = commands.evaluate(head.id, str(tmp_path / "again"), cache, reports)
        assert run.metrics["test"]["n"] == 120 + head.n_test
        # The head that is kept has seen val, too, so its images are rated by the head of before.
        assert head.fitted_on == ["train", "val"]
        assert run.n_fitted == {"train": head.n_train, "test": head.n_train}
        assert run.n_chosen == {"val": head.n_val, "test": head.n_val}
        assert run.used()["test"] == f"fit {head.n_train}, choose {head.n_val}"

    def test_twins_on_both_sides_of_the_source_stay_where_they_are(
        self, pictures: Path, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """Two training images lie in val, too: val keeps its size, and both are counted as seen."""
        for split, numbers in (("train", range(20)), ("val", range(20, 30))):
            for name in ("dark", "grey", "light"):
                (tmp_path / "both" / split / name).mkdir(parents=True)
                for number in numbers:
                    shutil.copy(pictures / name / f"{number}.png", tmp_path / "both" / split / name)
        for number in (0, 1):
            shutil.copy(pictures / "dark" / f"{number}.png", tmp_path / "both" / "val" / "dark" / f"twin{number}.png")
        splits = SplitConfig(test_fraction=0)
        commands.extract(ExtractConfig(str(tmp_path / "both"), splits=splits), cache)
        head = commands.train_head(HeadConfig("logreg"), cache, reports)
        run = commands.evaluate(head.id, str(tmp_path / "both"), cache, reports)
        assert (run.n_train, run.n_val, run.n_test) == (head.n_train, head.n_val, head.n_test) == (60, 32, 0)
        assert run.n_fitted["val"] == 2
        assert run.used()["val"] == "fit 2, choose"

    @pytest.mark.data
    def test_the_pairs_of_a_public_set_are_seen(
        self, data: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(data / "alien-predator")), cache)
        head = commands.train_head(HeadConfig("centroid"), cache, reports)
        run = commands.evaluate(head.id, str(data / "alien-predator"), cache, reports)
        assert (run.n_train, run.n_val, run.n_test) == (head.n_train, head.n_val, head.n_test)
        assert run.n_val == 200
        assert run.n_fitted["val"] == 2

    def test_unreadable_images_are_left_out_and_told(
        self, head: Run, pictures: Path, cache: Path, reports: Path
    ) -> None:
        (pictures / "dark" / "bad.png").write_text("no picture")
        run = commands.evaluate(head.id, str(pictures), cache, reports)
        assert run.n_train + run.n_val + run.n_test == 120
        assert "1 image can't be read, left out: dark/bad.png" in run.notes

    def test_a_class_of_which_nothing_can_be_read_is_named(
        self, head: Run, pictures: Path, cache: Path, reports: Path
    ) -> None:
        for path in (pictures / "grey").iterdir():
            path.write_text("no picture")
        run = commands.evaluate(head.id, str(pictures), cache, reports)
        assert any(note.startswith("No images of grey: their recall isn't known") for note in run.notes)


class TestRuns:
    @pytest.mark.parametrize(
        ("values", "word"),
        [
            ({"extracts": []}, "1 specs and 0 extracts"),
            ({"extracts": [{"backbone": 1}]}, "Expected `str`, got `int`"),
            ({"extracts": "x"}, "Expected `array`"),
            ({"specs": [{"backbone": "densenet121"}]}, "not what tlpipe wrote"),
            ({"config": {"head": "mlp1"}}, "not what tlpipe wrote"),
            ({"class_names": ["one"]}, "one of them was changed"),
            ({"class_names": [1, 2, 3]}, "Expected `str`, got `int`"),
            ({"id": "../../etc"}, "belongs to the run"),
            ({"metrics": {"test": {"n": 3}}}, "wrong kind"),
            ({"seconds": None}, "Expected `object`, got `null`"),
            ({"seconds": {"total": 10**400}}, "not what tlpipe wrote"),
            ({"command": "\ud800"}, "run.json can.t be read"),
        ],
    )
    def test_tampered(
        self, values: dict[str, Any], word: str, head: Run, pictures: Path, cache: Path, reports: Path
    ) -> None:
        change_run(reports / head.id, **values)
        with pytest.raises(RunError, match=word):
            commands.predict(str(reports / head.id), [str(pictures)], cache, reports)

    def test_nested_too_deeply(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        """One such folder stops no other run."""
        (reports / "deep").mkdir()
        (reports / "deep" / "run.json").write_text("[" * 100_000)
        assert commands.predict(head.id, [str(pictures / "dark" / "0.png")], cache, reports).unreadable == []

    def test_a_dataset_that_is_a_pattern(
        self, head: Run, pictures: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        change_run(reports / head.id, dataset="*", files={})
        run = commands.evaluate(head.id, str(pictures), cache, reports)
        assert "Which images the run was trained on can't be told" in caplog.text
        assert run.n_test == 120

    def test_a_missing_head(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        (reports / head.id / "head.npz").unlink()
        with pytest.raises(RunError, match=r"head.npz can't be read"):
            commands.predict(head.id, [str(pictures)], cache, reports)

    def test_no_such_run(self, head: Run, cache: Path, reports: Path) -> None:
        with pytest.raises(RunError, match=head.id):
            commands.predict("2020", ["x"], cache, reports)

    def test_illegal_options(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        with pytest.raises(ConfigError, match="--top is 0"):
            commands.predict(head.id, [str(pictures)], cache, reports, top=0)
        with pytest.raises(ConfigError, match="--precision is 'int4'"):
            commands.predict(head.id, [str(pictures)], cache, reports, precision="int4")


class TestModel:
    def test_stays_open(
        self, head: Run, random: np.random.Generator, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second call compiles nothing, and reads no shard that the first one knows."""
        from pipeline.extraction import plan
        from pipeline.store import shard

        model = load_model(head.id, reports=reports, cache=cache)
        first, second = random.integers(0, 255, (2, 3, 32, 32, 3), np.uint8)
        model.predict(first)
        read: list[Path] = []
        monkeypatch.setattr(plan, "open_engine", lambda *_: pytest.fail("compiled again"))
        monkeypatch.setattr(shard, "read_checked", lambda path: read.append(path) or path.read_bytes())
        assert len(model.predict(second)) == 3
        assert read == []

    def test_without_a_cache_leaves_nothing_behind(self, head: Run, pictures: Path, reports: Path) -> None:
        model = load_model(head.id, reports=reports, cache=None)
        folder = model.cache
        assert model.predict([pictures / "dark" / "0.png"]).tolist() == ["dark"]
        assert (folder / "features").is_dir()
        del model
        assert not folder.exists()

    def test_takes_paths_and_arrays(self, head: Run, pictures: Path, cache: Path, reports: Path) -> None:
        from PIL import Image

        model = load_model(head.id, reports=reports, cache=cache)
        paths = [pictures / "dark" / "0.png", pictures / "light" / "0.png"]
        arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
        found = model.predict_proba(paths)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(model.predict_proba(arrays), found, atol=1e-6)
        assert model.predict(arrays).tolist() == ["dark", "light"]
        sizes = [arrays[0], np.repeat(arrays[1], 2, axis=0), arrays[0][:, :, 0]]
        assert model.predict(sizes).tolist() == ["dark", "light", "dark"]
        assert model.class_names == ("dark", "grey", "light")

    def test_an_image_that_cannot_be_read(self, head: Run, tmp_path: Path, cache: Path, reports: Path) -> None:
        (tmp_path / "bad.png").write_text("no picture")
        with pytest.raises(DataError, match=r"Image 0 \(.*bad.png\) can't be read"):
            load_model(reports=reports, cache=cache).predict([tmp_path / "bad.png"])

    def test_wrong_input(self, head: Run, cache: Path, reports: Path) -> None:
        with pytest.raises(ValueError, match="uint8 array"):
            load_model(reports=reports, cache=cache).predict(np.zeros((2, 5)))
