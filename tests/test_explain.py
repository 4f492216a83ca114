"""Explain: gradients of heads, and maps that add up to what the head says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_shades
from PIL import Image

from pipeline import commands
from pipeline.commands import FinetuneOptions, TrainingOptions
from pipeline.config import ExtractConfig, FinetuneConfig, HeadConfig
from pipeline.data import list_images
from pipeline.errors import ConfigError, DataError
from pipeline.heads import make_head
from pipeline.pages.explained import coloured
from pipeline.runs.class_maps import cached_class_maps, class_maps
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.store.rows import Part, nothing

SMALL = {"backbone": "mobilenet025", "image_size": (64, 96), "weights": "random", "precision": "float32"}


def drawn(n_classes: int, n: int = 90, width: int = 6) -> Part:
    random = np.random.default_rng(0)
    labels = np.arange(n) % n_classes
    features = (random.normal(size=(n, width)) + 2 * np.eye(width)[labels]).astype(np.float32)
    keys = np.array([f"{row:032x}" for row in range(n)], "S32")
    return Part(features, labels, keys, np.zeros(n, np.int64))


class TestGradients:
    @pytest.mark.parametrize("n_classes", [2, 3])
    @pytest.mark.parametrize(
        "config",
        [
            HeadConfig("ridge"),
            HeadConfig("logreg", l2_normalize=True),
            HeadConfig("centroid"),
            HeadConfig("mlp8", epochs=2, batch_size=16),
        ],
        ids=lambda config: config.head,
    )
    def test_they_are_those_of_finite_differences(self, config: HeadConfig, n_classes: int) -> None:
        part = drawn(n_classes)
        head, _ = make_head(config)
        head.fit(part, nothing(part), n_classes)
        features, labels = part.array()[:4].astype(np.float64), np.array([0, 1, 1, 0])

        def score(values: np.ndarray) -> np.ndarray:
            logarithms = np.log(head.predict_proba(values.astype(np.float32)))
            return logarithms[np.arange(len(labels)), labels] - logarithms.mean(axis=1)

        step = 1e-2
        found = head.gradients(features.astype(np.float32), labels)
        for column in range(features.shape[1]):
            moved = np.zeros_like(features)
            moved[:, column] = step
            wanted = (score(features + moved) - score(features - moved)) / (2 * step)
            np.testing.assert_allclose(found[:, column], wanted, rtol=0.03, atol=0.01)

    def test_neighbours_have_none(self) -> None:
        part = drawn(2)
        head, _ = make_head(HeadConfig("knn3"))
        head.fit(part, nothing(part), 2)
        with pytest.raises(ConfigError, match="can't be told where it sees a class"):
            head.gradients(part.array(), part.labels)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    draw_shades(folder / "shades")
    return folder


def trained(work: Path, head: str, **extracted: Any) -> Classifier:
    features = commands.extract(ExtractConfig(str(work / "shades"), **{**SMALL, **extracted}), work / "cache")
    options = TrainingOptions(features.record.id)
    run = commands.train_head(HeadConfig(head), work / "cache", work / "reports", options)
    return open_classifier(work / "reports", run.id)


def maps_of(classifier: Classifier, work: Path, label: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Sums of maps over their places, and the probabilities."""
    locations, source = list_images([str(work / "shades" / "dark")])
    labels = np.full(len(locations), label)
    found = [list(maps) for maps in class_maps(classifier, source, locations, labels, work / "cache")]
    return found, classifier.predict(source, locations, work / "cache").probabilities


@pytest.mark.parametrize("endpoint", ["block13", "block5+block13"])
def test_of_a_linear_head_the_places_add_up_to_the_logit(work: Path, endpoint: str) -> None:
    """Their mean differs from the logit by the same number for all pictures: the bias and the standardisation."""
    classifier = trained(work, "ridge", endpoint=endpoint)
    found, probabilities = maps_of(classifier, work, label=1)
    assert [one.shape for one in found[0]] == [(8, 12), (2, 3)][-len(found[0]) :]
    logarithms = np.log(probabilities)
    logits = logarithms[:, 1] - logarithms.mean(axis=1)
    added = np.array([sum(one.mean() for one in maps) for maps in found])
    np.testing.assert_allclose(added - added[0], logits - logits[0], rtol=5e-3, atol=1e-3 * np.ptp(logits))


