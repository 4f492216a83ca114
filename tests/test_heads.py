"""Heads: what they learn, what theory says of them, that they are saved without pickle, and what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import blobs, part_of
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import ConfigError, RunError
from pipeline.evaluation.metrics import scores
from pipeline.heads import (
    KINDS,
    HeadConfig,
    kind_of,
    load_head,
    make_head,
    predict,
    probabilities_of,
)
from pipeline.heads.base import class_weights
from pipeline.heads.linear import fit_many as fit_linear
from pipeline.heads.logreg import PENALTIES
from pipeline.heads.prepare import Preparation
from pipeline.heads.ridge import fit_without
from pipeline.store.rows import Part, joined, nothing
from pipeline.training.optimizer import accuracy_of_logits, sparse_loss

EVERY = ("logreg", "ridge", "centroid", "knn7", "linear", "mlp32-16", "bn-mlp24")
CLOSED = ("logreg", "ridge", "centroid", "knn7")
BY_STEPS = ("linear", "mlp32-16", "bn-mlp24")
EMPTY = part_of(np.zeros((0, 13), np.float32), np.zeros(0, np.int64))


def fitted(head: str, train: Part, val: Part, n_classes: int, **options: object):  # type: ignore[no-untyped-def]
    """A head and its report."""
    made, _ = make_head(HeadConfig(head, **options))  # type: ignore[arg-type]
    return made, made.fit(train, val, n_classes)


def accuracy(head: object, part: Part) -> float:
    return scores(predict(head, part), part.labels)["accuracy"]  # type: ignore[arg-type]


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("name", EVERY)
def test_learns_and_is_the_same_after_saving(name: str, n_classes: int, tmp_path: Path) -> None:
    train, val, test = blobs(600, n_classes, 0), blobs(200, n_classes, 1), blobs(400, n_classes, 2)
    head, _ = fitted(name, train, val, n_classes)
    probabilities = head.predict_proba(test.array())
    assert probabilities.shape == (400, n_classes)
    assert head.n_features == 13
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(axis=1) == test.labels).mean() > 0.85
    assert log_loss(test.labels, probabilities) < 0.6 * np.log(n_classes)
    head.refit(joined(train, val))
    probabilities = head.predict_proba(test.array())
    assert (probabilities.argmax(axis=1) == test.labels).mean() > 0.85
    head.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".npz", ".keras"}
    again = load_head(tmp_path, head.config)
    np.testing.assert_allclose(again.predict_proba(test.array()), probabilities, atol=1e-6)
    assert again.trainable_parameters == head.trainable_parameters


@pytest.mark.parametrize(
    ("name", "n_classes", "expected"),
    [
        ("logreg", 2, 14),
        ("ridge", 2, 14),
        ("centroid", 5, 70),
        ("knn3", 5, 0),
        ("linear", 2, 14),
        ("linear", 5, 70),
        ("mlp32-16", 5, 13 * 32 + 32 + 32 * 16 + 16 + 16 * 5 + 5),
        ("bn-mlp8", 5, 2 * 13 + 13 * 8 + 8 + 8 * 5 + 5),
    ],
)
def test_trainable_parameters(name: str, n_classes: int, expected: int) -> None:
    options = {"epochs": 1} if name in BY_STEPS else {}
    head, _ = fitted(name, blobs(60, n_classes, 0), blobs(30, n_classes, 1), n_classes, **options)
    assert head.trainable_parameters == expected


def test_a_layer_too_narrow_for_the_classes_is_told() -> None:
    train, val = blobs(200, 5, 0), blobs(60, 5, 1)
    for name, told in (("mlp32-9", True), ("mlp9-32", False), ("mlp32-10", False), ("bn-mlp9", True)):
        _, report = fitted(name, train, val, 5, epochs=1)
        notes = [note for note in report.notes if "narrow" in note]
        assert bool(notes) is told, name
        assert not told or notes == ["9 units in the last hidden layer are narrow for 5 classes; take 10 or more"]


@pytest.mark.parametrize("name", BY_STEPS)
def test_one_epoch_is_called_so(name: str) -> None:
    for epochs, words in ((1, "1 epoch;"), (2, "2 epochs;")):
        _, report = fitted(name, blobs(60, 3, 0), blobs(30, 3, 1), 3, epochs=epochs)
        assert [note for note in report.notes if note.startswith(words)], report.notes


def test_documented_numbers_of_parameters() -> None:
    head, _ = fitted("linear", blobs(40, 2, 0, d=1919), blobs(20, 2, 1, d=1919), 2, epochs=1)
    assert head.trainable_parameters == 1921  # two classes on DenseNet201's 1,920 features
    head, _ = fitted("bn-mlp50", blobs(60, 10, 0, d=1023), blobs(20, 10, 1, d=1023), 10, epochs=1)
    assert head.trainable_parameters == 53_808  # ten classes on DenseNet121's 1,024 features


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_gives_the_same_numbers(name: str) -> None:
    train, val = blobs(200, 3, 0), blobs(60, 3, 1)
    options = {"epochs": 3} if name in BY_STEPS else {}
    results = [fitted(name, train, val, 3, seed=seed, **options)[0].predict_proba(val.array()) for seed in (0, 0, 1)]
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-6 if name in BY_STEPS else 0)
    if name in BY_STEPS:
        assert np.abs(results[0] - results[2]).max() > 1e-5


@pytest.mark.parametrize("name", CLOSED)
def test_order_of_the_rows_changes_no_closed_form_head(name: str) -> None:
    train, val, test = blobs(300, 4, 0), blobs(100, 4, 1), blobs(200, 4, 2)
    shuffled = train.select(np.random.default_rng(0).permutation(300))
    first, second = (fitted(name, part, val, 4)[0].predict_proba(test.array()) for part in (train, shuffled))
    # L-BFGS stops within its tolerance of the optimum; the others are exact.
    np.testing.assert_allclose(first, second, atol=5e-3 if name == "logreg" else 2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_without_val(name: str) -> None:
    head, report = fitted(name, blobs(300, 3, 0), EMPTY, 3)
    assert accuracy(head, blobs(200, 3, 2)) > 0.8
    if name in ("logreg", "ridge"):
        assert "No validation images to choose the penalty with" in report.notes[0]


@pytest.mark.parametrize("name", EVERY)
def test_one_image_of_each_class(name: str) -> None:
    train = blobs(40, 3, 0)
    first = [int(np.flatnonzero(train.labels == label)[0]) for label in range(3)]
    head, _ = fitted(name, train.select(np.array(first)), EMPTY, 3)
    probabilities = predict(head, blobs(50, 3, 2))
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_class_missing_from_val(name: str) -> None:
    train, val = blobs(300, 4, 0), blobs(100, 4, 1)
    head, _ = fitted(name, train, val.select(val.labels != 2), 4)
    assert predict(head, val).shape == (100, 4)
    assert accuracy(head, val.select(val.labels == 2)) > 0.5


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("knn7",)])
def test_layers_are_the_same_classifier(name: str) -> None:
    train, val, test = blobs(200, 3, 0), blobs(60, 3, 1), blobs(50, 3, 2)
    head, _ = fitted(name, train, val, 3)
    outputs = test.array()
    for layer in head.layers():
        outputs = layer(outputs)
    np.testing.assert_allclose(probabilities_of(np.asarray(outputs)), head.predict_proba(test.array()), atol=1e-4)


def test_layers_have_not_seen_val() -> None:
    """With labels that mean nothing, no head can be right on val unless it has seen it."""
    draw = np.random.default_rng(0)
    train, val = (part_of(draw.normal(size=(40, 120)).astype(np.float32), draw.integers(0, 2, 40)) for _ in range(2))
    for name in ("logreg", "ridge"):
        head, _ = fitted(name, train, val, 2, l2=1e-4)
        head.refit(joined(train, val))
        outputs = val.array()
        for layer in head.layers():
            outputs = layer(outputs)
        assert accuracy(head, val) > 0.95
        assert ((np.asarray(outputs)[:, 0] > 0) == val.labels).mean() < 0.8


class TestPreparation:
    def test_standardises_as_scikit_learn_does(self) -> None:
        train = blobs(500, 3, 0)
        expected = StandardScaler().fit_transform(train.array().astype(np.float64))
        found = Preparation.fit(train, standardize=True, l2_normalize=False)(train.array())
        np.testing.assert_allclose(found, expected, atol=2e-5)

    def test_far_from_zero(self) -> None:
        features = (1e4 + np.random.default_rng(0).normal(0, 0.5, (5000, 3))).astype(np.float32)
        found = Preparation.fit(part_of(features, np.zeros(5000, int)), standardize=True, l2_normalize=False)
        np.testing.assert_allclose(found.scale, features.astype(np.float64).std(axis=0), rtol=1e-4)

    @pytest.mark.parametrize("standardize", [True, False])
    @pytest.mark.parametrize("l2_normalize", [True, False])
    def test_layers_do_the_same(self, standardize: bool, l2_normalize: bool) -> None:
        train = blobs(100, 3, 0)
        prepare = Preparation.fit(train, standardize=standardize, l2_normalize=l2_normalize)
        outputs = train.array()
        for layer in prepare.layers():
            outputs = layer(outputs)
        np.testing.assert_allclose(np.asarray(outputs), prepare(train.array()), atol=1e-3, rtol=1e-4)
        if l2_normalize:
            np.testing.assert_allclose(np.square(prepare(train.array())).mean(axis=1), 1, rtol=1e-4)

    def test_tiny_features_are_standardised_too(self) -> None:
        tiny = part_of(np.float32(1e-9) * blobs(100, 3, 0).array(), np.zeros(100, int))
        prepared = Preparation.fit(tiny, standardize=True, l2_normalize=False)(tiny.array())
        np.testing.assert_allclose(prepared[:, :-1].std(axis=0), 1, rtol=1e-3)
        prepare = Preparation.fit(tiny, standardize=True, l2_normalize=False)
        outputs = tiny.array()
        for layer in prepare.layers():
            outputs = layer(outputs)
        np.testing.assert_allclose(np.asarray(outputs), prepared, atol=1e-3)

    def test_scales_that_differ_much(self) -> None:
        features = blobs(100, 3, 0).array() * np.geomspace(1e-4, 1e4, 13, dtype=np.float32)
        prepared = Preparation.fit(part_of(features, np.zeros(100, int)), standardize=True, l2_normalize=False)(
            features
        )
        np.testing.assert_allclose(prepared[:, :-1].std(axis=0), 1, rtol=1e-3)

    def test_still_features_don_t_explode(self) -> None:
        prepare = Preparation.fit(blobs(100, 3, 0), standardize=True, l2_normalize=False)
        moved = np.full((1, 13), 4.0, np.float32)
        assert prepare(moved)[0, -1] == pytest.approx(1.0)


class TestLogreg:
    def test_is_that_of_scikit_learn(self) -> None:
        train, val, test = blobs(300, 4, 0), blobs(100, 4, 1), blobs(200, 4, 2)
        head, report = fitted("logreg", train, val, 4)
        best = min(report.history, key=lambda row: row["val_log_loss"])
        head.refit(joined(train, val))
        both = joined(train, val)
        assert best["C"] == pytest.approx(1 / (300 * best["l2"]))
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (400 * best["l2"]), max_iter=1000))
        reference.fit(both.array(), both.labels)
        expected = reference.predict_proba(test.array())
        np.testing.assert_allclose(head.predict_proba(test.array()), expected, atol=0.01)

    @pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
    def test_the_search_finds_the_least_loss_of_all_penalties(self, spread: float) -> None:
        """The less the classes lie apart, the stronger the best penalty is, on both sides of where the search begins."""
        draw = np.random.default_rng(0)

        def drawn(n: int) -> Part:
            labels = draw.integers(0, 3, n)
            noise = draw.normal(0, spread, (n, 20)).astype(np.float32)
            return part_of(np.eye(3, 20, dtype=np.float32)[labels] * 3 + noise, labels)

        train, val = drawn(90), drawn(2000)
        head, report = fitted("logreg", train, val, 3)
        losses = {
            l2: log_loss(val.labels, fitted("logreg", train, EMPTY, 3, l2=l2)[0].predict_proba(val.array()))
            for l2 in PENALTIES
        }
        assert head.penalty == min(losses, key=losses.__getitem__)
        assert len(report.history) < len(PENALTIES)
        assert [row["l2"] for row in report.history] == sorted((row["l2"] for row in report.history), reverse=True)

    def test_penalties_of_a_large_problem_are_compared_on_a_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        train, val, test = blobs(2000, 5, 0), blobs(300, 5, 1), blobs(400, 5, 2)
        rare = train.select(np.concatenate([np.flatnonzero(train.labels != 4), np.flatnonzero(train.labels == 4)[:1]]))
        whole, _ = fitted("logreg", train, val, 5)
        monkeypatch.setattr("pipeline.heads.logreg.LARGE", 100)
        monkeypatch.setattr("pipeline.heads.logreg.SHARE", 200)
        sizes: list[tuple[int, int]] = []
        fit = LogisticRegression.fit

        def counting(self: LogisticRegression, X: np.ndarray, y: np.ndarray) -> LogisticRegression:
            sizes.append((len(X), len(np.unique(y))))
            return fit(self, X, y)

        monkeypatch.setattr(LogisticRegression, "fit", counting)
        _, report = fitted("logreg", rare, val, 5)
        assert {n_classes for _, n_classes in sizes} == {5}, "the class of one row is in the share, too"
        assert all(200 <= n <= 250 for n, _ in sizes[:-1]) and sizes[-1][0] == len(rare)
        assert report.notes[0] == f"Penalties were compared on {sizes[0][0]} of {len(rare):,} rows"
        assert all(row["C"] == pytest.approx(1 / (len(rare) * row["l2"])) for row in report.history)
        share, _ = fitted("logreg", train, val, 5)
        assert accuracy(share, test) == pytest.approx(accuracy(whole, test), abs=0.01)

    def test_l2_is_one_over_images_times_c(self) -> None:
        train, val, test = blobs(300, 4, 0), blobs(100, 4, 1), blobs(200, 4, 2)
        head, report = fitted("logreg", train, val, 4, l2=0.05)
        assert report.history == []
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (300 * 0.05), max_iter=5000, tol=1e-6))
        expected = reference.fit(train.array(), train.labels).predict_proba(test.array())
        np.testing.assert_allclose(head.predict_proba(test.array()), expected, atol=5e-3)

    def test_tampered_file_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "head.npz", final_mean=np.array([object()]))
        with pytest.raises(RunError, match="head.npz can't be read"):
            load_head(tmp_path, HeadConfig("logreg"))

    @pytest.mark.parametrize(
        ("name", "field", "value"),
        [
            ("ridge", "final_weights", np.full((13, 3), np.nan)),
            ("ridge", "final_scale", np.zeros(13)),
            ("ridge", "trained_bias", np.zeros((3, 1))),
            ("ridge", "final_mean", np.array(["a"] * 13)),
            ("knn3", "labels", np.full(60, -1)),
            ("knn3", "labels", np.zeros(60)),
            ("knn3", "n_classes", np.array(10**11)),
            ("knn3", "bank", np.full((60, 13), np.inf)),
        ],
        ids=str,
    )
    def test_tampered_arrays_are_refused(self, name: str, field: str, value: np.ndarray, tmp_path: Path) -> None:
        head, _ = fitted(name, blobs(60, 3, 0), blobs(30, 3, 1), 3)
        head.save(tmp_path)
        with np.load(tmp_path / "head.npz") as file:
            arrays = dict(file)
        np.savez(tmp_path / "head.npz", **{**arrays, field: value})
        with pytest.raises(RunError, match="head.npz can't be read"):
            load_head(tmp_path, HeadConfig(name))

    def test_arrays_that_don_t_fit_are_refused(self, tmp_path: Path) -> None:
        for name in ("logreg", "knn3"):
            head, _ = fitted(name, blobs(60, 3, 0), blobs(30, 3, 1), 3)
            head.save(tmp_path)
            with np.load(tmp_path / "head.npz") as file:
                arrays = dict(file)
            wrong = next(key for key in arrays if key.endswith("mean"))
            np.savez(tmp_path / "head.npz", **{**arrays, wrong: arrays[wrong][:-1]})
            with pytest.raises(RunError, match="don't fit each other"):
                load_head(tmp_path, HeadConfig(name))


class TestRidge:
    @pytest.mark.parametrize("n", [300, 9])
    @pytest.mark.parametrize("val", [EMPTY, blobs(50, 3, 1)], ids=["solved", "decomposed"])
    @pytest.mark.parametrize("class_weight", ["none", "balanced"])
    def test_is_that_of_scikit_learn(self, n: int, val: Part, class_weight: str) -> None:
        """More images than features, and fewer; with val a decomposition gives the weights of many penalties."""
        train, test = blobs(n, 3, 0), blobs(100, 3, 2)
        head, _ = fitted("ridge", train, val, 3, l2=0.2, class_weight=class_weight)
        prepare = Preparation.fit(train, standardize=True, l2_normalize=False)
        weights = class_weights(train.labels, 3, class_weight)[train.labels]
        reference = Ridge(alpha=0.2 * weights.sum()).fit(
            prepare(train.array()).astype(np.float64), np.eye(3)[train.labels], sample_weight=weights
        )
        expected = reference.predict(prepare(test.array()).astype(np.float64))
        found = np.log(head.predict_proba(test.array())) / head.sharpness
        # A softmax forgets what is common to all classes.
        np.testing.assert_allclose(
            found - found.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=1e-4
        )

    def test_every_row_twice_is_half_the_total_penalty(self) -> None:
        """With the penalty per image nothing changes; with a fixed total, it is that of half the penalty."""
        train, test = blobs(200, 3, 0), blobs(100, 3, 2)
        twice = joined(train, train)
        first = fitted("ridge", train, EMPTY, 3, l2=0.3)[0].predict_proba(test.array())
        again = fitted("ridge", twice, EMPTY, 3, l2=0.3)[0].predict_proba(test.array())
        half = fitted("ridge", train, EMPTY, 3, l2=0.15)[0].predict_proba(test.array())
        fixed_total = fitted("ridge", twice, EMPTY, 3, l2=0.3 * 200 / 400)[0].predict_proba(test.array())
        np.testing.assert_allclose(first, again, atol=1e-5)
        np.testing.assert_allclose(half, fixed_total, atol=1e-5)
        assert np.abs(first - half).max() > 1e-3

    @pytest.mark.parametrize("l2", [0.0, 1e-15])
    def test_directions_without_images_get_no_weight(self, l2: float) -> None:
        train = blobs(100, 3, 0)
        doubled = part_of(np.repeat(train.array(), 2, axis=1), train.labels)
        head, _ = fitted("ridge", doubled, EMPTY, 3, l2=l2)
        assert np.abs(head.final.weights).max() < 1e3
        assert accuracy(head, doubled) > 0.85

    def test_best_penalty_is_taken(self) -> None:
        train, val = blobs(30, 4, 0), blobs(300, 4, 1)
        head, report = fitted("ridge", train, val, 4)
        assert len(report.history) == 40
        assert accuracy(head, val) == max(row["val_accuracy"] for row in report.history)

    @pytest.mark.parametrize("n", [400, 11])
    @pytest.mark.parametrize(
        "options", [{}, {"standardize": False}, {"class_weight": "balanced"}, {"l2_normalize": True}], ids=str
    )
    def test_heads_without_some_images_are_those_of_the_others_alone(self, n: int, options: dict[str, object]) -> None:
        """Of one pass, where one feature is the same in all images and one is large in those that are held."""
        train, test = blobs(n, 3, 0), blobs(100, 3, 2)
        features = train.array()
        held = [np.zeros(0, np.int64), np.arange(0, n, 5), np.arange(1, n, 5)]
        features[:, 3] = 7.3
        features[:, 4] = features[:, 4] * np.where(np.arange(n) % 5 == 0, 1e3, 1e-6)
        train = replace(train, features=features)
        test.array()[:, 4] *= 1e-6
        _, config = make_head(HeadConfig("ridge", **options))  # type: ignore[arg-type]
        found = list(fit_without(config, train, 3, held))
        assert len(found) == len(held)
        for head, rows in zip(found, held, strict=True):
            rest = train.select(np.delete(np.arange(n), rows))
            alone, _ = fitted("ridge", rest, EMPTY, 3, **options)
            expected, probabilities = (one.predict_proba(test.array()) for one in (alone, head))
            np.testing.assert_allclose(probabilities, expected, atol=1e-4)
        assert np.abs(found[0].predict_proba(test.array()) - found[1].predict_proba(test.array())).max() > 1e-3


class TestNeighbours:
    def test_votes_are_those_of_scikit_learn(self) -> None:
        train, test = blobs(300, 4, 0), blobs(100, 4, 2)
        head, _ = fitted("knn9", train, EMPTY, 4)
        prepare = Preparation.fit(train, standardize=True, l2_normalize=False)
        reference = KNeighborsClassifier(
            9, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
        )
        reference.fit(prepare(train.array()), train.labels)
        expected = reference.predict_proba(prepare(test.array()))
        np.testing.assert_allclose(head.predict_proba(test.array()), expected, atol=1e-4)

    def test_more_neighbours_than_images(self) -> None:
        head, report = fitted("knn500", blobs(50, 3, 0), EMPTY, 3)
        assert report.notes == ["There are only 50 training images; all of them vote"]
        assert predict(head, blobs(10, 3, 1)).shape == (10, 3)

    def test_has_no_layers(self) -> None:
        head, _ = fitted("knn5", blobs(50, 3, 0), EMPTY, 3)
        with pytest.raises(ConfigError, match="knn5 is no network"):
            head.layers()

    def test_centroid_is_the_nearest_mean_by_cosine(self) -> None:
        train, test = blobs(300, 4, 0), blobs(100, 4, 2)
        head, _ = fitted("centroid", train, EMPTY, 4)
        prepare = Preparation.fit(train, standardize=True, l2_normalize=True)
        means = np.stack([prepare(train.array())[train.labels == label].mean(axis=0) for label in range(4)])
        expected = cosine_similarity(prepare(test.array()), means).argmax(axis=1)
        np.testing.assert_array_equal(predict(head, test).argmax(axis=1), expected)


class TestLinear:
    @pytest.mark.parametrize("n_classes", [2, 4])
    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
    def test_heads_trained_together_end_as_if_alone(self, optimizer: str, n_classes: int) -> None:
        train, val = blobs(200, n_classes, 0), blobs(80, n_classes, 1)
        base = HeadConfig("linear", epochs=4, batch_size=32, optimizer=optimizer)
        configs = [
            replace(base, learning_rate=1e-2),
            replace(base, learning_rate=1e-3, l2=0.5, standardize=True),
            replace(base, learning_rate=3e-4, standardize=False),
            replace(base, learning_rate=1e-2, l2_normalize=True, label_smoothing=0.1),
            replace(base, learning_rate=3e-3, class_weight="balanced"),
        ]
        resolved = [make_head(config)[1] for config in configs]
        together = {
            trial.number: trial.probabilities[0] for trial in fit_linear(resolved, train, [val], n_classes, 1e9)
        }
        for number, config in enumerate(configs):
            head, _ = make_head(config)
            head.fit(train, nothing(train), n_classes)
            np.testing.assert_allclose(together[number], head.predict_proba(val.array()), atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 1e-2

    def test_a_head_that_diverges_leaves_the_others_alone(self) -> None:
        train, val = blobs(200, 3, 0), blobs(80, 3, 1)
        base = HeadConfig("linear", epochs=20, patience=3, batch_size=32, schedule="plateau", optimizer="sgd")
        both = ((1e-2, 0.01), (10, 100))  # of learning rate and penalty; the second multiplies weights by -999
        configs = [make_head(replace(base, learning_rate=rate, l2=l2, standardize=True))[1] for rate, l2 in both]
        sound, _ = fit_linear(configs, train, [val], 3, 1e9)
        (alone,) = fit_linear(configs[:1], train, [val], 3, 1e9)
        assert (sound.failure, alone.failure) == ("", "")
        np.testing.assert_allclose(sound.probabilities[0], alone.probabilities[0], atol=1e-5)

    def test_head_that_uses_no_views_is_not_changed_by_them(self) -> None:
        train, val = blobs(120, 3, 0), blobs(60, 3, 1)
        view = Part(train.array() + 100, train.labels, train.keys, np.ones(120, np.int64))
        # One step an epoch takes all rows, so the batches are the same with and without the view.
        base = make_head(HeadConfig("linear", epochs=3, batch_size=240, schedule="none"))[1]
        configs = [replace(base, views=0), replace(base, views=1)]
        without, with_views = fit_linear(configs, joined(train, view), [val], 3, 1e9)
        (alone,) = fit_linear(configs[:1], train, [val], 3, 1e9)
        np.testing.assert_allclose(without.probabilities[0], alone.probabilities[0], atol=1e-5)
        assert np.abs(without.probabilities[0] - with_views.probabilities[0]).max() > 1e-3

    def test_comes_to_the_optimum_of_logistic_regression(self) -> None:
        train, test = blobs(400, 3, 0), blobs(200, 3, 2)
        head, _ = fitted(
            "linear", train, EMPTY, 3, l2=0.05, optimizer="adam", learning_rate=0.02, epochs=200, batch_size=400
        )
        reference, _ = fitted("logreg", train, EMPTY, 3, l2=0.05)
        np.testing.assert_allclose(head.predict_proba(test.array()), reference.predict_proba(test.array()), atol=0.03)


class TestMlp:
    def test_best_epoch_is_kept(self) -> None:
        train, val = blobs(60, 3, 0), blobs(200, 3, 1)
        options = {"epochs": 60, "learning_rate": 0.03, "dropout": 0.0, "l2": 0.0, "schedule": "none", "patience": 60}
        head, report = fitted("mlp64", train, val, 3, **options)
        best = max(report.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        assert best["epoch"] < 60
        assert f"epoch {best['epoch']} is kept" in report.notes[0]
        found = scores(predict(head, val), val.labels)
        assert found["accuracy"] == best["val_accuracy"]
        assert found["log_loss"] == pytest.approx(best["val_loss"], rel=1e-3)

    def test_patience_ends_training_but_not_under_a_cosine(self) -> None:
        train, val = blobs(60, 3, 0), blobs(100, 3, 1)
        options = {"epochs": 40, "learning_rate": 0.03, "dropout": 0.0, "patience": 2}
        assert len(fitted("mlp32", train, val, 3, schedule="none", **options)[1].history) < 40
        assert len(fitted("mlp32", train, val, 3, schedule="cosine", **options)[1].history) == 40

    def test_plateau_reduces_the_rate(self) -> None:
        options = {"epochs": 30, "learning_rate": 0.05, "dropout": 0.0, "schedule": "plateau", "patience": 30}
        _, report = fitted("mlp32", blobs(60, 3, 0), blobs(100, 3, 1), 3, **options, batch_size=16)
        rates = [row["learning_rate"] for row in report.history]
        assert rates[0] == pytest.approx(0.05)
        assert rates[-1] < 0.3 * rates[0] * 1.01

    def test_class_weight_helps_the_rare_class(self) -> None:
        train, test = blobs(800, 2, 0, d=2), blobs(400, 2, 2, d=2)
        rare = train.select(np.flatnonzero((train.labels == 0) | (np.arange(800) % 20 == 0)))
        for name in ("logreg", "ridge", "linear", "mlp16"):
            options = {"epochs": 30} if name in ("linear", "mlp16") else {}
            recalls = [
                accuracy(fitted(name, rare, EMPTY, 2, class_weight=weight, **options)[0], test.select(test.labels == 1))
                for weight in ("none", "balanced")
            ]
            assert recalls[1] > recalls[0] + 0.02, name

    def test_code_in_a_saved_head_is_not_run(self, tmp_path: Path) -> None:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x)])
        model.save(tmp_path / "head.keras")
        with pytest.raises(RunError, match="head.keras can't be read"):
            load_head(tmp_path, HeadConfig("mlp8"))

    @pytest.mark.parametrize("name", ["linear", "mlp32-16"])
    def test_loss_that_is_never_a_number(self, name: str) -> None:
        train = blobs(100, 3, 0)
        huge = part_of(np.float32(1e30) * train.array(), train.labels)
        with pytest.raises(RunError, match="never a finite number"):
            fitted(name, huge, huge, 3, epochs=2, optimizer="sgd", learning_rate=1.0, standardize=False)

    def test_normalization_starts_at_the_statistics_of_the_features(self) -> None:
        train = blobs(300, 3, 0)
        head, _ = fitted("bn-mlp8", train, EMPTY, 3, epochs=1, learning_rate=1e-6, batch_size=300)
        layer = next(layer for layer in head.layers() if isinstance(layer, keras.layers.BatchNormalization))
        np.testing.assert_allclose(layer.moving_mean, train.array().mean(axis=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_mean_the_same_to_keras_and_to_us(n_classes: int) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(50, 1 if n_classes == 2 else 3))
    labels = draw.integers(0, n_classes, 50)
    ours = scores(probabilities_of(logits), labels)
    metric = accuracy_of_logits(n_classes)
    metric.update_state(labels[:, None], logits)
    assert float(metric.result()) == pytest.approx(ours["accuracy"])
    assert float(sparse_loss(n_classes)(labels[:, None], logits)) == pytest.approx(ours["log_loss"], rel=1e-4)


class TestConfig:
    @pytest.mark.parametrize(
        "head", ["mlp12x", "mlp-", "mlp0", "mlp5-", "resnet", "", "logreg2", "knn-5", "knn0", "bn-mlp-"]
    )
    def test_unknown_heads(self, head: str) -> None:
        with pytest.raises(ConfigError, match="logreg, ridge, centroid, knn20, linear, mlp512-128, bn-mlp50"):
            make_head(HeadConfig(head))

    @pytest.mark.parametrize(
        "options",
        [
            {"epochs": 0},
            {"batch_size": 0},
            {"learning_rate": 0.0},
            {"learning_rate": float("nan")},
            {"patience": 0},
            {"dropout": 1.0},
            {"label_smoothing": -0.1},
            {"l2": -1.0},
            {"l2": float("inf")},
            {"views": -1},
            {"optimizer": "adan"},
            {"schedule": "step"},
            {"class_weight": "equal"},
        ],
        ids=str,
    )
    def test_options_out_of_range(self, options: dict[str, object]) -> None:
        option = "--" + next(iter(options)).replace("_", "-")
        with pytest.raises(ConfigError, match=option):
            HeadConfig("linear", **options)  # type: ignore[arg-type]

    def test_near_names(self) -> None:
        for wrong, right in (
            ("logregg", "logreg"),
            ("LogReg", "logreg"),
            ("lineer", "linear"),
            ("centriod", "centroid"),
        ):
            with pytest.raises(ConfigError, match=f"Did you mean {right}"):
                make_head(HeadConfig(wrong))

    def test_options_a_head_does_not_have(self) -> None:
        with pytest.raises(
            ConfigError, match=r"--dropout means nothing to ridge; its options are --l2, --class-weight"
        ):
            make_head(HeadConfig("ridge", dropout=0.1))

    def test_every_kind_says_its_defaults(self) -> None:
        for kind in KINDS:
            assert kind_of(kind.form) is kind
            assert re.fullmatch(kind.pattern, kind.form)
            _, resolved = make_head(HeadConfig(kind.form))
            assert resolved.given().keys() <= kind.defaults.keys()
            assert {"standardize", "views"} <= kind.defaults.keys()

    def test_command_gives_the_same_settings(self) -> None:
        _, resolved = make_head(HeadConfig("linear", learning_rate=0.0123456789, standardize=False, seed=3))
        expected = "--head linear --learning-rate 0.0123456789 --no-standardize --seed 3"
        assert resolved.command(make_head(HeadConfig("linear"))[1]) == expected

    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
    @pytest.mark.parametrize("name", ["linear", "mlp64"])
    def test_every_optimizer_learns_with_its_defaults(self, name: str, optimizer: str) -> None:
        train, test = blobs(600, 5, 0), blobs(300, 5, 2)
        head, _ = fitted(name, train, EMPTY, 5, optimizer=optimizer, learning_rate=1e-2 if optimizer == "sgd" else 1e-3)
        assert accuracy(head, test) > 0.9
        assert scores(predict(head, test), test.labels)["log_loss"] < 0.8
