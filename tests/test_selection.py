"""Choosing between heads: grids, folds, ratings, and the learning curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sklearn
from conftest import blobs, part_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import HeadConfig
from pipeline.errors import ConfigError, RunError
from pipeline.evaluation.metrics import scores
from pipeline.heads import KINDS, make_head, predict
from pipeline.selection.curve import draw_subset, gain_of_doubling, point, sizes_for
from pipeline.selection.folds import Round, fewest_bundles, folds
from pipeline.selection.grid import candidates
from pipeline.selection.trials import Candidate, mean_over_views, rate, repeat
from pipeline.store.rows import Part, joined, nothing

NAMES = ["logreg", "ridge", "centroid", "knn", "linear", "mlp", "bn-mlp"]


def with_view(part: Part, shift: float = 0.1) -> Part:
    """A part with a second view of every image, and the images in another order there."""
    order = np.random.default_rng(3).permutation(len(part))
    view = part.select(order)
    return joined(part, Part(view.array() + np.float32(shift), view.labels, view.keys, np.ones(len(part), np.int64)))


def round_of(train: Part, val: Part, seed: int = 0) -> Round:
    """Fit on one part, rate by the other."""
    rows = np.arange(len(train), len(train) + len(val))
    vals = [rows[val.views == view] for view in range(int(val.views.max()) + 1)]
    vals = [rows_of_view[np.argsort(val.keys[rows_of_view - len(train)])] for rows_of_view in vals]
    return Round(joined(train, val), np.arange(len(train)), vals, seed)


def grouped(counts: list[list[int]]) -> Part:
    """Images in groups, from the number of each class in each group."""
    groups, labels = np.indices(np.shape(counts)).reshape(2, -1).repeat(np.ravel(counts), axis=1)
    part = part_of(np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32), labels)
    return replace(part, groups=groups)


def few(names: list[str], **options: object) -> list[Candidate]:
    return candidates(names, "small", HeadConfig("", **options), [0], [0])  # type: ignore[arg-type]


class TestGrid:
    @pytest.mark.parametrize("grid", ["small", "full"])
    def test_of_every_kind_is_legal(self, grid: str) -> None:
        found = candidates(NAMES, grid, HeadConfig(""), [0, 1], [0, 1])
        assert {candidate.config.head.rstrip("0123456789-") for candidate in found} == set(NAMES)
        assert len(found) == len(set(found))
        assert {candidate.test_views for candidate in found} == {0, 1}
        assert {candidate.config.views for candidate in found} == {0, 1}

    def test_full_sizes(self) -> None:
        linear = candidates(["linear"], "full", HeadConfig(""), [0], [0])
        assert len(linear) == 48
        ridge = candidates(["ridge"], "full", HeadConfig("", standardize=True), [0], [0])
        assert len(ridge) == 40

    def test_an_option_that_is_given_is_not_varied(self) -> None:
        found = few(["linear"], learning_rate=0.5)
        assert {candidate.config.learning_rate for candidate in found} == {0.5}
        assert len({candidate.config.l2 for candidate in found}) > 1

    def test_names_with_figures(self) -> None:
        assert {candidate.config.head for candidate in few(["knn7", "mlp24-12"])} == {"knn7", "mlp24-12"}
        assert {candidate.config.head for candidate in few(["knn"])} == {"knn5", "knn20"}

    @pytest.mark.parametrize("name", ["", "nothing", "mlpx", "KNN"])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(ConfigError, match="Unknown head"):
            few([name])
        with pytest.raises(ConfigError, match="--grid is 'huge'; it can be small, full"):
            candidates(["ridge"], "huge", HeadConfig(""), [0], [0])

    def test_option_that_no_head_has(self) -> None:
        with pytest.raises(ConfigError, match="--dropout means nothing to ridge, knn5"):
            few(["ridge", "knn5"], dropout=0.1)
        assert few(["ridge", "mlp8"], dropout=0.1)


class TestRate:
    def test_is_what_each_head_alone_would_give(self) -> None:
        train, val = blobs(200, 3, 0), blobs(100, 3, 1)
        tried = few(["logreg", "ridge", "centroid", "knn", "linear"], epochs=3)
        found = rate(tried, [round_of(train, val)], 3, np.inf)
        rated = found.rated
        assert (found.untried, found.failed) == ([], {})
        assert len(rated) == len(tried)
        assert [one.accuracy for one in rated] == sorted((one.accuracy for one in rated), reverse=True)
        for one in rated:
            head, _ = make_head(one.candidate.config)
            head.fit(train, nothing(train), 3)
            expected = scores(predict(head, val), val.labels)
            # Along its path L-BFGS starts from where the last fit ended.
            tolerance = 0.02 if one.candidate.config.head == "logreg" else 1e-3
            assert one.log_loss == pytest.approx(expected["log_loss"], abs=tolerance), one.candidate
            assert one.accuracy == pytest.approx(expected["accuracy"], abs=0.021), one.candidate

    @pytest.mark.slow
    def test_networks_in_processes_are_those_trained_alone(self) -> None:
        train, val = blobs(120, 3, 0), blobs(60, 3, 1)
        tried = few(["mlp8", "mlp4"], epochs=2)
        rated = rate(tried, [round_of(train, val)], 3, np.inf).rated
        assert len(rated) == len(tried) > 2
        for one in rated:
            head, _ = make_head(one.candidate.config)
            head.fit(train, nothing(train), 3)
            assert one.log_loss == pytest.approx(scores(predict(head, val), val.labels)["log_loss"], abs=1e-4)

    def test_budget_ends_after_the_first_group(self) -> None:
        tried = few(["ridge", "centroid", "knn"])
        found = rate(tried, [round_of(blobs(60, 3, 0), blobs(30, 3, 1))], 3, 1e-9)
        rated, untried = found.rated, found.untried
        assert {one.candidate.config.head for one in rated} == {"ridge"}
        assert {one.config.head for one in untried} == {"centroid", "knn5", "knn20"}

    def test_views_are_used_as_the_candidate_says(self) -> None:
        both, val = with_view(blobs(120, 3, 0), 5.0), with_view(blobs(60, 3, 1), 5.0)
        turn = round_of(both, val)
        vals = turn.vals()
        np.testing.assert_array_equal(vals[0].keys, vals[1].keys)
        options = {"linear": {"epochs": 2, "batch_size": 1000, "schedule": "none"}, "ridge": {"l2": 0.1}}
        for name, own in options.items():
            resolved = make_head(HeadConfig(name, **own))[1]  # type: ignore[arg-type]
            tried = [Candidate(replace(resolved, views=views), number) for views in (0, 1) for number in (0, 1)]
            rated = rate(tried, [turn], 3, np.inf).rated
            assert len({round(one.log_loss, 4) for one in rated}) == 4
            for one in rated:
                head, _ = make_head(one.candidate.config)
                head.fit(both.up_to_view(one.candidate.config.views), nothing(both), 3)
                mean = mean_over_views(head, vals[: one.candidate.test_views + 1])
                assert one.log_loss == pytest.approx(scores(mean, vals[0].labels)["log_loss"], abs=2e-3)

    def test_a_setting_that_diverges_ends_nothing(self) -> None:
        train, val = (
            part_of(np.float32(1e18) * part.array(), part.labels, part.keys)
            for part in (blobs(90, 3, 0), blobs(60, 3, 1))
        )
        wild = HeadConfig("", optimizer="sgd", learning_rate=9.0, l2=5.0, epochs=3, standardize=False)
        for names in (["centroid"], ["ridge", "centroid"]):
            tried = few(names)
            tried += [Candidate(make_head(replace(wild, head=head))[1], 0) for head in ("mlp8", "linear")]
            tried.append(Candidate(make_head(HeadConfig("linear", epochs=2))[1], 0))
            found = rate(tried, [round_of(train, val)], 3, np.inf)
            assert {one.config.head for one in found.failed} == {"mlp8", "linear"}
            assert all("never a finite number" in cause for cause in found.failed.values())
            assert len(found.rated) == len(tried) - 2
        with pytest.raises(RunError, match="never a finite number"):
            rate(tried[-3:-2], [round_of(train, val)], 3, np.inf)

    def test_seeds_and_folds_give_a_deviation(self) -> None:
        train, val = blobs(120, 3, 0), blobs(60, 3, 1)
        rounds = [round_of(train, val, seed) for seed in range(3)]
        rated = rate(few(["linear"], epochs=1), rounds, 3, np.inf).rated
        value = rated[0].to_json()
        assert len(value["rounds"]) == 3
        assert value["val_accuracy"] == pytest.approx(np.mean(value["rounds"]))
        assert value["val_accuracy_std"] == pytest.approx(np.std(value["rounds"], ddof=1))


class TestFolds:
    def test_views_and_twins_stay_together(self) -> None:
        part = blobs(90, 3, 0)
        keys = part.keys.copy()
        keys[1::3] = keys[::3]  # every third image has a twin, perhaps of another class
        pool = with_view(Part(part.features, part.labels, keys, part.views))
        seen = []
        for turn in folds(pool, np.arange(len(pool)), 3, 1, seed=0):
            train, vals = turn.train(None), turn.vals()
            assert not set(train.keys.tolist()) & set(vals[0].keys.tolist())
            np.testing.assert_array_equal(vals[0].keys, vals[1].keys)
            np.testing.assert_array_equal(vals[0].labels, vals[1].labels)
            assert set(vals[1].views.tolist()) == {1}
            assert len(train) + sum(map(len, vals)) == len(pool)
            assert set(turn.train(0).views.tolist()) == {0}
            seen += vals[0].keys.tolist()
        assert sorted(seen) == sorted(keys.tolist())

    def test_stratified(self) -> None:
        part = blobs(300, 3, 0)
        for turn in folds(part, np.arange(300), 5, 0, seed=0):
            shares = np.bincount(turn.vals()[0].labels, minlength=3) / np.bincount(part.labels)
            np.testing.assert_allclose(shares, 0.2, atol=0.06 if sklearn.__version__.startswith("1.7.") else 0.04)

    def test_too_many(self) -> None:
        part = part_of(np.zeros((7, 2), np.float32), np.array([0, 0, 0, 0, 1, 1, 1]))
        with pytest.raises(ConfigError, match="--cv 4 needs 4 different images of each class, and one has 3"):
            folds(part, np.arange(7), 4, 0, seed=0)

    @given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=3, max_size=9), st.integers(0, 5))
    @settings(max_examples=100, deadline=None)
    def test_groups_of_several_classes_leave_every_class_to_train_on(self, counts: list[list[int]], seed: int) -> None:
        part = grouped(counts)
        rows = np.arange(len(part))
        if not len(part) or (fewest := fewest_bundles(part, rows)) < 2:
            return
        try:
            turns = folds(part, rows, min(3, fewest), 0, seed)
        except ConfigError:
            turns = []
        for turn in (*turns, Round(part, rows, [rows], seed).inner()):
            assert set(part.labels[turn.train_rows].tolist()) == set(part.labels.tolist())

    def test_a_division_that_leaves_every_class_is_looked_for(self) -> None:
        part = grouped([[1, 2], [1, 0], [0, 1]])
        for seed in range(10):
            assert {len(np.unique(turn.train(0).labels)) for turn in folds(part, np.arange(5), 2, 0, seed)} == {2}

    def test_groups_that_no_folds_divide(self) -> None:
        part = grouped([[5, 5, 0], [0, 5, 5], [5, 0, 5]])
        with pytest.raises(ConfigError, match="--cv 2 would leave a class without training images.*; leave --cv out"):
            folds(part, np.arange(30), 2, 0, seed=0)

    @pytest.mark.parametrize(
        "counts",
        [
            [[1, 7, 8], [3, 11, 0], [0, 6, 8]],
            [[0, 29, 0], [0, 15, 0], [1, 12, 4], [0, 0, 20], [3, 28, 0]],
            [[5, 5, 0], [0, 5, 5], [5, 0, 5]],
        ],
    )
    def test_a_head_chooses_by_a_part_that_leaves_every_class(self, counts: list[list[int]]) -> None:
        part = grouped(counts)
        rows = np.arange(len(part))
        found = repeat(HeadConfig("logreg"), [Round(part, rows, [rows], seed) for seed in range(3)], 3, 0)
        assert len(found["rounds"]) == 3


class TestCurve:
    def test_sizes(self) -> None:
        part = part_of(np.zeros((73, 2)), np.array([0] * 60 + [1] * 13))
        assert sizes_for(part) == [1, 2, 5, 10, 20, 50, 60]

    def test_subsets_hold_so_many_of_each_class_with_their_views(self) -> None:
        part = with_view(blobs(100, 4, 0))
        small, large = (draw_subset(part, size, 0, 0) for size in (3, 7))
        assert np.bincount(small.labels[small.views == 0]).tolist() == [3] * 4
        assert (small.views == 1).sum() == 12
        assert set(small.keys.tolist()) < set(large.keys.tolist())
        twins = part_of(np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1]), np.array(list("aabcde"), "S32"))
        assert set(draw_subset(twins, 2, 0, 0).keys.tolist()) >= {b"a", b"b"}
        assert set(draw_subset(part, 3, 1, 0).keys.tolist()) != set(small.keys.tolist())

    def test_gain_is_that_of_the_power_law(self) -> None:
        points = [point(n, n, [1 - 0.8 * n**-0.5]) for n in (10, 20, 50, 100)]
        expected = 0.8 * 100**-0.5 - 0.8 * 200**-0.5
        assert gain_of_doubling(points) == pytest.approx(expected)

    @pytest.mark.parametrize("accuracies", [[0.5, 0.6], [0.9, 1.0, 1.0], [0.9, 0.8, 0.7]])
    def test_no_law_no_gain(self, accuracies: list[float]) -> None:
        assert gain_of_doubling([point(n, 10.0**n, [value]) for n, value in enumerate(accuracies, 1)]) is None


def test_every_kind_can_be_swept() -> None:
    for kind in KINDS:
        assert kind.small or kind.full