def test_a_fine_tuned_model_with_a_linear_head_says_the_same(work: Path) -> None:
    classifier = trained(work, "linear")  # which is fitted once, on train alone
    config = FinetuneConfig(blocks="block13", epochs=1, learning_rate=1e-9)
    options = FinetuneOptions(head_run=classifier.run.id)
    run = commands.finetune(config, work / "cache", work / "reports", options)
    tuned = open_classifier(work / "reports", run.id)
    (before, _), (after, _) = (maps_of(one, work, label=2) for one in (classifier, tuned))
    for (one,), (other,) in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=0.02, atol=0.02 * np.abs(one).max())


def test_files_are_written_and_named(work: Path) -> None:
    classifier = trained(work, "logreg")
    names = [str(work / "shades" / "dark" / "0.png"), str(work / "shades" / "light" / "0.png")]
    found = commands.explain(classifier.run.id, names, work / "cache", work / "reports")
    assert [one.path for one in found] == names
    assert len({one.file for one in found}) == 2
    for one in found:
        assert one.file.parent == work / "reports" / classifier.run.id / "explained"
        with Image.open(one.file) as picture:
            assert picture.size == (96 * 7, 64 * 7)
    for label in ("dark", "light"):
        (asked,) = commands.explain(
            classifier.run.id, names[:1], work / "cache", work / "reports", label=label, output=work / "mine"
        )
        assert (asked.label, asked.file.parent) == (label, work / "mine")
    assert len(list((work / "mine").glob("*.png"))) == 2, "one picture, asked about two classes"
    answers = commands.predict(classifier.run.id, names, work / "cache", work / "reports", explained=work / "predicted")
    assert len(list((work / "predicted").glob("*.png"))) == len(answers.images) == 2


def test_what_has_no_places_is_refused(work: Path) -> None:
    classifier = trained(work, "knn3")
    name = str(work / "shades" / "dark" / "0.png")
    with pytest.raises(ConfigError, match="knn3 is no network"):
        commands.explain(classifier.run.id, [name], work / "cache", work / "reports")
    with pytest.raises(ConfigError, match="--class is 'grey '; the run knows dark, grey, light"):
        commands.explain(classifier.run.id, [name], work / "cache", work / "reports", label="grey ")
    bad = work / "bad.png"
    bad.write_text("no picture")
    with pytest.raises(DataError, match="None of the 1 images can be read"):
        commands.explain(classifier.run.id, [str(bad)], work / "cache", work / "reports")


def test_places_that_speak_for_a_class_are_coloured_and_others_left() -> None:
    pixels = np.full((40, 40, 3), 128, np.uint8)
    shown = coloured(pixels, [np.array([[1.0, -1.0], [-1.0, -1.0]]), np.array([[0.5]]) * 0]).astype(int)
    assert (shown[-5:, -5:] == 128).all()
    assert np.abs(shown[:5, :5] - 128).max() > 60


def test_the_page_of_a_run_shows_places_where_activations_are_cached(tmp_path: Path) -> None:
    draw_shades(tmp_path / "shades")
    classifier = trained(tmp_path, "ridge")

    def page() -> str:
        commands.report([classifier.run.id], tmp_path / "cache", tmp_path / "reports")
        return (tmp_path / "reports" / classifier.run.id / "report.html").read_text(encoding="utf-8")

    before = page()
    assert "Where it is seen" not in before
    commands.extract(ExtractConfig(str(tmp_path / "shades"), **SMALL, pooling="none"), tmp_path / "cache")
    after = page()
    assert "Where it is seen" in after
    assert after.count('data-seen="data:image/webp') == after.count("<figure") > 0


def test_maps_from_the_cache_are_those_that_are_computed(work: Path) -> None:
    classifier = trained(work, "logreg")
    assert classifier.trained is not None
    locations, source = list_images([str(work / "shades" / "grey")])
    labels = np.zeros(len(locations), np.int64)
    keys = source.keys(None, rehash=False).column
    wanted = list(class_maps(classifier, source, locations, labels, work / "cache"))
    found = cached_class_maps(classifier.trained, keys, labels, work / "cache")
    for key, (one,) in zip(keys.tolist(), wanted, strict=True):
        np.testing.assert_array_equal(found[key][0], one)
