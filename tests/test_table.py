"""Tables: features of one set or several, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeEngine, part_of

from pipeline import commands
from pipeline.config import ExtractConfig, FeatureSpec, HeadConfig
from pipeline.data import Dataset
from pipeline.data.source import KEY_DTYPE
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.evaluation.metrics import scores
from pipeline.heads import make_head, predict
from pipeline.store import records
from pipeline.store.records import TableRecord, find_records, load_dataset, now, save_dataset, save_record
from pipeline.store.rows import COPIED, HeldFeatures, Part, StoredFeatures, joined, nothing
from pipeline.store.shards import FeatureStore
from pipeline.store.table import FeatureTable, load_table
from pipeline.training.passes import Passes

N, WIDTH, SHARDS = 1200, 16, 12
ROW_BYTES = 4 * WIDTH
TIGHT = 4 * 8 * (N // SHARDS) * ROW_BYTES  # four blocks of eight shards: the least that is allowed


def write(cache: Path, spec: FeatureSpec, features: np.ndarray, labels: np.ndarray, name: str = "drawn") -> TableRecord:
    """A table of drawn features in shards, sorted by class, as a folder of images would give."""
    keys = np.array([f"{row:032d}" for row in range(len(labels))], "S32")
    splits = np.where(np.arange(len(labels)) % 4 == 0, "val", "train")
    locations = tuple(f"{row}.png" for row in range(len(labels)))
    dataset = Dataset("drawn", keys, labels, splits, locations, ("a", "b", "c"))
    store = FeatureStore(cache, spec)
    for rows in np.array_split(np.arange(len(labels)), SHARDS):
        store.append(keys[rows].tolist(), features[rows])
    save_dataset(cache, dataset)
    record = TableRecord(name, now(), spec, dataset.id, "drawn", ("val",), ExtractConfig("drawn"))
    save_record(cache, record)
    return record


def drawn() -> tuple[np.ndarray, np.ndarray]:
    labels = np.sort(np.arange(N) % 3)
    centres = np.random.default_rng(1).normal(0, 0.7, (3, WIDTH))
    return (centres[labels] + np.random.default_rng(0).normal(size=(N, WIDTH))).astype(np.float32), labels


@pytest.fixture
def tables(cache: Path, spec: FeatureSpec) -> tuple[FeatureTable, FeatureTable]:
    """The same features in memory, and on disk."""
    record = write(cache, spec, *drawn())
    return load_table(cache, [record]), load_table(cache, [record], memory=TIGHT)


class TestOnDisk:
    def test_holds_the_same_rows(self, tables: tuple[FeatureTable, FeatureTable]) -> None:
        held, stored = tables
        assert isinstance(held.features, np.ndarray)
        assert isinstance(stored.features, StoredFeatures)
        assert stored.features.shape == held.features.shape == (N, WIDTH)
        np.testing.assert_array_equal(stored.array(), held.features)
        for split in ("train", "val"):
            first, second = held.part(split), stored.part(split)
            np.testing.assert_array_equal(first.labels, second.labels)
            rows = np.array([5, 3, 200])
            np.testing.assert_array_equal(first.load(rows), second.load(rows))
            together = joined(second, second)
            np.testing.assert_array_equal(together.load(np.array([len(first) + 3])), first.load(np.array([3])))

    def test_blocks_are_all_rows_in_pieces_that_may_be_held(self, tables: tuple[FeatureTable, FeatureTable]) -> None:
        part = tables[1].part("train")
        assert isinstance(part.features, StoredFeatures)
        for generator in (None, np.random.default_rng(0)):
            blocks = list(part.blocks(generator))
            assert len(blocks) > 1
            assert max(map(len, blocks)) <= part.features.block_rows
            assert sorted(np.concatenate(blocks).tolist()) == list(range(len(part)))
            assert min(map(len, blocks)) > 0.6 * max(map(len, blocks))
        assert list(part.select(np.zeros(0, np.int64)).blocks()) == []

    def test_every_block_holds_all_classes_alike(self, tables: tuple[FeatureTable, FeatureTable]) -> None:
        part = tables[1].part("train")
        first, again = (list(part.blocks(np.random.default_rng(seed))) for seed in (0, 1))
        for block in first:
            shares = np.bincount(part.labels[block], minlength=3) / len(block)
            np.testing.assert_allclose(shares, 1 / 3, atol=0.05)
        assert set(first[0].tolist()) != set(again[0].tolist())

    def test_every_step_sees_all_classes_though_shards_are_of_one_class(
        self, tables: tuple[FeatureTable, FeatureTable]
    ) -> None:
        import tensorflow as tf

        seen = tf.Variable(tf.zeros((0, 2), tf.int64), shape=(None, 2))

        def step(features: object, labels: tf.Tensor, views: object) -> tf.Tensor:
            counts = tf.size(tf.unique(labels)[0], tf.int64)
            seen.assign(tf.concat([seen, [[counts, tf.size(labels, tf.int64)]]], axis=0))
            return tf.constant(0.0)

        passes = Passes(step, tables[1].part("train"), 64, seed=0)
        passes.epoch()
        found = seen.numpy()
        assert found[:, 1].sum() == len(tables[1].part("train"))
        assert (found[:, 0] == 3).all()

    @pytest.mark.parametrize("head", ["ridge", "centroid", "linear", "mlp64"])
    def test_heads_come_to_the_same(self, head: str, tables: tuple[FeatureTable, FeatureTable]) -> None:
        results = []
        for table in tables:
            made, _ = make_head(HeadConfig(head))
            train, val = table.part("train"), table.part("val")
            made.fit(train, val, 3)
            probabilities = predict(made, val)
            results.append((probabilities, scores(probabilities, val.labels)["accuracy"]))
        assert results[0][1] == pytest.approx(results[1][1], abs=0.03)
        assert results[0][1] > 0.9
        if head in ("ridge", "centroid"):
            np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-4)

    @pytest.mark.parametrize("head", ["logreg", "knn5"])
    def test_heads_that_need_all_at_once_say_so(self, head: str, tables: tuple[FeatureTable, FeatureTable]) -> None:
        made, _ = make_head(HeadConfig(head))
        with pytest.raises(ConfigError, match="more than --memory lets be held, .*take linear, ridge"):
            made.fit(tables[1].part("train"), tables[1].part("val"), 3)

    def test_too_little_memory_to_mix_shards(self, cache: Path, spec: FeatureSpec) -> None:
        record = write(cache, spec, *drawn())
        with pytest.raises(ConfigError, match=r"--memory of 0 MB is too little .* at least 1MB"):
            load_table(cache, [record], memory=10_000)

    def test_shard_that_goes_away(self, tables: tuple[FeatureTable, FeatureTable], cache: Path) -> None:
        for path in (cache / "features").rglob("*.h5"):
            path.unlink()
        with pytest.raises(StoreError, match="can't be read"):
            tables[1].part("train").load(np.array([0]))


class TestNotFinite:
    @pytest.mark.parametrize("memory", [None, TIGHT])
    def test_is_refused(self, memory: int | None, cache: Path, spec: FeatureSpec) -> None:
        features, labels = drawn()
        features[[3, 700], 2] = [np.nan, np.inf]
        record = write(cache, spec, features, labels)
        with pytest.raises(
            DataError, match="Features of 2 images or views.*no finite numbers; extract them in another"
        ):
            load_table(cache, [record], memory=memory).array()


class TestSeveralSets:
    def test_columns_stand_side_by_side(self, cache: Path, spec: FeatureSpec) -> None:
        features, labels = drawn()
        first = write(cache, spec, features, labels, "first")
        other = replace(spec, endpoint="conv4")
        second = write(cache, other, features[:, :5] * 2, labels, "second")
        for memory in (None, 2 * TIGHT):
            table = load_table(cache, [first, second], memory=memory)
            assert table.id == "first,second"
            assert [spec.endpoint for spec in table.specs] == ["conv5", "conv4"]
            np.testing.assert_array_equal(table.array(), np.concatenate([features, features[:, :5] * 2], axis=1))
        assert find_records(cache, "second, first")[0].id == "second"
        with pytest.raises(ConfigError, match="same features twice"):
            find_records(cache, "first,first")

    def test_images_of_one_set_only_are_left_out(
        self, cache: Path, spec: FeatureSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        features, labels = drawn()
        first = write(cache, spec, features, labels, "first")
        few = np.arange(0, N, 5)
        keys = np.array([f"{row:032d}" for row in few], "S32")
        splits = np.where(few % 4 == 0, "val", "train")
        locations = tuple(f"{row}.png" for row in few)
        dataset = Dataset("drawn", keys, labels[few], splits, locations, ("a", "b", "c"))
        other = replace(spec, endpoint="conv4")
        FeatureStore(cache, other).append(keys.tolist(), features[few])
        save_dataset(cache, dataset)
        record = TableRecord("second", now(), other, dataset.id, "drawn", ("val",), ExtractConfig("drawn"))
        table = load_table(cache, [first, record])
        np.testing.assert_array_equal(table.array(), np.concatenate([features[few], features[few]], axis=1))
        assert "Left out, because second lacks them: 960 images of first" in caplog.text
        assert table.missing == 0
        load_table(cache, [record, first])
        assert caplog.text.count("Left out, because second lacks them: 960 images of first") == 2

    def test_other_labels_are_refused(self, cache: Path, spec: FeatureSpec) -> None:
        features, labels = drawn()
        first = write(cache, spec, features, labels, "first")
        changed = labels.copy()
        changed[7] = 2
        second = write(cache, replace(spec, endpoint="conv4"), features, changed, "second")
        with pytest.raises(DataError, match="another label or split of 7.png; extract both from the same data"):
            load_table(cache, [first, second])


class TestViews:
    @pytest.fixture
    def record(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> TableRecord:
        return commands.extract(ExtractConfig(str(red_and_blue), views=2, augment="flip,crop"), cache).record

    def test_of_val_stand_in_the_order_of_the_images(self, record: TableRecord, cache: Path) -> None:
        table = load_table(cache, [record], 1, test_views=2)
        parts = [table.part("val", view) for view in range(3)]
        for part in parts[1:]:
            np.testing.assert_array_equal(part.keys, parts[0].keys)
            assert np.abs(part.array() - parts[0].array()).max() > 1e-3
        assert set(table.part("train").views.tolist()) == {0, 1}
        assert set(table.part("train").up_to_view(0).views.tolist()) == {0}

    def test_more_than_there_are(self, record: TableRecord, cache: Path) -> None:
        with pytest.raises(ConfigError, match="3 views are wanted, .* has 2"):
            load_table(cache, [record], test_views=3)

    def test_of_different_kinds_are_not_joined(
        self, record: TableRecord, red_and_blue: Path, cache: Path, fake_engine: FakeEngine
    ) -> None:
        other = commands.extract(ExtractConfig(str(red_and_blue), resize="pad", views=1, augment="crop"), cache).record
        with pytest.raises(ConfigError, match="use --views 0"):
            load_table(cache, [record, other])
        assert load_table(cache, [record, other], 0).array().shape[1] == 24


def test_up_to_view_and_select(draw: Callable[..., Path]) -> None:
    part = part_of(np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1]))
    two = joined(part, Part(part.features, part.labels, part.keys, np.ones(4, np.int64)))
    assert len(two.up_to_view(None)) == 8
    assert len(two.up_to_view(0)) == 4
    assert two.select(two.views == 1).labels.tolist() == [0, 1, 0, 1]


def test_of_texts_those_saved_last_count(tmp_path: Path) -> None:
    keys, labels = np.array([b"1" * 32, b"2" * 32], KEY_DTYPE), np.array([0, 1])
    dataset = Dataset("drawn", keys, labels, np.array(["train", "val"]), ("a.png", "b.png"), ("a", "b"))
    for name in ("first", "second", "first", "third", "second"):
        save_dataset(tmp_path, replace(dataset, name=name))
        assert load_dataset(tmp_path, dataset.id).name == name


def test_a_dataset_is_written_again_only_if_it_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "SETTLED", -1.0)
    keys, labels = np.array([b"1" * 32, b"2" * 32], KEY_DTYPE), np.array([0, 1])
    dataset = Dataset("drawn", keys, labels, np.array(["train", "val"]), ("a.png", "b.png"), ("a", "b"))

    def file() -> Path:
        (found,) = (tmp_path / "datasets").iterdir()
        return found

    save_dataset(tmp_path, dataset)
    inode = file().stat().st_ino
    save_dataset(tmp_path, dataset)
    assert file().stat().st_ino == inode
    for other in (replace(dataset, locations=("a.png", "c.png")), replace(dataset, others={"age": ("7", "8")})):
        save_dataset(tmp_path, other)
        found = load_dataset(tmp_path, dataset.id)
        assert (list(found.locations), found.others) == (list(other.locations), other.others)
    file().write_bytes(file().read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="was changed"):
        load_dataset(tmp_path, dataset.id)
    save_dataset(tmp_path, other)
    assert list(load_dataset(tmp_path, dataset.id).locations) == ["a.png", "b.png"]


def test_of_an_array_that_is_not_copied_blocks_are_small(random: np.random.Generator) -> None:
    """And a head that sees them is the one that sees all at once."""
    n = 2 * COPIED + 100
    array, labels = random.normal(size=(n + 50, 4)).astype(np.float32), random.integers(0, 3, n)
    rows, keys = np.sort(random.permutation(n + 50)[:n]), np.arange(n).astype("S32")
    part = Part(HeldFeatures(array, rows), labels, keys, np.zeros(n, np.int64))
    assert [len(block) for block in part.blocks()] == [COPIED, COPIED, 100]
    np.testing.assert_array_equal(np.concatenate(list(part.blocks())), np.arange(n))
    assert list(nothing(part).blocks()) == []
    found = []
    for one in (part, Part(array[rows], labels, keys, np.zeros(n, np.int64))):
        head, _ = make_head(HeadConfig("ridge"))
        head.fit(one, nothing(one), 3)
        found.append(head.predict_proba(array[:20]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
