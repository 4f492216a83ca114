"""Train head, as a stage: what a run keeps, views, folds, calibration, and what a trained head refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FakeEngine, change_run

from pipeline import commands, load_features, load_head
from pipeline.commands import TrainingOptions, open_head
from pipeline.config import ExtractConfig, HeadConfig, SplitConfig
from pipeline.errors import CacheMismatchError, ConfigError, DataError, RunError
from pipeline.runs.folder import HEADER
from pipeline.store.table import load_table


def test_run_holds_all_metrics_and_predictions(extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
    run = commands.train_head(HeadConfig("ridge"), cache, reports)
    keys = "n accuracy accuracy_95 balanced_accuracy macro_f1 log_loss roc_auc ece per_class confusion_matrix"
    value = json.loads((reports / run.id / "run.json").read_text())
    assert set(value) == {*HEADER, "payload", "sealed_by", "seal"}
    value = value["payload"]
    assert (value["fitted_on"], value["chosen_on"]) == (["train", "val"], ["val"])
    for split in ("val", "test"):
        assert set(keys.split()) <= set(value["metrics"][split])
        assert set(value["metrics"][split]["per_class"]) == {"dark", "grey", "light"}
        assert np.sum(value["metrics"][split]["confusion_matrix"]) == value[f"n_{split}"]
    with h5py.File(reports / run.id / "predictions.h5") as file:
        right = (file["test/probability"][:].argmax(axis=1) == file["test/label"][:]).mean()
        assert right == pytest.approx(value["metrics"]["test"]["accuracy"])
        assert set(file["test/key"][:]) <= set(load_table(cache, [extracted.record]).keys)
    assert "Trained on 2 versions of each image" in run.notes
    assert "Then fitted on train and val" in run.notes


def test_figures_on_val_are_of_a_head_that_has_not_seen_it(
    extracted: commands.ExtractResult, cache: Path, reports: Path
) -> None:
    """knn1 is always right on what it has seen."""
    run = commands.train_head(HeadConfig("knn1"), cache, reports)
    assert run.metrics["val"]["accuracy"] < 1
    head = load_head(run.id, reports=reports)
    features = load_features(cache=cache, views=0)
    val = features.split == "val"
    predicted = head.predict_proba(features.X[val], features.specs).argmax(axis=1)
    assert (predicted == features.y[val]).all()


def test_val_of_the_source_is_not_fitted_on(
    tmp_path: Path, cache: Path, reports: Path, draw: Callable[..., Path], fake_engine: FakeEngine
) -> None:
    for split in ("train", "val", "test"):
        for name, level in (("a", 60), ("b", 180)):
            for number in range(4):
                draw(tmp_path / "data" / split / name / f"{number}.png", colour=(level, level, level))
    commands.extract(ExtractConfig(str(tmp_path / "data")), cache)
    run = commands.train_head(HeadConfig("knn1"), cache, reports)
    assert "Then fitted on train and val" not in run.notes
    assert len(load_head(run.id, reports=reports).head.labels) == 8  # type: ignore[attr-defined]


class TestViews:
    def test_probabilities_are_means_over_views(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        run = commands.train_head(HeadConfig("ridge", views=0), cache, reports, TrainingOptions(test_views=1))
        table = load_table(cache, [extracted.record], 0, test_views=1)
        head = load_head(run.id, reports=reports).head
        parts = [table.part("test", view) for view in (0, 1)]
        expected = np.mean([head.predict_proba(part.array()) for part in parts], axis=0)
        with h5py.File(reports / run.id / "predictions.h5") as file:
            np.testing.assert_allclose(file["test/probability"][:], expected, atol=1e-5)
            assert file["test/key"][:].tolist() == parts[0].keys.tolist()
        assert run.test_views == 1
        assert "Probabilities are means over 2 versions of each image" in run.notes

    def test_fewer_to_train_on(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        counts = []
        for views in (0, 1, None):
            run = commands.train_head(HeadConfig("knn3", views=views), cache, reports)
            counts.append(len(load_head(run.id, reports=reports).head.labels))  # type: ignore[attr-defined]
        n_train, n_val = run.n_train, run.n_val
        assert counts == [n_train + n_val, 2 * n_train + n_val, 2 * n_train + n_val]


class TestRepeats:
    @pytest.mark.parametrize("views", [0, 1])
    def test_folds(self, views: int, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        run = commands.train_head(HeadConfig("ridge", views=views), cache, reports, TrainingOptions(cv=4, test_views=1))
        assert run.repeats is not None
        assert len(run.repeats["rounds"]) == run.repeats["folds"] == 4
        assert run.repeats["accuracy"] == pytest.approx(np.mean(run.repeats["rounds"]))
        assert 0.6 < run.repeats["accuracy"] < 1
        assert run.repeats["accuracy_std"] > 0

    def test_folds_use_val_only_if_it_was_carved(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        from pipeline.selection.features import rounds_of

        table = load_table(cache, [extracted.record], 1, test_views=1)
        images = {split: set(table.keys[table.splits == split].tolist()) for split in ("train", "val", "test")}
        rounds = rounds_of(table, TrainingOptions(cv=3, test_views=1), 0)
        used = {key for turn in rounds for key in turn.vals()[0].keys.tolist()}
        assert used == images["train"] | images["val"]
        given = replace(table, records=(replace(extracted.record, carved=("test",)),))
        rounds = rounds_of(given, TrainingOptions(cv=3, test_views=1), 0)
        used = {key for turn in rounds for key in turn.vals()[0].keys.tolist()}
        assert used == images["train"]

    def test_folds_of_other_seeds_are_other_folds(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        run = commands.train_head(HeadConfig("knn5"), cache, reports, TrainingOptions(cv=3, seeds=2))
        assert run.repeats is not None
        assert len(run.repeats["rounds"]) == 6
        assert run.repeats["rounds"][:3] != run.repeats["rounds"][3:]

    def test_seeds(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        run = commands.train_head(HeadConfig("linear", epochs=2), cache, reports, TrainingOptions(seeds=3))
        assert run.repeats is not None
        assert len(run.repeats["rounds"]) == 3
        single = commands.train_head(HeadConfig("linear", epochs=2), cache, reports)
        assert run.repeats["rounds"][0] == pytest.approx(single.metrics["val"]["accuracy"])

    @pytest.mark.parametrize("options", [{"seeds": 0}, {"test_views": -1}, {"cv": 0}, {"cv": 1}])
    def test_illegal(self, options: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="--" + next(iter(options)).replace("_", "-")):
            TrainingOptions(**options)  # type: ignore[arg-type]


class TestCalibration:
    def test_error_before_and_after(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        plain = commands.train_head(HeadConfig("knn5"), cache, reports)
        run = commands.train_head(HeadConfig("knn5"), cache, reports, TrainingOptions(calibrate=True))
        assert run.calibration is not None
        for split in ("val", "test"):
            before, after = run.calibration["ece"][split]
            assert before == pytest.approx(plain.metrics[split]["ece"])
            assert after == pytest.approx(run.metrics[split]["ece"])
        assert run.metrics["val"]["log_loss"] < plain.metrics["val"]["log_loss"]
        assert run.metrics["test"]["accuracy"] == plain.metrics["test"]["accuracy"]
        head = load_head(run.id, reports=reports)
        assert head.temperature == run.calibration["temperature"] != 1
        features = load_features(cache=cache, views=0)
        test = features.split == "test"
        probabilities = head.predict_proba(features.X[test], features.specs)
        with h5py.File(reports / run.id / "predictions.h5") as file:
            np.testing.assert_allclose(file["test/probability"][:], probabilities, atol=1e-5)

    def test_needs_val(self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> None:
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(val_fraction=0)), cache)
        with pytest.raises(DataError, match="--calibrate needs validation images"):
            commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(calibrate=True))


class TestTrainedHead:
    def test_refuses_features_of_another_spec(
        self, extracted: commands.ExtractResult, pictures: Path, cache: Path, reports: Path
    ) -> None:
        commands.train_head(HeadConfig("ridge"), cache, reports)
        head, _ = open_head(reports, None)
        assert head.class_names == ("dark", "grey", "light")
        other = commands.extract(ExtractConfig(str(pictures), resize="pad", interpolation="nearest"), cache).record
        table = load_table(cache, [other])
        with pytest.raises(CacheMismatchError) as caught:
            head.predict_proba(table.array(), table.specs, other.id)
        for text in ("resize 'stretch', not 'pad'", "interpolation 'bicubic', not 'nearest'", other.id):
            assert text in str(caught.value)
        with pytest.raises(CacheMismatchError, match="trained on 1 sets of features, not on 2"):
            head.check([other.spec, other.spec], "two")

    def test_takes_another_precision_with_a_note(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        commands.train_head(HeadConfig("ridge"), cache, reports)
        head, _ = open_head(reports, None)
        caplog.set_level("INFO", "tlpipe")
        head.check([replace(extracted.record.spec, precision="tensorflow-float16")], "others")
        assert "these are in tensorflow-float16" in caplog.text

    @pytest.mark.parametrize("head", ["ridge", "knn5", "mlp4"])
    def test_refuses_what_are_no_features(
        self, head: str, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        commands.train_head(HeadConfig(head), cache, reports)
        trained = load_head(reports=reports)
        features = load_features(cache=cache)
        for wrong in (features.X[:, :5], features.X[0], features.X.astype(int), [[0.5] * 5]):
            with pytest.raises(DataError, match=r"Expected features \[n, 12\]"):
                trained.predict_proba(wrong, features.specs)
        for value in (np.nan, np.inf):
            with pytest.raises(DataError, match="Features of 1 images .* no finite numbers"):
                trained.predict_proba(np.where(np.arange(24).reshape(2, 12) == 3, value, 1.0), features.specs)

    @pytest.mark.parametrize(
        "change",
        [
            {"specs": [{}]},
            {"specs": 3},
            {"config": {}},
            {"config": {"head": "forest"}},
            {"class_names": None},
            {"class_names": [1, 2, 3]},
            {"features": 3},
            {"head": "logreg"},
            {"calibration": {"temperature": 0}},
            {"calibration": {"temperature": "nan"}},
            {"calibration": {"temperature": -1}},
        ],
        ids=str,
    )
    def test_tampered_run(
        self, change: dict[str, object], extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        run = commands.train_head(HeadConfig("ridge"), cache, reports)
        change_run(reports / run.id, **change)
        with pytest.raises(RunError, match=r"run\.json"):
            open_head(reports, str(reports / run.id))

    def test_classes_that_are_not_those_of_the_head(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        run = commands.train_head(HeadConfig("ridge"), cache, reports)
        change_run(reports / run.id, class_names=["dark"])
        head, _ = open_head(reports, None)
        table = load_table(cache, [extracted.record])
        with pytest.raises(RunError, match="gives 3 probabilities, run.json names 1 classes"):
            head.predict_proba(table.array(), table.specs)

    def test_finetune_refuses_what_it_cannot_start_from(
        self, extracted: commands.ExtractResult, pictures: Path, cache: Path, reports: Path
    ) -> None:
        from pipeline.config import FinetuneConfig

        commands.train_head(HeadConfig("knn5"), cache, reports)
        with pytest.raises(ConfigError, match="knn5 is no network"):
            commands.finetune(FinetuneConfig(), cache, reports)
        other = commands.extract(ExtractConfig(str(pictures), resize="pad"), cache).record
        both = f"{extracted.record.id},{other.id}"
        commands.train_head(HeadConfig("ridge", views=0), cache, reports, TrainingOptions(both))
        with pytest.raises(CacheMismatchError, match="trained on 2 sets of features"):
            commands.finetune(FinetuneConfig(), cache, reports)


def test_several_sets_of_features(
    extracted: commands.ExtractResult, pictures: Path, cache: Path, reports: Path
) -> None:
    other = commands.extract(ExtractConfig(str(pictures), resize="pad"), cache).record
    both = f"{extracted.record.id},{other.id}"
    run = commands.train_head(HeadConfig("ridge", views=0), cache, reports, TrainingOptions(both))
    assert run.features == both
    assert run.trainable_parameters == 3 * (24 + 1)
    assert [spec.resize for spec in run.specs] == ["stretch", "pad"]
    head = load_head(run.id, reports=reports)
    features = load_features(both, cache=cache, views=0)
    assert head.predict_proba(features.X, features.specs).shape == (120, 3)


def draw_greys(draw: Callable[..., Path], folder: Path, names: str, count: int) -> None:
    """So many pictures of each class, a, b or c, the later the lighter."""
    for name in names:
        level = 60 * ("abc".index(name) + 1)
        for number in range(count):
            draw(folder / name / f"{number}.png", colour=(level, level, level))


class TestFewLabels:
    @pytest.mark.parametrize("head", ["logreg", "ridge", "centroid", "knn5", "linear", "mlp8", "bn-mlp8"])
    def test_one_image_of_each_class_is_trained_on_and_said(
        self,
        head: str,
        tmp_path: Path,
        cache: Path,
        reports: Path,
        draw: Callable[..., Path],
        fake_engine: FakeEngine,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for split, count in (("train", 1), ("test", 3)):
            draw_greys(draw, tmp_path / "data" / split, "abc", count)
        commands.extract(ExtractConfig(str(tmp_path / "data"), splits=SplitConfig(val_fraction=0)), cache)
        run = commands.train_head(HeadConfig(head), cache, reports)
        assert (run.n_train, run.n_val, run.n_test) == (3, 0, 9)
        assert "fewer than two training images per class (3 images for 3 classes)" in caplog.text
        assert "val" not in run.metrics

    def test_class_missing_from_val_is_said(
        self,
        tmp_path: Path,
        cache: Path,
        reports: Path,
        draw: Callable[..., Path],
        fake_engine: FakeEngine,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for split, names in (("train", "abc"), ("val", "ab"), ("test", "abc")):
            draw_greys(draw, tmp_path / "data" / split, names, 3)
        commands.extract(ExtractConfig(str(tmp_path / "data")), cache)
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        assert "No validation images of the class c" in caplog.text
        assert run.metrics["val"]["roc_auc"] is None
        assert run.metrics["test"]["accuracy"] == 1.0
