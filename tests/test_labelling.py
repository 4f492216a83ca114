"""Labelling: the journal, what is shown, the head that rates itself by what was drawn at random, and the server."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

import httpx2
import numpy as np
import pytest
from conftest import FakeEngine
from PIL import Image
from threadpoolctl import threadpool_info

from pipeline import commands
from pipeline.config import Columns, ExtractConfig, LabelOptions, SplitConfig
from pipeline.data import UNLABELLED, ArraySource, Dataset, array_key, file_key, open_dataset
from pipeline.data.corrections import read_corrections
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.heads.ridge import fit_without
from pipeline.labelling import queries, tabs
from pipeline.labelling.files import copy_to_folders, export_labels
from pipeline.labelling.journal import Answer, Journal
from pipeline.labelling.learner import DRAWN, Labels, Learner
from pipeline.labelling.marks import OvertakenError
from pipeline.labelling.model import Rating, bundles_of, fit, growth, labels_for_a_point, without_own_label
from pipeline.labelling.queries import STRATEGIES, Pool
from pipeline.labelling.server import Desk, application, serving
from pipeline.labelling.session import MOST_POINTS, Session
from pipeline.labelling.tabs import Known, to_label
from pipeline.pages.pictures import Pictures
from pipeline.util import disk

KEY = "0123456789abcdef0123456789abcdef"
NAMES = ("left", "right", "top")


def answered(key: str = KEY, label: str = "left") -> Answer:
    return Answer(key, f"{key[:4]}.png", label)


def begun(path: Path) -> Journal:
    """A journal that has a line of its own after the first."""
    journal = Journal(path, "/data")
    journal.name_class("left")
    return journal


class TestJournal:
    def test_it_goes_on_from_what_it_holds(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "labels.jsonl", "/data")
        journal.name_class("left")
        journal.append([answered(label="left"), answered("f" * 32, "left")])
        journal.append([answered(label="")])
        journal.close()
        again = Journal(tmp_path / "labels.jsonl", "/data")
        assert again.classes == ["left"]
        assert {one.key: one.label for one in again.answers} == {KEY: "", "f" * 32: "left"}
        again.close()
        assert [(one.name, one.label) for one in read_corrections(str(tmp_path / "labels.jsonl"))] == [
            ("f" * 32, "left")
        ]

    def test_what_was_cut_off_is_taken_away_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.jsonl"
        journal = Journal(path, "/data")
        journal.append([answered()])
        journal.close()
        whole = path.read_bytes()
        for end in range(1, 40, 7):
            path.write_bytes(whole + whole[-100 : -100 + end])
            again = Journal(path, "/data")
            assert len(again.answers) == 1
            again.close()
            assert path.read_bytes() == whole

    def test_labels_of_other_data_are_not_mixed_with_these(self, tmp_path: Path) -> None:
        begun(tmp_path / "labels.jsonl").close()
        with pytest.raises(DataError, match=r"holds labels of /data, not of /other"):
            Journal(tmp_path / "labels.jsonl", "/other")

    def test_without_an_answer_there_is_no_file(self, tmp_path: Path) -> None:
        """A mistyped path of the data must not claim the journal for itself."""
        journal = Journal(tmp_path / "labels.jsonl", "/mistyped")
        journal.close()
        assert not journal.path.exists()

    @pytest.mark.parametrize("content", ['{"precious": 1}', "precious", '{"precious": 1}\n', ""])
    def test_a_file_of_something_else_stays_as_it_is(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(content)
        if content:
            with pytest.raises(DataError, match=r"mine.jsonl(, line 1)? is (no journal of|not what) tlpipe label"):
                Journal(path, "/data")
        else:
            Journal(path, "/data").close()
        assert path.read_text() == content

    def test_a_first_line_that_was_cut_off_is_taken_away(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.jsonl"
        begun(path).close()
        line = path.read_bytes().split(b"\n")[0]
        for end in (1, 10, len(line)):
            path.write_bytes(line[:end])
            begun(path).close()
            assert len(path.read_bytes().split(b"\n")) == 3

    def test_a_file_that_was_put_in_its_place_is_not_written(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.jsonl"
        journal = begun(path)
        kept = path.read_bytes()
        path.rename(tmp_path / "moved.jsonl")
        for _ in range(2):
            with pytest.raises(StoreError, match="was moved, removed or replaced"):
                journal.append([answered()])
            path.write_bytes(kept)  # as an editor saves
        assert path.read_bytes() == kept
        assert journal.answers == []
        journal.close()

    def test_a_file_that_was_put_in_its_place_is_not_removed(self, tmp_path: Path) -> None:
        """As by a user who sees that the page has started a new file, and moves the old one there."""
        begun(tmp_path / "old.jsonl").close()
        kept = (tmp_path / "old.jsonl").read_bytes()
        journal = Journal(tmp_path / "labels.jsonl", "/data")
        (tmp_path / "old.jsonl").rename(journal.path)
        journal.close()
        assert journal.path.read_bytes() == kept

    def test_who_comes_as_another_one_begins_or_ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, open_file = tmp_path / "labels.jsonl", os.open
        first: list[Journal] = []

        def after_another(*known: Any) -> int:
            monkeypatch.undo()
            first.append(Journal(path, "/data"))
            return open_file(*known)

        monkeypatch.setattr(os, "open", after_another)
        with pytest.raises(StoreError, match="is being written by another"):
            Journal(path, "/data")
        assert path.is_file(), "it is the other one's"

        def before_it_ends(*known: Any) -> int:
            found = open_file(*known)
            first[0].close()
            return found

        monkeypatch.setattr(os, "open", before_it_ends)
        with pytest.raises(StoreError, match="was removed just now"):
            Journal(path, "/data")

    def test_an_answer_that_is_refused_is_not_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(change: str, place: Path, *failing: object) -> None:
            if (change, place) == failing:
                raise OSError(errno.EIO, "Input/output error")

        path = tmp_path / "labels.jsonl"
        for change, place in (("append", path), ("flush", path), ("flush", tmp_path)):
            journal = Journal(path, "/data")
            monkeypatch.setattr(disk, "announce", lambda *now, failing=(change, place): fails(*now, *failing))
            with pytest.raises(StoreError, match="can't be written"):
                journal.append([answered()])
            monkeypatch.undo()
            assert path.read_bytes() == b"" and not journal.answers
            journal.close()

    def test_it_keeps_what_heads_were_worth(self, tmp_path: Path) -> None:
        journal = begun(tmp_path / "labels.jsonl")
        rating = Rating(20, 5, 0.8, 0.4, 0.96)
        journal.rate(rating)
        journal.append([answered()])
        journal.close()
        again = Journal(journal.path, "/data")
        assert again.ratings == [rating]
        assert [one.label for one in read_corrections(str(journal.path))] == ["left"]
        again.close()

    def test_two_programs_can_not_write_to_it(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "labels.jsonl", "/data")
        with pytest.raises(StoreError, match="is being written by another tlpipe label"):
            Journal(tmp_path / "labels.jsonl", "/data")
        journal.close()
        Journal(tmp_path / "labels.jsonl", "/data").close()

    @pytest.mark.parametrize("line", ['{"key": "x", "path": "", "label": ""}', '{"nothing": 1}', '{"key": 3}', "[]"])
    def test_what_it_never_wrote_is_refused(self, line: str, tmp_path: Path) -> None:
        path = tmp_path / "labels.jsonl"
        begun(path).close()
        with path.open("a") as file:
            file.write(line + "\n")
        with pytest.raises(DataError, match="line 3"):
            Journal(path, "/data")

    def test_of_a_full_disk_nothing_is_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "labels.jsonl"
        journal = Journal(path, "/data")
        journal.append([answered()])
        before = path.read_bytes()
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(StoreError, match="No space is left"):
            journal.append([answered("f" * 32)])
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert len(journal.answers) == 1
        journal.close()

    def test_what_could_not_be_taken_back_goes_before_the_next_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a network disk that fails, and comes back: what was cut off stays, until it can be removed."""
        journal = begun(tmp_path / "labels.jsonl")
        write = os.write

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        monkeypatch.setattr(os, "ftruncate", fail)
        with pytest.raises(StoreError):
            journal.append([answered("f" * 32)])
        monkeypatch.undo()
        journal.append([answered()])
        journal.close()
        again = Journal(journal.path, "/data")
        assert [one.key for one in again.answers] == [KEY]
        again.close()

    def test_every_answer_goes_through_the_one_way_to_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        monkeypatch.setattr(disk, "announce", lambda what, path: seen.append(what))
        journal = begun(tmp_path / "labels.jsonl")
        seen.clear()
        journal.append([answered()])
        assert seen == ["append", "flush"]
        journal.close()


