"""The chain: what is computed, what is reused, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FakeEngine
from PIL import Image

from pipeline import commands
from pipeline.cli.render import inspect_text
from pipeline.commands import TrainingOptions
from pipeline.commands import cache as caretaker
from pipeline.commands.extract import ExtractResult
from pipeline.commands.gc import gc
from pipeline.config import Columns, ExtractConfig, ExtractOptions, HeadConfig, SplitConfig
from pipeline.data import FileSource, open_dataset
from pipeline.errors import (
    CacheMismatchError,
    ConfigError,
    DataError,
    ImageError,
    QuarantineError,
    RunError,
    StoreError,
)
from pipeline.extraction.engines import graph_folder
from pipeline.runs.classifier import open_classifier
from pipeline.runs.find import all_runs, find_run
from pipeline.runs.run import FinetuneRun, HeadRun
from pipeline.selection.folds import folds
from pipeline.store.records import find_record, load_dataset, records, splits_of
from pipeline.store.shard import SoundShards, states
from pipeline.store.shards import FeatureStore
from pipeline.store.table import load_table


@pytest.mark.usefixtures("fake_engine")
class TestIncremental:
    def extract(self, data: Path, cache: Path, **options: object) -> commands.ExtractResult:
        return commands.extract(ExtractConfig(str(data), **options), cache)  # type: ignore[arg-type]

    def test_again_nothing_is_computed(self, red_and_blue: Path, cache: Path) -> None:
        first, again = (self.extract(red_and_blue, cache) for _ in range(2))
        assert (first.n_images, first.n_computed, first.n_reused) == (40, 40, 0)
        assert (again.n_images, again.n_computed, again.n_reused) == (40, 0, 40)
        assert again.record.id == first.record.id

    def test_rows_are_counted_where_only_a_view_fails(
        self, pictures: Path, cache: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, times = FileSource.read, dict[int, int]()

        def fails(self: FileSource, index: int) -> bytes:
            times[index] = times.get(index, 0) + 1
            if index == 3 and times[index] == 2:
                raise ImageError("the connection was lost", lasting=False)
            return read(self, index)

        monkeypatch.setattr(FileSource, "read", fails)
        config = ExtractConfig(str(pictures), views=1, augment="flip")
        first, again = commands.extract(config, cache), commands.extract(config, cache)
        assert (first.n_computed, first.n_reused, len(first.unreadable)) == (239, 0, 1)
        assert (again.n_computed, again.n_reused, len(again.unreadable)) == (1, 239, 0)

    def test_new_images_only(self, red_and_blue: Path, cache: Path, draw: Callable[..., Path]) -> None:
        self.extract(red_and_blue, cache)
        for number in range(10):
            draw(red_and_blue / "red" / f"new {number}.png")
        result = self.extract(red_and_blue, cache)
        assert (result.n_images, result.n_computed, result.n_reused) == (50, 10, 40)

    @pytest.mark.parametrize(
        "change", ["class renamed", "files renamed", "relabelled", "split again", "moved", "subset"]
    )
    def test_nothing_for_what_is_known(self, red_and_blue: Path, cache: Path, change: str) -> None:
        before = self.extract(red_and_blue, cache)
        options: dict[str, object] = {}
        data = red_and_blue
        if change == "class renamed":
            (data / "red").rename(data / "rouge")
        elif change == "files renamed":
            for path in list(data.rglob("*.png")):
                path.rename(path.with_name(f"renamed {path.name}"))
        elif change == "relabelled":
            (data / "red" / "0.png").rename(data / "blue" / "100.png")
        elif change == "split again":
            options["splits"] = SplitConfig(0.3, 0.3, seed=5)
        elif change == "moved":
            data = data.rename(data.with_name("elsewhere"))
        else:
            for number in range(10):
                (data / "red" / f"{number}.png").unlink()
        after = self.extract(data, cache, **options)
        assert after.n_computed == 0
        assert after.record.spec == before.record.spec

    def test_other_options_are_computed_anew(self, red_and_blue: Path, cache: Path) -> None:
        self.extract(red_and_blue, cache)
        assert self.extract(red_and_blue, cache, resize="pad").n_computed == 40
        assert self.extract(red_and_blue, cache, interpolation="nearest").n_computed == 40

    def test_own_output_inside_the_data_is_no_class(self, red_and_blue: Path) -> None:
        """Under names that nothing could know them by."""
        cache, reports = red_and_blue / "green", red_and_blue / "yellow"
        first = self.extract(red_and_blue, cache)
        commands.train_head(HeadConfig("logreg"), cache, reports)
        commands.inspect(str(red_and_blue), cache, red_and_blue / "white")
        commands.report((), cache, reports)
        assert {path.suffix for path in reports.rglob("*")} >= {".png"}
        again = self.extract(red_and_blue, cache)
        assert (again.n_images, again.n_computed, again.record.id) == (40, 0, first.record.id)
        for folder in (cache, reports, red_and_blue / "white"):
            assert (folder / ".tlpipe").is_file()

    def test_twins_are_computed_once(self, red_and_blue: Path, cache: Path) -> None:
        shutil.copy(red_and_blue / "red" / "0.png", red_and_blue / "red" / "twin.png")
        result = self.extract(red_and_blue, cache)
        assert (result.n_images, result.n_computed) == (41, 40)
        assert len(load_table(cache, [result.record]).labels) == 41

    def test_views(self, red_and_blue: Path, cache: Path) -> None:
        self.extract(red_and_blue, cache)
        result = self.extract(red_and_blue, cache, views=2, augment="flip,crop")
        assert (result.n_computed, result.n_reused) == (80, 40)
        table = load_table(cache, [result.record])
        n_train = int((load_table(cache, [result.record], 0).splits == "train").sum())
        assert len(table.part("train")) == 3 * n_train
        for split in ("val", "test"):
            assert len(table.part(split)) == int((table.splits == split).sum())
        for key in set(table.keys.tolist()):
            assert len(set(table.splits[table.keys == key].tolist())) == 1
        with pytest.raises(ConfigError, match="--views 3"):
            load_table(cache, [result.record], 3)

    def test_flipped_byte_is_repaired(self, red_and_blue: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = self.extract(red_and_blue, cache)
        before = load_table(cache, [first.record]).features
        shard = next((cache / "features").rglob("*.h5"))
        content = bytearray(shard.read_bytes())
        content[bytes(content).index(before[0].tobytes()) + 5] ^= 4
        shard.write_bytes(content)
        again = self.extract(red_and_blue, cache)
        assert again.n_computed == 40
        assert "set aside, and its rows are computed again" in caplog.text
        np.testing.assert_array_equal(load_table(cache, [first.record]).features, before)


class TestQuarantine:
    @pytest.fixture
    def with_bad_files(self, red_and_blue: Path) -> Path:
        (red_and_blue / "red" / "bad.png").write_bytes(b"no image")
        (red_and_blue / "blue" / "gone.png").symlink_to("nowhere.png")
        return red_and_blue

    def test_named_counted_and_left_out(
        self, with_bad_files: Path, cache: Path, fake_engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = ExtractConfig(str(with_bad_files))
        for n_computed in (40, 0):
            result = commands.extract(config, cache)
            assert result.n_images == 42
            assert result.n_computed == n_computed
            assert result.unreadable == {
                "blue/gone.png": "No such file or directory",
                "red/bad.png": "not an image in a format that can be read",
            }
            assert result.to_json()["n_quarantined"] == 2
        assert "red/bad.png: not an image" in caplog.text
        assert load_table(cache, [result.record]).missing == 1

    def test_strict_fails_after_saving(self, with_bad_files: Path, cache: Path, fake_engine: FakeEngine) -> None:
        with pytest.raises(QuarantineError, match="2 of 42 images"):
            commands.extract(ExtractConfig(str(with_bad_files)), cache, ExtractOptions(strict=True))
        assert commands.extract(ExtractConfig(str(with_bad_files)), cache).n_computed == 0

    def test_class_without_a_readable_image(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> None:
        for path in (red_and_blue / "red").iterdir():
            path.write_bytes(path.name.encode())
        with pytest.raises(DataError, match="No image of the class red can be read"):
            commands.extract(ExtractConfig(str(red_and_blue)), cache)

    def test_passing_trouble_leaves_a_table_that_trains(
        self, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that changes between hashing and reading has no features this time, and is no row."""
        from pipeline.data import FileSource

        read = FileSource.read

        def changed(self: FileSource, index: int) -> bytes:
            return read(self, index) + (b"x" if index == 3 else b"")

        monkeypatch.setattr(FileSource, "read", changed)
        result = commands.extract(ExtractConfig(str(red_and_blue)), cache)
        assert result.n_computed == 39
        assert len(result.unreadable) == 1
        run = commands.train_head(HeadConfig(), cache, reports)
        assert run.n_train + run.n_val + run.n_test == 39
        monkeypatch.setattr(FileSource, "read", read)
        assert commands.extract(ExtractConfig(str(red_and_blue)), cache).n_computed == 1

    def test_larger_pixel_limit_tries_again(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> None:
        with pytest.raises(DataError):
            commands.extract(ExtractConfig(str(red_and_blue), pixel_limit=1000), cache)
        assert commands.extract(ExtractConfig(str(red_and_blue)), cache).n_computed == 40


class TestTrainHead:
    @pytest.fixture
    def extracted(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> commands.ExtractResult:
        return commands.extract(ExtractConfig(str(red_and_blue)), cache)

    def test_run_folder(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        assert run.metrics["val"]["accuracy"] == run.metrics["test"]["accuracy"] == 1.0
        assert run.n_train + run.n_val + run.n_test == 40
        assert run.features == extracted.record.id
        folder = reports / run.id
        assert {path.name for path in folder.iterdir()} == {
            "run.json",
            "history.csv",
            "predictions.h5",
            "seen.npz",
            "head.npz",
        }
        value = json.loads((folder / "run.json").read_text())["payload"]
        assert value["specs"][0] == extracted.record.spec.to_json()
        assert value["class_names"] == ["blue", "red"]
        with h5py.File(folder / "predictions.h5") as file:
            assert file["test/probability"].shape == (run.n_test, 2)
            right = file["test/probability"][:].argmax(axis=1) == file["test/label"][:]
            assert right.all()
            keys = load_table(cache, [extracted.record]).part("test").keys
            assert file["test/key"][:].tolist() == keys.tolist()

    def test_views_are_trained_on(
        self, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(red_and_blue), views=1, augment="flip"), cache)
        run = commands.train_head(HeadConfig("logreg"), cache, reports)
        assert run.n_train + run.n_val + run.n_test == 40
        assert run.metrics["test"]["accuracy"] == 1.0

    def test_newest_features_are_taken(
        self, extracted: commands.ExtractResult, red_and_blue: Path, cache: Path, reports: Path
    ) -> None:
        other = commands.extract(ExtractConfig(str(red_and_blue), resize="pad"), cache)
        assert commands.train_head(HeadConfig(), cache, reports).features == other.record.id
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        assert commands.train_head(HeadConfig(), cache, reports).features == extracted.record.id
        assert (
            commands.train_head(HeadConfig(), cache, reports, TrainingOptions(other.record.id)).features
            == other.record.id
        )

    def test_activations_are_not_the_newest_features(
        self, extracted: commands.ExtractResult, red_and_blue: Path, cache: Path, reports: Path
    ) -> None:
        commands.extract(ExtractConfig(str(red_and_blue), pooling="none"), cache)
        assert find_record(cache, None).id == extracted.record.id

    def test_commands_that_errors_name_give_the_same_features(
        self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine
    ) -> None:
        import shlex

        config = ExtractConfig(
            str(red_and_blue), image_size=(32, 48), views=1, augment="crop", splits=SplitConfig(val_fraction=0.3)
        )
        words = shlex.split(config.command())
        assert words[:3] == ["tlpipe", "extract", str(red_and_blue)]
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert options == {"--image-size": "32x48", "--views": "1", "--augment": "crop", "--val-fraction": "0.3"}

    def test_no_features(self, cache: Path, reports: Path) -> None:
        with pytest.raises(StoreError, match="tlpipe extract DATA"):
            commands.train_head(HeadConfig(), cache, reports)

    def test_unknown_features(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        with pytest.raises(StoreError, match=extracted.record.id):
            commands.train_head(HeadConfig(), cache, reports, TrainingOptions("others"))

    def test_maps_are_refused(self, cache: Path, reports: Path, spec: object) -> None:
        record = find_record_of_maps(cache, spec)
        with pytest.raises(CacheMismatchError, match=r"keeps height and width .*tlpipe extract maps"):
            commands.train_head(HeadConfig(), cache, reports, TrainingOptions(record))

    def test_class_missing_from_train(
        self, tmp_path: Path, cache: Path, reports: Path, draw: Callable[..., Path], fake_engine: FakeEngine
    ) -> None:
        for name in ("train/a", "train/b", "val/a", "val/b", "val/c", "test/a"):
            draw(tmp_path / "data" / name / "1.png")
        commands.extract(ExtractConfig(str(tmp_path / "data")), cache)
        with pytest.raises(DataError, match="no training images of the class c"):
            commands.train_head(HeadConfig(), cache, reports)

    def test_lost_shard_is_noticed(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        next((cache / "features").rglob("*.h5")).unlink()
        with pytest.raises(StoreError, match="Features of 40 images .* are missing; compute them: tlpipe extract"):
            commands.train_head(HeadConfig(), cache, reports)

    def test_changed_dataset_file_is_noticed(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        with h5py.File(next((cache / "datasets").glob("*.h5")), "r+") as file:
            file["label"][0] = 1 - file["label"][0]
        with pytest.raises(StoreError, match="was changed after it was written"):
            commands.train_head(HeadConfig(), cache, reports)


@pytest.mark.usefixtures("fake_engine")
class TestSplits:
    def splits(self, cache: Path, result: commands.ExtractResult) -> dict[str, str]:
        dataset = load_dataset(cache, result.record.dataset)
        return dict(zip(dataset.locations, dataset.splits.tolist(), strict=True))

    def test_a_class_that_grows_keeps_its_val_and_test_images(
        self, red_and_blue: Path, cache: Path, draw: Callable[..., Path]
    ) -> None:
        before = self.splits(cache, commands.extract(ExtractConfig(str(red_and_blue)), cache))
        for number in range(40):
            draw(red_and_blue / "red" / f"new {number}.png", colour=(200, 60, 60))
        after = self.splits(cache, commands.extract(ExtractConfig(str(red_and_blue)), cache))
        assert {name: split for name, split in after.items() if name in before} == before
        of_red = [split for name, split in after.items() if name.startswith("red")]
        assert [of_red.count(split) for split in ("train", "val", "test")] == [42, 9, 9]
        again = commands.extract(ExtractConfig(str(red_and_blue), splits=SplitConfig(seed=1), seed=1), cache)
        assert self.splits(cache, again) != after, "another seed draws anew"

    def test_inspection_and_fine_tuning_see_the_same_splits(
        self, red_and_blue: Path, cache: Path, reports: Path, draw: Callable[..., Path]
    ) -> None:
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        for number in range(9):
            draw(red_and_blue / "red" / f"new {number}.png", colour=(200, 60, 60))
        record = commands.extract(ExtractConfig(str(red_and_blue)), cache).record
        fresh = open_dataset(str(red_and_blue), SplitConfig()).dataset
        assert fresh.id != record.dataset, "from these images alone the splits are others"
        assert commands.inspect(str(red_and_blue), cache, reports).dataset.id == record.dataset
        again = open_dataset(str(red_and_blue), SplitConfig(), known=lambda: splits_of(cache, record))
        assert again.dataset.id == record.dataset

    def test_near_duplicates_on_request(
        self, red_and_blue: Path, cache: Path, reports: Path, draw: Callable[..., Path]
    ) -> None:
        random = np.random.default_rng(1)
        pairs = []
        for number in range(12):
            pixels = np.kron(random.integers(0, 256, (6, 8, 3)), np.ones((5, 5, 1))).astype(np.uint8)
            pairs.append((f"red/{number} a.png", f"red/{number} b.png"))
            Image.fromarray(pixels).save(red_and_blue / pairs[-1][0])
            Image.fromarray(np.minimum(pixels, 250) + 1).save(red_and_blue / pairs[-1][1])
        apart = self.splits(cache, commands.extract(ExtractConfig(str(red_and_blue)), cache))
        assert any(apart[one] != apart[other] for one, other in pairs)
        config = ExtractConfig(str(red_and_blue), group_duplicates=True)
        first, again = (commands.extract(config, cache) for _ in range(2))
        assert first.n_computed == 0
        assert first.record.id == again.record.id
        together = self.splits(cache, first)
        assert all(together[one] == together[other] for one, other in pairs)
        assert {together[one] for one, _ in pairs} > {"train"}
        table = load_table(cache, [first.record])
        groups = dict(zip(table.locations, table.groups.tolist(), strict=True))  # type: ignore[union-attr]
        assert all(groups[one] == groups[other] for one, other in pairs)
        again = open_dataset(str(red_and_blue), SplitConfig(), known=lambda: splits_of(cache, first.record))
        assert again.dataset.id == first.record.dataset

    def test_near_duplicates_are_told_by_pooled_features(self, red_and_blue: Path, cache: Path) -> None:
        with pytest.raises(ConfigError, match="needs pooled features.*tlpipe extract .* --group-duplicates"):
            commands.extract(ExtractConfig(str(red_and_blue), pooling="none", group_duplicates=True), cache)

    def test_groups_of_a_manifest_stay_together_in_folds(
        self, red_and_blue: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [f"{name}/{number}.png,{name},{name}{number // 2}" for name in ("red", "blue") for number in range(20)]
        (red_and_blue / "list.csv").write_text("\n".join(["path,label,patient", *rows]))
        config = ExtractConfig(str(red_and_blue / "list.csv"), columns=Columns(group_column="patient"))
        table = load_table(cache, [commands.extract(config, cache).record])
        patients = {row.split(",")[0]: row.split(",")[2] for row in rows}
        used = np.flatnonzero(table.splits != "test")
        for turn in folds(table.all(), used, 4, 0, seed=0):
            sides = [{patients[table.locations[row]] for row in part} for part in (turn.train_rows, turn.val_rows[0])]
            assert not sides[0] & sides[1]
        with pytest.raises(
            ConfigError, match="--cv 10 needs 10 different groups of images of each class, and one has 9"
        ):
            folds(table.all(), used, 10, 0, seed=0)

    def test_datasets_of_before_there_were_groups_are_read(self, red_and_blue: Path, cache: Path) -> None:
        record = commands.extract(ExtractConfig(str(red_and_blue)), cache).record
        path = next((cache / "datasets").glob("*.h5"))
        with h5py.File(path) as file:
            assert "group" not in file
        assert load_dataset(cache, record.dataset).id == record.dataset


@pytest.mark.usefixtures("fake_engine")
class TestUnlabelled:
    @pytest.fixture
    def some_labels(self, red_and_blue: Path) -> Path:
        """A manifest in which every fourth picture has no label."""
        rows = [f"{name}/{number}.png,{name if number % 4 else ''}" for name in ("red", "blue") for number in range(20)]
        path = red_and_blue / "list.csv"
        path.write_text("\n".join(["path,label", *rows]))
        return path

    @pytest.mark.parametrize("kind", ["folder", "manifest"])
    def test_features_without_any_label(self, red_and_blue: Path, cache: Path, reports: Path, kind: str) -> None:
        data = red_and_blue / "red"
        if kind == "manifest":
            data = red_and_blue / "list.csv"
            data.write_text("\n".join(["file", *(f"red/{number}.png" for number in range(20))]))
        result = commands.extract(ExtractConfig(str(data)), cache)
        assert (result.n_images, result.n_computed) == (20, 20)
        with pytest.raises(DataError, match="has no labels; sort its images"):
            commands.train_head(HeadConfig(), cache, reports)
        target = cache.parent / "all.h5"
        caretaker.export(cache, None, target)
        with h5py.File(target) as file:
            assert file["features"].shape == (20, 12)
            assert file["labels"][:].tolist() == [-1] * 20
            assert len(file["class_names"]) == 0
        found = commands.inspect(str(data), cache, reports)
        assert found.counts() == {"(no label)": {"train": 20}}
        assert found.imbalance() is None
        assert found.by_features is not None and found.by_features.label_errors == []
        assert "(no label)" in inspect_text(found)

    def test_rows_without_a_label_are_left_out_of_training(
        self, some_labels: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        commands.extract(ExtractConfig(str(some_labels)), cache)
        run = commands.train_head(HeadConfig("centroid"), cache, reports)
        assert "Left out for lack of a label: 10 of 40 images of list" in caplog.text
        assert run.n_train + run.n_val + run.n_test == 30
        assert run.class_names == ["blue", "red"]
        table = load_table(cache, [find_record(cache, None)], labelled=False)
        assert np.bincount(table.labels + 1).tolist() == [10, 15, 15]
        rated = commands.evaluate(run.id, str(some_labels), cache, reports)
        assert rated.n_train + rated.n_val + rated.n_test == 30
        assert commands.inspect(str(some_labels), cache, reports).counts()["(no label)"]["train"] == 10

    def test_labels_that_come_later_are_split(self, red_and_blue: Path, cache: Path) -> None:
        path = red_and_blue / "list.csv"
        names = [f"{name}/{number}.png" for name in ("red", "blue") for number in range(20)]
        path.write_text("\n".join(["path,label", *(f"{name}," for name in names)]))
        commands.extract(ExtractConfig(str(path)), cache)
        path.write_text("\n".join(["path,label", *(f"{name},{name.split('/')[0]}" for name in names)]))
        record = commands.extract(ExtractConfig(str(path)), cache).record
        assert load_dataset(cache, record.dataset).counts() == {"train": 28, "val": 6, "test": 6}

    @pytest.mark.parametrize("head", ["logreg", "ridge", "centroid", "knn3", "linear"])
    def test_features_in_half_precision(self, red_and_blue: Path, cache: Path, reports: Path, head: str) -> None:
        """They are rounded to 11 bits, take half the room, and serve every head."""
        whole = commands.extract(ExtractConfig(str(red_and_blue)), cache).record
        half = commands.extract(ExtractConfig(str(red_and_blue), dtype="float16"), cache).record
        assert half.config.command().endswith("--dtype float16")
        tables = [load_table(cache, [record]) for record in (whole, half)]
        features = [table.features for table in tables]
        assert [one.dtype for one in features] == ["float32", "float16"]  # type: ignore[union-attr]
        np.testing.assert_allclose(features[1], features[0], rtol=2**-11)  # type: ignore[arg-type]
        runs = [
            commands.train_head(HeadConfig(head), cache, reports, TrainingOptions(record.id))
            for record in (whole, half)
        ]
        assert runs[0].metrics["test"]["accuracy"] == runs[1].metrics["test"]["accuracy"]
        assert open_classifier(reports, runs[1].id).run.specs[0].dtype == "float16"

    def test_half_precision_of_random_weights_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="--dtype float16 can't hold features of random weights"):
            ExtractConfig("digits", weights="random", dtype="float16")

    def test_one_class_is_extracted_and_not_trained_on(self, red_and_blue: Path, cache: Path, reports: Path) -> None:
        (red_and_blue / "list.csv").write_text("path,label\nred/0.png,red\nred/1.png,red\n")
        commands.extract(ExtractConfig(str(red_and_blue / "list.csv")), cache)
        with pytest.raises(DataError, match="only one class, 'red'"):
            commands.train_head(HeadConfig(), cache, reports)

    def test_nothing_that_can_be_read(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "flat").mkdir()
        (tmp_path / "flat" / "bad.png").write_text("no picture")
        with pytest.raises(DataError, match="None of the 1 images of flat can be read"):
            commands.extract(ExtractConfig(str(tmp_path / "flat")), cache)


@pytest.mark.usefixtures("fake_engine")
class TestAgain:
    def test_repeats_the_newest_options(
        self, red_and_blue: Path, cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "tlpipe")
        splits = SplitConfig(0.2, 0.1)
        config = ExtractConfig(str(red_and_blue), resize="pad", endpoint="conv4", group_duplicates=True, splits=splits)
        first = commands.extract(config, cache)
        assert "--again" not in caplog.text
        again = commands.extract(ExtractConfig(str(red_and_blue)), cache, ExtractOptions(again=True))
        assert (again.record.id, again.n_computed) == (first.record.id, 0)
        caplog.clear()
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        options = "--endpoint conv4 --resize pad --group-duplicates --val-fraction 0.2 --test-fraction 0.1"
        assert f"{red_and_blue} was extracted before with {options}; --again repeats that" in caplog.text
        with pytest.raises(ConfigError, match="leave out --resize crop, or --again"):
            commands.extract(ExtractConfig(str(red_and_blue), resize="crop"), cache, ExtractOptions(again=True))

    def test_nothing_to_repeat(self, red_and_blue: Path, cache: Path) -> None:
        with pytest.raises(ConfigError, match="was not extracted into .* yet"):
            commands.extract(ExtractConfig(str(red_and_blue)), cache, ExtractOptions(again=True))


@pytest.mark.usefixtures("fake_engine")
class TestSourceMovedOn:
    def test_carved_splits_are_no_change(
        self, red_and_blue: Path, tmp_path: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A source that gives train alone, from which test and val were carved."""
        red_and_blue.rename(tmp_path / "train")
        (tmp_path / "data").mkdir()
        (tmp_path / "train").rename(tmp_path / "data" / "train")
        commands.extract(ExtractConfig(str(tmp_path / "data")), cache)
        run = commands.train_head(HeadConfig("centroid"), cache, reports)
        assert run.n_val > 0 < run.n_test
        assert "has changed" not in caplog.text
        (tmp_path / "data" / "test").mkdir()
        (tmp_path / "data" / "train" / "red").rename(tmp_path / "data" / "test" / "red")
        (tmp_path / "data" / "train" / "red").mkdir()
        commands.train_head(HeadConfig("centroid"), cache, reports)
        assert "20 new, 20 gone" in caplog.text

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ("nothing", None),
            ("touched", None),
            ("new", "1 new"),
            ("old file moved in", "2 new"),
            ("gone", "1 gone"),
            ("written again", "1 changed"),
            ("relabelled", "1 new, 1 gone"),
            ("all gone", None),
        ],
    )
    def test_train_head_says_so(
        self,
        red_and_blue: Path,
        tmp_path: Path,
        cache: Path,
        reports: Path,
        draw: Callable[..., Path],
        caplog: pytest.LogCaptureFixture,
        change: str,
        what: str | None,
    ) -> None:
        old = tmp_path / "old"
        for number in (0, 1):
            draw(old / f"{number}.png")
        for path in red_and_blue.rglob("*.png"):
            os.utime(path, (1e9, 1e9))  # so that the memo trusts it
        record = commands.extract(ExtractConfig(str(red_and_blue), resize="pad"), cache).record
        if change == "touched":
            (red_and_blue / "red/0.png").chmod(0o600)
        elif change == "new":
            draw(red_and_blue / "red/new.png")
        elif change == "old file moved in":
            old.rename(red_and_blue / "red" / "old")
        elif change == "gone":
            (red_and_blue / "red/0.png").unlink()
        elif change == "written again":
            draw(red_and_blue / "red/0.png")
        elif change == "relabelled":
            (red_and_blue / "red/0.png").rename(red_and_blue / "blue/new.png")
        elif change == "all gone":
            shutil.rmtree(red_and_blue)
        commands.train_head(HeadConfig("centroid"), cache, reports)
        if what is None:
            assert "has changed since" not in caplog.text
        else:
            told = f"{red_and_blue} has changed since {record.id} was extracted: of its images {what}. "
            assert f"{told}Bring it up to date: tlpipe extract {red_and_blue} --resize pad" in caplog.text

    def test_labels_of_a_manifest(
        self, red_and_blue: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = red_and_blue / "list.csv"
        rows = [f"{name}/{number}.png,{name}" for name in ("red", "blue") for number in range(20)]
        path.write_text("\n".join(["path,label", *rows]))
        commands.extract(ExtractConfig(str(path)), cache)
        path.write_text("\n".join(["path,label", rows[0].replace(",red", ",blue"), *rows[1:]]))
        commands.train_head(HeadConfig("centroid"), cache, reports)
        assert "of its images 1 of another label or split. Bring" in caplog.text

    def test_arrays(self, tmp_path: Path, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture) -> None:
        images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
        np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 2)
        commands.extract(ExtractConfig(str(tmp_path / "set.npz")), cache)
        commands.train_head(HeadConfig("centroid"), cache, reports)
        assert "has changed since" not in caplog.text
        np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) // 10)
        commands.train_head(HeadConfig("centroid"), cache, reports)
        assert "its arrays were written again. Bring it up to date" in caplog.text


def find_record_of_maps(cache: Path, spec: object) -> str:
    """A table of features that keep height and width."""
    from pipeline.data import Dataset
    from pipeline.store.records import TableRecord, now, save_dataset, save_record

    keys = np.array([f"{n:032d}" for n in range(8)], "S32")
    labels, splits = np.arange(8) % 2, np.array(["train"] * 8)
    dataset = Dataset("maps", keys, labels, splits, tuple("abcdefgh"), ("x", "y"))
    maps = replace(spec, pooling="none")  # type: ignore[type-var]
    FeatureStore(cache, maps).append(keys.tolist(), np.ones((8, 2, 2, 3), np.float32))
    save_dataset(cache, dataset)
    save_record(cache, TableRecord("maps-1", now(), maps, dataset.id, "maps", ("val",), ExtractConfig("maps")))
    return "maps-1"


class TestRecordsAndRuns:
    def test_damaged_ones_are_left_aside(
        self, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        result = commands.extract(ExtractConfig(str(red_and_blue)), cache)
        run = commands.train_head(HeadConfig(), cache, reports)
        (cache / "tables" / "bad.json").write_text("{")
        for name, text in (("bad", "{}"), ("evil", json.dumps({"id": "evil", "created": "9999"}))):
            (reports / name).mkdir()
            (reports / name / "run.json").write_text(text)
        assert [record.id for record in records(cache)] == [result.record.id]
        assert [known.id for known in all_runs(reports)] == [run.id]
        assert find_record(cache, result.record.id[:12]).id == result.record.id
        assert find_run(reports, run.id, (HeadRun,)) == (run, reports / run.id)
        with pytest.raises(StoreError, match=result.record.id):
            find_record(cache, "nothing")
        with pytest.raises(RunError, match="bad/run.json is not what tlpipe wrote"):
            find_run(reports, "nothing", (HeadRun,))  # which may have been its name

    @pytest.mark.parametrize("reference", [None, "latest", "best"])
    def test_a_damaged_one_may_be_the_newest(
        self, reference: str | None, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """Then an older one is never taken in its place; each error says what mends it."""
        record = commands.extract(ExtractConfig(str(red_and_blue)), cache).record
        runs = [commands.train_head(HeadConfig(), cache, reports) for _ in range(2)]
        path = cache / "tables" / f"{record.id}.json"
        path.write_text(path.read_text().replace('"conv5"', '"conv4"'))
        with pytest.raises(
            StoreError, match=f"{record.id}.json can't be read: it was changed .* tlpipe extract .* rm "
        ):
            find_record(cache, None)
        other = commands.extract(ExtractConfig(str(red_and_blue), pooling="max"), cache).record
        assert find_record(cache, other.id) == other
        for part in (record.id, record.id[:10], record.id[4:-4]):
            with pytest.raises(StoreError, match=f"{record.id}.json can't be read"):
                find_record(cache, part)
        with pytest.raises(StoreError, match="can't be read"):
            commands.extract(ExtractConfig(str(red_and_blue)), cache, ExtractOptions(again=True))
        path = reports / runs[1].id / "run.json"
        path.write_text(path.read_text().replace('"logreg"', '"ridge"'))
        with pytest.raises(RunError, match=f"{runs[1].id}/run.json can't be read: it was changed .*; name another run"):
            find_run(reports, reference, (HeadRun,))
        with pytest.raises(RunError, match=f"{runs[1].id}/run.json can't be read"):
            find_run(reports, "train-head-logreg", (HeadRun,))  # which both fit
        assert find_run(reports, runs[0].id, (HeadRun,))[0] == runs[0]
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        assert find_record(cache, None).id == record.id, "the extract that made it mends it"

    def test_run_folder_elsewhere(
        self, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        run = commands.train_head(HeadConfig(), cache, reports)
        elsewhere = reports.with_name("elsewhere")
        reports.rename(elsewhere)
        assert find_run(reports, str(elsewhere / run.id), (HeadRun,))[1] == elsewhere / run.id
        with pytest.raises(RunError, match="one of tlpipe finetune is needed"):
            find_run(reports, str(elsewhere / run.id), (FinetuneRun,))

    def test_start_of_an_id_will_do(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> None:
        result = commands.extract(ExtractConfig(str(red_and_blue)), cache)
        assert find_record(cache, "colours-").id == result.record.id
        commands.extract(ExtractConfig(str(red_and_blue), resize="pad"), cache)
        with pytest.raises(StoreError, match="fits several"):
            find_record(cache, "colours-")


class TestCaretaker:
    @pytest.fixture
    def extracted(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> commands.ExtractResult:
        return commands.extract(ExtractConfig(str(red_and_blue)), cache)

    def test_describe(self, extracted: commands.ExtractResult, cache: Path, red_and_blue: Path) -> None:
        (row,) = caretaker.ls(cache)
        assert row["features_id"] == extracted.record.id
        assert row["images"] == 40
        assert row["data"] == str(red_and_blue)
        assert row["bytes"] > 40 * 12 * 4

    def test_verify(self, extracted: commands.ExtractResult, cache: Path) -> None:
        assert caretaker.verify(cache) == caretaker.Verified(3, [], [])
        shard = next((cache / "features").rglob("*.h5"))
        shard.write_bytes(shard.read_bytes()[:-20])
        next((cache / "datasets").glob("*.h5")).write_bytes(b"")
        verified = caretaker.verify(cache)
        n_files, damaged = verified.n_files, verified.damaged
        assert n_files == 3
        assert len(damaged) == 2

    def test_nothing_needed_is_collected(
        self,
        extracted: commands.ExtractResult,
        cache: Path,
        reports: Path,
        red_and_blue: Path,
        draw: Callable[..., Path],
    ) -> None:
        assert gc(cache, reports).found == []
        run = commands.train_head(HeadConfig(), cache, reports)
        draw(red_and_blue / "red" / "new.png")
        for path in list((red_and_blue / "blue").iterdir())[:5]:
            path.unlink()
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        assert gc(cache, reports).found == [], "the run needs the older table"
        shutil.rmtree(reports / run.id)
        found = gc(cache, reports).found
        assert {item.path.parent.name for item in found} == {"tables", "datasets"}
        gc(cache, reports, delete=True)
        assert gc(cache, reports).found == []
        assert commands.extract(ExtractConfig(str(red_and_blue)), cache).n_computed == 0

    def test_needless_shards_stores_and_leftovers(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path, red_and_blue: Path
    ) -> None:
        import os

        store = FeatureStore(cache, extracted.record.spec)
        store.append([f"{n:032d}".encode() for n in range(3)], np.ones((3, 12), np.float32))  # of no dataset
        store.open()
        twin = next(shard for shard in store.shards if len(shard.keys) == 40)
        store.append(twin.keys[::-1].tolist(), store.read(twin.keys[::-1]).astype(np.float32))  # computed twice
        orphan = FeatureStore(cache, replace(extracted.record.spec, endpoint="conv1"))
        orphan.append([b"0" * 32], np.ones((1, 4), np.float32))
        leftover = store.folder / "shards" / ".x.h5.1-2.partial"
        leftover.write_bytes(b"half")
        os.utime(leftover, (0, 0))
        assert [item.path for item in gc(cache, reports).found] == [leftover], "a process may be at work"
        for path in cache.rglob("*"):
            os.utime(path, (0, 0))
        fresh = store.folder / "shards" / ".y.h5.1-2.partial"
        fresh.write_bytes(b"being written")
        found = gc(cache, reports).found
        assert len(found) == 4
        assert {leftover, orphan.folder} <= {item.path for item in found}
        gc(cache, reports, delete=True)
        assert fresh.exists()
        assert commands.extract(ExtractConfig(str(red_and_blue)), cache).n_computed == 0
        assert caretaker.verify(cache).damaged == []

    def test_only_a_sound_shard_makes_another_needless(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        """Though the other was sound when it was read, and nothing shows that it rotted since."""
        store = FeatureStore(cache, extracted.record.spec)
        store.open()
        (first,) = store.shards
        features = store.read(first.keys)
        second = store.append(first.keys.tolist(), features + 1)
        long_ago = time.time() - 3 * 86_400
        rotten, sound = sorted([first, second], key=lambda shard: shard.path)
        content = bytearray(rotten.path.read_bytes())
        content[-1] ^= 1
        rotten.path.write_bytes(content)
        for shard in (rotten, sound):
            os.utime(shard.path, (long_ago, long_ago))
        SoundShards(cache).remember([rotten], states([rotten.path]), time.time_ns())
        assert sound.path not in {item.path for item in gc(cache, reports, delete=True).found}
        assert sound.path.exists()

    def test_what_cannot_be_read_stops_the_cleaning(
        self, extracted: commands.ExtractResult, cache: Path, reports: Path
    ) -> None:
        run = commands.train_head(HeadConfig(), cache, reports)
        table = cache / "tables" / f"{extracted.record.id}.json"
        for path, error in ((table, StoreError), (reports / run.id / "run.json", RunError)):
            text = path.read_text()
            path.write_text(text[:50])
            with pytest.raises(error, match="can't be read|no run that can be read"):
                gc(cache, reports)
            path.write_text(text)
        table.write_text("{")
        (cache / "features" / extracted.record.spec.digest() / "spec.json").write_text("{}")
        verified = caretaker.verify(cache)
        n_files, damaged = verified.n_files, verified.damaged
        assert (n_files, {item.path.name for item in damaged}) == (3, {table.name, "spec.json"})

    def test_graphs(self, extracted: commands.ExtractResult, cache: Path, reports: Path) -> None:
        import os

        needed = graph_folder(cache, extracted.record.spec)
        other = cache / "graphs" / ("0" * 32)
        for folder in (needed, other):
            folder.mkdir(parents=True)
            (folder / "model.xml").write_text("x")
            for path in (folder / "model.xml", folder):
                os.utime(path, (0, 0))
        assert [item.path for item in gc(cache, reports).found] == [other]

    def test_stopped_extract_is_not_collected(
        self, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import os

        def stop(self: FakeEngine, batches: object) -> object:
            for count, features in enumerate(stream(self, batches)):  # type: ignore[arg-type]
                if count == 3:
                    raise KeyboardInterrupt
                yield features

        stream = FakeEngine.stream
        monkeypatch.setattr(FakeEngine, "stream", stop)
        monkeypatch.setattr("pipeline.extraction.pass_.SHARD_ROWS", 4)
        with pytest.raises(KeyboardInterrupt):
            commands.extract(ExtractConfig(str(red_and_blue)), cache)
        for path in cache.rglob("*"):
            os.utime(path, (0, 0))
        assert gc(cache, reports).found == []

    @pytest.mark.parametrize("suffix", [".h5", ".npz"])
    def test_export(self, extracted: commands.ExtractResult, cache: Path, tmp_path: Path, suffix: str) -> None:
        target = tmp_path / f"out{suffix}"
        caretaker.export(cache, None, target)
        table = load_table(cache, [extracted.record])
        if suffix == ".npz":
            found = dict(np.load(target))
        else:
            with h5py.File(target) as file:
                found = {
                    name: file[name].asstr()[:] if file[name].dtype.kind == "O" else file[name][:] for name in file
                }
        assert set(found) == {"features", "labels", "split", "paths", "class_names"}
        np.testing.assert_array_equal(found["features"], table.features)
        np.testing.assert_array_equal(found["labels"], table.labels)
        assert found["class_names"].tolist() == ["blue", "red"]
        assert found["paths"].tolist() == list(table.locations)
        assert found["split"].tolist() == table.splits.tolist()
        with pytest.raises(ConfigError, match="is there already"):
            caretaker.export(cache, None, target)
        with pytest.raises(ConfigError, match=r"\.h5 or \.npz"):
            caretaker.export(cache, None, tmp_path / "out.csv")


@pytest.mark.parametrize("change", [{"created": "yesterday"}, {"id": "../other"}])
def test_changed_records_are_left_aside(
    change: dict[str, str], extracted: ExtractResult, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = (cache / "tables").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert records(cache) == []
    assert f"{path} can't be read" in caplog.text


class TestParts:
    """An extract in parts, as the tasks of a job array run them."""

    def test_parts_make_a_whole(self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> None:
        config, n_parts = ExtractConfig(str(red_and_blue), views=1, augment="flip"), 3
        found = [commands.extract(config, cache, ExtractOptions(part=f"{one}/{n_parts}")) for one in (2, 3, 1)]
        assert sum(one.n_images for one in found) == 40
        assert sum(one.n_computed for one in found) == fake_engine.n_computed == 80
        assert all(5 < one.n_images < 25 for one in found)
        assert [record.complete for record in records(cache)] == [False]
        with pytest.raises(StoreError, match="no features in"):
            find_record(cache, None)
        again = commands.extract(config, cache, ExtractOptions(part="1/3"))
        assert (again.n_computed, again.n_reused) == (0, 2 * again.n_images)
        whole = commands.extract(config, cache)
        assert (whole.n_images, whole.n_computed) == (40, 0)
        assert find_record(cache, None).id == whole.record.id == found[0].record.id
        assert [record.complete for record in records(cache)] == [True]

    def test_a_part_ends_nothing_that_was_whole(self, extracted: ExtractResult, pictures: Path, cache: Path) -> None:
        commands.extract(ExtractConfig(str(pictures)), cache, ExtractOptions(part="1/2"))
        assert find_record(cache, None).id == extracted.record.id

    def test_what_is_missing_is_computed_by_the_whole(
        self, red_and_blue: Path, cache: Path, fake_engine: FakeEngine
    ) -> None:
        part = commands.extract(ExtractConfig(str(red_and_blue)), cache, ExtractOptions(part="2/2"))
        assert commands.extract(ExtractConfig(str(red_and_blue)), cache).n_computed == 40 - part.n_computed

    @pytest.mark.usefixtures("fake_engine")
    def test_a_class_may_lie_in_another_part(self, red_and_blue: Path, cache: Path) -> None:
        for path in sorted((red_and_blue / "red").iterdir())[1:]:
            path.unlink()
        (red_and_blue / "blue" / "spoilt.png").write_text("no picture")
        parts = [
            commands.extract(ExtractConfig(str(red_and_blue)), cache, ExtractOptions(part=f"{n}/2")) for n in (1, 2)
        ]
        assert [list(part.unreadable) for part in parts].count(["blue/spoilt.png"]) == 1
        with pytest.raises(QuarantineError, match="1 of"):
            for n in (1, 2):
                commands.extract(ExtractConfig(str(red_and_blue)), cache, ExtractOptions(part=f"{n}/2", strict=True))

    @pytest.mark.parametrize("part", ["3", "0/2", "3/2", "1/0", "-1/2", "a/b"])
    def test_what_is_no_part(self, part: str) -> None:
        with pytest.raises(ConfigError, match=r"--part is .*; give which part of how many, such as 3/16"):
            ExtractOptions(part=part)

    @pytest.mark.slow
    def test_sixteen_tasks_of_a_job_array(self, red_and_blue: Path, tmp_path: Path) -> None:
        """At once, into one cache; a task that was killed is made up for by the last job."""
        script = Path(__file__).parent.parent / "docs" / "how-to" / "slurm.sh"
        options = ["colours", "--backbone", "mobilenet025", "--weights", "random", "--image-size", "32"]
        here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        tasks = [
            subprocess.Popen(
                ["bash", script, *options, "--quiet"],
                cwd=tmp_path,
                env={**here, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "16"},
                stdout=subprocess.DEVNULL,
            )
            for task in range(1, 17)
        ]
        tasks[7].kill()
        codes = [task.wait() for task in tasks]
        assert codes[:7] + codes[8:] == [0] * 15
        done = subprocess.run(
            ["bash", script, *options, "--json", "--quiet"], cwd=tmp_path, env=here, stdout=subprocess.PIPE, check=True
        )
        found = json.loads(done.stdout)
        assert found["n_computed"] + found["n_reused"] == 40
        assert found["n_computed"] < 15
        assert caretaker.verify(tmp_path / "cache").damaged == []
