"""Runs at an address: each is there whole or not at all, and every machine can use what another one trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine

from pipeline import commands
from pipeline.commands import runs as commands_of_runs
from pipeline.commands.gc import gc
from pipeline.config import ExtractConfig, FinetuneConfig, Folders, HeadConfig
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.runs.find import all_runs
from pipeline.runs.predictions import read_history, read_predictions, read_seen
from pipeline.util import local_copies, remote
from pipeline.util.options import made


@pytest.fixture
def reports(bucket: Any) -> Path:
    """A reports folder in the bucket."""
    return made(Folders, {"reports": "s3://pictures/reports"}).reports


@pytest.fixture
def extracted(pictures: Path, home: Path, fake_engine: FakeEngine) -> Any:
    return commands.extract(ExtractConfig(str(pictures)), home / "cache")


@pytest.fixture
def run(extracted: Any, home: Path, reports: Path) -> Any:
    return commands.train_head(HeadConfig("logreg"), home / "cache", reports)


def on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine keeps for itself is not there."""
    monkeypatch.setenv("TLPIPE_LOCAL_CACHE", str(tmp_path / "another machine"))


def test_is_as_in_a_folder(run: Any, home: Path, reports: Path, bucket: Any) -> None:
    same = commands.train_head(HeadConfig("logreg"), home / "cache", home / "reports")
    assert run.metrics == same.metrics and run.files == same.files
    names = {name.rpartition("/")[2] for name in bucket.find(f"pictures/reports/{run.id}")}
    assert names == {path.name for path in (home / "reports" / same.id).iterdir()}
    (found,) = all_runs(reports)
    assert found == run