def clusters(n: int = 120, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes, some of them far apart, and the classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    features = random.normal(size=(n, width)) * 0.4 + 2 * np.eye(width)[labels]
    return features.astype(np.float32), labels


class TestQueries:
    def pool(self, labelled: np.ndarray, probabilities: np.ndarray | None = None) -> tuple[Pool, np.ndarray]:
        features, labels = clusters()
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        is_open = ~labelled
        is_open[:5] = False
        return Pool(unit, labelled, is_open, probabilities, np.random.default_rng(0)), labels

    @pytest.mark.parametrize("name", STRATEGIES)
    @pytest.mark.parametrize("n_labelled", [0, 30])
    def test_only_what_is_open_is_chosen_and_once(self, name: str, n_labelled: int) -> None:
        labelled = np.arange(120) >= 120 - n_labelled
        probabilities = np.random.default_rng(1).dirichlet(np.ones(3), 120) if n_labelled else None
        pool, _ = self.pool(labelled, probabilities)
        for n in (1, 7, 500):
            chosen = STRATEGIES[name](pool, n)
            assert len(chosen) == len(set(chosen.tolist())) == min(n, int(pool.open.sum()))
            assert pool.open[chosen].all()
        nothing = Pool(pool.features, labelled, np.zeros(120, np.bool_), probabilities, pool.random)
        assert len(STRATEGIES[name](nothing, 5)) == 0

    def test_margins_and_entropies_take_the_least_certain(self) -> None:
        probabilities = np.tile([0.9, 0.07, 0.03], (120, 1))
        probabilities[50], probabilities[60] = [0.45, 0.44, 0.11], [0.34, 0.33, 0.33]
        pool, _ = self.pool(np.zeros(120, np.bool_), probabilities)
        assert queries.margin(pool, 2).tolist() == [50, 60]
        assert queries.entropy(pool, 2).tolist() == [60, 50]

    @pytest.mark.parametrize("name", ["coreset", "typiclust"])
    def test_what_is_diverse_finds_all_classes_at_once(self, name: str) -> None:
        pool, labels = self.pool(np.zeros(120, np.bool_))
        assert set(labels[STRATEGIES[name](pool, 6)]) == {0, 1, 2}

    def test_farthest_first_is_farthest(self) -> None:
        pool, _ = self.pool(np.arange(120) == 119)
        (chosen,) = queries.farthest_first(pool, 1)
        cosines = pool.features @ pool.features[119]
        assert cosines[chosen] == cosines[pool.open].min()

    def test_badge_begins_with_the_least_certain_and_goes_on_with_what_differs(self) -> None:
        probabilities = np.tile([0.6, 0.2, 0.2], (120, 1))
        probabilities[20] = [0.34, 0.33, 0.33]
        pool, labels = self.pool(np.zeros(120, np.bool_), probabilities)
        chosen = queries.badge(pool, 9)
        assert chosen[0] == 20
        assert set(labels[chosen]) == {0, 1, 2}


def test_the_first_pictures_are_of_all_kinds_also_where_most_are_of_one() -> None:
    """Of sixteen kinds one has most pictures; of 64 clusters nearly all of the largest are of that kind."""
    random = np.random.default_rng(0)
    kind = np.concatenate([np.zeros(300, np.int64), np.repeat(np.arange(1, 16), 12)])
    features = np.eye(64)[kind] + random.normal(size=(len(kind), 64)) * 0.01
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    keys = np.array([f"{5 * row + 1:032x}" for row in range(len(kind))], "S32")
    learner = Learner(features, keys, keys, 0, print)
    assert not learner.drawn.any()
    none = np.zeros(len(kind), np.bool_)
    sizes = []
    for _ in range(3):
        learner.learn(lambda: Labels(np.full(len(kind), UNLABELLED), none, none, 2))
        learner.settle()
        sizes.append(len(set(learner.queue)))
    learner.close()
    assert sizes == [20, 40, 40], "as many again, until enough are waiting"
    assert set(kind[learner.queue[:20]]) == set(range(16))


def rated(*args: Any) -> Rating:
    """The rating that comes with a head."""
    found = fit(*args)
    assert found is not None and found.rating is not None
    return found.rating


class TestModel:
    def test_there_is_none_of_one_class(self) -> None:
        features, _ = clusters()
        labels = np.full(120, UNLABELLED)
        labels[:9] = 2
        keys = np.arange(120).astype("S32")
        assert fit(features, labels, keys, keys, np.ones(120, np.bool_)) is None

    def test_a_rating_is_of_pictures_drawn_at_random_by_heads_without_them(self) -> None:
        """Labels of drawn pictures that are all wrong: heads fitted on the others must miss every one."""
        features, truth = clusters(400)
        drawn = np.arange(400) % 5 == 0
        labels = np.where(drawn, (truth + 1) % 3, truth)
        keys = np.array([f"{row:032x}" for row in range(400)], "S32")
        rating = rated(features, labels, keys, keys, drawn)
        assert (rating.n, rating.n_labels) == (80, 400)
        assert rating.accuracy < 0.05
        right = rated(features, truth, keys, keys, drawn)
        assert right.accuracy > 0.95
        assert right.low < right.accuracy <= right.high

    @pytest.mark.parametrize(("others", "heads"), [(400, 1), (200, 5), (0, 5)])
    def test_many_rate_at_once_unless_too_few_are_left_to_learn_from(
        self, others: int, heads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of 300 drawn pictures beside 400 others all are called by one head; beside fewer, by those of folds."""
        held: list[list[int]] = []
        monkeypatch.setattr(
            "pipeline.labelling.model.fit_without",
            lambda *known: held.append([len(rows) for rows in known[-1]]) or fit_without(*known),
        )
        n = 300 + others
        features, truth = clusters(n)
        keys = np.array([f"{row:032x}" for row in range(n)], "S32")
        drawn = np.arange(n) < 300
        rating = rated(features, truth, keys, keys, drawn)
        assert (rating.n, rating.n_labels) == (300, n)
        assert rating.accuracy > 0.95
        assert held == [[0, *[300 // heads] * heads]]

    def test_some_are_left_to_learn_from_where_all_belong_to_those_that_rate(self) -> None:
        """Of 250 drawn bundles of two pictures one rates, and there are no others."""
        features, truth = clusters(500)
        features, truth = np.repeat(features[:250], 2, axis=0), np.repeat(truth[:250], 2)
        keys = np.array([f"{row:032x}" for row in range(500)], "S32")
        rating = rated(features, truth, keys, np.repeat(keys[::2], 2), np.arange(500) % 2 == 0)
        assert rating.n == 250
        assert rating.accuracy > 0.95

    def test_pictures_that_belong_together_tell_nothing_of_one_another(self) -> None:
        """Forty groups of ten pictures, whose labels are drawn by lot: of a new group a head knows nothing."""
        random = np.random.default_rng(0)
        numbers, keys = np.arange(400) // 10, np.array([f"{row:032x}" for row in random.permutation(400)], "S32")
        labels = random.permutation(40)[numbers] % 2
        features = (random.normal(size=(40, 64))[numbers] + random.normal(size=(400, 64)) / 30).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        dataset = Dataset("groups", keys, labels, np.full(400, "train"), [""] * 400, ("a", "b"), numbers)
        bundles = bundles_of(dataset)
        assert bundles.tolist() == np.sort(keys.reshape(40, 10))[numbers, 0].tolist()
        drawn = numbers % 5 == 0
        rating, alone = rated(features, labels, keys, bundles, drawn), rated(features, labels, keys, keys, drawn)
        assert rating.low < 0.5 < rating.high and alone.low > 0.9
        assert rating.high - rating.low > 2 * (alone.high - alone.low), "eight groups tell less than eighty pictures"
        for found, sees in ((bundles, False), (keys, True)):
            shares = without_own_label(features, labels, keys, found, np.array([0, 1]))
            assert ((shares.argmax(axis=1) == labels).mean() > 0.9) == sees

    def test_labels_for_a_point_follow_a_power_law(self) -> None:
        labels = (25, 50, 100, 150, 190, 200, 300, 400)
        history = [Rating(n, 10**6, 1 - 2 * n**-0.5, 0.0, 1.0) for n in labels]
        # The error is 0.1 at 400 labels, and 0.09 at (2 / 0.09) ** 2 = 494.
        assert labels_for_a_point(history) == pytest.approx(94, abs=2)
        cautious = labels_for_a_point([replace(one, n=10 * one.n_labels) for one in history])
        assert cautious is not None and 96 < cautious < 150
        assert labels_for_a_point(history[:3]) is None
        assert labels_for_a_point([Rating(n, 100, 0.8, 0.7, 0.9) for n in labels]) is None
        assert labels_for_a_point([replace(one, n=20) for one in history]) is None  # too few rate it

    def test_growth_is_of_one_kind_of_features_and_never_runs_backwards(self) -> None:
        ratings = [
            Rating(n, 10, 0.5, 0.4, 0.6, features)
            for n, features in ((10, "a"), (20, "a"), (10, "b"), (30, "a"), (40, "a"), (25, "a"), (20, "b"), (35, "a"))
        ]
        assert [one.n_labels for one in growth(ratings, "a")] == [10, 20, 25, 35]
        assert [one.n_labels for one in growth(ratings, "b")] == [10, 20]
        assert growth(ratings, "") == []

    def test_labels_are_doubted_by_heads_that_did_not_see_them(self) -> None:
        features, truth = clusters(200)
        labels = truth.copy()
        labels[:10] = (truth[:10] + 1) % 3
        labels[150:] = UNLABELLED
        keys = np.arange(200).astype("S32")
        found = without_own_label(features, labels, keys, keys, np.array([0, 1, 2]))
        assert np.isnan(found[150:]).all()
        assert (found[:10].argmax(axis=1) == truth[:10]).mean() >= 0.9


@pytest.fixture
def truth() -> np.ndarray:
    return clusters()[1]


@pytest.fixture
def dataset() -> Dataset:
    """Pictures without labels, each of another shade."""
    images = np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    keys = np.array([array_key(image) for image in images], "S32")
    splits, labels = np.full(120, "train"), np.full(120, UNLABELLED)
    return Dataset("shades", keys, labels, splits, [f"x[{row}]" for row in range(120)], ())


def opened(dataset: Dataset, journal: Path, **known: Any) -> Session:
    images = np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    pictures = Pictures(ArraySource([(images, 1.0)]), dataset.keys, 10**6)
    return Session(dataset, clusters()[0], pictures, Journal(journal, "/data"), **{"classes": NAMES, **known})


@pytest.fixture
def session(dataset: Dataset, tmp_path: Path) -> Iterator[Session]:
    session = opened(dataset, tmp_path / "labels.jsonl")
    session.settle()
    yield session
    session.close()


def label_some(session: Session, truth: np.ndarray, n: int) -> list[str]:
    """Label what is shown first, one picture after the other, as it is."""
    keys = []
    for _ in range(n):
        (shown,) = session.show("label", 1)
        session.answer([(shown.key, NAMES[truth[session.row(shown.key)]])], {"tab": "label"})
        session.settle()
        keys.append(shown.key)
    return keys


class TestSession:
    def test_a_class_of_one_picture_hides_no_doubts(self, session: Session, truth: np.ndarray) -> None:
        session.name_class("once")
        keys = [key.decode() for key in session.dataset.keys.tolist()]
        labels = [NAMES[one] for one in truth]
        for row in range(0, 20, 4):
            labels[row] = NAMES[(truth[row] + 1) % 3]
        labels[50] = "once"
        session.answer(list(zip(keys, labels, strict=True)), {"tab": "class"})
        session.settle()
        for tab in ("wrong", "errors"):
            shown = session.show(tab, 120)
            assert {session.row(one.key) for one in shown} >= {0, 4, 8, 12, 16}, tab
            first = next(one for one in shown if session.row(one.key) == 0)
            assert (first.label, first.predicted) == (labels[0], NAMES[truth[0]])

    def test_the_accuracy_is_told_while_a_head_is_fitted(
        self, session: Session, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        label_some(session, truth, 40)
        rating = session.state()["rating"]
        release = threading.Event()
        keys, drawn = session.dataset.keys, session.learner.drawn
        found = fit(session.features, drawn * 1, keys, keys, drawn)
        monkeypatch.setattr("pipeline.labelling.learner.fit", lambda *_: release.wait(60) and found)
        for _ in range(5):
            (shown,) = session.show("label", 1)
            session.answer([(shown.key, NAMES[0])], {"tab": "label"})
        assert session.state()["fitting"] and session.state()["rating"] == rating
        release.set()

    def test_a_fit_leaves_a_processor_to_the_page(
        self, session: Session, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[int] = []

        def counting(act: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*known: Any) -> Any:
                threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
                return act(*known)

            return counted

        monkeypatch.setattr("pipeline.labelling.learner.fit", counting(fit))
        for name in ("typiclust", "margin"):
            monkeypatch.setitem(STRATEGIES, name, counting(STRATEGIES[name]))
        monkeypatch.setattr("pipeline.labelling.learner.cpu_count", lambda: 2)
        label_some(session, truth, 40)
        assert session.learner.fit is not None
        assert set(threads) == {1}

    def test_keys_and_growth_outlive_a_restart(self, dataset: Dataset, truth: np.ndarray, tmp_path: Path) -> None:
        before = opened(dataset, tmp_path / "labels.jsonl", classes=("top", "right", "left"))
        before.settle()
        label_some(before, truth, 45)
        told = before.state()
        before.close()
        assert len(told["history"]) > 1
        after = opened(dataset, tmp_path / "labels.jsonl", classes=())
        after.settle()
        assert after.classes == ["top", "right", "left"]
        assert after.state()["history"][: len(told["history"])] == told["history"]
        after.close()

    def test_there_is_always_a_next_picture(self, session: Session, truth: np.ndarray) -> None:
        """As the page asks: some ahead, and never those that it holds."""
        for name in map(str, range(30)):
            session.name_class(name)  # so many that the first strategy chooses to the end
        held: list[str] = []
        for left in range(120, 0, -1):
            if len(held) < 10:
                held += [one.key for one in session.show("label", 20, skip=held)]
            assert len(held) == len(set(held)) >= min(left, 10)
            key = held.pop(0)
            session.answer([(key, NAMES[truth[session.row(key)]])], {"tab": "label"})
        assert session.show("label", 20) == []

    def test_what_was_looked_for_does_not_rate(self, session: Session, truth: np.ndarray) -> None:
        """A drawn picture that is shown beside its double with a label, and so is no picture like any other."""
        label_some(session, truth, 40)
        session.learner.learn(session._labels_now)  # which would wait for a fifth answer
        session.settle()
        before = session.state()["rating"]
        free = np.flatnonzero(session.learner.drawn & session.marks.free)[:8]
        said = [(session.dataset.keys[row].decode(), NAMES[truth[row]]) for row in free.tolist()]
        assert len(said) > 4
        session.answer(said, {"tab": "duplicates"})
        session.settle()
        now = session.state()["rating"]
        assert (now["n"], now["n_labels"]) == (before["n"], before["n_labels"] + len(said))
        session.answer(said, {"tab": "errors"})
        session.settle()
        assert session.state()["rating"]["n"] == before["n"], "whoever looks once more was led all the same"
        session.undo()
        session.undo()
        session.answer(said, {"tab": "label"})
        session.settle()
        assert session.state()["rating"]["n"] == before["n"] + len(said)

    def test_what_was_looked_for_is_known_after_a_restart(
        self, session: Session, dataset: Dataset, truth: np.ndarray
    ) -> None:
        label_some(session, truth, 40)
        rows = np.flatnonzero(session.learner.drawn & session.marks.free)[:6].tolist()
        session.answer([(dataset.keys[row].decode(), NAMES[truth[row]]) for row in rows], {"tab": "like"})
        session.settle()
        n = session.state()["rating"]["n"]
        session.close()
        again = opened(dataset, session.journal.path)
        again.settle()
        assert again.state()["rating"]["n"] == n
        again.close()

    def test_pictures_that_belong_together_are_drawn_together(self, dataset: Dataset, tmp_path: Path) -> None:
        numbers = np.arange(120) // 4
        session = opened(replace(dataset, groups=numbers), tmp_path / "labels.jsonl")
        drawn = session.learner.drawn.reshape(-1, 4)
        assert (drawn.all(axis=1) == drawn.any(axis=1)).all() and 0 < drawn.sum() < 120
        session.close()

    def test_what_is_taken_back_is_as_the_data_have_it(
        self, dataset: Dataset, truth: np.ndarray, tmp_path: Path
    ) -> None:
        key = dataset.keys[3].decode()
        data = replace(dataset, labels=truth, class_names=NAMES)
        other = NAMES[truth[3] - 1]
        session = opened(data, tmp_path / "labels.jsonl")
        session.answer([(key, other)], {})
        session.undo()
        assert session.marks[3].label == NAMES[truth[3]]
        session.close()
        with pytest.raises(DataError, match="has no labels"):
            read_corrections(str(tmp_path / "labels.jsonl"))
        later = opened(replace(data, labels=np.roll(truth, 1)), tmp_path / "labels.jsonl")
        assert later.marks[3].label == NAMES[np.roll(truth, 1)[3]], "the data may say something else by now"
        later.answer([(key, "top")], {})
        later.answer([(key, "")], {})
        assert later.marks[3].label == NAMES[np.roll(truth, 1)[3]]
        later.close()

    def test_what_another_window_confirmed_is_not_taken_back(self, session: Session, dataset: Dataset) -> None:
        key = dataset.keys[3].decode()
        session.answer([(key, "left")], {}, window="a")
        session.answer([(key, "left")], {"tab": "class"}, saw={key: "left"}, window="b")
        session.answer([(key, "left")], {"tab": "class"}, saw={key: "left"}, window="c")
        for window in ("a", "b"):
            with pytest.raises(OvertakenError):
                session.undo(window)
        assert session.marks[3].label == "left"
        assert [session.row(one.key) for one in session.undo("c")] == [3]
        assert session.marks[3].label == "left"

    def test_growth_follows_corrections(self, session: Session, dataset: Dataset, truth: np.ndarray) -> None:
        keys = [key.decode() for key in dataset.keys.tolist()]
        wrong = [NAMES[label - (row % 2)] for row, label in enumerate(truth.tolist())]
        for said in (wrong, [NAMES[label] for label in truth.tolist()]):
            session.answer(list(zip(keys, said, strict=True)), {})
            session.settle()
            state = session.state()
            assert state["history"][-1]["accuracy"] == state["rating"]["accuracy"]
        assert state["rating"]["accuracy"] > 0.9

    def test_the_last_pictures_count_at_once(self, session: Session, truth: np.ndarray) -> None:
        for n in range(1, 121):
            (shown,) = session.show("label", 1)
            session.answer([(shown.key, NAMES[truth[session.row(shown.key)]])], {"tab": "label"})
            if n == 118:
                session.settle()
        session.settle()
        assert session.state()["rating"]["n_labels"] == 120

    def test_a_user_without_a_name_is_a_number(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nobody() -> str:
            raise KeyError("getpwuid(): uid not found: 12345")

        monkeypatch.setattr("getpass.getuser", nobody)
        session = opened(dataset, tmp_path / "labels.jsonl")
        session.answer([(dataset.keys[0].decode(), "left")], {})
        assert session.journal.answers[0].who == str(os.getuid())
        session.close()

    def test_before_anything_is_chosen_nothing_is_shown(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = threading.Event()
        monkeypatch.setitem(STRATEGIES, "typiclust", lambda pool, n: release.wait(60) and pool.rows[:n])
        monkeypatch.setattr("pipeline.labelling.session.PATIENCE", 0.01)
        session = opened(dataset, tmp_path / "labels.jsonl")
        try:
            assert session.show("label", 20) == []
            release.set()
            session.settle()
            assert len(session.show("label", 20)) == 20
        finally:
            release.set()
            session.close()

    def test_where_nothing_can_be_chosen_pictures_come_in_no_order(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setitem(STRATEGIES, "typiclust", fail)
        session = opened(dataset, tmp_path / "labels.jsonl")
        session.settle()
        rows = [session.row(one.key) for one in session.show("label", 20)]
        assert max(rows) > 60 and rows != sorted(rows)
        session.close()

    def test_a_fifth_is_drawn_at_random_and_no_guess_is_shown_with_it(
        self, session: Session, truth: np.ndarray, tmp_path: Path
    ) -> None:
        label_some(session, truth, 40)
        lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
        drawn = [line["shown"]["drawn"] for line in lines if "key" in line]
        assert sum(drawn) == 40 // DRAWN
        shown = session.show("label", 30)
        assert all((one.why == "drawn at random") == (one.predicted == "") for one in shown)
        assert {one.predicted for one in shown} > {""}

    def test_the_head_learns_and_is_rated(self, session: Session, truth: np.ndarray) -> None:
        label_some(session, truth, 60)
        state = session.state()
        assert state["labelled"] == 60
        assert 60 // DRAWN - 1 <= state["rating"]["n"] <= 60 // DRAWN
        assert state["rating"]["accuracy"] > 0.8
        assert [one["n_labels"] for one in state["history"]] == sorted({one["n_labels"] for one in state["history"]})
        assert {one["name"]: one["n"] for one in state["classes"]} == Counter(
            {name: sum(session.marks.labels == number) for number, name in enumerate(NAMES)}
        )

    def test_undo_takes_back_what_was_done_at_once(self, session: Session, truth: np.ndarray) -> None:
        keys = label_some(session, truth, 10)
        first = {one.key: one.label for one in session.show("like", 120, key=keys[0])}
        assert set(first) & set(keys)
        session.answer([(key, "top") for key in keys[:4]], {"tab": "confirm"})
        assert [one.key for one in session.undo()] == keys[:4]
        session.settle()
        assert {one.key: one.label for one in session.show("like", 120, key=keys[0])} == first
        assert [(one.key, one.label) for one in session.undo()] == [(keys[-1], "")]
        for _ in range(9):
            session.undo()
        assert session.undo() == []
        assert session.state()["labelled"] == 0

    def test_undo_is_shown_and_is_of_one_window(self, session: Session, dataset: Dataset) -> None:
        one, two = (key.decode() for key in dataset.keys[:2])
        session.answer([(one, "left")], {}, window="a")
        session.answer([(two, "top")], {}, window="b")
        session.answer([(one, "right")], {}, saw={one: "left"}, window="a")
        assert [session.state(name)["can_undo"] for name in ("a", "b", "c")] == [True, True, False]
        assert session.undo("c") == []
        assert [(shown.key, shown.label) for shown in session.undo("a")] == [(one, "left")]
        assert [(shown.key, shown.label) for shown in session.undo("a")] == [(one, "")]
        assert session.undo("a") == []
        assert session.state()["labelled"] == 1

    def test_no_window_overwrites_what_it_has_not_seen(self, session: Session, dataset: Dataset) -> None:
        one, two = (key.decode() for key in dataset.keys[:2])
        session.answer([(one, "left")], {}, saw={one: ""}, window="a")
        before = session.journal.path.read_bytes()
        with pytest.raises(OvertakenError, match=r"answered meanwhile \(left\)") as caught:
            session.answer([(one, "top"), (two, "top")], {}, saw={one: "", two: ""}, window="b")
        assert caught.value.labels == {one: "left"}
        assert session.journal.path.read_bytes() == before and not session.state("b")["can_undo"]
        session.answer([(one, "top"), (two, "top")], {}, saw={one: "left", two: ""}, window="b")
        with pytest.raises(OvertakenError, match=r"\(top\)"):
            session.undo("a")
        assert session.undo("a") == []
        assert [shown.label for shown in session.undo("b")] == ["left", ""]

    def test_a_label_that_was_looked_at_anywhere_is_not_doubted_again(
        self, session: Session, dataset: Dataset, truth: np.ndarray
    ) -> None:
        keys = [key.decode() for key in dataset.keys.tolist()]
        wrong = [NAMES[(label + (row < 6)) % 3] for row, label in enumerate(truth.tolist())]
        session.answer(list(zip(keys, wrong, strict=True)), {"tab": "label"})
        session.settle()
        doubted = {one.key for one in session.show("errors", 120)}
        looked_at = [one for one in keys[:6] if one in doubted][:2]
        first, second = looked_at
        session.answer([(first, wrong[keys.index(first)])], {"tab": "class"})
        assert {one.key for one in session.show("errors", 120)} == doubted - {first}
        session.answer([(first, "top"), (second, "left")], {"tab": "errors"})
        session.undo()
        assert {one.key for one in session.show("errors", 120)} == doubted - {first}
        session.close()
        again = opened(dataset, session.journal.path)
        again.settle()
        found = {one.key for one in again.show("errors", 120)}
        assert second in found and first not in found
        again.close()

    def test_both_of_a_pair_are_shown(
        self, session: Session, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = int(np.flatnonzero(session.learner.drawn)[0])
        pair = [tabs.Picked(drawn), tabs.Picked(drawn + 1)]
        monkeypatch.setattr(tabs, "duplicates", lambda *_: pair)
        shown = session.show("duplicates", 20)
        assert [session.row(one.key) for one in shown] == [drawn, drawn + 1]
        assert shown[0].predicted == ""

    def test_heads_on_other_features_are_another_curve(
        self, dataset: Dataset, truth: np.ndarray, tmp_path: Path
    ) -> None:
        keys = [key.decode() for key in dataset.keys.tolist()]
        for features_id, n_known in (("small", 1), ("large", 1), ("small", 2)):
            session = opened(dataset, tmp_path / "labels.jsonl", features_id=features_id)
            if not session.state()["labelled"]:
                answers = [(key, NAMES[label]) for key, label in zip(keys[:60], truth.tolist(), strict=False)]
                session.answer(answers, {})
            session.settle()
            if n_known == 2:
                session.answer([(keys[60], "left")], {})
                session.learner.learn(session._labels_now)
                session.settle()
            assert [one["n_labels"] for one in session.state()["history"]] == [60, 61][:n_known]
            session.close()

    def test_a_long_history_is_told_in_short(self, session: Session) -> None:
        for n in range(1, 500):
            session.journal.ratings.append(Rating(n, 10, 0.5, 0.4, 0.6))
        history = session.state()["history"]
        assert MOST_POINTS / 2 < len(history) <= MOST_POINTS
        assert history[-1]["n_labels"] == 499

    def test_two_windows_do_not_find_the_same_twice(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        n_found: list[int] = []

        def slowly(*_: Any) -> list[Any]:
            n_found.append(1)
            time.sleep(0.2)
            return []

        monkeypatch.setattr(tabs, "far_off", slowly)
        windows = [threading.Thread(target=session.show, args=("outliers", 5)) for _ in range(3)]
        for window in windows:
            window.start()
        for window in windows:
            window.join()
        assert len(n_found) == 1

    def test_no_more_is_looked_at_than_is_shown(
        self, session: Session, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        may_show = session._may_show
        monkeypatch.setattr(session, "_may_show", lambda row, *known: seen.append(row) or may_show(row, *known))
        assert len(session.show("like", 3, key=dataset.keys[7].decode())) == 3
        assert len(seen) < 20
        known = Known(None, None, None, NAMES, np.full(100, UNLABELLED), *np.zeros((2, 100), np.bool_), None)  # type: ignore[arg-type]
        assert [one.row for one in to_label(known, list(range(64)), {0, 1}, 20)][:2] == [2, 3]  # without any key

    def test_another_session_goes_on(self, session: Session, dataset: Dataset, truth: np.ndarray) -> None:
        label_some(session, truth, 12)
        session.name_class("bottom")
        session.answer([(dataset.keys[0].decode(), "drop")], {})
        before = session.state()
        session.close()
        again = opened(dataset, session.journal.path, classes=())
        again.settle()
        after = again.state()
        assert [one["name"] for one in after["classes"]] == [*NAMES, "bottom"]
        assert (after["labelled"], after["dropped"]) == (before["labelled"], 1)
        again.close()

    def test_a_class_is_confirmed_without_what_rates_the_head(self, session: Session, truth: np.ndarray) -> None:
        label_some(session, truth, 30)
        shown = session.show("confirm", 20, name="top")
        assert len(shown) > 5
        assert {one.predicted for one in shown} == {"top"}
        assert not any(session.learner.drawn[session.row(one.key)] or one.label for one in shown)
        shares = [one.probability for one in shown]
        assert shares == sorted(shares, reverse=True)

    def test_wrong_labels_come_to_the_top(self, session: Session, dataset: Dataset, truth: np.ndarray) -> None:
        wrong = {dataset.keys[row].decode() for row in range(6)}
        answers = [
            (key, NAMES[(label + 1) % 3 if key in wrong else label])
            for key, label in zip([key.decode() for key in dataset.keys], truth.tolist(), strict=True)
        ]
        session.answer(answers, {})
        session.settle()
        for tab in ("wrong", "errors"):
            assert len(wrong & {one.key for one in session.show(tab, 10)}) >= 5, tab
        first = session.show("class", 1, name="left")[0]
        assert first.label == "left"

    def test_alike_pictures_are_the_nearest(self, session: Session, dataset: Dataset) -> None:
        features = clusters()[0]
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        drawn = session.learner.drawn
        for start in (int(np.flatnonzero(drawn)[0]), int(np.flatnonzero(~drawn)[0])):
            order = np.argsort(-(unit @ unit[start])).tolist()
            nearest = [row for row in order if row == start or not drawn[row]][:5]
            shown = session.show("like", 5, key=dataset.keys[start].decode())
            assert [one.key for one in shown] == [dataset.keys[row].decode() for row in nearest]
            assert nearest[0] == start, "the picture that was chosen comes first, drawn or not"
            assert (shown[0].predicted == "") or not drawn[start]

    def test_what_rates_the_head_is_labelled_where_chance_shows_it_alone(
        self, session: Session, dataset: Dataset, truth: np.ndarray
    ) -> None:
        label_some(session, truth, 30)
        start = dataset.keys[0].decode()
        for tab, known in (("like", {"key": start}), ("outliers", {}), ("confirm", {"name": "top"})):
            for one in session.show(tab, 120, **known):
                assert one.label or one.key == start or not session.learner.drawn[session.row(one.key)], tab

    def test_a_label_that_is_changed_is_learnt_too(self, session: Session, dataset: Dataset, truth: np.ndarray) -> None:
        keys = label_some(session, truth, 20)
        before = session.learner.fit
        for key in keys[:5]:
            session.answer([(key, "top")], {"tab": "class"})
        session.settle()
        assert session.state()["labelled"] == 20
        assert session.learner.fit is not before

    def test_what_is_not_there_is_refused_and_nothing_is_written(self, session: Session, dataset: Dataset) -> None:
        before, (key, other) = session.journal.path.read_bytes(), (one.decode() for one in dataset.keys[:2])
        for answers in ([("f" * 32, "left")], [(key, "nowhere")], [(other, "left"), (key, "nowhere")]):
            with pytest.raises(ConfigError, match="There is no"):
                session.answer(answers, {})
        for answers in ([(key, "left"), (key, "left")], [(key, "left"), (other, "left"), (key, "top")]):
            with pytest.raises(ConfigError, match="names a picture twice"):
                session.answer(answers, {})
        for name in ("", "drop", "x" * 201, "a\nb", "a\x1bb"):
            with pytest.raises(ConfigError, match="can't be the name of a class"):
                session.name_class(name)
        with pytest.raises(ConfigError, match="no tab 'close'"):
            session.show("close", 1)
        assert session.journal.path.read_bytes() == before

    def test_what_can_not_be_written_does_not_count(
        self, session: Session, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="can't be written: Input/output error"):
            session.answer([(dataset.keys[0].decode(), "left")], {})
        monkeypatch.undo()
        assert session.state()["labelled"] == 0
        assert session.undo() == []


Ask = Callable[..., Any]


@pytest.fixture
def desk(session: Session) -> Desk:
    desk = Desk()
    desk.session = session
    return desk


@pytest.fixture
def ask(desk: Desk) -> Iterator[Ask]:
    from starlette.testclient import TestClient

    with TestClient(application(desk, ["127.0.0.1", "localhost"]), base_url="http://127.0.0.1:1234") as client:

        def ask(path: str, body: Any = None, **known: Any) -> Any:
            headers = {"X-Token": desk.token, **known.pop("headers", {})}
            if body is None:
                return client.get(path, headers=headers, **known)
            return client.post(
                path,
                content=body if isinstance(body, str) else json.dumps(body),
                headers={"Content-Type": "application/json", **headers},
            )

        yield ask


class TestServer:
    @pytest.mark.parametrize("path", ["/", "/state", f"/picture/{KEY}?side=160"])
    @pytest.mark.parametrize("token", ["", "wrong", "ü"])
    def test_without_the_token_nothing_is_told(self, ask: Ask, path: str, token: str) -> None:
        answer = ask(path, headers={"X-Token": token.encode()})
        assert answer.status_code == 403
        assert "shades" not in answer.text

    def test_other_hosts_and_origins_are_refused(self, ask: Ask, dataset: Dataset, session: Session) -> None:
        assert ask("/state", headers={"Host": "evil.example"}).status_code == 400
        assert ask("/state", headers={"Host": "localhost:1234"}).status_code == 200
        body = {"answers": [[dataset.keys[0].decode(), "left"]]}
        for origin in ("http://evil.example", "null", "http://127.0.0.1:99", "https://127.0.0.1:1234"):
            assert ask("/answer", body, headers={"Origin": origin}).status_code == 403
        assert session.state()["labelled"] == 0
        assert ask("/answer", body, headers={"Origin": "http://127.0.0.1:1234"}).status_code == 200
        assert session.state()["labelled"] == 1

    def test_no_answer_waits_until_its_beginning_is_acknowledged(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accept, at_once = socket.socket.accept, []

        def remembering(listening: socket.socket) -> tuple[socket.socket, Any]:
            connection, address = accept(listening)
            at_once.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            return connection, address

        monkeypatch.setattr(socket.socket, "accept", remembering)
        with serving(application(desk, ["127.0.0.1"]), "127.0.0.1", 0) as port:
            assert urlopen(f"http://127.0.0.1:{port}/?token={desk.token}").status == 200
        assert at_once and all(at_once)

    @pytest.mark.parametrize(
        "path",
        [
            "/picture/../../etc/passwd?side=160",
            "/picture/%2e%2e%2fetc%2fpasswd?side=160",
            f"/picture/{KEY}?side=160",
            "/etc/passwd",
        ],
    )
    def test_paths_lead_nowhere(self, ask: Ask, path: str) -> None:
        assert ask(path).status_code == 404

    def test_pictures_are_drawn_anew_in_two_sizes(self, ask: Ask, dataset: Dataset, tmp_path: Path) -> None:
        for side, size in ((160, (160, 160)), (640, (8, 8))):
            answer = ask(f"/picture/{dataset.keys[100].decode()}?side={side}")
            assert answer.headers["content-type"] == "image/webp"
            assert answer.headers["x-content-type-options"] == "nosniff"
            (tmp_path / "shown.webp").write_bytes(answer.content)
            with Image.open(tmp_path / "shown.webp") as picture:
                assert picture.size == size
                assert abs(int(np.asarray(picture)[0, 0, 0]) - 100) < 4
        for side in ("", "161", "99999", "-1"):
            assert ask(f"/picture/{dataset.keys[0].decode()}?side={side}").status_code == 404

    @pytest.mark.parametrize(
        "body",
        [[], 3, {}, {"answers": 3}, {"answers": [[1]]}, {"answers": [["a", "b", "c"]]}, {"answers": ["left"]}],
    )
    def test_bad_requests_are_answered_in_words(self, ask: Ask, body: Any, session: Session) -> None:
        answer = ask("/answer", body)
        assert answer.status_code in (400, 409)
        assert answer.json()["error"]
        assert session.journal.answers == []

    def test_all_that_were_selected_are_saved(self, ask: Ask, dataset: Dataset, session: Session) -> None:
        answers = [[key.decode(), "left"] for key in dataset.keys.tolist()]
        assert ask("/answer", {"answers": answers}).json() == {"saved": 120}
        assert session.state()["labelled"] == 120

    def test_of_how_it_was_shown_only_what_is_known_is_kept(self, ask: Ask, dataset: Dataset, session: Session) -> None:
        answers = [[key.decode(), "left"] for key in dataset.keys.tolist()]
        shown = {"tab": "label", "seen": "x" * 100_000, "probability": 1, "more": "x" * 100_000}
        assert ask("/answer", {"answers": answers, "shown": shown}).status_code == 200
        assert session.journal.path.stat().st_size < 60_000
        told = session.journal.answers[0].shown
        assert told == {"tab": "label", "probability": 1.0, "drawn": told["drawn"], "checked": False, "led": False}
        shown = {"tab": "nowhere", "seen": "top", "probability": 1.5}
        assert ask("/answer", {"answers": answers[:1], "shown": shown}).status_code == 200
        assert session.journal.answers[-1].shown.keys() == {"seen", "drawn", "checked", "led"}
        assert ask("/answer", {"answers": answers[:1] * 2}).status_code == 409

    def test_what_another_window_has_said_is_told(self, ask: Ask, dataset: Dataset) -> None:
        key = dataset.keys[0].decode()
        body = {"answers": [[key, "left"]], "saw": {key: ""}}
        assert ask("/answer", body, headers={"X-Window": "a"}).status_code == 200
        refused = ask("/answer", {**body, "answers": [[key, "top"]]}, headers={"X-Window": "b"})
        assert refused.status_code == 409
        assert refused.json()["labels"] == {key: "left"}
        assert ask("/undo", {}, headers={"X-Window": "b"}).json() == {"pictures": []}
        assert ask("/state", headers={"X-Window": "a"}).json()["can_undo"]
        (back,) = ask("/undo", {}, headers={"X-Window": "a"}).json()["pictures"]
        assert (back["key"], back["label"]) == (key, "")

    def test_what_fails_here_is_no_bad_request(
        self, ask: Ask, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(session, "show", lambda *_, **known: known["no such thing"])
        answer = ask("/show", {"tab": "label"})
        assert answer.status_code == 500
        assert answer.json() == {"error": "tlpipe label has failed; its terminal tells how"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "/show can't be answered" in caplog.text and "KeyError: 'no such thing'" in caplog.text

    def test_forms_and_large_bodies_are_refused(self, ask: Ask) -> None:
        assert ask("/class", {"name": "x"}, headers={"Content-Type": "text/plain"}).status_code == 400
        assert ask("/class", {"name": "x" * 1_100_000}).status_code == 400
        assert ask("/show", {"tab": "label", "n": "many"}).status_code == 400
        for strange in ('{"tab": "label", "n": 1e400}', '{"tab": "label", "n": NaN}', '{"answers": [], "shown": [1]}'):
            path = "/answer" if "answers" in strange else "/show"
            assert ask(path, strange).status_code == 400, strange
        assert ask("/show", {"tab": "label", "n": -5}).json() == {"pictures": []}

    def test_names_are_data_on_the_page(self, ask: Ask) -> None:
        name = "<img src=x onerror=alert(1)>"
        assert ask("/class", {"name": name}).status_code == 200
        assert {"name": name, "n": 0} in ask("/state").json()["classes"]
        page = ask("/")
        assert name not in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.split("script-src")[1]
        assert "innerHTML" not in page.text

    def test_before_the_features_are_there_it_tells_how_far_they_are(self, ask: Ask, desk: Desk) -> None:
        session, desk.session, desk.doing = desk.session, None, ("Extracting", 3, 120)
        assert ask("/state").json() == {"ready": False, "doing": "Extracting", "done": 3, "total": 120}
        assert ask("/show", {"tab": "label"}).status_code == 400
        desk.session = session

    def test_a_person_labels(self, ask: Ask, dataset: Dataset, truth: np.ndarray, session: Session) -> None:
        row_of = {key.decode(): row for row, key in enumerate(dataset.keys.tolist())}
        for _ in range(25):
            (picture,) = ask("/show", {"tab": "label", "n": 1}).json()["pictures"]
            label = NAMES[truth[row_of[picture["key"]]]]
            assert ask("/answer", {"answers": [[picture["key"], label]], "shown": {"tab": "label"}}).status_code == 200
        session.settle()
        assert [one["key"] for one in ask("/undo", {}).json()["pictures"]] == [picture["key"]]
        assert ask("/state").json()["labelled"] == 24


@pytest.fixture
def work(tmp_path: Path, red_and_blue: Path) -> Path:
    """Forty pictures in one folder, without labels."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(red_and_blue.rglob("*.png")):
        path.rename(flat / f"{path.parent.name}-{path.name}")
    return tmp_path


SERVED = ("--backbone", "mobilenet025", "--weights", "random", "--image-size", "32")


@pytest.fixture
def serve(work: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Any]]]:
    """Start `tlpipe label`, and give a client of its page."""
    started: list[tuple[subprocess.Popen[str], httpx2.Client]] = []

    def start(browser: str = "") -> tuple[subprocess.Popen[str], Any]:
        command = [sys.executable, "-m", "pipeline", "label", "flat", "--classes", "red,blue", *SERVED]
        process = subprocess.Popen(
            command if browser else [*command, "--no-open"],
            cwd=work,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"BROWSER": browser},
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"(http://127.0.0.1:\d+)/\?token=(\S+)", line)
        assert found, line
        # On a busy machine a connection that is kept may be closed just when it is used again.
        client = httpx2.Client(base_url=found[1], headers={"X-Token": found[2], "Connection": "close"}, timeout=60)
        started.append((process, client))
        while not client.get("/state").json()["ready"]:
            time.sleep(0.1)
        return process, client

    yield start
    for process, client in started:
        client.close()
        process.kill()
        process.communicate()


