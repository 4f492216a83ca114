"""Sweep and learning curve, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeEngine

from pipeline import commands
from pipeline.commands import TrainingOptions
from pipeline.config import ExtractConfig, HeadConfig, SplitConfig
from pipeline.errors import ConfigError, DataError


class TestSweep:
    def test_winner_is_trained_as_train_head_would(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        options = TrainingOptions()  # all views there are
        run = commands.sweep(["ridge", "knn", "centroid"], "small", HeadConfig("", seed=2), cache, reports, options)
        accuracies = [one["val_accuracy"] for one in run.candidates]
        assert accuracies == sorted(accuracies, reverse=True)
        assert {(one["settings"]["views"], one["test_views"]) for one in run.candidates} == {
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
        }
        best = run.candidates[0]
        assert run.head == best["head"]
        assert run.metrics["val"]["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-6)
        again = commands.train_head(
            HeadConfig(best["head"], **best["settings"], seed=2),
            cache,
            reports,
            TrainingOptions(extracted.record.id, test_views=best["test_views"]),
        )
        assert again.metrics == run.metrics
        command = next(note for note in run.notes if note.startswith("Again: "))
        assert f"tlpipe train-head {extracted.record.id} --head {best['head']}" in command
        assert command.endswith(f"--cache {cache} --reports {reports}")
        assert json.loads((reports / run.id / "run.json").read_text())["payload"]["candidates"] == run.candidates

    def test_winner_can_be_fine_tuned_from(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        run = commands.sweep(["ridge"], "small", HeadConfig(""), cache, reports)
        assert commands.open_head(reports, None)[0].run.id == run.id

    def test_cross_validation(self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> None:
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(val_fraction=0)), cache)
        with pytest.raises(DataError, match="no validation images to choose by; give --cv 5"):
            commands.sweep(["ridge"], "small", HeadConfig(""), cache, reports)
        run = commands.sweep(["ridge", "knn"], "small", HeadConfig(""), cache, reports, TrainingOptions(cv=3, seeds=2))
        assert all(len(one["rounds"]) == 6 for one in run.candidates)
        assert "on 3 folds and 2 seeds" in run.notes[0]
        assert set(run.metrics) == {"test"}

    def test_budget(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        run = commands.sweep(["centroid", "ridge", "knn"], "full", HeadConfig(""), cache, reports, budget=1e-9)
        assert {one["head"] for one in run.candidates} == {"centroid"}
        assert any("The budget ended before" in note and "knn" in note for note in run.notes)
        with pytest.raises(ConfigError, match="--budget is 0"):
            commands.sweep(["ridge"], "small", HeadConfig(""), cache, reports, budget=0)

    @pytest.mark.parametrize(("heads", "grid", "word"), [(["forest"], "small", "forest"), (["ridge"], "big", "--grid")])
    def test_wrong_options_are_said_before_the_data_is_read(
        self, heads: list[str], grid: str, word: str, cache: Path, reports: Path
    ) -> None:
        with pytest.raises(ConfigError, match=word):
            commands.sweep(heads, grid, HeadConfig(""), cache, reports)


class TestLearningCurve:
    def test_points(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        result = commands.learning_curve(HeadConfig("ridge"), cache, reports, draws=3)
        assert [point["per_class"] for point in result.points][:4] == [1, 2, 5, 10]
        assert [len(point["accuracies"]) for point in result.points] == [3] * (len(result.points) - 1) + [1]
        assert result.points[0]["n_train"] == 3
        beyond = commands.learning_curve(HeadConfig("ridge"), cache, reports, per_class=[10, 100_000], draws=1)
        assert [point["per_class"] for point in beyond.points] == [10, result.points[-1]["per_class"]]
        assert result.points[-1]["accuracy"] > result.points[0]["accuracy"]
        assert result.split == "val"
        value = json.loads(json.dumps(result.to_json()))
        assert value["points"][0]["std"] == pytest.approx(np.std(result.points[0]["accuracies"], ddof=1))

    def test_same_seed_same_curve(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        curves = [
            [
                point["accuracies"]
                for point in commands.learning_curve(HeadConfig("ridge", seed=seed), cache, reports, draws=2).points
            ]
            for seed in (0, 0, 1)
        ]
        assert curves[0] == curves[1] != curves[2]

    def test_on_test_where_there_is_no_val(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(val_fraction=0)), cache)
        assert (
            commands.learning_curve(HeadConfig("centroid"), cache, reports, per_class=[1, 3], draws=1).split == "test"
        )
        commands.extract(ExtractConfig(str(pictures), splits=SplitConfig(val_fraction=0, test_fraction=0)), cache)
        with pytest.raises(DataError, match="no images to measure on"):
            commands.learning_curve(HeadConfig("centroid"), cache, reports)

    @pytest.mark.parametrize("options", [{"draws": 0}, {"per_class": [0, 3]}])
    def test_illegal(
        self, options: dict[str, object], extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        with pytest.raises(ConfigError, match="must be 1 or more"):
            commands.learning_curve(HeadConfig("ridge"), cache, reports, **options)  # type: ignore[arg-type]
