"""Heads: what they learn, that they are saved without pickle, and what they refuse."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import ConfigError, RunError
from pipeline.heads import HeadConfig, accuracy_of_logits, load_head, make_head, probabilities_of, sparse_loss
from pipeline.metrics import accuracy_interval, evaluate
from pipeline.table import Part


def blobs(n: int, n_classes: int, seed: int, d: int = 12) -> Part:
    """Clouds around one corner for each class, on scales that differ a thousandfold, and a constant feature."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, n_classes, n)
    centres = np.random.default_rng(9).normal(0, 1.5, (n_classes, d))
    features = (centres[labels] + draw.normal(0, 1, (n, d))) * np.geomspace(0.03, 30, d)
    features = np.concatenate([features, np.full((n, 1), 3.0)], axis=1).astype(np.float32)
    return Part(features, labels, np.array([f"{seed}-{row}" for row in range(n)], "S32"))


HEADS = ("logreg", "linear", "mlp32-16")


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("head", HEADS)
def test_learns_and_is_the_same_after_saving(head: str, n_classes: int, tmp_path: Path) -> None:
    config = HeadConfig(head, epochs=40)
    train, val, test = blobs(600, n_classes, 0), blobs(200, n_classes, 1), blobs(400, n_classes, 2)
    fitted = make_head(config, carved_val=True)
    report = fitted.fit(train, val, n_classes)
    probabilities = fitted.predict_proba(test.features)
    assert probabilities.shape == (400, n_classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities.argmax(axis=1) == test.labels).mean() > 0.85
    assert report.val_probabilities is not None
    assert (report.val_probabilities.argmax(axis=1) == val.labels).mean() > 0.85
    assert report.history
    fitted.save(tmp_path)
    again = load_head(tmp_path, asdict(config))
    np.testing.assert_allclose(again.predict_proba(test.features), probabilities, atol=1e-6)
    assert again.trainable_parameters == fitted.trainable_parameters


@pytest.mark.parametrize(
    ("head", "n_classes", "expected"),
    [
        ("logreg", 2, 14),
        ("linear", 2, 14),
        ("linear", 5, 70),
        ("mlp32-16", 5, 13 * 32 + 32 + 32 * 16 + 16 + 16 * 5 + 5),
    ],
)
def test_trainable_parameters(head: str, n_classes: int, expected: int) -> None:
    fitted = make_head(HeadConfig(head, epochs=1), carved_val=True)
    fitted.fit(blobs(60, n_classes, 0), blobs(30, n_classes, 1), n_classes)
    assert fitted.trainable_parameters == expected


def test_two_classes_on_densenet201_take_1921_parameters() -> None:
    train = blobs(40, 2, 0, d=1919)
    fitted = make_head(HeadConfig("linear", epochs=1), carved_val=True)
    fitted.fit(train, blobs(20, 2, 1, d=1919), 2)
    assert fitted.trainable_parameters == 1921


@pytest.mark.parametrize("head", HEADS)
def test_same_seed_gives_the_same_numbers(head: str) -> None:
    train, val = blobs(200, 3, 0), blobs(60, 3, 1)
    results = []
    for seed in (0, 0, 1):
        fitted = make_head(HeadConfig(head, epochs=3, seed=seed), carved_val=True)
        fitted.fit(train, val, 3)
        results.append(fitted.predict_proba(val.features))
    np.testing.assert_allclose(results[0], results[1], atol=0 if head == "logreg" else 1e-6)
    if head != "logreg":
        assert np.abs(results[0] - results[2]).max() > 1e-4