@pytest.fixture
def while_served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Sets what is done while `label` serves its page, in place of waiting for Ctrl-C."""
    return lambda done: monkeypatch.setattr(sys.modules["pipeline.commands.label"], "_wait", done)


def test_the_browser_is_told_the_token_by_a_file_of_the_user(
    work: Path, cache: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, while_served: Any
) -> None:
    opened: list[str] = []
    seen: list[tuple[int, str]] = []

    def look() -> None:
        path = Path(url2pathname(urlsplit(opened[0]).path))
        seen.append((path.stat().st_mode & 0o777, path.read_text()))

    monkeypatch.setattr("webbrowser.open", opened.append)
    while_served(look)
    config = ExtractConfig(str(work / "flat"), image_size=(32, 32))
    found = commands.label(config, cache, LabelOptions(classes="red,blue", labels=str(work / "labels.jsonl")))
    assert found.n_labels == 0
    ((mode, text),) = seen
    assert mode == 0o600
    assert re.search(r"url=http://127.0.0.1:\d+/\?token=\S{32}", text)
    assert "token" not in opened[0]
    assert sorted(path.name for path in work.iterdir() if "label" in path.name) == ["labels.jsonl"]


def test_where_no_file_can_be_written_for_the_browser_the_page_is_served_all_the_same(
    work: Path,
    cache: Path,
    fake_engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    while_served: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    served: list[bool] = []
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("there is nothing to open"))
    while_served(lambda: served.append(True))
    config = ExtractConfig(str(work / "flat"), image_size=(32, 32))
    commands.label(config, cache, LabelOptions(classes="red,blue", labels=str(work / "labels.jsonl")))
    assert served == [True]
    assert "No browser is opened" in caplog.text and "No space left" in caplog.text


def test_that_a_table_of_labels_is_left_aside_is_told(
    work: Path, cache: Path, fake_engine: FakeEngine, while_served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = min((work / "flat").iterdir()).name
    (work / "given.csv").write_text(f"path,label\n{first},red\n")
    columns = Columns(labels=str(work / "given.csv"))
    commands.extract(ExtractConfig(str(work / "flat"), image_size=(32, 32), columns=columns), cache)
    while_served(lambda: None)
    options = LabelOptions(labels=str(work / "labels.jsonl"), no_open=True)
    found = commands.label(ExtractConfig(str(work / "flat")), cache, options)
    assert found.n_labels == 0
    assert f"{work / 'given.csv'} is left aside here" in caplog.text


def test_that_another_journal_is_left_aside_is_told(
    work: Path, cache: Path, fake_engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    first, config = work / "first.jsonl", ExtractConfig(str(work / "flat"), image_size=(32, 32))
    key = file_key(min((work / "flat").iterdir()).read_bytes()).decode()
    journal = Journal(first, "/data")
    journal.append([answered(key, "red")])
    journal.close()
    for labels, told in ((first, False), (work / "labels.jsonl", True)):
        commands.extract(replace(config, columns=Columns(labels=str(first))), cache)
        caplog.clear()
        sys.modules["pipeline.commands.label"]._extracted(config, cache, labels)
        assert (f"{first} is left aside here" in caplog.text) == told


def test_others_are_let_in_by_the_printed_name_alone(
    work: Path,
    cache: Path,
    fake_engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    while_served: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: dict[str, int] = {}

    def ask() -> None:
        found = re.search(r"http://Workshop:(\d+)/\?token=(\S+)", caplog.text)
        assert found is not None
        for host in ("workshop", "127.0.0.1", "localhost", "evil.example", "0.0.0.0"):
            for origin in (f"http://{host}:{found[1]}", "http://evil.example"):
                headers = {"X-Token": found[2], "Host": f"{host}:{found[1]}", "Origin": origin}
                answer = httpx2.get(f"http://127.0.0.1:{found[1]}/state", headers=headers)
                told[f"{host} {origin.split(':')[1][2:]}"] = answer.status_code

    monkeypatch.setattr("socket.gethostname", lambda: "Workshop")
    while_served(ask)
    config = ExtractConfig(str(work / "flat"), image_size=(32, 32))
    options = LabelOptions(labels=str(work / "labels.jsonl"), host="0.0.0.0", no_open=True)
    commands.label(config, cache, options)
    assert {what for what, code in told.items() if code == 200} == {
        "workshop workshop",
        "127.0.0.1 127.0.0.1",
        "localhost localhost",
    }


def test_nothing_is_served_of_data_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = LabelOptions(labels=str(tmp_path / "labels.jsonl"), no_open=True)
    with pytest.raises(DataError, match="There is no 'nowhere'"):
        commands.label(ExtractConfig("nowhere"), tmp_path / "cache", options)
    assert "Open" not in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["::", "::1", "", "127.0.0.1:80"])
def test_what_is_no_host_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match="give an IPv4 address or a name of this machine"):
        LabelOptions(host=host)


def test_answers_that_were_shown_as_saved_outlive_the_server(serve: Any, work: Path) -> None:
    saved: dict[str, str] = {}
    for turn in range(2):
        process, client = serve()
        for _ in range(7 + turn):
            (picture,) = client.post("/show", json={"tab": "label", "n": 1}).json()["pictures"]
            label = picture["path"].split("-")[0]
            assert client.post("/answer", json={"answers": [[picture["key"], label]]}).status_code == 200
            saved[picture["key"]] = label
        process.kill()
        process.wait()
        assert {one.name: one.label for one in read_corrections(str(work / "labels.jsonl"))} == saved
    process, client = serve()
    assert client.get("/state").json()["labelled"] == len(saved) == 15
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[0] == "labels.jsonl: 15 pictures with a label, 0 left out"
    assert out.splitlines()[-1].startswith("Next       tlpipe extract flat --backbone mobilenet025")
    words = shlex.split(out.splitlines()[-1])[2:]
    command = [sys.executable, "-m", "pipeline", *words, "--json"]
    told = json.loads(subprocess.run(command, cwd=work, capture_output=True, check=True).stdout)
    assert (told["n_computed"], told["n_reused"]) == (0, 40)


def test_sigterm_ends_the_page_like_ctrl_c(serve: Any, work: Path) -> None:
    process, client = serve(browser="true")
    assert len(list(work.glob(".tlpipe-label-*"))) == 1
    assert any("Ctrl-C ends it" in line for line in process.stderr)
    client.get("/state")  # by then it waits
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1].startswith("Next       tlpipe extract flat")
    assert not list(work.glob(".tlpipe-label-*"))


@pytest.mark.slow
def test_answers_outlive_kills_at_any_moment(serve: Any, work: Path) -> None:
    """Twenty times in the middle of answers that follow each other as fast as the server saves them."""
    saved: dict[str, str] = {}
    random = np.random.default_rng(0)
    keys: list[str] = []
    n_answers = 0
    for _ in range(20):
        process, client = serve()
        keys = keys or [one["key"] for one in client.post("/show", json={"tab": "label", "n": 40}).json()["pictures"]]
        end = threading.Timer(float(random.uniform(0.1, 1.5)), process.kill)
        end.start()
        with contextlib.suppress(httpx2.HTTPError):
            for number in range(500):
                last, label = keys[number % len(keys)], ("red", "blue")[int(random.integers(2))]
                if client.post("/answer", json={"answers": [[last, label]]}).status_code == 200:
                    saved[last] = label
                    n_answers += 1
        process.wait()
        found = {one.name: one.label for one in read_corrections(str(work / "labels.jsonl"))}
        assert found.keys() >= saved.keys()
        # The answer that was on its way when the server was killed may be there or not.
        assert {key for key, label in found.items() if saved.get(key) != label} <= {last}
        saved = found
    assert n_answers > 100


class TestFiles:
    @pytest.fixture
    def labels(self, work: Path) -> Path:
        table = work / "labels.csv"
        table.write_text("path,label\nred-0.png,red\nred-1.png,red\nblue-0.png,blue\nblue-1.png,drop\n")
        return table

    def test_a_manifest_is_data_and_labels(self, work: Path, labels: Path, cache: Path) -> None:
        target = work / "mine.csv"
        assert export_labels(str(work / "flat"), labels, target, cache) == 3
        with target.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["path"], row["label"]) for row in rows} == {
            ("flat/red-0.png", "red"),
            ("flat/red-1.png", "red"),
            ("flat/blue-0.png", "blue"),
        }
        assert open_dataset(str(target), SplitConfig()).dataset.class_names == ("blue", "red")
        again = open_dataset(str(work / "flat"), SplitConfig(), columns=Columns(labels=str(target))).dataset
        assert sum(again.labels != UNLABELLED) == 3
        with pytest.raises(ConfigError, match=r"ends in .csv"):
            export_labels(str(work / "flat"), labels, work / "mine.txt", cache)
        with pytest.raises(DataError, match=r"There is no .*none.jsonl; label pictures first"):
            export_labels(str(work / "flat"), work / "none.jsonl", work / "mine.csv", cache)

    def test_groups_stay_together_in_the_manifest(self, work: Path, cache: Path) -> None:
        table = work / "grouped.csv"
        pictures = sorted((work / "flat").glob("*.png"))
        table.write_text(
            "path,label,group\n" + "".join(f"flat/{one.name},{one.name[0]},{n % 4}\n" for n, one in enumerate(pictures))
        )
        said = work / "said.csv"
        said.write_text(f"path,label\nflat/{pictures[0].name},b\n")
        export_labels(str(table), said, work / "mine.csv", cache)
        before, after = (open_dataset(str(one), SplitConfig()).dataset for one in (table, work / "mine.csv"))
        assert before.groups is not None and after.groups is not None
        assert dict(zip(after.keys.tolist(), after.groups.tolist(), strict=True)) == dict(
            zip(before.keys.tolist(), before.groups.tolist(), strict=True)
        )
        assert len(set(after.groups.tolist())) == 4

    def test_a_manifest_that_is_no_data_is_told(
        self, work: Path, labels: Path, cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for folder, told in ((work, False), (work / "other", True)):
            caplog.clear()
            folder.mkdir(exist_ok=True)
            export_labels(str(work / "flat"), labels, folder / "mine.csv", cache)
            assert ("write it into a folder above all pictures" in caplog.text) == told
            with pytest.raises(DataError, match="leaves the folder") if told else contextlib.nullcontext():
                open_dataset(str(folder / "mine.csv"), SplitConfig())

    def test_neither_the_data_nor_the_labels_are_written_over(self, work: Path, labels: Path, cache: Path) -> None:
        table = work / "data.csv"
        table.write_text("path,label\nflat/red-0.png,red\nflat/red-1.png,blue\n")
        said = work / "said.csv"
        said.write_text("path,label\nflat/red-0.png,blue\n")
        before = table.read_text(), said.read_text()
        for target, what in ((table, "the data"), (said, "the file of labels")):
            with pytest.raises(ConfigError, match=f"which is {what}; name another file"):
                export_labels(str(table), said, target, cache)
        assert (table.read_text(), said.read_text()) == before

    @pytest.mark.parametrize("link", [False, True])
    def test_folders_of_classes(self, work: Path, labels: Path, cache: Path, link: bool) -> None:
        folder = work / "classes"
        assert copy_to_folders(str(work / "flat"), labels, folder, cache, link=link) == 3
        found = sorted(folder.rglob("*.png"))
        assert [path.parent.name for path in found] == ["blue", "red", "red"]
        assert all(path.is_symlink() == link for path in found)
        assert found[0].read_bytes() == (work / "flat" / "blue-0.png").read_bytes()
        with pytest.raises(ConfigError, match="is not empty"):
            copy_to_folders(str(work / "flat"), labels, folder, cache)
        with pytest.raises(ConfigError, match="is a file"):
            copy_to_folders(str(work / "flat"), labels, labels, cache)

    def test_no_two_classes_share_a_folder(self, work: Path, cache: Path) -> None:
        table = work / "labels.csv"
        table.write_text("path,label\nred-0.png,猫\nred-1.png,犬\nred-2.png,C++\nred-3.png,C\nred-4.png,a/b\n")
        copy_to_folders(str(work / "flat"), table, work / "classes", cache)
        assert sorted(path.name for path in (work / "classes").iterdir()) == ["C", "C++", "a_b", "犬", "猫"]
        table.write_text("path,label\nred-0.png,Rose\nred-1.png,rose\n")
        with pytest.raises(ConfigError, match="'Rose' and 'rose' would share the folder 'rose'"):
            copy_to_folders(str(work / "flat"), table, work / "more", cache)
        assert not (work / "more").exists()

    def test_folders_are_as_long_as_a_disk_takes(self, work: Path, cache: Path) -> None:
        table = work / "labels.csv"
        table.write_text(f"path,label\nred-0.png,{'猫' * 100}\nred-1.png,{'犬' * 100}\n")
        copy_to_folders(str(work / "flat"), table, work / "classes", cache)
        assert sorted(path.name for path in (work / "classes").iterdir()) == ["犬" * 85, "猫" * 85]
        table.write_text(f"path,label\nred-0.png,{'猫' * 90}\nred-1.png,{'猫' * 91}\n")
        with pytest.raises(ConfigError, match="would share the folder"):
            copy_to_folders(str(work / "flat"), table, work / "more", cache)

    @pytest.mark.parametrize("link", [False, True])
    def test_one_picture_at_two_places_is_copied_once(self, work: Path, cache: Path, link: bool) -> None:
        for name in ("a", "b"):
            (work / "flat" / name).mkdir()
            shutil.copy(work / "flat" / "red-0.png", work / "flat" / name / "same.png")
        table = work / "labels.csv"
        table.write_text("path,label\na/same.png,red\nb/same.png,red\n")
        assert copy_to_folders(str(work / "flat"), table, work / "classes", cache, link=link) == 1
        assert len(list((work / "classes").rglob("*.png"))) == 1

    def test_names_that_no_table_holds_are_told(self, work: Path, cache: Path) -> None:
        path = (work / "flat" / "red-0.png").rename(work / "flat" / "red-\udcff.png")  # the byte 0xff
        table = work / "labels.csv"
        key = file_key(path.read_bytes()).decode()
        table.write_text(f"key,label\n{key},red\n")
        with pytest.raises(DataError, match=r"red-\\udcff.png has a name that no table can hold"):
            export_labels(str(work / "flat"), table, work / "mine.csv", cache)

    def test_pictures_of_a_table_get_the_name_of_their_format(self, work: Path, cache: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = sorted((work / "flat").glob("*.png"))
        images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        pq.write_table(pa.table({"image": images, "label": [path.name[0] for path in paths]}), work / "all.parquet")
        table = work / "labels.csv"
        table.write_text(f"key,label\n{file_key(paths[0].read_bytes()).decode()},first\n")
        copy_to_folders(str(work / "all.parquet"), table, work / "classes", cache)
        (copied,) = (work / "classes" / "first").iterdir()
        assert copied.suffix == ".png"
        assert copied.read_bytes() == paths[0].read_bytes()
