"""Carving: a partition that twins can't straddle, and that new images don't disturb."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SplitConfig
from pipeline.data.dataset import split_names, split_numbers
from pipeline.data.splits import carve, joined_groups, twins
from pipeline.errors import DataError


def keys_of(names: list[str]) -> np.ndarray:
    return np.array([hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in names], "S32")


def carved(
    names: list[str],
    labels: Sequence[int] | np.ndarray,
    splits: list[str] | None = None,
    *,
    groups: np.ndarray | None = None,
    known: np.ndarray | None = None,
    **options: object,
) -> np.ndarray:
    given = split_numbers(np.array(splits or [""] * len(names)))
    before = None if known is None else split_numbers(known)
    config = SplitConfig(**options)  # type: ignore[arg-type]
    return split_names(carve(keys_of(names), np.array(labels), given, config, groups=groups, known=before))


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


@given(st.integers(0, 20), st.lists(st.integers(3, 60), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_class_gets_its_share_to_one_image(seed: int, sizes: list[int]) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    splits = carved([str(row) for row in range(len(labels))], labels, val_fraction=0.1, test_fraction=0.2, seed=seed)
    for label, size in enumerate(sizes):
        of_class = splits[np.array(labels) == label]
        assert abs((of_class == "test").sum() - 0.2 * size) <= 0.8
        assert abs((of_class == "val").sum() - 0.1 * size) <= 0.8
        assert set(of_class.tolist()) == {"train", "val", "test"}


@pytest.mark.parametrize(("size", "counts"), [(3, (1, 1, 1)), (12, (8, 2, 2)), (20, (14, 3, 3))])
def test_a_dozen_dandelions(size: int, counts: tuple[int, int, int]) -> None:
    labels = [number % 10 for number in range(10 * size)]
    splits = carved([str(number) for number in range(10 * size)], labels)
    for label in range(10):
        of_class = splits[np.array(labels) == label].tolist()
        assert tuple(of_class.count(split) for split in ("train", "val", "test")) == counts


@given(images, images, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_what_was_split_before_stays_and_new_images_fill_the_shares(
    old: list[tuple[int, int]], new: list[tuple[int, int]], seed: int
) -> None:
    """Each image has one label here, so that shares can be met exactly."""
    old = [(name, name % 4) for name, _ in dict(old).items()]
    new = [(name, name % 4) for name, _ in dict(new).items() if name not in dict(old)]
    names = [str(name) for name, _ in old + new]
    labels = [label for _, label in old + new]
    before = carved(names[: len(old)], labels[: len(old)], seed=seed)
    again = carved(names[: len(old)], labels[: len(old)], known=before, seed=seed)
    np.testing.assert_array_equal(again, before)
    known = np.concatenate([before, [""] * len(new)])
    after = carved(names, labels, known=known, seed=seed)
    np.testing.assert_array_equal(after[: len(old)], before)
    for label in set(labels):
        of_class = after[np.array(labels) == label]
        for split in ("val", "test"):
            assert abs((of_class == split).sum() - 0.15 * len(of_class)) <= 1


@given(st.integers(3, 80), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_unknown_images_lose_no_more_places_than_there_are_new_ones(n_old: int, n_new: int, seed: int) -> None:
    names = [str(number) for number in range(n_old + n_new)]
    before = carved(names[:n_old], [0] * n_old, seed=seed)
    after = carved(names, [0] * len(names), seed=seed)[:n_old]
    assert ((before == "test") & (after != "test")).sum() <= n_new


def test_order_of_the_files_changes_nothing() -> None:
    names, labels = [str(number) for number in range(90)], [number % 3 for number in range(90)]
    one, other = carved(names, labels), carved(names[::-1], labels[::-1])
    np.testing.assert_array_equal(one, other[::-1])


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 2)), min_size=1, max_size=150), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_groups_lie_on_one_side(rows: list[tuple[int, int]], seed: int) -> None:
    names = [f"{row // 2}" for row in range(len(rows))]  # twins of different groups, too
    keys, labels = keys_of(names), [label for _, label in rows]
    groups = joined_groups(keys, [str(group) for group, _ in rows])
    splits = carved(names, labels, groups=groups, seed=seed)
    for column in ([group for group, _ in rows], keys.tolist()):
        for name in set(column):
            assert len({split for split, other in zip(splits.tolist(), column, strict=True) if other == name}) == 1


def test_groups_share_as_nearly_as_they_can() -> None:
    """Twenty patients of ten pictures in two classes: 30 pictures of 200 are wanted."""
    labels, patients = np.repeat([0, 1], 100), [str(number // 10) for number in range(200)]
    names = [str(number) for number in range(200)]
    splits = carved(names, labels, groups=joined_groups(keys_of(names), patients))
    for label in (0, 1):
        assert [(splits[labels == label] == split).sum() for split in ("train", "val", "test")] == [80, 10, 10]


def test_groups_are_joined_through_names_and_keys() -> None:
    keys = keys_of(["a", "b", "b", "c", "d", "e"])
    found = joined_groups(keys, ["p", "p", "q", "q", "", ""])
    assert found is not None and found.tolist() == [0, 0, 0, 0, 1, 2]
    assert joined_groups(keys, ["1", "2", "2", "", "", ""]) is None, "byte-identical images belong together anyway"
    assert joined_groups(keys, None) is None


def test_a_group_found_later_leaves_test_for_no_other_split() -> None:
    names = [str(number) for number in range(40)]
    before = carved(names, [0] * 40)
    for one, other, both in (("train", "test", "test"), ("train", "val", "val"), ("val", "test", "test")):
        pair = [int(np.flatnonzero(before == split)[0]) for split in (one, other)]
        groups = joined_groups(keys_of(names), ["near" if row in pair else "" for row in range(40)])
        after = carved(names, [0] * 40, groups=groups, known=before)
        assert after[pair].tolist() == [both, both]
        assert (after == before).sum() == 39


def test_unlabelled_images_are_left_to_training() -> None:
    splits = carved([str(number) for number in range(60)], [-1, 0] * 30)
    assert set(splits[::2].tolist()) == {"train"}
    assert set(splits[1::2].tolist()) == {"train", "val", "test"}


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
    assert (splits[:200] == "val").sum() == 100


def test_test_from_val() -> None:
    names = [str(number) for number in range(400)]
    splits = carved(names, [0] * 400, ["train"] * 200 + ["val"] * 200, test_from="val", test_fraction=0.2)
    assert (splits[:200] == "train").all()
    assert (splits[200:] == "test").sum() == 40
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
        "1 group of byte-identical images across more than one split: p = q",
        "1 group of byte-identical images under more than one label: r = s",
    ]
    assert twins(keys_of(["a", "b"]), np.array([0, 1]), np.array(["train", "val"]), ["p", "q"]) == []