class TestLogreg:
    def test_is_that_of_scikit_learn(self) -> None:
        train, val, test = blobs(300, 4, 0), blobs(100, 4, 1), blobs(200, 4, 2)
        head = make_head(HeadConfig("logreg"), carved_val=True)
        report = head.fit(train, val, 4)
        best = min(report.history, key=lambda row: row["val_log_loss"])
        features, labels = np.concatenate([train.features, val.features]), np.concatenate([train.labels, val.labels])
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=best["C"], max_iter=5000, tol=1e-6))
        reference.fit(features, labels)
        np.testing.assert_allclose(head.predict_proba(test.features), reference.predict_proba(test.features), atol=0.02)

    def test_val_of_the_source_is_not_trained_on(self) -> None:
        train, val = blobs(300, 3, 0), blobs(100, 3, 1)
        head = make_head(HeadConfig("logreg"), carved_val=False)
        report = head.fit(train, val, 3)
        np.testing.assert_array_equal(head.predict_proba(val.features), report.val_probabilities)

    def test_scores_of_val_are_of_a_head_that_has_not_seen_it(self) -> None:
        """With labels that mean nothing, no head can be right on val unless it has seen it."""
        draw = np.random.default_rng(0)
        noise = [Part(draw.normal(size=(n, 60)), draw.integers(0, 2, n), np.zeros(n, "S32")) for n in (40, 40)]
        head = make_head(HeadConfig("logreg"), carved_val=True)
        report = head.fit(noise[0], noise[1], 2)
        assert report.val_probabilities is not None
        assert (report.val_probabilities.argmax(axis=1) == noise[1].labels).mean() < 0.8

    def test_without_val_a_default_is_used_and_said(self) -> None:
        empty = Part(np.zeros((0, 13)), np.zeros(0, np.int64), np.zeros(0, "S32"))
        report = make_head(HeadConfig("logreg"), carved_val=True).fit(blobs(50, 3, 0), empty, 3)
        assert report.notes[0] == "No validation images to choose C with; C is 0.01"

    def test_tampered_file_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "head.npz", final_mean=np.array([object()]))
        with pytest.raises(RunError, match="head.npz can't be read"):
            load_head(tmp_path, asdict(HeadConfig("logreg")))


class TestDense:
    def test_without_val(self) -> None:
        empty = Part(np.zeros((0, 13), np.float32), np.zeros(0, np.int64), np.zeros(0, "S32"))
        head = make_head(HeadConfig("linear", epochs=30), carved_val=True)
        report = head.fit(blobs(300, 3, 0), empty, 3)
        assert report.val_probabilities is None
        test = blobs(100, 3, 2)
        assert (head.predict_proba(test.features).argmax(axis=1) == test.labels).mean() > 0.8

    def test_best_epoch_is_kept(self) -> None:
        train, val = blobs(60, 3, 0), blobs(200, 3, 1)
        head = make_head(HeadConfig("mlp64", epochs=60, learning_rate=0.03, dropout=0.0, patience=60), carved_val=True)
        report = head.fit(train, val, 3)
        losses = [row["val_loss"] for row in report.history]
        assert report.val_probabilities is not None
        assert min(losses) < losses[-1]
        np.testing.assert_allclose(evaluate(report.val_probabilities, val.labels)["log_loss"], min(losses), rtol=1e-3)

    def test_code_in_a_saved_head_is_not_run(self, tmp_path: Path) -> None:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x)])
        model.save(tmp_path / "head.keras")
        with pytest.raises(RunError, match="head.keras can't be read"):
            load_head(tmp_path, asdict(HeadConfig("linear")))

    def test_learning_rate_that_diverges(self) -> None:
        train = blobs(100, 3, 0)
        broken = Part(np.full_like(train.features, np.nan), train.labels, train.keys)
        with pytest.raises(RunError, match="never a finite number"):
            make_head(HeadConfig("linear", epochs=2), carved_val=True).fit(broken, broken, 3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_mean_the_same_to_keras_and_to_us(n_classes: int) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(50, 1 if n_classes == 2 else 3))
    labels = draw.integers(0, n_classes, 50)
    ours = evaluate(probabilities_of(logits), labels)
    metric = accuracy_of_logits(n_classes)
    metric.update_state(labels[:, None], logits)
    assert float(metric.result()) == pytest.approx(ours["accuracy"])
    assert float(sparse_loss(n_classes)(labels[:, None], logits)) == pytest.approx(ours["log_loss"], rel=1e-4)


@pytest.mark.parametrize("head", ["mlp12x", "mlp", "mlp0", "mlp5-", "resnet", "", "logreg2"])
def test_unknown_heads(head: str) -> None:
    with pytest.raises(ConfigError, match="logreg, linear, mlp512-128"):
        HeadConfig(head)


@pytest.mark.parametrize("option", ["epochs", "batch_size", "learning_rate", "patience"])
def test_options_out_of_range(option: str) -> None:
    with pytest.raises(ConfigError, match="--" + option.replace("_", "-")):
        HeadConfig("linear", **{option: 0})  # type: ignore[arg-type]


def test_metrics_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.0, 1.0]])
    found = evaluate(probabilities, np.array([0, 0, 1, 1]))
    assert found["accuracy"] == 0.75
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 1.0]).mean())
    assert evaluate(np.zeros((0, 2)), np.zeros(0, np.int64)) == {"n": 0}


def test_interval_is_that_of_wilson() -> None:
    # Newcombe 1998, Statistics in Medicine 17, p. 857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for n_right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert accuracy_interval(n_right, n) == pytest.approx((low, high), abs=1e-4)
