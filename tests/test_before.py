"""Caches and runs of version 0.1 are read: a small one of each kind is kept in tests/before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeEngine, FakePretrained

from pipeline import commands
from pipeline.commands import cache as cache_commands
from pipeline.config import ExtractConfig, HeadConfig
from pipeline.extraction import plan
from pipeline.extraction.engines import openvino
from pipeline.runs.find import all_runs
from pipeline.runs.predictions import read_history, read_predictions
from pipeline.runs.run import EvaluateRun, HeadRun, SweepRun

BEFORE = Path(__file__).parent / "before"
CACHE, REPORTS = Path("cache"), Path("reports")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """In a folder with the cache, the runs and the data of then."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    engine = FakeEngine()
    monkeypatch.setattr(plan, "open_engine", lambda *_: engine)
    monkeypatch.setattr(plan, "open_backbone", lambda *_: FakePretrained())
    monkeypatch.setattr(openvino, "supports", lambda precision: precision != "int8")  # as the machine of then
    return engine


def test_runs_have_their_types(engine: FakeEngine) -> None:
    logreg, knn, sweep, evaluated = all_runs(REPORTS)
    assert isinstance(logreg, HeadRun)
    assert isinstance(knn, HeadRun)
    assert isinstance(sweep, SweepRun)
    assert isinstance(evaluated, EvaluateRun)
    assert [run.head for run in (logreg, knn, sweep)] == ["logreg", "knn3", "ridge"]
    assert logreg.fitted_on == ["train", "val"]
    assert evaluated.of == sweep.id
    assert len(sweep.candidates) == 10
    for run in (logreg, knn, sweep, evaluated):
        test = read_predictions(REPORTS / run.id, 3, run.files)["test"]
        right = (test.probabilities.argmax(axis=1) == test.labels).mean()
        assert right == pytest.approx(run.metrics["test"]["accuracy"])
    assert len(read_history(REPORTS / logreg.id, logreg.files)) > 3


def test_features_are_not_computed_again(engine: FakeEngine) -> None:
    done = commands.extract(ExtractConfig("shades.npz"), CACHE)
    assert (done.n_computed, done.n_reused, engine.n_computed) == (0, 48, 0)
    assert done.record.spec.digest() == "0e29a2ef7158ea8a55a667a63dd5b329"
    assert {row["complete"] for row in cache_commands.ls(CACHE)} == {True}
    assert cache_commands.verify(CACHE).damaged == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_heads_predict_and_are_rated(place: int, engine: FakeEngine) -> None:
    run = all_runs(REPORTS)[place]
    assert isinstance(run, HeadRun)
    found = commands.evaluate(run.id, "shades.npz", CACHE, REPORTS)
    assert found.metrics["test"]["accuracy"] == pytest.approx(run.metrics["test"]["accuracy"])
    if run.head == "knn3":  # its bank doesn't tell which images are which: the table says that val was fitted on
        assert found.n_fitted["val"] == run.n_val
    else:
        assert found.metrics["val"]["accuracy"] == pytest.approx(run.metrics["val"]["accuracy"])
        assert "val" not in found.n_fitted
    assert np.isfinite(found.metrics["train"]["log_loss"])


def test_pages_are_drawn_and_new_runs_stand_beside_them(engine: FakeEngine) -> None:
    new = commands.train_head(HeadConfig("centroid"), CACHE, REPORTS)
    done = commands.report([], CACHE, REPORTS)
    assert len(done.pages) == 5
    assert new.id in done.pages
