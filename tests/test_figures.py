"""No figure flatters: what was fitted or chosen on an image never rates itself by it, or the table says so."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import FakeEngine, change_run

from pipeline import commands
from pipeline.cli import render
from pipeline.commands import TrainingOptions
from pipeline.config import ExtractConfig, Folders, HeadConfig, SplitConfig
from pipeline.errors import ConfigError, EngineError, RunError
from pipeline.evaluation.metrics import accuracy_interval
from pipeline.extraction import plan
from pipeline.extraction.engines import EngineChoice
from pipeline.heads import kind_of, make_head
from pipeline.runs.classifier import open_classifier
from pipeline.runs.predictions import read_predictions
from pipeline.runs.run import HeadRun, Run
from pipeline.selection import trials
from pipeline.selection.curve import accuracy_of
from pipeline.selection.folds import Round
from pipeline.store.rows import Part, joined

N_NOISE = 240


@pytest.fixture
def noise(tmp_path: Path, cache: Path, fake_engine: FakeEngine) -> Path:
    """Pictures whose labels were drawn at random, 120 of each class: no head can know them."""
    draw = np.random.default_rng(3)
    images = draw.integers(0, 256, (N_NOISE, 8, 8, 3), dtype=np.uint8)
    labels = draw.permutation(np.repeat([0, 1], N_NOISE // 2))
    np.savez(tmp_path / "noise.npz", images=images, labels=labels)
    commands.extract(ExtractConfig(str(tmp_path / "noise.npz")), cache)
    return tmp_path / "noise.npz"


def is_chance(accuracy: float, n: int) -> bool:
    """Whether an accuracy of two classes on n images could come from guessing, but for one time in a thousand."""
    return abs(accuracy - 0.5) < 3.3 * np.sqrt(0.25 / n)


class TestChance:
    """Labels drawn at random give chance in every command."""

    @pytest.mark.parametrize(
        "head", ["logreg", "ridge", "centroid", "knn5", "linear", pytest.param("mlp16", marks=pytest.mark.slow)]
    )
    def test_folds(self, head: str, noise: Path, cache: Path, reports: Path) -> None:
        epochs = 30 if head in ("linear", "mlp16") else None
        run = commands.train_head(HeadConfig(head, epochs=epochs), cache, reports, TrainingOptions(cv=5))
        assert run.repeats is not None
        assert is_chance(run.repeats["accuracy"], run.n_train + run.n_val)

    @pytest.mark.parametrize("head", ["logreg", "linear"])
    def test_seeds(self, head: str, noise: Path, cache: Path, reports: Path) -> None:
        """Each seed rates the same images, so that many seeds say no more than one."""
        run = commands.train_head(HeadConfig(head), cache, reports, TrainingOptions(seeds=3))
        assert run.repeats is not None
        assert is_chance(run.repeats["accuracy"], run.n_val)

    def test_sweep(self, noise: Path, cache: Path, reports: Path) -> None:
        """The winner's val figure is the luckiest of many, and the table says that val chose; the mean is chance."""
        run = commands.sweep(["ridge", "knn", "linear", "centroid"], "small", HeadConfig("", epochs=20), cache, reports)
        assert is_chance(float(np.mean([one["val_accuracy"] for one in run.candidates])), run.n_val)
        assert is_chance(run.metrics["test"]["accuracy"], run.n_test)
        assert run.chosen_on == ["val"]
        line = next(
            line for line in render.run_text(run, Folders()).splitlines() if " val " in f"{line} " and "%" in line
        )
        assert "choose" in line

    def test_sweep_by_folds(self, noise: Path, cache: Path, reports: Path) -> None:
        options = TrainingOptions(cv=4)
        run = commands.sweep(["linear", "ridge"], "small", HeadConfig("", epochs=20), cache, reports, options)
        for one in run.candidates:
            assert is_chance(one["val_accuracy"], run.n_train + run.n_val), one

    @pytest.mark.parametrize("head", ["ridge", "linear"])
    def test_learning_curve(self, head: str, noise: Path, cache: Path, reports: Path) -> None:
        run = commands.learning_curve(HeadConfig(head), cache, reports, per_class=[5, 40], draws=4)
        for point in run.points:
            assert is_chance(point["accuracy"], run.points[-1]["n_train"] // 4), point


class TestRatedImagesDecideNothing:
    """With the labels of the images turned around that rate a fit, it predicts the same, so that they rate it at 1 - a.

    An epoch, a penalty or a neighbour that was chosen by these labels would be another one then.
    """

    EPOCHS: ClassVar[dict[str, Any]] = {"epochs": 25, "learning_rate": 0.05, "schedule": "none"}
    HEADS = (("linear", EPOCHS), ("mlp8", EPOCHS), ("bn-mlp8", EPOCHS), ("logreg", {}), ("ridge", {}), ("knn3", {}))

    @pytest.fixture
    def train(self) -> Part:
        return self.drawn(90, 0)

    @pytest.fixture
    def val(self) -> Part:
        return self.drawn(41, 1)

    def drawn(self, n: int, seed: int) -> Part:
        """Rows that know nothing of their labels."""
        draw = np.random.default_rng(seed)
        keys = np.array([f"{seed}{number:031d}" for number in range(n)], "S32")
        features = draw.normal(size=(n, 6)).astype(np.float32)
        return Part(features, draw.integers(0, 2, n), keys, np.zeros(n, np.int64))

    def turned(self, part: Part) -> Part:
        return replace(part, labels=1 - part.labels)

    @pytest.mark.parametrize(("name", "options"), HEADS)
    def test_in_folds_and_seeds(self, name: str, options: dict[str, Any], train: Part, val: Part) -> None:
        rows = np.arange(len(train)), [np.arange(len(train), len(train) + len(val))]
        config = make_head(HeadConfig(name, **options))[1]
        found = [
            trials.repeat(config, [Round(joined(train, one), *rows)], 2, 0)["accuracy"]
            for one in (val, self.turned(val))
        ]
        assert sum(found) == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize(("name", "options"), HEADS)
    def test_in_a_sweep(self, name: str, options: dict[str, Any], train: Part, val: Part) -> None:
        config = make_head(HeadConfig(name, **options))[1]
        fit_many = kind_of(name).fit_many
        one, other = (
            next(iter(fit_many([config], train, [part], 2, np.inf))).probabilities[0]
            for part in (val, self.turned(val))
        )
        np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize(("name", "options"), HEADS)
    def test_in_a_learning_curve(self, name: str, options: dict[str, Any], train: Part, val: Part) -> None:
        config = make_head(HeadConfig(name, **options))[1]
        found = [accuracy_of(config, train, [part], 2) for part in (val, self.turned(val))]
        assert sum(found) == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("name", ["linear", "mlp8", "bn-mlp8", "logreg", "ridge"])
    def test_a_choice_would_be_noticed(self, name: str, train: Part, val: Part) -> None:
        config = make_head(HeadConfig(name, **dict(self.HEADS)[name]))[1]
        found = []
        for part in (val, self.turned(val)):
            head, _ = make_head(config)
            head.fit(train, part, 2)
            found.append(head.predict_proba(val.array()))
        assert np.abs(found[0] - found[1]).max() > 1e-3


class TestWhoHasSeenWhat:
    @pytest.mark.parametrize("head", ["logreg", "knn1", "ridge", "centroid"])
    def test_val_is_rated_by_the_head_that_has_not_seen_it(
        self, head: str, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """knn1 would be always right on what it has seen."""
        commands.extract(ExtractConfig(str(pictures)), cache)
        run = commands.train_head(HeadConfig(head), cache, reports)
        assert run.fitted_on == ["train", "val"]
        again = commands.evaluate(run.id, str(pictures), cache, reports)
        assert again.metrics["val"]["accuracy"] == run.metrics["val"]["accuracy"] < 1
        assert again.metrics["val"]["log_loss"] == pytest.approx(run.metrics["val"]["log_loss"], rel=1e-5)
        assert again.metrics["test"]["accuracy"] == run.metrics["test"]["accuracy"]
        assert "val" not in again.n_fitted

    def test_the_table_says_what_images_were_used_for(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures)), cache)
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        lines = render.run_text(run, Folders()).splitlines()
        assert [line.split()[3] for line in lines if line.startswith("logreg   val")] == ["choose"]
        found = commands.evaluate(run.id, str(pictures), cache, reports)
        lines = render.run_text(found, Folders()).splitlines()
        (train,) = [line for line in lines if line.startswith("logreg   train")]
        assert train.split()[3] == "fit"
        fixed = commands.train_head(HeadConfig("logreg", l2=0.1), cache, reports)
        assert fixed.chosen_on == []
        assert "choose" not in render.run_text(fixed, Folders())

    def test_a_run_without_its_cache_knows_what_it_was_trained_on(
        self, pictures: Path, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures)), cache)
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        shutil.copytree(reports / run.id, tmp_path / "away" / run.id)
        shutil.rmtree(cache)
        found = commands.evaluate(str(tmp_path / "away" / run.id), str(pictures), tmp_path / "fresh", tmp_path / "away")
        assert (found.n_train, found.n_val, found.n_test) == (run.n_train, run.n_val, run.n_test)
        assert found.n_fitted == {"train": run.n_train}
        assert found.metrics["test"]["accuracy"] == run.metrics["test"]["accuracy"]
        assert (reports / run.id / "seen.npz").stat().st_size < 16 * 120 + 1000

    def test_changed_keys_are_noticed(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures)), cache)
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        path = reports / run.id / "seen.npz"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(RunError, match="was changed after"):
            commands.evaluate(run.id, str(pictures), cache, reports)

    def test_twins_of_training_images_are_told(
        self, pictures: Path, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        for split, numbers in (("train", range(20)), ("val", range(18, 30)), ("test", range(30, 40))):
            for name in ("dark", "grey", "light"):
                (tmp_path / "own" / split / name).mkdir(parents=True)
                for number in numbers:
                    shutil.copy(pictures / name / f"{number}.png", tmp_path / "own" / split / name)
        commands.extract(ExtractConfig(str(tmp_path / "own")), cache)
        run = commands.train_head(HeadConfig("knn1"), cache, reports)
        assert (run.n_fitted, run.n_chosen) == ({"val": 6}, {})
        assert run.used() == {"val": "fit 6"}
        assert run.caveat("val") == "fit 6"
        assert re.search(r"\) fit 6 ", render.runs_text([run]))
        commands.report([], cache, reports)
        assert "<small>fit 6</small>" in (reports / "index.html").read_text()
        curve = commands.learning_curve(HeadConfig("ridge"), cache, reports, per_class=[5], draws=2)
        assert curve.notes == ["6 images of val are the same as training images"]

    def test_what_a_fine_tuned_backbone_has_seen_counts(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """A run of a head stands for the fine-tuned one: both say what they were fitted on and chosen by."""
        commands.extract(ExtractConfig(str(pictures)), cache)
        tuned = commands.train_head(HeadConfig("linear"), cache, reports)
        assert (tuned.fitted_on, tuned.chosen_on) == (["train"], ["val"])
        backbone = str(reports / tuned.id)
        commands.extract(ExtractConfig(str(pictures), backbone=backbone), cache)
        same = commands.train_head(HeadConfig("knn5"), cache, reports)
        assert same.used() == {"val": "choose"}
        commands.extract(ExtractConfig(str(pictures), backbone=backbone, seed=1, splits=SplitConfig(seed=1)), cache)
        run = commands.train_head(HeadConfig("centroid"), cache, reports)
        assert 0 < run.n_fitted["test"] < run.n_test
        assert run.used()["test"].startswith(f"fit {run.n_fitted['test']}")
        again = commands.evaluate(run.id, str(pictures), cache, reports)
        assert sum(again.n_fitted.values()) >= tuned.n_train
        with pytest.raises(ConfigError, match="--cv 3 would rate images that the fine-tuned backbone was fitted on"):
            commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(cv=3))
        curve = commands.learning_curve(HeadConfig("ridge"), cache, reports, per_class=[5], draws=2)
        assert curve.notes[0].startswith("The fine-tuned backbone was fitted on, or chosen by, ")
        with pytest.raises(RunError, match=f"{tuned.id} is the backbone of"):
            commands.runs.rm([tuned.id], reports)
        with pytest.raises(RunError, match=f"{tuned.id} is the backbone of"):
            commands.runs.rm([str(reports / tuned.id)], reports / "elsewhere")

    def test_a_fine_tuned_network_is_known_by_any_of_its_files(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures)), cache)
        tuned = commands.train_head(HeadConfig("linear"), cache, reports)
        folder = reports / tuned.id
        for name in ("model.keras", "export/keras/pictures.keras", "export/onnx/model.onnx"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
            how = {"weights": str(folder / name)} if name == "model.keras" else {"backbone": str(folder / name)}
            commands.extract(ExtractConfig(str(pictures), **how), cache)
            run = commands.train_head(HeadConfig("knn5"), cache, reports)
            assert run.used() == {"val": "choose"}, name
            with pytest.raises(ConfigError, match="would rate images that the fine-tuned backbone was fitted on"):
                commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(cv=3))
            with pytest.raises(RunError, match=f"{tuned.id} is the backbone of {run.id}"):
                commands.runs.rm([tuned.id], reports)
            commands.runs.rm([run.id], reports)

    def test_of_a_network_that_is_gone_nobody_can_tell_what_it_has_seen(
        self, pictures: Path, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures)), cache)
        tuned = commands.train_head(HeadConfig("linear"), cache, reports)
        commands.extract(ExtractConfig(str(pictures), backbone=str(reports / tuned.id)), cache)
        (reports / tuned.id).rename(tmp_path / "elsewhere")
        note = f"{reports / tuned.id} is gone, so it can't be told which images that network has seen"
        run = commands.train_head(HeadConfig("ridge"), cache, reports)
        curve = commands.learning_curve(HeadConfig("ridge"), cache, reports, per_class=[5], draws=2)
        assert note in run.notes and note in curve.notes
        assert note in render.curve_text(curve, Folders(cache, reports))
        with pytest.raises(ConfigError, match="--cv 3 might rate images that the backbone was fitted on"):
            commands.train_head(HeadConfig("ridge"), cache, reports, TrainingOptions(cv=3))

    def test_groups_that_leave_nothing_to_choose_by(
        self, pictures: Path, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """Four patients of ten pictures each: the folds within have as many parts as there are patients."""
        lines = ["path,label,group"]
        for name in ("dark", "grey", "light"):
            lines += [f"{pictures / name / f'{number}.png'},{name},{number // 10}" for number in range(40)]
        (tmp_path / "list.csv").write_text("\n".join(lines))
        commands.extract(ExtractConfig(str(tmp_path / "list.csv"), splits=SplitConfig(test_fraction=0)), cache)
        run = commands.train_head(HeadConfig("logreg"), cache, reports, TrainingOptions(seeds=2))
        assert run.repeats is not None
        assert len(run.repeats["rounds"]) == 2


class TestPrecision:
    @pytest.fixture
    def run(self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> HeadRun:
        commands.extract(ExtractConfig(str(pictures), engine="tensorflow", precision="float32"), cache)
        return commands.train_head(HeadConfig("ridge"), cache, reports)

    def test_is_that_of_the_features_on_any_machine(
        self, run: HeadRun, cache: Path, reports: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`auto` would take bfloat16 on this machine; the run was rated in float32."""
        change_run(reports / run.id, extracts=[{**json.loads(extract_json(reports, run))[0], "precision": "auto"}])
        monkeypatch.setattr(plan, "choose", lambda engine, precision, **_: EngineChoice("openvino", "bfloat16"))
        (config,) = open_classifier(reports, run.id).configs
        assert (config.engine, config.precision) == ("auto", "float32")

    def test_a_machine_that_lacks_it_says_so(
        self, run: HeadRun, reports: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        specs = [{**run.specs[0].to_json(), "precision": "openvino-bfloat16"}]
        change_run(reports / run.id, specs=specs)

        def lacking(engine: str, precision: str, **_: object) -> EngineChoice:
            if precision == "bfloat16":
                raise EngineError("This processor doesn't compute in bfloat16; use --precision float32 or auto")
            return EngineChoice("openvino", "float32")

        monkeypatch.setattr(plan, "choose", lacking)
        (config,) = open_classifier(reports, run.id).configs
        assert config.precision == "float32"
        assert "computed in float32; figures were measured in openvino-bfloat16" in caplog.text
        monkeypatch.setattr(plan, "choose", lambda engine, precision, **_: EngineChoice(engine, precision))
        (config,) = open_classifier(reports, run.id).configs
        assert (config.engine, config.precision) == ("openvino", "bfloat16")


def extract_json(reports: Path, run: Run) -> str:
    return json.dumps(json.loads((reports / run.id / "run.json").read_text())["payload"]["extracts"])


class TestAgainst:
    def test_the_paired_difference_of_two_runs(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(0.15, 0.4)), cache)
        one, other = (commands.train_head(HeadConfig(head), cache, reports) for head in ("logreg", "knn1"))
        found = commands.evaluate(one.id, None, cache, reports, against=other.id)
        assert found.against is not None
        assert found.against.run == other.id
        difference = found.against.splits["test"]
        right = {}
        for run in (one, other):
            test = read_predictions(reports / run.id, 3, run.files)["test"]
            order = np.argsort(test.keys)
            right[run.id] = (test.probabilities.argmax(axis=1) == test.labels)[order]
        gain = float(right[one.id].mean() - right[other.id].mean())
        assert difference.difference == pytest.approx(gain)
        assert difference.n == one.n_test
        assert difference.low <= gain <= difference.high
        swapped = commands.evaluate(other.id, None, cache, reports, against=one.id).against
        assert swapped is not None
        assert swapped.splits["test"].difference == pytest.approx(-gain)
        assert f"Against {other.id}, image by image" in render.run_text(found, Folders())

    def test_what_the_other_run_has_seen_is_told(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """The other run was trained on another split, so that it knows images that are test for the first."""
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(seed=1)), cache)
        other = commands.train_head(HeadConfig("knn1"), cache, reports)
        commands.extract(ExtractConfig(str(pictures)), cache)
        one = commands.train_head(HeadConfig("knn1"), cache, reports)
        found = commands.evaluate(one.id, None, cache, reports, against=other.id)
        assert found.against is not None
        assert found.used() == {"train": "fit"}
        assert found.against.used["train"].startswith("fit")
        assert "other used to" in render.run_text(found, Folders())

    def test_the_leaderboard_compares_with_the_first(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        from pipeline.pages.leaderboard import groups
        from pipeline.runs.find import all_runs

        commands.extract(ExtractConfig(str(pictures)), cache)
        for head in ("logreg", "knn1", "centroid"):
            commands.train_head(HeadConfig(head), cache, reports)
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(seed=1)), cache)
        commands.train_head(HeadConfig("ridge"), cache, reports)
        newest, older = groups(reports, all_runs(reports), "report.html")
        assert [line.run.head for line in newest.lines] == ["ridge"], "another split is another table"
        accuracies = [line.run.metrics["val"]["accuracy"] for line in older.lines]
        assert accuracies == sorted(accuracies, reverse=True)
        assert older.lines[0].difference is None
        first = older.lines[0].run.metrics["test"]["accuracy"]
        for line in older.lines[1:]:
            assert line.difference is not None
            assert line.difference.difference == pytest.approx(line.run.metrics["test"]["accuracy"] - first)


def test_intervals_of_the_run_are_wilsons(pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> None:
    commands.extract(ExtractConfig(str(pictures)), cache)
    run = commands.train_head(HeadConfig("knn5"), cache, reports)
    found = run.metrics["test"]
    n_right = round(found["accuracy"] * found["n"])
    assert found["accuracy_95"] == list(accuracy_interval(n_right, found["n"]))


def test_macro_f1_is_of_the_classes_that_are_there(
    pictures: Path, tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
) -> None:
    commands.extract(ExtractConfig(str(pictures)), cache)
    run = commands.train_head(HeadConfig("knn5"), cache, reports)
    shutil.copytree(pictures / "dark", tmp_path / "only" / "dark")
    found = commands.evaluate(run.id, str(tmp_path / "only"), cache, reports)
    (rated,) = [found.metrics[split] for split in ("test",)]
    assert rated["macro_f1"] == pytest.approx(rated["per_class"]["dark"]["f1"])
    assert any("macro F1 are means over the other classes" in note for note in found.notes)
