"""Labels that a person gave, over those of the data: read, laid over, and what a head on them is worth."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FakeEngine, age_pictures, draw_colours
from PIL import Image

from pipeline import commands
from pipeline.config import Columns, ExtractConfig, HeadConfig, SplitConfig
from pipeline.data import UNLABELLED, Opened, array_key, file_key, open_dataset
from pipeline.data.changes import changes
from pipeline.data.corrections import read_corrections
from pipeline.errors import DataError
from pipeline.store.records import load_dataset
from pipeline.util.memo import Memo
from pipeline.util.sealed import sealed


def opened(data: Path, labels: Path | None) -> Opened:
    return open_dataset(str(data), SplitConfig(), columns=Columns(labels=str(labels) if labels else None))


def labels_of(found: Opened) -> dict[str, str]:
    dataset = found.dataset
    return {location: dataset.label_name(row) for row, location in enumerate(dataset.locations)}


def write_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sealed(line)) + "\n" for line in lines))
    return path


def test_a_table_overrules_labels_gives_new_ones_and_leaves_pictures_out(red_and_blue: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nred/0.png,blue\nred/1.png,drop\nred/2.png,green\nred/3.png,\n")
    before, after = labels_of(opened(red_and_blue, None)), opened(red_and_blue, table)
    del before["red/1.png"]
    assert labels_of(after) == before | {"red/0.png": "blue", "red/2.png": "green"}
    assert after.dataset.class_names == ("blue", "green", "red")
    assert f"By {table}, 2 labels changed, 0 given, 1 picture left out" in after.notes


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "npz", "csv"])
def test_corrections_of_every_kind_of_data(kind: str, red_and_blue: Path, tmp_path: Path) -> None:
    paths = sorted(red_and_blue.rglob("*.png"))
    key = file_key(paths[0].read_bytes()).decode()
    data = tmp_path / f"data.{kind}"
    if kind == "folder":
        data = red_and_blue
    elif kind == "tar":
        with tarfile.open(data, "w") as tar:
            for number, path in enumerate(paths):
                for suffix, content in ((".png", path.read_bytes()), (".cls", path.parent.name.encode())):
                    member = tarfile.TarInfo(f"{number}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    elif kind == "parquet":
        images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        pq.write_table(pa.table({"image": images, "label": [path.parent.name for path in paths]}), data)
    elif kind == "npz":
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        np.savez(data, images=images, labels=np.array([path.parent.name == "red" for path in paths]).astype(int))
        key = array_key(images[0]).decode()
    else:
        data.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in paths))
    table = tmp_path / "labels.csv"
    table.write_text(f"key,label\n{key},green\n")
    dataset = opened(data, table).dataset
    rows = np.flatnonzero(dataset.keys == key.encode())
    assert len(rows) and {dataset.label_name(row) for row in rows} == {"green"}
    assert len(dataset) == len(paths) and "green" in dataset.class_names


def test_paths_may_be_written_as_other_programs_do(red_and_blue: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere" / "labels.csv"
    table.parent.mkdir()
    table.write_text("path,label\n./red/0.png,blue\nred\\1.png,blue\n")
    after = labels_of(opened(red_and_blue, table))
    assert (after["red/0.png"], after["red/1.png"], after["red/2.png"]) == ("blue", "blue", "red")


def test_splits_stay_as_they_were(red_and_blue: Path, tmp_path: Path, fake_engine: FakeEngine, cache: Path) -> None:
    def extracted(**columns: str) -> Any:
        config = ExtractConfig(str(red_and_blue), image_size=(32, 32), columns=Columns(**columns))
        return commands.extract(config, cache)

    table = tmp_path / "labels.csv"
    table.write_text("path,label\nred/0.png,blue\nred/1.png,drop\n")
    before = load_dataset(cache, extracted().record.dataset)
    result = extracted(labels=str(table))
    after = load_dataset(cache, result.record.dataset)
    assert result.n_computed == 0
    splits = dict(zip(before.keys.tolist(), before.splits.tolist(), strict=True))
    assert after.splits.tolist() == [splits[key] for key in after.keys.tolist()]
    assert len(after) == len(before) - 1


@pytest.mark.parametrize("between", [1, 0], ids=["a new picture", "nothing"])
def test_an_extract_without_labels_in_between_moves_none(
    between: int, tmp_path: Path, draw: Callable[..., Path], fake_engine: FakeEngine, cache: Path
) -> None:
    """As tlpipe label makes one: it knows no splits, as nothing has a label there."""
    rows = [f"{draw(tmp_path / 'all' / f'{n}.png', colour=(n, 3 * n, 90)).name},{'ab'[n % 2]}\n" for n in range(80)]
    table = tmp_path / "labels.csv"

    def extracted(n: int) -> dict[bytes, str]:
        """Splits of the images that have a label, if so many have one."""
        table.write_text("path,label\n" + "".join(rows[:n]))
        columns = Columns(labels=str(table) if n else None)
        result = commands.extract(ExtractConfig(str(tmp_path / "all"), image_size=(32, 32), columns=columns), cache)
        dataset = load_dataset(cache, result.record.dataset)
        labelled = dataset.labels != UNLABELLED
        return dict(zip(dataset.keys[labelled].tolist(), dataset.splits[labelled].tolist(), strict=True))

    first = extracted(40)
    for n in range(between):
        draw(tmp_path / "all" / f"new {n}.png", colour=(5, 5, 200))
    extracted(0)
    last = extracted(80)
    assert set(first.values()) == {"train", "val", "test"}
    assert {key: last[key] for key in first} == first


@pytest.mark.parametrize("named", ["key", "from the table's folder", "whole path"])
def test_pictures_are_known_by_key_and_by_path(named: str, red_and_blue: Path, tmp_path: Path) -> None:
    found = opened(red_and_blue, None).dataset
    key = found.keys[list(found.locations).index("red/5.png")].decode()
    name = {"key": key, "from the table's folder": "colours/red/5.png", "whole path": str(red_and_blue / "red/5.png")}
    table = tmp_path / "labels.csv"
    table.write_text(f"{'key' if named == 'key' else 'path'},label\n{name[named]},blue\n")
    assert labels_of(opened(red_and_blue, table))["red/5.png"] == "blue"


def test_a_picture_that_was_saved_anew_is_found_by_its_path(red_and_blue: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"path,key,label\nred/5.png,{'0' * 32},blue\nred/gone.png,{'1' * 32},blue\n")
    found = opened(red_and_blue, table)
    before = labels_of(opened(red_and_blue, None))
    assert labels_of(found) == {**before, "red/5.png": "blue"}
    assert f"1 label of no picture there: {'1' * 32}" in found.notes[-1]


def test_a_key_means_all_identical_pictures_and_a_path_one(red_and_blue: Path, tmp_path: Path) -> None:
    twin = red_and_blue / "red" / "twin.png"
    twin.write_bytes((red_and_blue / "red/0.png").read_bytes())
    found = opened(red_and_blue, None).dataset
    key = found.keys[list(found.locations).index("red/twin.png")].decode()
    table = tmp_path / "labels.csv"
    for name, changed in ((key, ["blue", "blue"]), ("red/twin.png", ["red", "blue"])):
        table.write_text(f"{'key' if name == key else 'path'},label\n{name},blue\n")
        labels = labels_of(opened(red_and_blue, table))
        assert [labels["red/0.png"], labels["red/twin.png"]] == changed


def test_the_last_line_of_a_journal_counts_and_a_torn_one_does_not(
    red_and_blue: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = opened(red_and_blue, None).dataset
    first, second = (found.keys[list(found.locations).index(f"red/{number}.png")].decode() for number in (0, 1))
    journal = write_lines(
        tmp_path / "labels.jsonl",
        {"key": first, "label": "blue"},
        {"key": second, "label": "blue"},
        {"key": second, "label": ""},
        {"key": first, "label": "green"},
    )
    with journal.open("a") as file:
        file.write('{"key": "' + first)
    labels = labels_of(opened(red_and_blue, journal))
    assert (labels["red/0.png"], labels["red/1.png"]) == ("green", "red")
    assert "cut off" in caplog.text


def test_a_changed_bit_in_a_journal_is_noticed(tmp_path: Path) -> None:
    journal = write_lines(tmp_path / "labels.jsonl", {"key": "0" * 32, "label": "blue"})
    journal.write_bytes(journal.read_bytes().replace(b"blue", b"blud"))
    with pytest.raises(DataError, match=r"line 1 can't be read: it was changed"):
        read_corrections(str(journal))


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("labels.txt", "", "is no file of labels"),
        ("labels.csv", "path,label\nred/0.png,\n", "labels.csv has no labels"),
        ("labels.csv", "path,other\nred/0.png,x\n", "has no column label"),
        ("labels.csv", "label\nx\n", "lacks a column of paths"),
        ("labels.csv", "path,label\nnowhere.png,blue\n", "None of the 1 label"),
        ("labels.jsonl", '{"key": 1, "label": "x"}\n', "is not what tlpipe label writes"),
        ("labels.jsonl", "[1]\n", "line 1 can't be read: it is no JSON object"),
        ("nowhere.jsonl", None, "can't be read: No such file"),
    ],
)
def test_bad_corrections_are_refused(
    name: str, text: str | None, error: str, red_and_blue: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=error):
        opened(red_and_blue, path)


def test_what_fits_no_picture_is_told(red_and_blue: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nred/0.png,blue\nred/99.png,blue\n")
    assert f"In {table}, 1 label of no picture there: red/99.png" in opened(red_and_blue, table).notes


def test_a_class_named_drop_is_refused(tmp_path: Path, draw: Callable[..., Path]) -> None:
    for name in ("drop", "roll"):
        draw(tmp_path / "golf" / name / "0.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nroll/0.png,drop\n")
    with pytest.raises(DataError, match="has a class 'drop'"):
        opened(tmp_path / "golf", table)


def test_labels_begin_with_a_folder_that_has_none(tmp_path: Path, draw: Callable[..., Path]) -> None:
    for number in range(4):
        draw(tmp_path / "flat" / f"{number}.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n0.png,one\n1.png,two\n")
    dataset = opened(tmp_path / "flat", table).dataset
    assert dataset.class_names == ("one", "two")
    assert sorted(dataset.labels.tolist()) == [UNLABELLED, UNLABELLED, 0, 1]


def test_later_commands_take_the_corrected_labels_for_those_of_the_data(
    red_and_blue: Path, tmp_path: Path, fake_engine: FakeEngine, cache: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nred/0.png,blue\nred/1.png,drop\n")
    columns = Columns(labels=str(table))
    config = ExtractConfig(str(red_and_blue), image_size=(32, 32), columns=columns)
    record = commands.extract(config, cache).record
    known = load_dataset(cache, record.dataset)

    def what_changed() -> str:
        return changes(str(red_and_blue), columns, known, record.carved, 2e9, Memo(cache))

    assert what_changed() == ""
    table.write_text("path,label\nred/0.png,red\nred/1.png,drop\n")
    assert what_changed() == "of its images 1 of another label or split"


def test_what_was_left_out_by_its_key_is_nothing_new_later(
    red_and_blue: Path, tmp_path: Path, fake_engine: FakeEngine, cache: Path, draw: Callable[..., Path]
) -> None:
    keys = [file_key((red_and_blue / "red" / f"{n}.png").read_bytes()).decode() for n in range(2)]
    age_pictures(red_and_blue)
    said = [{"key": keys[0], "label": "blue"}, {"key": keys[1], "label": "drop"}]
    journal = write_lines(tmp_path / "labels.jsonl", *said)
    columns = Columns(labels=str(journal))
    record = commands.extract(ExtractConfig(str(red_and_blue), image_size=(32, 32), columns=columns), cache).record
    known = load_dataset(cache, record.dataset)

    def what_changed() -> str:
        return changes(str(red_and_blue), columns, known, record.carved, 2e9, Memo(cache))

    assert what_changed() == ""
    draw(red_and_blue / "red" / "new.png", colour=(200, 9, 9))
    assert what_changed() == "of its images 1 new"
    write_lines(journal, *said, {"key": "0" * 32, "label": "blue"})
    assert what_changed() == "of its images 1 new", "a picture that is gone is none of the new ones"


def test_a_head_on_corrected_labels_is_compared_with_the_one_before(
    tmp_path: Path, fake_engine: FakeEngine, cache: Path, reports: Path
) -> None:
    """Ten of the twenty red pictures are called blue; corrected, the head finds all test images, by their true labels."""
    data = draw_colours(tmp_path / "colours")
    wrong = [f"{number}.png" for number in range(10)]
    for name in wrong:
        (data / "red" / name).rename(data / "blue" / f"red-{name}")

    def trained(**columns: str) -> Any:
        config = ExtractConfig(str(data), image_size=(32, 32), columns=Columns(**columns))
        commands.extract(config, cache)
        return commands.train_head(HeadConfig("centroid"), cache, reports)

    before = trained()
    assert before.against is None
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"blue/red-{name},red\n" for name in wrong))
    after = trained(labels=str(table))
    assert after.against is not None
    assert after.against.run == before.id
    found = after.against.splits["test"]
    assert (found.n, found.accuracy) == (after.n_test, 1.0)
    test = load_dataset(cache, after.dataset)
    n_test = int(
        np.isin(
            np.flatnonzero(test.splits == "test"),
            [row for row, location in enumerate(test.locations) if "red-" in location],
        ).sum()
    )
    assert after.notes[-1].startswith(f"Since {before.id}: 10 labels changed and 0 given (train ")
    assert (f"test {n_test:,})" in after.notes[-1]) == bool(n_test)
    assert after.notes[-1].endswith("0 pictures left out, 0 added")