def test_another_machine_uses_it(
    run: Any, pictures: Path, home: Path, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(next(pictures.glob("**/*.png")))
    here = commands.predict(run.id, [image], home / "cache", reports)
    on_another_machine(monkeypatch, tmp_path)
    there = commands.predict("latest", [image], home / "cache", reports)
    assert there.images[0].to_json() == here.images[0].to_json()
    by_path = commands.predict(f"s3://pictures/reports/{run.id}", [image], home / "cache", home / "reports")
    assert by_path.images[0].to_json() == here.images[0].to_json()


def test_rated_named_compared_and_removed(run: Any, pictures: Path, home: Path, reports: Path, bucket: Any) -> None:
    other = commands.train_head(HeadConfig("ridge"), home / "cache", reports)
    commands_of_runs.name(run.id, "champion", reports)
    rated = commands.evaluate("champion", str(pictures), home / "cache", reports, against=other.id)
    assert rated.against is not None and rated.against.run == other.id
    assert {one.id for one in commands_of_runs.ls(reports)} == {run.id, other.id, rated.id}
    commands_of_runs.rm(["champion"], reports)
    assert not bucket.find(f"pictures/reports/{run.id}")
    assert {one.id for one in all_runs(reports)} == {other.id, rated.id}


def test_pages(run: Any, home: Path, reports: Path, bucket: Any) -> None:
    done = commands.report([], home / "cache", reports)
    assert done.n_drawn == 1
    page = bucket.cat_file(f"pictures/reports/{run.id}/report.html").decode()
    assert run.id in page
    assert f"{run.id}/report.html" in bucket.cat_file("pictures/reports/index.html").decode()
    assert commands.report([], home / "cache", reports).n_drawn == 0


def test_what_a_run_keeps_is_read_once(
    run: Any, reports: Path, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_another_machine(monkeypatch, tmp_path)
    folder = reports / run.id
    for _ in range(2):
        server.calm()
        assert sum(len(part.keys) for part in read_predictions(folder, 3, run.files).values()) == run.n_val + run.n_test
        assert read_history(folder, run.files)
        assert read_seen(folder, run.files)
    assert not server.read()


@pytest.mark.parametrize("name", ["predictions.h5", "history.csv", "head.npz"])
def test_a_changed_file_is_told(
    name: str, run: Any, home: Path, reports: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_another_machine(monkeypatch, tmp_path)
    data = bytearray(bucket.cat_file(f"pictures/reports/{run.id}/{name}"))
    data[len(data) // 2] ^= 1
    bucket.pipe_file(f"pictures/reports/{run.id}/{name}", bytes(data))
    with pytest.raises(RunError, match=name):
        if name == "head.npz":
            commands.open_head(reports, run.id)
        else:
            commands.report([run.id], home / "cache", reports)


def test_a_put_that_fails_leaves_no_run(
    extracted: Any, home: Path, server: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file by which a run is known comes last, so that a machine that dies in between leaves none."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else trying takes half a minute
    type(bucket).clear_instance_cache()
    reports = remote.shared("s3://pictures/reports")
    server.fails = lambda number, method, address: method == "PUT" and "run.json" in address
    with pytest.raises(StoreError, match=r"s3://pictures/reports/.* can't be written"):
        commands.train_head(HeadConfig("logreg"), home / "cache", reports)
    server.calm()
    assert all_runs(reports) == []
    assert [name.rpartition("/")[2] for name in bucket.find("pictures/reports")] == [".tlpipe"], (
        "what was put is removed"
    )


def test_another_head_in_its_place_is_not_used(
    run: Any, home: Path, reports: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = commands.train_head(HeadConfig("ridge"), home / "cache", reports)
    bucket.copy(f"pictures/reports/{other.id}/head.npz", f"pictures/reports/{run.id}/head.npz")
    on_another_machine(monkeypatch, tmp_path)
    with pytest.raises(RunError, match="head.npz was changed after it was written"):
        commands.open_head(reports, run.id)


def test_a_run_from_before_all_files_had_digests(
    run: Any, reports: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"pictures/reports/{run.id}/run.json"
    value = json.loads(bucket.cat_file(path))
    for name in ("sealed_by", "seal"):
        value.pop(name)
    value["files"].pop("head.npz")
    bucket.pipe_file(path, json.dumps(value).encode())
    on_another_machine(monkeypatch, tmp_path)
    assert commands.open_head(reports, run.id)[0].class_names == tuple(run.class_names)


def test_one_damaged_run_ends_no_others(run: Any, reports: Path, bucket: Any, caplog: pytest.LogCaptureFixture) -> None:
    bucket.pipe_file("pictures/reports/bad/run.json", b"{not json")
    assert [one.id for one in all_runs(reports)] == [run.id]
    assert "bad/run.json can't be read" in caplog.text and "network" not in caplog.text
    assert commands.open_head(reports, run.id)[0].run == run


@pytest.mark.parametrize(
    "address", ["s3://pictures/rep[1]", "s3://pictures/team?/x", "s3://p/*", "memory://x", "s3://"]
)
def test_where_nothing_could_be_found_again(address: str, bucket: Any) -> None:
    with pytest.raises(ConfigError, match="patterns|keeps nothing"):
        made(Folders, {"reports": address})


def test_a_bucket_that_is_not_there_is_told_before_the_work(extracted: Any, home: Path, bucket: Any) -> None:
    nowhere = made(Folders, {"reports": "s3://nowhere/reports"}).reports
    with pytest.raises(StoreError, match=r"s3://nowhere/reports/.tlpipe can't be"):
        commands.train_head(HeadConfig("no such head"), home / "cache", nowhere)


def test_gc_finds_halves_of_runs_and_copies_of_runs_that_are_gone(
    run: Any, home: Path, reports: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.open_head(reports, run.id)
    bucket.rm_file(f"pictures/reports/{run.id}/run.json")
    assert gc(home / "cache", reports).found != [], "the copy of the model"
    assert run.id not in str([item.path for item in gc(home / "cache", reports).found if "s3://" in str(item.path)])
    monkeypatch.setattr("pipeline.commands.gc.ABANDONED", -10)
    gc(home / "cache", reports, delete=True)
    assert not bucket.find(f"pictures/reports/{run.id}")
    assert not (local_copies.own_part(reports) / "runs" / run.id).exists()


def test_gc_keeps_what_runs_at_an_address_need(run: Any, pictures: Path, home: Path, reports: Path) -> None:
    """Though it is called with the reports folder of this machine."""
    next(pictures.glob("**/*.png")).unlink()
    commands.extract(ExtractConfig(str(pictures)), home / "cache")
    found = gc(home / "cache", home / "reports")
    assert [item for item in found.found if run.features in str(item.path)] == []
    commands_of_runs.rm([run.id], reports)
    found = gc(home / "cache", home / "reports")
    assert [item for item in found.found if run.features in str(item.path)]


def test_names_of_files_stay_inside(run: Any, reports: Path, bucket: Any) -> None:
    from pipeline.runs.folder import at_hand

    run.files["../../outside"] = "0" * 32
    with pytest.raises(RunError, match="names a file"):
        at_hand(reports / run.id, run)
    assert not (local_copies.own_part(reports).parent / "outside").exists()


@pytest.mark.slow
def test_fine_tuned_runs(pictures: Path, home: Path, reports: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Fine-tuned and exported at an address, and used from another machine; checkpoints stay on the first."""
    cache = home / "cache"
    commands.extract(ExtractConfig(str(pictures), "mobilenet025", "random", image_size=(32, 32)), cache)
    head = commands.train_head(HeadConfig("linear", epochs=2), cache, reports)
    run = commands.finetune(FinetuneConfig("block13", epochs=1), cache, reports)
    assert run.head_run == head.id
    exported = commands.export(run.id, "keras", cache, reports)
    assert exported.agreement == 1.0 and remote.place(str(exported.path)).exists()
    on_another_machine(monkeypatch, tmp_path)
    answers = commands.predict(run.id, [str(pictures)], cache, reports)
    held = read_predictions(reports / run.id, 3, run.files)["test"]
    by_key = dict(zip(held.keys.tolist(), held.probabilities.argmax(axis=1), strict=True))
    assert len(answers.images) == 120 and len(by_key) == run.n_test
    assert not list((reports / ".unfinished").glob("*"))


@pytest.mark.slow
def test_from_the_command_line(pictures: Path, tmp_path: Path, bucket: Any) -> None:
    """The whole chain with both places at addresses, and JSON that names them."""

    places = ("--cache", "s3://pictures/c", "--reports", "s3://pictures/r")

    def tlpipe(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words, "--json", *places],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        return json.loads(done.stdout)

    tlpipe("extract", str(pictures), "--backbone", "mobilenet025", "--weights", "random", "--image-size", "32")
    run = tlpipe("train-head", "--head", "ridge")["run"]
    assert tlpipe("runs")["runs"][0]["run"] == run
    assert tlpipe("report")["index"] == "s3://pictures/r/index.html"
    rows = tlpipe("predict", "latest", str(pictures))
    assert len(rows) == 120 and np.isfinite([row["probability"] for row in rows]).all()
    assert not list(tmp_path.glob("reports*"))
