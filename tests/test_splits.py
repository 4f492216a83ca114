"""Carving: a partition that twins can't straddle, and that new images don't disturb."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SplitConfig
from pipeline.data.splits import carve, twins
from pipeline.errors import DataError


def keys_of(names: list[str]) -> np.ndarray:
    return np.array([hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in names], "S32")


def carved(names: list[str], labels: list[int], splits: list[str] | None = None, **options: object) -> np.ndarray:
    given = np.array(splits or [""] * len(names), "U5")
    return carve(keys_of(names), np.array(labels), given, SplitConfig(**options))  # type: ignore[arg-type]


images = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3)), min_size=1, max_size=200)


@given(images, st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_partition_without_straddling_twins(rows: list[tuple[int, int]], seed: int) -> None:
    names, labels = [str(name) for name, _ in rows], [label for _, label in rows]
    splits = carved(names, labels, seed=seed)
    assert set(splits.tolist()) <= {"train", "val", "test"}
    by_name: dict[str, set[str]] = {}
    for name, split in zip(names, splits.tolist(), strict=True):
        by_name.setdefault(name, set()).add(split)
    assert all(len(found) == 1 for found in by_name.values())


@given(st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_classes_get_about_their_share(seed: int) -> None:
    names = [str(number) for number in range(3000)]
    labels = [number % 3 for number in range(3000)]
    splits = carved(names, labels, val_fraction=0.1, test_fraction=0.2, seed=seed)
    for label in range(3):
        of_class = splits[np.array(labels) == label]
        # Five standard deviations of a share drawn from 1,000 images.
        assert abs((of_class == "test").mean() - 0.2) < 0.064
        assert abs((of_class == "val").mean() - 0.1) < 0.048


def test_new_images_move_no_old_ones() -> None:
    names = [str(number) for number in range(500)]
    before = carved(names, [0] * 500)
    after = carved(names + [f"new {number}" for number in range(300)], [0] * 800)
    np.testing.assert_array_equal(before, after[:500])


def test_another_seed_draws_others() -> None:
    names = [str(number) for number in range(500)]
    assert (carved(names, [0] * 500, seed=1) != carved(names, [0] * 500, seed=2)).any()


def test_small_class_is_in_every_split() -> None:
    splits = carved(["a", "b", "c", "d", "e"] + [str(n) for n in range(200)], [1] * 5 + [0] * 200)
    assert set(splits[:5].tolist()) == {"train", "val", "test"}


def test_two_images_stay_in_training() -> None:
    assert carved(["a", "b"], [0, 0]).tolist() == ["train", "train"]


def test_given_splits_are_kept() -> None:
    names = [str(number) for number in range(400)]
    given_splits = ["train"] * 200 + ["val"] * 100 + ["test"] * 100
    assert carved(names, [0] * 400, given_splits).tolist() == given_splits


def test_missing_val_comes_from_train() -> None:
    names = [str(number) for number in range(400)]
    splits = carved(names, [0] * 400, ["train"] * 200 + ["test"] * 200, val_fraction=0.5)
    assert (splits[200:] == "test").all()
    assert 70 < (splits[:200] == "val").sum() < 130


def test_test_from_val() -> None:
    names = [str(number) for number in range(400)]
    splits = carved(names, [0] * 400, ["train"] * 200 + ["val"] * 200, test_from="val", test_fraction=0.2)
    assert (splits[:200] == "train").all()
    assert 20 < (splits[200:] == "test").sum() < 60
    with pytest.raises(DataError, match="--test-from val"):
        carved(names, [0] * 400, test_from="val")


def test_twins_of_given_splits_stay_in_train() -> None:
    names = [str(number) for number in range(200)]
    splits = carved(names * 2, [0] * 400, ["train"] * 200 + ["val"] * 200, test_fraction=0.5)
    assert "test" not in splits.tolist(), "every training image has a twin in val"


def test_fraction_0_carves_nothing() -> None:
    names = [str(number) for number in range(100)]
    assert set(carved(names, [0] * 100, val_fraction=0, test_fraction=0).tolist()) == {"train"}


def test_twins_are_named() -> None:
    keys = keys_of(["a", "a", "b", "b", "c"])
    notes = twins(keys, np.array([0, 0, 0, 1, 1]), np.array(["train", "val", "val", "val", "test"]), list("pqrst"))
    assert notes == [
        "1 byte-identical images lie in more than one split: p = q",
        "1 byte-identical images have more than one label: r = s",
    ]
    assert twins(keys_of(["a", "b"]), np.array([0, 1]), np.array(["train", "val"]), ["p", "q"]) == []
