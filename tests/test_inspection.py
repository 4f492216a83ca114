"""Inspect: what is found in a dataset that was spoilt on purpose, and in real ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine
from PIL import Image

from pipeline import commands
from pipeline.config import Columns, ExtractConfig, SplitConfig
from pipeline.data.images import Facts, describe
from pipeline.errors import DataError, ImageError
from pipeline.inspection.doubts import Neighbours, outliers
from pipeline.inspection.duplicates import Group, near_duplicates


def named(found: Any, groups: list[Group]) -> set[frozenset[str]]:
    return {frozenset(found.dataset.locations[row] for row in group.rows) for group in groups}


@pytest.fixture
def spoilt(pictures: Path) -> Path:
    """Three classes with splits, twins across splits and labels, an unreadable file, and other formats."""
    folder = pictures.parent / "spoilt"
    for name in ("dark", "grey", "light"):
        for number in range(40):
            split = "test" if number < 8 else "train"
            target = folder / split / name / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pictures / name / f"{number}.png", target)
    for number in range(20, 40):
        (folder / "train" / "light" / f"{number}.png").unlink()
    shutil.copy(folder / "train/dark/9.png", folder / "test/dark/leak.png")
    shutil.copy(folder / "train/dark/10.png", folder / "train/light/disputed.png")
    (folder / "train/grey/bad.jpg").write_text("no picture")
    Image.open(folder / "train/grey/11.png").convert("L").resize((64, 48)).save(folder / "train/grey/grey.bmp")
    return folder


class TestBeforeTraining:
    def test_counts_and_kinds(self, spoilt: Path, cache: Path, reports: Path) -> None:
        found = commands.inspect(str(spoilt), cache, reports)
        value = found.to_json()
        assert value["n_images"] == 8 * 3 + 1 + 32 + 32 + 2 + 12 + 1
        assert value["classes"]["dark"]["test"] == 9
        assert sum(value["classes"]["dark"].values()) == 41
        assert value["carved"] == ["val"]
        assert value["formats"] == {"PNG": value["n_images"] - 2, "BMP": 1}
        assert value["modes"] == {"RGB": value["n_images"] - 2, "L": 1}
        assert value["sizes"] == {"width": [40, 40, 64], "height": [30, 30, 48]}
        assert value["unreadable"] == {"train/grey/bad.jpg": "not an image in a format that can be read"}
        assert value["features"] is None
        assert value["near_duplicates"] is None

    def test_twins_leaks_and_disputes(self, spoilt: Path, cache: Path, reports: Path) -> None:
        value = commands.inspect(str(spoilt), cache, reports).to_json()
        groups = {tuple(sorted(group["paths"])): group for group in value["duplicates"]}
        assert set(groups) == {
            ("test/dark/leak.png", "train/dark/9.png"),
            ("train/dark/10.png", "train/light/disputed.png"),
        }
        leak = groups["test/dark/leak.png", "train/dark/9.png"]
        assert (leak["leak"], leak["different_labels"]) == (True, False)
        assert groups["train/dark/10.png", "train/light/disputed.png"]["different_labels"] is True

    def test_imbalance_names_the_option(self, spoilt: Path, cache: Path, reports: Path) -> None:
        uneven = commands.inspect(str(spoilt), cache, reports).imbalance()
        assert uneven is not None
        assert (uneven["smallest"], uneven["option"]) == ("light", "--class-weight balanced")
        assert uneven["ratio"] > 2

    def test_even_classes(self, red_and_blue: Path, cache: Path, reports: Path) -> None:
        assert commands.inspect(str(red_and_blue), cache, reports).imbalance() is None

    def test_data_that_is_none(self, tmp_path: Path, cache: Path, reports: Path) -> None:
        with pytest.raises(DataError, match="There is no"):
            commands.inspect(str(tmp_path / "nowhere"), cache, reports)

    def test_arrays(self, cache: Path, reports: Path) -> None:
        found = commands.inspect("digits", cache, reports)
        assert found.formats() == {"array": 1797}
        assert found.modes() == {"L": 1797}
        assert found.sizes() == {"width": [8, 8, 8], "height": [8, 8, 8]}


class TestByFeatures:
    def test_planted_faults_are_found(
        self, spoilt: Path, cache: Path, reports: Path, fake_engine: FakeEngine, draw: Any
    ) -> None:
        wrong = draw(spoilt / "train/light/wrong.png", colour=(60, 60, 60))
        draw(spoilt / "train/light/odd.png", colour=(10, 250, 10))
        picture = Image.fromarray(np.tile(np.linspace(60, 200, 40, dtype=np.uint8), (30, 1)))
        picture.save(spoilt / "train/grey/slope.png")
        picture.resize((60, 45)).save(spoilt / "test/grey/slope-larger.jpg")
        commands.extract(ExtractConfig(str(spoilt)), cache)
        found = commands.inspect(str(spoilt), cache, reports)
        by = found.by_features
        assert by is not None
        assert frozenset({"train/grey/slope.png", "test/grey/slope-larger.jpg"}) in named(found, by.near)
        errors = {found.dataset.locations[one.row]: one for one in by.label_errors}
        assert "train/light/wrong.png" in errors
        assert errors["train/light/wrong.png"].suggested == "dark"
        assert found.dataset.locations[by.outliers[0][0]] == "train/light/odd.png"
        page = found.page.read_text()
        assert "data:image/webp" in page
        assert "wrong.png" in page
        assert wrong.is_file()

    def test_splits_are_those_of_the_features(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        splits = SplitConfig(val_fraction=0.4, test_fraction=0)
        commands.extract(ExtractConfig(str(pictures), splits=splits), cache)
        found = commands.inspect(str(pictures), cache, reports)
        assert set(found.dataset.counts()) == {"train", "val"}

    def test_features_of_other_images_do_not_count(
        self, pictures: Path, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        assert commands.inspect(str(pictures), cache, reports).by_features is None

    def test_one_image_of_a_class_is_too_few_to_doubt_labels(
        self, red_and_blue: Path, draw: Any, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        draw(red_and_blue / "green" / "0.png", colour=(10, 200, 10))
        commands.extract(ExtractConfig(str(red_and_blue), splits=SplitConfig(0, 0)), cache)
        draw(red_and_blue / "red" / "wrong.png", colour=(60, 60, 200))
        commands.extract(ExtractConfig(str(red_and_blue), splits=SplitConfig(0, 0)), cache)
        found = commands.inspect(str(red_and_blue), cache, reports)
        by = found.by_features
        assert by is not None
        assert [found.dataset.locations[one.row] for one in by.label_errors] == ["red/wrong.png"]
        assert by.skipped == ["Label errors can't be found in classes of fewer than two different images: green"]

    def test_groups_of_several_classes_that_no_folds_divide(
        self, pictures: Path, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        rows = [
            f"{name}/{number}.png,{name},{patients[number % 2]}"
            for name, patients in (("dark", "ab"), ("grey", "bc"), ("light", "ca"))
            for number in range(10)
        ]
        (pictures / "list.csv").write_text("\n".join(["path,label,patient", *rows]))
        columns = Columns(group_column="patient")
        commands.extract(ExtractConfig(str(pictures / "list.csv"), columns=columns, splits=SplitConfig(0, 0)), cache)
        by = commands.inspect(str(pictures / "list.csv"), cache, reports).by_features
        assert by is not None
        assert (by.n, by.label_errors) == (30, [])
        assert ["images that belong together are of several classes" in note for note in by.skipped] == [True]


class TestParts:
    def test_facts(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        Image.new("CMYK", (300, 200)).save(path)
        assert describe(path.read_bytes(), 10**6) == Facts("JPEG", "CMYK", 300, 200)
        assert describe(np.zeros((5, 7, 4), np.uint8), 10) == Facts("array", "RGBA", 7, 5)

    def test_a_picture_of_one_colour_is_like_no_other(self) -> None:
        neighbours = Neighbours.of(np.ones((4, 3), np.float32), np.array([b"a", b"b", b"c", b"d"], "S32"), np.arange(4))
        flat = np.full((16, 16, 3), 90, np.uint8)
        assert near_duplicates(neighbours, lambda _: flat) == []

    def test_pictures_that_are_gone_are_no_pairs(self) -> None:
        def gone(_: int) -> Any:
            raise ImageError("gone")

        neighbours = Neighbours.of(np.ones((4, 3), np.float32), np.array([b"a", b"b", b"c", b"d"], "S32"), np.arange(4))
        assert near_duplicates(neighbours, gone) == []

    def test_neighbours(self) -> None:
        """Of byte-identical images one counts, and lengths don't."""
        features = np.array([[1, 0], [1, 0], [3, 0.1], [0, 2]], np.float32)
        found = Neighbours.of(features, np.array([b"a", b"a", b"b", b"c"], "S32"), np.arange(4))
        assert found.rows.tolist() == [0, 2, 3]
        assert found.nearest[:, 0].tolist() == [1, 0, 1]
        assert found.distances[0, 0] == pytest.approx(1 / 30, rel=0.01)
        assert outliers(Neighbours.of(features[:1], np.array([b"a"], "S32"), np.arange(1))) == []

    def test_a_picture_over_pillows_own_limit(
        self, red_and_blue: Path, cache: Path, reports: Path, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What extract takes, an inspection takes, too."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        commands.extract(ExtractConfig(str(red_and_blue)), cache)
        found = commands.inspect(str(red_and_blue), cache, reports)
        assert found.unreadable() == {}
        assert found.page.read_text().count("data:image/webp") == len(found.by_features.outliers)  # type: ignore[union-attr]


@pytest.mark.data
def test_the_pairs_of_the_real_set(data: Path, cache: Path, reports: Path) -> None:
    """Four byte-identical groups, two of them across train and validation."""
    found = commands.inspect(str(data / "alien-predator"), cache, reports)
    leaks = [group for group in found.exact if group.leaks(found.dataset)]
    assert len(found.exact) == 4
    assert named(found, leaks) == {
        frozenset({"train/predator/199.jpg", "validation/predator/1.jpg"}),
        frozenset({"train/predator/247.jpg", "validation/predator/58.jpg"}),
    }
