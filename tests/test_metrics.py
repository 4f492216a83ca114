"""Metrics, by hand and against scikit-learn; and temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.evaluation.calibration import fit_temperature, tempered
from pipeline.evaluation.compare import paired_difference
from pipeline.evaluation.metrics import accuracy_interval, calibration_error, evaluate, scores


def drawn(n: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, n_classes, n)
    logits = draw.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 1])
    found = evaluate(probabilities, labels, ["a", "b"])
    assert found["accuracy"] == 0.75
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 1.0]).mean())
    assert found["confusion_matrix"] == [[1, 1], [0, 2]]
    assert found["per_class"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert found["roc_auc"] == 1.0
    assert "top_5_accuracy" not in found
    assert evaluate(np.zeros((0, 2)), np.zeros(0, np.int64), ["a", "b"]) == {"n": 0}


@pytest.mark.parametrize("n_classes", [2, 3, 12])
def test_against_scikit_learn(n_classes: int) -> None:
    probabilities, labels = drawn(400, n_classes)
    predicted = probabilities.argmax(axis=1)
    found = evaluate(probabilities.astype(np.float32), labels, [f"c{number}" for number in range(n_classes)])
    assert found["accuracy"] == reference.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, probabilities), rel=1e-5)
    score = probabilities[:, 1] if n_classes == 2 else probabilities
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(labels, score, multi_class="ovr"), rel=1e-5)
    if n_classes > 10:
        assert found["top_5_accuracy"] == reference.top_k_accuracy_score(labels, probabilities, k=5)


def test_classes_without_images() -> None:
    probabilities, labels = drawn(60, 4)
    labels = np.where(labels == 3, 0, labels)
    found = evaluate(probabilities, labels, list("abcd"))
    assert found["roc_auc"] is None
    assert found["per_class"]["d"]["support"] == 0
    recalls = [found["per_class"][name]["recall"] for name in "abc"]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_one_image_only() -> None:
    found = evaluate(np.array([[0.2, 0.8]]), np.array([1]), ["a", "b"])
    assert found["accuracy"] == 1.0
    assert found["balanced_accuracy"] == 1.0


class TestInterval:
    # Newcombe 1998, Statistics in Medicine 17, p. 857, table I, method 3.
    @pytest.mark.parametrize(
        ("n_right", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]
    )
    def test_is_that_of_wilson(self, n_right: int, n: int, low: float, high: float) -> None:
        assert accuracy_interval(n_right, n) == pytest.approx((low, high), abs=1e-4)

    @settings(deadline=None)  # the first call imports SciPy
    @given(st.integers(1, 500), st.data())
    def test_grows_with_the_number_of_right_ones(self, n: int, data: st.DataObject) -> None:
        n_right = data.draw(st.integers(0, n - 1))
        fewer, more = accuracy_interval(n_right, n), accuracy_interval(n_right + 1, n)
        assert fewer[0] < more[0]
        assert fewer[1] < more[1]
        assert 0 <= fewer[0] <= n_right / n <= fewer[1] <= 1


class TestDifference:
    def test_by_hand(self) -> None:
        # Of 100 images, 12 that only the first has right and 4 that only the second has.
        right, other = np.ones(100, bool), np.ones(100, bool)
        other[:12] = False
        right[12:16] = False
        found = paired_difference(right, other)
        assert (found.n, found.accuracy, found.accuracy_other) == (100, 0.96, 0.88)
        assert found.difference == pytest.approx(0.08)
        assert found.p_value == pytest.approx(0.0768, abs=1e-4)  # two-sided exact binomial test, 12 of 16
        assert found.low < 0.08 < found.high
        swapped = paired_difference(other, right)
        assert (swapped.difference, swapped.low, swapped.high) == pytest.approx((-0.08, -found.high, -found.low))

    # Newcombe 1998, Statistics in Medicine 17, p. 2635, table II: counts of both, first, second, neither; method 10.
    @pytest.mark.parametrize(
        ("counts", "low", "high"),
        [
            ((36, 12, 2, 0), 0.0569, 0.3404),
            ((20, 12, 2, 16), 0.0562, 0.3290),
            ((18, 12, 2, 18), 0.0562, 0.3292),
            ((16, 12, 2, 20), 0.0562, 0.3290),
        ],
    )
    def test_interval_is_newcombes(self, counts: tuple[int, int, int, int], low: float, high: float) -> None:
        both, first, second, neither = counts
        right = np.repeat([True, True, False, False], (both, first, second, neither))
        other = np.repeat([True, False, True, False], (both, first, second, neither))
        found = paired_difference(right, other)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)

    def test_none_where_both_are_right_on_the_same(self) -> None:
        found = paired_difference(np.arange(10) < 7, np.arange(10) < 7)
        assert (found.difference, found.p_value) == (0.0, 1.0)
        assert found.low < 0 < found.high

    def test_interval_covers_the_truth(self) -> None:
        """Of two classifiers right on 80 and 75 % of all images, independently."""
        draw = np.random.default_rng(0)
        inside = 0
        for _ in range(400):
            found = paired_difference(draw.random(300) < 0.80, draw.random(300) < 0.75)
            inside += found.low <= 0.05 <= found.high
        assert 0.92 <= inside / 400 <= 0.98


class TestIntervalEnds:
    def test_has_a_width_where_all_or_none_are_right(self) -> None:
        # Newcombe 1998, Statistics in Medicine 17, p. 857, table I: 0 of 20.
        assert accuracy_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
        assert accuracy_interval(20, 20) == pytest.approx((1 - 0.1611, 1), abs=1e-4)
        assert accuracy_interval(0, 0) == (0.0, 1.0)


class TestCalibration:
    def test_error_by_hand(self) -> None:
        # Two bins: 0.8 sure and right in one of two, 1.0 sure and right.
        probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.0, 1.0]])
        assert calibration_error(probabilities, np.array([0, 1, 1])) == pytest.approx(2 / 3 * 0.3)

    def test_finds_the_temperature_that_labels_were_drawn_with(self) -> None:
        draw = np.random.default_rng(0)
        logits = draw.normal(0, 2, (20_000, 4))
        probabilities = tempered(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1.0)
        labels = np.array([draw.choice(4, p=row) for row in probabilities])
        assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.05)
        assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.15)

    def test_a_few_images_make_no_certainty(self) -> None:
        logits, labels = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 1, 0])
        confidence = tempered(np.exp(logits), fit_temperature(logits, labels)).max(axis=1)
        np.testing.assert_allclose(confidence, 1 - 0.5 / 5, atol=1e-3)

    def test_scaling_lowers_the_error_and_keeps_the_order(self) -> None:
        probabilities, labels = drawn(3000, 5)
        sure = tempered(probabilities, 0.3)
        temperature = fit_temperature(np.log(sure), labels)
        scaled = tempered(sure, temperature)
        assert calibration_error(scaled, labels) < 0.3 * calibration_error(sure, labels)
        assert scores(scaled, labels)["accuracy"] == scores(sure, labels)["accuracy"]
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
