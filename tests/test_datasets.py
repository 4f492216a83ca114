"""Readers: what DATA can be, and how bad input is refused."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Columns, SplitConfig
from pipeline.data import Opened, file_key, list_images, open_dataset, open_labelled
from pipeline.data.cifar import read_cifar
from pipeline.errors import DataError
from pipeline.util.memo import Memo

Draw = Callable[..., Path]


def opened(data: Path | str, **options: object) -> Opened:
    return open_dataset(str(data), SplitConfig(**options))  # type: ignore[arg-type]


def said(found: Opened) -> list[str]:
    """The notes, but for what is said of all data as small as most here."""
    return [note for note in found.notes if not note.startswith("No images are left for")]


def labelled(found: Opened) -> dict[str, str]:
    names = found.dataset.class_names
    return {
        location: names[label]
        for location, label in zip(found.dataset.locations, found.dataset.labels.tolist(), strict=True)
    }


class TestFolder:
    def test_class_folders(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("zebra/1.png", "ant/a.JPG", "ant/deep/er/b.webp", "ant/c"):
            path = tmp_path / name
            draw(path if path.suffix else path.with_suffix(".png"))
        (tmp_path / "ant/c.png").rename(tmp_path / "ant/c")
        draw(tmp_path / "ant/.hidden.png")
        draw(tmp_path / ".git/x.png")
        found = opened(tmp_path)
        assert found.dataset.class_names == ("ant", "zebra")
        assert labelled(found) == {
            "ant/a.JPG": "ant",
            "ant/c": "ant",
            "ant/deep/er/b.webp": "ant",
            "zebra/1.png": "zebra",
        }
        assert found.carved == ("train", "val", "test")
        assert found.source.read(0) == (tmp_path / "ant/a.JPG").read_bytes()

    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_split_folders(self, tmp_path: Path, draw: Draw, val: str) -> None:
        for split in ("train", val, "test"):
            for name in ("a", "b"):
                draw(tmp_path / split / name / f"{split}.png")
        found = opened(tmp_path)
        assert found.dataset.counts() == {"train": 2, "val": 2, "test": 2}
        assert found.carved == ()

    def test_a_class_may_be_called_train(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("train", "car"):
            draw(tmp_path / name / "1.png")
        assert opened(tmp_path).dataset.class_names == ("car", "train")

    def test_whole_numbers_are_sorted_by_value(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("10", "9", "2"):
            draw(tmp_path / name / "1.png")
        assert opened(tmp_path).dataset.class_names == ("2", "9", "10")

    def test_other_files_are_counted(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path / "a/1.png")
        draw(tmp_path / "b/1.png")
        draw(tmp_path / "stray.png")
        (tmp_path / "a/notes.txt").write_text("x")
        assert said(opened(tmp_path)) == [
            "2 files skipped (no image suffix, or not inside a class folder): a/notes.txt, stray.png"
        ]

    def test_source_twins_are_reported(self, tmp_path: Path, draw: Draw) -> None:
        for split in ("train", "val"):
            for name in ("a", "b"):
                draw(tmp_path / split / name / "1.png")
        (tmp_path / "val/a/2.png").write_bytes((tmp_path / "train/a/1.png").read_bytes())
        assert "train/a/1.png = val/a/2.png" in " ".join(opened(tmp_path).notes)

    def test_link_to_a_folder_elsewhere_is_followed(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path / "elsewhere/1.png")
        draw(tmp_path / "data/b/1.png")
        (tmp_path / "data/a").symlink_to(tmp_path / "elsewhere")
        assert tuple(opened(tmp_path / "data").dataset.locations) == ("a/1.png", "b/1.png")

    def test_link_that_loops(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path / "a/1.png")
        draw(tmp_path / "b/1.png")
        (tmp_path / "a/again").symlink_to(tmp_path / "a")
        with pytest.raises(DataError, match="leads back"):
            opened(tmp_path)

    def test_link_to_itself_is_unreadable(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path / "a/1.png")
        draw(tmp_path / "b/1.png")
        (tmp_path / "b/loop.png").symlink_to(tmp_path / "b/loop.png")
        assert [(item.location, item.cause) for item in opened(tmp_path).unreadable] == [
            ("b/loop.png", "Too many levels of symbolic links")
        ]

    def test_names_of_splits_in_any_case(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("Train/a", "Train/b", "TEST/a"):
            draw(tmp_path / name / "1.png")
        assert opened(tmp_path).dataset.counts() == {"train": 2, "test": 1}

    def test_name_that_is_no_utf_8(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path / "b/1.png")
        path = draw(tmp_path / "a/1.png")
        path.rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.png"))
        found = open_dataset(str(tmp_path), SplitConfig(), memo=Memo(tmp_path / "cache"))
        assert tuple(found.dataset.locations) == ("a/caf\\udce9.png", "b/1.png")

    def test_tables_beside_class_folders(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("a", "b"):
            draw(tmp_path / name / "1.png")
        for name in ("train.csv", "test.csv"):
            (tmp_path / name).write_text("x")
        assert opened(tmp_path).dataset.class_names == ("a", "b")

    def test_dangling_link_is_unreadable(self, tmp_path: Path, draw: Draw) -> None:
        draw(tmp_path / "a/1.png")
        draw(tmp_path / "b/1.png")
        (tmp_path / "b/2.png").symlink_to(tmp_path / "gone.png")
        found = opened(tmp_path)
        assert len(found.dataset) == 2
        assert [(item.location, item.cause) for item in found.unreadable] == [("b/2.png", "No such file or directory")]

    def test_unreadable_folder(self, tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
        draw(tmp_path / "a/1.png")
        draw(tmp_path / "b/1.png")
        scandir = os.scandir

        def refuse(path: Path) -> object:
            if Path(path).name == "b":
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr("pipeline.data.folder.os.scandir", refuse)
        with pytest.raises(DataError, match="b can't be read: Permission denied"):
            opened(tmp_path)

    @pytest.mark.parametrize(
        ("files", "word"),
        [
            ([], "no class folders"),
            (["a/1.png"], "only one class, 'a'"),
            (["a/1.png", "b/notes.txt"], r"only one class, 'a'.*tlpipe extract .*/a, .*to give them \(skipped: b\)"),
            (["a/notes.txt", "notes.txt"], r"found 1 file without an image suffix, and folders without images: a$"),
            (["set/train/a/1.png", "set/train/b/1.png"], "only one class, 'set', and that holds folders itself: train"),
            (["one/train/a/1.png", "one/test/a/1.png", "two/train/a/1.png"], "one, two hold a folder `train`"),
            (["train/a/1.png", "train/b/1.png", "test/1.png"], "test has no class folders"),
            (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "several folders for the split 'val'"),
            (["train/a/1.png", "test/a/1.png", "extra/a/1.png"], "mixes folders of splits with others"),
            (["val/a/1.png", "test/a/1.png"], "has no train folder"),
        ],
    )
    def test_bad_folders(self, tmp_path: Path, draw: Draw, files: list[str], word: str) -> None:
        for name in files:
            if name.endswith("txt"):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text("x")
            else:
                draw(tmp_path / name)
        with pytest.raises(DataError, match=word):
            opened(tmp_path)

    def test_pictures_without_class_folders_have_no_labels(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("2.png", "1.png"):
            draw(tmp_path / name)
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "cache").mkdir()
        found = opened(tmp_path)
        assert tuple(found.dataset.locations) == ("1.png", "2.png")
        assert found.dataset.labels.tolist() == [-1, -1]
        assert found.dataset.counts() == {"train": 2}
        aside, skipped, unlabelled = found.notes
        assert "1 file skipped" in aside and "1 folder skipped" in skipped
        assert unlabelled == "2 of 2 images without a label; training leaves them out"

    def test_folders_in_class_folders_are_told(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("flowers/daisy/1", "flowers/roses/1", "letters/1", "letters/more/2", "more/own/a/1"):
            draw(tmp_path / f"{name}.png")
        told, other = said(opened(tmp_path))
        assert other.startswith("All images of more lie in folders of their own (own)")
        assert told.startswith(
            "All images of flowers lie in folders of their own (daisy, roses), which count as one class"
        )
        assert told.endswith(f"tlpipe extract {tmp_path / 'flowers'}")

    def test_what_never_is_a_class_is_named_in_one_line(self, tmp_path: Path, draw: Draw) -> None:
        for name in ("a/1.png", "b/1.png", "__MACOSX/a/1.png", ".hidden/1.png", "a/__MACOSX/2.png", "b/.hidden/2.png"):
            draw(tmp_path / name)
        (tmp_path / "empty/deep").mkdir(parents=True)
        found = opened(tmp_path)
        assert found.dataset.class_names == ("a", "b")
        assert tuple(found.dataset.locations) == ("a/1.png", "b/1.png")
        assert said(found) == ["3 folders skipped (no images, hidden, or written by tlpipe): .hidden, __MACOSX, empty"]

    @pytest.mark.parametrize(
        "files",
        [
            ("any/.tlpipe", "any/20260101-run/figure.png"),
            ("any/20260101-run/run.json", "any/20260101-run/figure.png"),
            ("any/features/0123/spec.json", "any/picture.png"),
            ("any/tables/x.json", "any/picture.png"),
        ],
    )
    def test_what_tlpipe_wrote_is_no_class(self, tmp_path: Path, draw: Draw, files: tuple[str, ...]) -> None:
        """Whatever the folder is called, and whether it has the marker or is older than that."""
        for name in ("a/1.png", "b/1.png", "a/deep/1.png", *files):
            draw((tmp_path / name).with_suffix(".png"))
            if not name.endswith("png"):
                (tmp_path / name).write_text('{"backbone": "", "spec": {}, "stage": ""}')
        (tmp_path / "a/deep/.tlpipe").write_text("")
        found = opened(tmp_path)
        assert tuple(found.dataset.locations) == ("a/1.png", "b/1.png")
        assert any("1 folder skipped" in note and note.endswith(": any") for note in found.notes)
        with pytest.raises(DataError, match="was written by tlpipe"):
            opened(tmp_path / "any")

    def test_json_files_of_others_are_no_sign_of_tlpipe(self, tmp_path: Path, draw: Draw) -> None:
        """A set of furniture, with a class called tables and notes beside its pictures."""
        for name in ("tables/1.png", "chairs/run/1.png"):
            draw(tmp_path / name)
            (tmp_path / name).with_name("run.json").write_text('{"legs": 4}')
        (tmp_path / "tables" / "1.json").write_text("[4]")
        assert opened(tmp_path).dataset.class_names == ("chairs", "tables")


class TestManifest:
    @pytest.fixture
    def folder(self, tmp_path: Path, draw: Draw) -> Path:
        for name in ("a.png", "sub/b.png", "c.png"):
            draw(tmp_path / name)
        return tmp_path

    @staticmethod
    def write(folder: Path, rows: list[tuple[str, ...]], kind: str = ".csv") -> Path:
        path = folder / f"list{kind}"
        if kind == ".parquet":
            import pyarrow
            from pyarrow import parquet

            columns = list(zip(*rows[1:], strict=True))
            parquet.write_table(pyarrow.table(dict(zip(rows[0], map(list, columns), strict=True))), path)
        else:
            path.write_text("\n".join(("\t" if kind == ".tsv" else ",").join(row) for row in rows) + "\n")
        return path

    ROWS = (("path", "label", "split"), ("a.png", "x", "train"), ("sub/b.png", "y", "train"), ("c.png", "y", "valid"))

    @pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
    def test_kinds(self, folder: Path, kind: str) -> None:
        found = opened(self.write(folder, self.ROWS, kind), test_fraction=0)
        assert labelled(found) == {"a.png": "x", "sub/b.png": "y", "c.png": "y"}
        assert found.dataset.splits.tolist() == ["train", "train", "val"]
        assert found.dataset.name == "list"

    def test_repeated_rows_are_merged(self, folder: Path) -> None:
        found = opened(self.write(folder, [*self.ROWS, self.ROWS[1]]))
        assert len(found.dataset) == 3
        assert said(found) == ["Of list.csv, 1 row merged with others of the same path"]

    @pytest.mark.parametrize(
        ("rows", "word"),
        [
            ([("where", "kind"), ("a.png", "x")], "lacks a column of paths.*it has where, kind.*--path-column"),
            ([("path", "Class", "target"), ("a.png", "x", "1")], "may be the label: Class, target.*--label-column"),
            ([("path", "label", "label"), ("a.png", "x", "1")], "two columns 'label'"),
            ([("path", "label")], "no rows"),
            ([("path", "label"), ("a.png", "x"), ("a.png", "y")], r"1 path twice.*a.png \(x and y\)"),
            (
                [("path", "label"), ("a.png", "x"), ("no.png", "y"), ("nor.png", "y")],
                "2 files not there.*no.png",
            ),
            ([("path", "label"), ("../secret.png", "x")], "leaves the folder"),
            ([("path", "label"), ("/etc/passwd", "x")], "leaves the folder"),
            ([("path", "label"), ("a/../../secret.png", "x")], "leaves the folder"),
            ([("path", "label"), ("", "x")], "without path, row 1"),
            ([("path", "group"), ("a.png", "p"), ("sub/../a.png", "q")], r"1 path twice.*\(p and q\)"),
            ([("path", "label", "split"), ("a.png", "x", "dev")], "split is 'dev'"),
            ([("path", "label"), ("a.png",)], "has 1 value, the header 2 columns, told apart by ','"),
            ([], "empty"),
        ],
    )
    def test_bad_manifests(self, folder: Path, rows: list[tuple[str, ...]], word: str) -> None:
        with pytest.raises(DataError, match=word):
            opened(self.write(folder, rows))

    @pytest.mark.parametrize("name", ["filename", "File", "image_path", "path"])
    @pytest.mark.parametrize("label", ["class", "target", "Label"])
    def test_common_names_and_further_columns(self, folder: Path, name: str, label: str) -> None:
        rows = [("", "age", label, name, "notes"), ("0", "7", "x", "a.png", ""), ("1", "8", "y", "c.png", "blurred")]
        found = opened(self.write(folder, rows))
        assert labelled(found) == {"a.png": "x", "c.png": "y"}
        assert said(found) == []
        assert found.dataset.others == {"age": ("7", "8"), "notes": ("", "blurred")}
        less = found.dataset.without(np.array([True, False]))
        assert tuple(less.locations) == ("c.png",)
        assert less.others == {"age": ("8",), "notes": ("blurred",)}

    def test_further_columns_do_not_change_what_a_dataset_is(self, folder: Path) -> None:
        rows = [("path", "label", "Age"), ("a.png", "x", "7"), ("c.png", "y", "8")]
        before = opened(self.write(folder, rows)).dataset
        after = opened(self.write(folder, [*rows[:2], ("c.png", "y", "9")])).dataset
        assert (before.id, before.others) == (after.id, {"Age": ("7", "8")})

    def test_what_is_left_for_no_split_is_said(self, folder: Path) -> None:
        few = self.write(folder, [("path", "label"), ("a.png", "x"), ("c.png", "y")])
        expected = ["No images are left for val or test: classes or groups are too small to be divided"]
        assert opened(few).notes == expected
        assert opened(few, val_fraction=0, test_fraction=0).notes == []

    def test_columns_are_of_manifests(self, folder: Path) -> None:
        with pytest.raises(DataError, match="digits has no columns to choose"):
            open_dataset("digits", SplitConfig(), columns=Columns(label_column="kind"))

    def test_named_columns(self, folder: Path) -> None:
        rows = [
            ("where", "Kind", "part", "who", "label"),
            ("a.png", "x", "train", "p", "1"),
            ("c.png", "y", "val", "p", "2"),
        ]
        path, columns = self.write(folder, rows), Columns("where", "kind", "part", "who")
        found = open_dataset(str(path), SplitConfig(test_fraction=0), columns=columns)
        assert labelled(found) == {"a.png": "x", "c.png": "y"}
        assert found.dataset.splits.tolist() == ["train", "val"]
        assert found.dataset.groups is not None and found.dataset.groups.tolist() == [0, 0]
        with pytest.raises(DataError, match="no column 'kin' .--label-column.; it has where, Kind"):
            open_dataset(str(path), SplitConfig(), columns=Columns("where", "kin"))

    @pytest.mark.parametrize("kind", [".csv", ".tsv"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_delimiters_are_told_apart(self, folder: Path, kind: str, delimiter: str) -> None:
        path = folder / f"list{kind}"
        rows = (("path", "label", "note"), ("a.png", "x", '"one, two"'), ("c.png", "y", ""))
        path.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows))
        assert labelled(opened(path)) == {"a.png": "x", "c.png": "y"}

    def test_pictures_to_predict_are_found_by_common_names(self, folder: Path, draw: Draw) -> None:
        """And not in what tlpipe wrote."""
        path = self.write(folder, [("id", "filename"), ("7", "a.png"), ("8", "sub/../c.png")])
        assert list(list_images([str(path)])[1].names) == [f"{folder}/a.png", f"{folder}/c.png"]
        draw(folder / "sub/reports/run/figure.png")
        (folder / "sub/reports/.tlpipe").write_text("")
        assert list(list_images([str(folder / "sub")])[1].names) == [f"{folder}/sub/b.png"]

    def test_rows_without_a_label(self, folder: Path) -> None:
        found = opened(self.write(folder, [("path", "label"), ("a.png", "x"), ("c.png", " "), ("sub/b.png", "y")]))
        assert found.dataset.class_names == ("x", "y")
        assert found.dataset.labels.tolist() == [0, -1, 1]
        assert found.dataset.label_name(1) == ""
        assert said(found) == ["1 of 3 images without a label; training leaves them out"]

    def test_one_label_for_all(self, folder: Path) -> None:
        found = opened(self.write(folder, [("path", "label"), ("a.png", "x"), ("c.png", "x")]))
        assert labelled(found) == {"a.png": "x", "c.png": "x"}
        assert said(found) == ["All labels are 'x'; a classifier needs two classes or more"]

    def test_no_labels_at_all(self, folder: Path) -> None:
        found = opened(self.write(folder, [("file", "kind"), ("a.png", "x"), ("c.png", "y")]))
        assert (found.dataset.labels.tolist(), found.dataset.class_names) == ([-1, -1], ())
        assert "list.csv has no column of labels" in found.notes[0] and "--label-column" in found.notes[0]
        with pytest.raises(DataError, match="has no labels"):
            open_labelled(str(folder / "list.csv"))

    def test_paths_that_go_down_and_up_again(self, folder: Path) -> None:
        rows = [("path", "label"), ("sub/../a.png", "x"), ("./sub/b.png", "y"), ("a.png", "x")]
        found = opened(self.write(folder, rows))
        assert list(found.source.names) == [f"{folder}/a.png", f"{folder}/sub/b.png"]  # type: ignore[attr-defined]
        assert said(found) == ["Of list.csv, 1 row merged with others of the same path"]

    @pytest.mark.parametrize(
        ("values", "questioned"),
        [
            ([str(number % 4) for number in range(40)], False),
            ([str(number % 30) for number in range(90)], False),  # classes from 0 without a gap
            ([str(number * 3 % 70) for number in range(70)], True),
            ([str(number) for number in range(40)], True),
            (["0.5", "1.25", "3"] * 10, True),
            (["1.0", "0.0"] * 10, False),
            (["1.5 m", "2.5 m"] * 10, False),
        ],
    )
    def test_many_different_numbers_are_questioned(
        self, folder: Path, draw: Draw, values: list[str], questioned: bool
    ) -> None:
        rows = [("path", "label")]
        for number, value in enumerate(values):
            shutil.copy(folder / "a.png", folder / f"{number}.png")
            rows.append((f"{number}.png", value))
        notes = [note for note in opened(self.write(folder, rows)).notes if "look like numbers" in note]
        assert bool(notes) == questioned
        assert all("--label-column" in note for note in notes)

    def test_groups_stay_on_one_side(self, folder: Path, draw: Draw) -> None:
        rows: list[tuple[str, ...]] = [("path", "label", "group")]
        for number in range(60):
            draw(folder / f"{number}.png")
            rows.append((f"{number}.png", "xy"[number % 2], f"patient {number // 3}"))
        found = opened(self.write(folder, rows)).dataset
        splits = found.splits.reshape(20, 3)
        assert (splits == splits[:, :1]).all()
        assert set(splits[:, 0].tolist()) == {"train", "val", "test"}
        assert found.groups is not None and found.groups.tolist() == [number // 3 for number in range(60)]
        assert found.id != replace(found, groups=None).id

    def test_link_out_of_the_folder(self, folder: Path, tmp_path_factory: Any, draw: Draw) -> None:
        outside = draw(tmp_path_factory.mktemp("outside") / "secret.png")
        draw(folder / "1.png")
        (folder / "inside.png").symlink_to(folder / "1.png")
        (folder / "link.png").symlink_to(outside)
        (folder / "deep").symlink_to(outside.parent)
        assert (
            opened(self.write(folder, [("path", "label"), ("inside.png", "x"), ("1.png", "y")])).dataset.keys.size == 2
        )
        for name in ("link.png", "deep/secret.png"):
            with pytest.raises(DataError, match="leaves the folder"):
                opened(self.write(folder, [("path", "label"), (name, "x")]))

    def test_link_to_itself(self, folder: Path) -> None:
        (folder / "loop.png").symlink_to(folder / "loop.png")
        with pytest.raises(DataError, match="loop.png"):
            opened(self.write(folder, [("path", "label"), ("loop.png", "x")]))

    def test_no_table(self, folder: Path) -> None:
        for kind in (".csv", ".parquet"):
            (folder / f"bad{kind}").write_bytes(b"\xff\xfe\x00\x01" * 10)
            with pytest.raises(DataError, match="save it as UTF-8" if kind == ".csv" else "can't be read"):
                opened(folder / f"bad{kind}")


class TestArrays:
    def test_splits_and_class_names(self, tmp_path: Path, random: np.random.Generator) -> None:
        images = random.integers(0, 256, (12, 4, 4, 3), np.uint8)
        labels = np.arange(12) % 2
        np.savez(
            tmp_path / "set.npz",
            x_train=images[:6],
            y_train=labels[:6, None],
            x_test=images[6:],
            y_test=labels[6:],
            class_names=["pear", "apple"],
        )
        found = opened(tmp_path / "set.npz", val_fraction=0)
        assert found.dataset.class_names == ("apple", "pear")
        assert found.dataset.labels.tolist() == [1, 0] * 6
        assert found.dataset.counts() == {"train": 6, "test": 6}
        assert found.dataset.locations[6] == "x_test[0]"
        np.testing.assert_array_equal(found.source.read(7), images[7])

    def test_images_and_text_labels(self, tmp_path: Path, random: np.random.Generator) -> None:
        np.savez(tmp_path / "set.npz", images=random.integers(0, 256, (4, 5, 5), np.uint8), labels=["b", "a", "b", "a"])
        assert opened(tmp_path / "set.npz").dataset.class_names == ("a", "b")

    @pytest.mark.parametrize(
        ("dtype", "scale"), [("uint8", 1), ("int64", 1), ("float32", 1), ("float32", 255), ("float64", 255)]
    )
    def test_value_ranges_give_the_same_pixels(
        self, tmp_path: Path, random: np.random.Generator, dtype: str, scale: int
    ) -> None:
        images = random.integers(0, 256, (4, 5, 5, 3), np.uint8)
        images[0, 0, 0, 0] = 255
        folder = tmp_path / "lesson"
        folder.mkdir()
        np.save(folder / "train_images.npy", (images / scale).astype(dtype))
        np.save(folder / "train_labels.npy", np.array([3, 7, 3, 7]))
        found = opened(folder, val_fraction=0, test_fraction=0)
        assert found.dataset.class_names == ("3", "7")
        for index in range(4):
            np.testing.assert_array_equal(found.source.read(index), images[index])

    @pytest.mark.parametrize("split", ["val", "valid", "validation"])
    def test_folder_of_arrays_with_splits(self, tmp_path: Path, split: str) -> None:
        for name in ("train", split, "test"):
            np.save(tmp_path / f"{name}_images.npy", np.full((2, 4, 4), len(name), np.uint8))
            np.save(tmp_path / f"{name}_labels.npy", np.array(["x", "y"]))
        assert opened(tmp_path).dataset.counts() == {"train": 2, "val": 2, "test": 2}

    @pytest.mark.parametrize(
        ("arrays", "word"),
        [
            ({"x_train": np.zeros((3, 4, 4), "u1"), "y_train": np.zeros(2, int)}, "3 images, but there are 2 labels"),
            ({"x_train": np.zeros((2, 3, 8, 8), "u1"), "y_train": np.zeros(2, int)}, r"shape \[2, 3, 8, 8\]"),
            ({"images": np.full((2, 4, 4), 300), "labels": [0, 1]}, "from 300 to 300"),
            ({"images": np.full((2, 4, 4), -0.5), "labels": [0, 1]}, "from -0.5"),
            ({"images": np.full((2, 4, 4), np.nan), "labels": [0, 1]}, "from nan"),
            ({"images": np.zeros((2, 4, 4), "u1"), "labels": np.eye(2)}, "one label a row"),
            ({"images": np.zeros((2, 4, 4), "u1"), "labels": [0.5, 1.5]}, "integers or texts"),
            ({"images": np.zeros((2, 4, 4), "u1"), "labels": [0, 2], "class_names": ["a", "b"]}, "from 0 to 2"),
            ({"images": np.zeros((2, 4, 4), "u1"), "labels": [0, 1], "class_names": ["a", "a"]}, "repeats"),
            ({"images": np.zeros((0, 4, 4), "u1"), "labels": []}, "no images"),
            ({"x_test": np.zeros((2, 4, 4), "u1"), "y_test": [0, 1]}, "needed are x_train"),
            (
                {"x_train": np.zeros((2, 4, 4), "u1"), "y_train": [0, 1], "x_test": np.zeros((2, 4, 4), "u1")},
                "only one of x_test and y_test",
            ),
            ({"images": np.array([["a"]]), "labels": [0]}, "needed is"),
        ],
    )
    def test_bad_arrays(self, tmp_path: Path, arrays: dict[str, object], word: str) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=word):
            opened(tmp_path / "bad.npz")

    def test_python_objects_are_not_loaded(self, tmp_path: Path) -> None:
        labels = np.array(["a", "b"], object)
        np.savez(tmp_path / "set.npz", images=np.zeros((2, 4, 4), "u1"), labels=labels)
        with pytest.raises(DataError, match="without Python objects"):
            opened(tmp_path / "set.npz")

    def test_damaged_archives(self, tmp_path: Path, random: np.random.Generator) -> None:
        path = tmp_path / "set.npz"
        np.savez_compressed(path, images=random.integers(0, 256, (9, 8, 8), np.uint8), labels=np.arange(9))
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)
        path.write_bytes(content)
        with pytest.raises(DataError, match="set.npz can't be read"):
            opened(path)
        np.save(tmp_path / "one.npy", np.zeros(3))
        (tmp_path / "one.npy").rename(tmp_path / "one.npz")
        with pytest.raises(DataError, match="one.npz can't be read"):
            opened(tmp_path / "one.npz")

    def test_no_labels(self, tmp_path: Path, random: np.random.Generator) -> None:
        images = random.integers(0, 256, (6, 4, 4), np.uint8)
        np.savez(tmp_path / "one.npz", images=images)
        np.savez(tmp_path / "two.npz", x_train=images[:4], x_test=images[4:])
        (tmp_path / "three").mkdir()
        np.save(tmp_path / "three/train_images.npy", images)
        for name in ("one.npz", "two.npz", "three"):
            found = opened(tmp_path / name).dataset
            assert (found.labels.tolist(), found.class_names) == ([-1] * 6, ())
            assert found.counts() == ({"train": 4, "test": 2} if name == "two.npz" else {"train": 6})

    def test_labels_missing(self, tmp_path: Path) -> None:
        np.save(tmp_path / "train_images.npy", np.zeros((2, 4, 4), "u1"))
        np.save(tmp_path / "test_images.npy", np.zeros((2, 4, 4), "u1"))
        np.save(tmp_path / "test_labels.npy", np.zeros(2, "u1"))
        with pytest.raises(DataError, match="train_labels.npy isn't"):
            opened(tmp_path)


def python_2_pickle(entries: dict[str, object]) -> bytes:
    """A dictionary of texts, lists and long strings, pickled as Python 2 pickled the original batches."""

    def item(value: object) -> bytes:
        if isinstance(value, bytes):
            return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING
        if isinstance(value, str):
            return b"U" + bytes([len(value)]) + value.encode()  # SHORT_BINSTRING
        if isinstance(value, int):
            return b"K" + bytes([value])  # BININT1
        runs = [value[at : at + 1000] for at in range(0, len(value), 1000)]  # type: ignore[arg-type, index]
        return b"]q\x01" + b"".join(b"(" + b"".join(map(item, run)) + b"e" for run in runs)

    return b"\x80\x02}(" + b"".join(item(name) + item(value) for name, value in entries.items()) + b"u."


class TestCifar:
    @pytest.fixture
    def images(self, random: np.random.Generator) -> np.ndarray:
        return random.integers(0, 256, (6, 32, 32, 3), np.uint8)

    @staticmethod
    def flat(images: np.ndarray) -> bytes:
        return images.transpose(0, 3, 1, 2).tobytes()

    def python_batches(self, folder: Path, images: np.ndarray) -> Path:
        folder.mkdir(parents=True)
        for name, part in (("data_batch_1", slice(0, 2)), ("data_batch_2", slice(2, 4)), ("test_batch", slice(4, 6))):
            entries = {"batch_label": name, "labels": [0, 1], "data": self.flat(images[part]), "filenames": ["a", "b"]}
            (folder / name).write_bytes(python_2_pickle(entries))
        meta = {"num_cases_per_batch": 2, "label_names": ["frog", "cat"], "num_vis": 32}
        (folder / "batches.meta").write_bytes(python_2_pickle(meta))
        return folder

    def check(self, found: Opened, images: np.ndarray) -> None:
        assert found.dataset.class_names == ("cat", "frog")
        assert found.dataset.counts() == {"train": 4, "test": 2}
        assert found.dataset.labels.tolist() == [1, 0] * 3
        for index, image in enumerate(images):
            np.testing.assert_array_equal(found.source.read(index), image)

    def test_python_batches(self, tmp_path: Path, images: np.ndarray) -> None:
        self.check(opened(self.python_batches(tmp_path / "batches", images), val_fraction=0), images)

    def test_binary_batches(self, tmp_path: Path, images: np.ndarray) -> None:
        for name, part in (("data_batch_1", (0, 1)), ("data_batch_2", (2, 3)), ("test_batch", (4, 5))):
            rows = b"".join(bytes([row % 2]) + self.flat(images[row : row + 1]) for row in part)
            (tmp_path / f"{name}.bin").write_bytes(rows)
        (tmp_path / "batches.meta.txt").write_text("frog\ncat\n")
        self.check(opened(tmp_path, val_fraction=0), images)

    def test_hundred_classes(self, tmp_path: Path, images: np.ndarray) -> None:
        for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
            n = len(images[part])
            fine, coarse = ([0, 1] * n)[:n], [5] * n
            data = self.flat(images[part])
            (tmp_path / name).write_bytes(python_2_pickle({"data": data, "fine_labels": fine, "coarse_labels": coarse}))
        meta = {"fine_label_names": ["frog", "cat"], "coarse_label_names": ["animal"]}
        (tmp_path / "meta").write_bytes(python_2_pickle(meta))
        self.check(opened(tmp_path, val_fraction=0), images)

    def test_long_lists_come_in_runs(self, tmp_path: Path) -> None:
        from pipeline.data.cifar import _after, _arguments

        labels = [number % 10 for number in range(2500)]
        (tmp_path / "batch").write_bytes(python_2_pickle({"labels": labels, "filenames": ["x"]}))
        assert list(_after(list(_arguments(tmp_path / "batch")), "labels", int)) == labels

    def test_nothing_in_a_pickle_is_run(self, tmp_path: Path, images: np.ndarray) -> None:
        folder = self.python_batches(tmp_path / "batches", images)
        (folder / "test_batch").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
        with pytest.raises(DataError, match="fetch it again"):
            opened(folder)
        assert not (tmp_path / "run").exists()

    def test_built_in_is_read_where_keras_keeps_it(
        self, tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        self.python_batches(tmp_path / "datasets/cifar-10-batches-py-target/cifar-10-batches-py", images)
        found = opened("cifar10", val_fraction=0)
        self.check(found, images)
        assert found.dataset.name == "cifar10"

    def test_built_in_without_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from pipeline.data import cifar

        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setitem(
            cifar.DOWNLOADS, "cifar10", ("http://127.0.0.1:9/none.tar.gz", "0" * 64, "cifar-10-batches-py")
        )
        with pytest.raises(DataError, match="can't be fetched from http://127.0.0.1:9"):
            read_cifar("cifar10")


def test_digits() -> None:
    found = opened("digits")
    assert len(found.dataset) == 1797
    assert found.dataset.class_names == tuple("0123456789")
    assert set(found.dataset.counts()) == {"train", "val", "test"}
    assert max(int(found.source.read(index).max()) for index in range(100)) == 255  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["nowhere", "file.xyz"])
def test_no_kind_of_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.xyz").write_text("x")
    with pytest.raises(DataError, match=r"\.csv, \.tsv, \.parquet"):
        opened(tmp_path / name)


def test_name_that_is_too_long_and_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="can't be read: File name too long"):
        opened("x" * 5000)

    def closed(self: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(DataError, match="can't be read: Permission denied"):
        opened(tmp_path)


def test_memo_saves_reading(red_and_blue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = 1_000_000_000
    for path in red_and_blue.rglob("*.png"):
        os.utime(path, ns=(past, past))
    memo = Memo(tmp_path / "cache")
    first = open_dataset(str(red_and_blue), SplitConfig(), memo=memo)
    read: list[Path] = []
    monkeypatch.setattr("pipeline.data.source.read_bytes", lambda path: read.append(path) or path.read_bytes())
    again = open_dataset(str(red_and_blue), SplitConfig(), memo=memo)
    assert read == []
    np.testing.assert_array_equal(first.dataset.keys, again.dataset.keys)
    changed = red_and_blue / "red/0.png"
    changed.write_bytes(changed.read_bytes() + b"x")
    os.utime(changed, ns=(past, past + 1))
    third = open_dataset(str(red_and_blue), SplitConfig(), memo=memo)
    assert read == [changed]
    assert file_key(changed.read_bytes()) in third.dataset.keys.tolist()
    open_dataset(str(red_and_blue), SplitConfig(), memo=memo, rehash=True)
    assert len(read) == 41


@pytest.mark.data
def test_byte_identical_pairs_of_a_public_set(data: Path) -> None:
    found = opened(data / "alien-predator")
    assert len(found.dataset) == 894
    assert len(set(found.dataset.keys.tolist())) == 890
    note = " ".join(found.notes)
    assert "train/predator/199.jpg = validation/predator/1.jpg" in note
    assert "train/predator/247.jpg = validation/predator/58.jpg" in note
