"""The command line, from outside: answers, errors, exit codes, and what is imported."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import render
from pipeline.cli.cache import cleaned_text
from pipeline.cli.main import app
from pipeline.commands.gc import Cleaned, Needless
from pipeline.config import Folders
from pipeline.util import runtime

SMALL = ("--backbone", "mobilenet025", "--image-size", "32", "--weights", "random", "--precision", "float32")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run `tlpipe` in an empty folder, in a process of its own; `run.inside` in this one, which has TensorFlow already."""
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {**os.environ, "KERAS_HOME": str(tmp_path / "keras")}
    environment.pop("TLPIPE_WEIGHTS", None)

    def call(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env={**environment, **more}, check=False
        )

    def inside(*arguments: object) -> subprocess.CompletedProcess[str]:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            words = [str(argument) for argument in arguments]
            done = CliRunner().invoke(app, words, env={"KERAS_HOME": str(tmp_path / "keras"), "TLPIPE_WEIGHTS": None})
        signal.signal(signal.SIGTERM, before)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    call.folder, call.inside = folder, inside  # type: ignore[attr-defined]
    return call


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_whole_chain_on_drawn_pictures(run: Any, red_and_blue: Path) -> None:
    first = answer(run("extract", red_and_blue, *SMALL, "--json"))
    keys = "features_id spec n_images n_computed n_reused n_quarantined engine precision seconds images_per_second"
    assert set(keys.split()) <= set(first)
    assert (first["n_images"], first["n_computed"], first["n_quarantined"]) == (40, 40, 0)
    assert set(first["seconds"]) == {"start", "read", "compute", "write", "total"}
    assert first["images_per_second"] > 0
    again = answer(run.inside("extract", red_and_blue, *SMALL, "--json"))
    assert (again["features_id"], again["n_computed"], again["n_reused"]) == (first["features_id"], 0, 40)

    head = answer(run("train-head", "--head", "logreg", "--json"))  # a command line is told as it was given
    keys = "run head n_train n_val n_test metrics seconds trainable_parameters"
    assert set(keys.split()) <= set(head)
    assert head["features"] == first["features_id"]
    assert head["command"].endswith("train-head --head logreg --json")

    tuned = answer(run.inside("finetune", "--blocks", "block13", "--epochs", "1", "--json"))
    assert {*keys.split(), "baseline"} <= set(tuned)
    assert tuned["head_run"] == head["run"]
    assert tuned["cut"] == "conv_pw_12_relu"
    assert tuned["metrics"]["val"]["accuracy"] >= tuned["baseline"]["val"]["accuracy"]
    assert (run.folder / "reports" / tuned["run"] / "model.keras").is_file()

    rates = ("--learning-rate", "0.001", "--learning-rate", "0.0001")
    several = answer(run.inside("finetune", "--blocks", "none", "--epochs", "1", *rates, "--json"))
    assert [one["config"]["learning_rate"] for one in several["runs"]] == [0.001, 0.0001]
    assert several["failed"] == []

    listed = answer(run.inside("cache", "ls", "--json"))["tables"]
    assert listed[0]["features_id"] == first["features_id"]
    assert answer(run.inside("cache", "verify", "--json"))["damaged"] == []
    assert answer(run.inside("cache", "gc", "--json"))["items"] == []
    target = run.folder / "out.h5"
    assert answer(run.inside("cache", "export", target, first["features_id"], "--json"))["path"] == str(target)
    assert target.is_file()
    text = run.inside("extract", red_and_blue, *SMALL).stdout
    assert "40 images: 0 rows computed, 40 reused, 0 quarantined" in text
    assert "tlpipe train-head" in text


def test_columns_groups_and_the_options_of_before(run: Any, red_and_blue: Path) -> None:
    rows = [f"{name}/{number}.png;{name};{name}{number // 4}" for name in ("red", "blue") for number in range(20)]
    (red_and_blue / "list.csv").write_text("\n".join(["where;kind;who", *rows]))
    columns = ("--path-column", "where", "--label-column", "kind", "--group-column", "who", "--group-duplicates")
    first = answer(run.inside("extract", red_and_blue / "list.csv", *SMALL, *columns, "--json"))
    again = answer(run.inside("extract", red_and_blue / "list.csv", "--again", "--json"))
    assert (again["features_id"], again["n_computed"]) == (first["features_id"], 0)
    refused = run.inside("extract", red_and_blue / "list.csv", "--again", "--resize", "pad")
    assert refused.returncode == 1
    assert "leave out --resize pad, or --again" in refused.stderr


def test_columns_travel_and_can_be_named_everywhere(run: Any, red_and_blue: Path) -> None:
    rows = [f"{name}/{number}.png,{name},{number}" for name in ("red", "blue") for number in range(20)]
    (red_and_blue / "list.csv").write_text("\n".join(["where,kind,Age", *rows]))
    (red_and_blue / "new.csv").write_text("\n".join(["lies,is,Age", *rows[:3], *rows[-3:]]))
    extracted = ("extract", red_and_blue / "list.csv", *SMALL, "--path-column", "where", "--label-column", "kind")
    run.inside(*extracted)
    run.inside("cache", "export", "all.npz")
    with np.load(run.folder / "all.npz") as exported:
        ages = dict(zip(exported["paths"].tolist(), exported["column_Age"].tolist(), strict=True))
    assert ages == {row.split(",")[0]: row.split(",")[2] for row in rows}
    trained = answer(run.inside("train-head", "--head", "ridge", "--json"))["run"]
    other = ("--path-column", "lies", "--label-column", "is")
    rated = answer(run.inside("evaluate", trained, red_and_blue / "new.csv", *other, "--json"))
    assert sum(rated["metrics"][split]["n"] for split in rated["metrics"]) == 6
    assert "There are no pictures" not in run.inside("report", rated["run"]).stderr
    page = (run.folder / "reports" / rated["run"] / "report.html").read_text()
    assert "<img" in page and "There are no pictures" not in page
    found = answer(run.inside("predict", trained, red_and_blue / "new.csv", "--path-column", "lies", "--json"))
    assert len(found) == 6
    assert answer(run.inside("inspect", red_and_blue / "new.csv", *other, "--json"))["n_images"] == 6


def test_heads_in_closed_form_need_no_tensorflow(run: Any, red_and_blue: Path) -> None:
    run.inside("extract", red_and_blue, *SMALL)
    lines = (
        *(("train-head", "--head", head) for head in ("logreg", "ridge", "knn5", "centroid")),
        ("sweep", "--head", "logreg,ridge,knn,centroid"),
        ("learning-curve",),
    )
    code = (
        f"import sys\nfrom pipeline.cli.main import app\nfor arguments in {lines!r}:\n"
        "    sys.argv = ['tlpipe', *arguments]\n"
        "    try:\n        app()\n    except SystemExit as end:\n        assert not end.code, arguments\n"
        "    assert not {'tensorflow', 'keras'} & set(sys.modules), arguments"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=run.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_stage_two_on_drawn_pictures(run: Any, red_and_blue: Path) -> None:
    first = answer(run("extract", red_and_blue, *SMALL, "--views", "1", "--augment", "flip", "--json"))["features_id"]
    other = answer(run("extract", red_and_blue, *SMALL, "--endpoint", "block11", "--json"))["features_id"]

    swept = answer(run("sweep", first, "--head", "ridge,linear,mlp8", "--epochs", "2", "--test-views", "1", "--json"))
    assert {candidate["head"] for candidate in swept["candidates"]} == {"ridge", "linear", "mlp8"}
    assert swept["metrics"]["test"]["accuracy"] == 1.0
    text = run("sweep", first, "--head", "ridge", "--cv", "3", "--views", "0")
    assert text.returncode == 0, text.stderr
    assert "100.0 % ± 0.0" in text.stdout
    assert "Best of 20 by accuracy on 3 folds" in text.stdout
    assert f"tlpipe train-head {first} --head ridge" in text.stdout

    joined = answer(run("train-head", "--features", f"{first},{other}", "--views", "0", "--calibrate", "--json"))
    assert joined["features"] == f"{first},{other}"
    assert len(joined["specs"]) == 2
    assert set(joined["calibration"]["ece"]) == {"val", "test"}

    done = run("learning-curve", first, "--draws", "2")
    assert done.returncode == 0, done.stderr
    assert "per class" in done.stdout
    assert "as many images would" in done.stdout
    curve = answer(run("learning-curve", first, "--head", "knn1", "--per-class", "1,3", "--json"))
    assert [point["per_class"] for point in curve["points"]] == [1, 3]


def test_use_on_drawn_pictures(run: Any, red_and_blue: Path) -> None:
    answer(run.inside("extract", red_and_blue, *SMALL, "--json"))
    head = answer(run.inside("train-head", "--json"))["run"]
    (red_and_blue / "red" / "bad.png").write_text("no picture")
    rows = answer(run("predict", head, red_and_blue, "--json", "--csv", "labels.csv", PYTHONPATH=blocked(run)))
    assert [row["label"] for row in rows] == ["blue"] * 20 + ["red"] * 20 + [None]
    assert rows[0]["top"][0] == {"label": "blue", "probability": rows[0]["probability"]}
    assert (run.folder / "labels.csv").read_text().count("\n") == 42
    lines = run.inside("predict", head, red_and_blue / "red").stdout.splitlines()
    assert lines[-1].startswith(f"21 images by {head}: 0 rows computed, all features were cached; 1 can't be read")
    only_bad = run.inside("predict", head, red_and_blue / "red" / "bad.png", "--json")
    assert (only_bad.returncode, json.loads(only_bad.stdout)[0]["label"]) == (1, None)
    found = answer(run.inside("evaluate", head, red_and_blue, "--json"))
    assert {"run", "head", "n_train", "n_val", "n_test", "metrics", "seconds", "trainable_parameters"} <= set(found)
    assert found["metrics"]["test"]["accuracy"] == 1
    inspected = answer(run.inside("inspect", red_and_blue, "--json"))
    assert inspected["unreadable"] == {"red/bad.png": "not an image in a format that can be read"}
    assert "red/bad.png" in run.inside("inspect", red_and_blue).stdout
    done = answer(run.inside("report", "--json"))
    assert set(done["pages"]) == {head, found["run"]}
    same = run.inside("predict", head, "labels.csv", "--csv", "labels.csv")
    assert (same.returncode, "one of the images or tables that are read" in same.stderr) == (1, True)
    command = [sys.executable, "-m", "pipeline", "predict", head, str(red_and_blue), "--quiet"]
    with Path("/dev/full").open("w") as disk:
        full = subprocess.run(command, stdout=disk, stderr=subprocess.PIPE, text=True, cwd=run.folder, check=False)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1] == "Error: The answer can't be written: No space left on device"
    exported = answer(run.inside("export", head, "--format", "keras", "--output", "out", "--json"))
    assert (exported["agreement"], exported["path"]) == (1.0, "out/classifier.keras")
    assert (run.folder / "out" / "classifier.keras").is_file()


def blocked(run: Any) -> str:
    """A folder in which TensorFlow can't be imported."""
    folder = run.folder / "blocked"
    folder.mkdir()
    (folder / "tensorflow.py").write_text("raise RuntimeError('TensorFlow is not needed here')")
    return str(folder)


def test_second_extract_needs_no_tensorflow(run: Any, red_and_blue: Path) -> None:
    run.inside("extract", red_and_blue, *SMALL)
    code = (
        "import sys\nfrom pipeline.cli.main import app\n"
        f"sys.argv = ['tlpipe', 'extract', {str(red_and_blue)!r}, *{SMALL!r}]\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'tensorflow', 'keras', 'sklearn'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=run.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["pipeline", "pipeline.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in sys.modules if m in {{'tensorflow', 'keras', 'sklearn', 'openvino', 'numpy', 'h5py'}}])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# One that reads data, one that asks the network, one of ours and one of the parser's.
FROM_OUTSIDE = (["extract", "nowhere"], ["extract", "--backbone", "resnet50"], ["train-head"], ["nonsense"])


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["extract", "nowhere"], 1, "'nowhere'"),
        (["extract", "--backbone", "densenet112"], 1, "Did you mean densenet121"),
        (["extract", "--backbone", "resnet50"], 1, "--weights random"),
        (["extract", "--weights", "missing.h5"], 1, "missing.h5"),
        (["extract", "--image-size", "8"], 1, "32 pixels or more"),
        (["extract", "--image-size", "big"], 1, "--image-size"),
        (["extract", "--engine", "onnx", "--weights", "random"], 1, "auto, tensorflow, openvino"),
        (["extract", *SMALL, "--endpoint", "conv99"], 1, "no block or layer 'conv99'"),
        (["extract", "--views", "1"], 1, "needs --augment"),
        (["train-head"], 1, "tlpipe extract DATA"),
        (["train-head", "--head", "mlp12x"], 1, "logreg, ridge, centroid, knn20, linear, mlp512-128, bn-mlp50"),
        (["train-head", "--head", "ridge", "--dropout", "0.5"], 1, "--dropout means nothing to ridge"),
        (["train-head", "--memory", "much"], 1, "800MB"),
        (["train-head", "a", "--features", "b"], 1, "given twice"),
        (["train-head", "--cv", "few"], 2, "--cv"),
        (["sweep", "--head", "mlp,forest"], 1, "Unknown head 'forest'"),
        (["sweep", "--grid", "huge"], 1, "small, full"),
        (["sweep", "--budget", "0"], 1, "--budget"),
        (["train-head", "--cv", "0"], 1, "--cv is 0"),
        (["train-head", "a,"], 1, "empty name"),
        (["learning-curve", "--per-class", "1,few"], 1, "1,2,5,10"),
        (["finetune"], 1, "tlpipe train-head"),
        (["cache", "export", "x.h5"], 1, "no features"),
        (["predict", "2020", "a.jpg"], 1, "'2020' is not among the runs"),
        (["predict", "2020"], 2, "Missing argument 'IMAGES...'"),
        (["evaluate", "2020", "digits"], 1, "'2020' is not among the runs"),
        (["export", "2020"], 1, "--format is missing"),
        (["export", "2020", "--format", "pickle"], 1, "keras, savedmodel, onnx, openvino, tflite"),
        (["inspect", "nowhere"], 1, "'nowhere'"),
        (["report"], 1, "tlpipe train-head"),
        (["report", "--map", "umap"], 1, "pca, tsne"),
        (["extract", "--no-such-option"], 2, "No such option"),
        (["extract", "--views", "many"], 2, "--views"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_errors_in_plain_words(run: Any, arguments: list[str], code: int, word: str) -> None:
    (run.folder / "keras").mkdir()
    if arguments[:3] in FROM_OUTSIDE:
        done = run(*arguments, KERAS_HOME=str(run.folder / "keras"), no_proxy="*", https_proxy="http://127.0.0.1:9")
    else:
        done = run.inside(*arguments)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.strip()]) <= 6
    if code == 1:
        assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_names_of_blocks_and_layers_are_refused_without_tensorflow(run: Any, red_and_blue: Path) -> None:
    """Once the network was built with a cache, its layers are known."""
    run.inside("extract", red_and_blue, *SMALL)
    run.inside("train-head")
    folder = blocked(run)
    for arguments, option in (
        (["extract", red_and_blue, *SMALL, "--endpoint", "block99"], "--endpoint"),
        (["finetune", "--blocks", "block12,block99"], "--blocks"),
    ):
        done = run(*arguments, PYTHONPATH=os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]))
        assert done.returncode == 1
        assert f"{option}: there is no block or layer 'block99'. Did you mean" in done.stderr


@pytest.mark.parametrize(("name", "form"), [("mlp", "mlp512-128"), ("knn", "knn20"), ("bn-mlp", "bn-mlp50")])
def test_a_head_without_figures_means_its_default(name: str, form: str) -> None:
    from pipeline.config import HeadConfig
    from pipeline.heads import make_head

    assert make_head(HeadConfig(name))[1] == make_head(HeadConfig(form))[1]
    assert HeadConfig(name).head == form


def test_json_is_alone_on_standard_output(run: Any, red_and_blue: Path) -> None:
    (red_and_blue / "red" / "bad.png").write_bytes(b"no image")
    done = run("extract", red_and_blue, *SMALL, "--json")
    assert answer(done)["quarantined"] == {"red/bad.png": "not an image in a format that can be read"}
    assert "red/bad.png" in done.stderr
    quiet = run.inside("extract", red_and_blue, *SMALL, "--json", "--quiet")
    assert "rows with" not in quiet.stderr
    strict = run.inside("extract", red_and_blue, *SMALL, "--strict")
    assert strict.returncode == 1
    assert "--strict: 1 of 41 images" in strict.stderr


def test_terminal_shows_a_bar_and_ctrl_c_says_how_to_go_on(run: Any, tmp_path: Path) -> None:
    """On a pseudo-terminal, as a person would press it; then the same command goes on."""
    command = [sys.executable, "-m", "pipeline", "extract", "digits", *SMALL, "--image-size", "224"]
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=run.folder, stderr=slave, stdout=slave, stdin=slave)
    os.close(slave)
    seen = b""
    pressed = False
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            seen += os.read(master, 65536)
        except OSError:
            break
        if not pressed and b"images/s" in seen:
            process.send_signal(signal.SIGINT)
            pressed = True
    os.close(master)
    assert process.wait() == 130, seen.decode()
    text = seen.decode()
    assert "Extracting" in text
    assert "The same command again goes on from there." in text.replace("\r", "")
    kept = int(text.split("Stopped; ")[1].split(" of ")[0].replace(",", ""))
    again = answer(run.inside("extract", "digits", *SMALL, "--image-size", "224", "--json"))
    assert again["n_reused"] == kept
    assert again["n_computed"] == 1797 - kept


def blocks(pid: int, number: int) -> bool:
    """Whether a process doesn't hear a signal (proc(5), SigBlk)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigBlk")), 16)
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_stopped_sweep_leaves_no_process_behind(run: Any, red_and_blue: Path, number: int) -> None:
    import psutil

    run.inside("extract", red_and_blue, *SMALL)
    command = [sys.executable, "-m", "pipeline", "sweep", "--head", "mlp8,mlp16", "--epochs", "100000"]
    process = subprocess.Popen(
        command, cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers: list[psutil.Process] = []
    end = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < end:
        time.sleep(0.1)
        with suppress(psutil.ZombieProcess):
            children = psutil.Process(process.pid).children()
            workers = [child for child in children if "LokyProcess" in " ".join(child.cmdline())]
    deaf = [blocks(worker.pid, signal.SIGINT) for worker in workers] if sys.platform == "linux" else [True, True]
    time.sleep(1)
    try:
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)  # as a terminal does
        _, errors = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, errors
    assert deaf == [True, True]  # Ctrl-C on a terminal reaches them too, at any moment of their start
    assert "Traceback" not in errors
    assert "Stopped." in errors
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(gone), alive) == (len(workers), [])
    assert not list((run.folder / "reports").glob("*"))


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_sigterm_at_any_time_is_answered(run: Any, seconds: float) -> None:
    command = [sys.executable, "-m", "pipeline", "extract", "digits", *SMALL, "--image-size", "224"]
    with subprocess.Popen(
        command, cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until_it_listens(process.pid)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "Stopped" in errors
    assert "Traceback" not in errors


def wait_until_it_listens(pid: int) -> None:
    """How long Python takes to start depends on what else the machine does."""
    status, end = Path(f"/proc/{pid}/status"), time.monotonic() + 60
    while time.monotonic() < end:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.02)
    raise AssertionError("SIGTERM is not listened to")


def test_version_and_help(run: Any) -> None:
    assert run("--version").stdout == f"tlpipe {importlib.metadata.version('tlpipe')}\n"
    assert run("-h").stdout == run("--help").stdout
    assert run("extract", "-h").stdout == run("extract", "--help").stdout


def test_the_cache_may_be_named_by_the_environment(run: Any, red_and_blue: Path, tmp_path: Path) -> None:
    done = run("cache", "ls", TLPIPE_CACHE=str(tmp_path / "mine"))
    assert f"no features in {tmp_path / 'mine'} yet" in done.stdout
    done = run("cache", "ls", "--cache", "other", TLPIPE_CACHE=str(tmp_path / "mine"))
    assert "no features in other yet" in done.stdout


def test_what_to_do_next_names_folders_that_are_not_the_usual_ones(extracted: Any, cache: Path, reports: Path) -> None:
    said = render.extract_text(extracted, Folders(cache, Path("my runs")))
    assert said.endswith(f"Next       tlpipe train-head --cache {cache} --reports 'my runs'")
    assert render.extract_text(extracted, Folders()).endswith("Next       tlpipe train-head")
    found = Cleaned([Needless(cache / "memo", "old", 1)], [], removed=False)
    assert cleaned_text(found, Folders(cache)).endswith(f"tlpipe cache gc --delete --cache {cache}")


def test_long_names_leave_the_other_columns_their_room() -> None:
    for length, rows in ((60, 1), (240, 2)):
        lines = render.aligned(["class", "train"], [["a" * length, "12,345"]]).splitlines()[2:]
        assert len(lines) == rows
        assert lines[0].endswith("12,345") and "".join(lines).count("a") == length


def test_a_seed_is_an_option_only_where_something_is_drawn() -> None:
    commands = {**app.commands, **app.commands["cache"].commands, **app.commands["runs"].commands}  # type: ignore[attr-defined]
    seeded = {name for name, one in commands.items() if any("--seed" in option.opts for option in one.params)}
    drawing = {"extract", "train-head", "sweep", "learning-curve", "finetune", "inspect", "label", "report", "demo"}
    assert seeded == drawing


def test_doctor(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.doctor._verdicts_of_jax", list)  # which the slow test asks
    value = answer(run.inside("doctor", "--json"))
    names = {"versions", "system", "processor", "gpus", "engines", "verdicts", "weights", "folders"}
    assert set(value) == names
    judged = {(one["engine"], one["precision"]): one for one in value["verdicts"]}
    assert all(one["holds"] and one["difference"] <= one["most"] for one in judged.values())
    assert {("tensorflow", "float32"), ("openvino", "float32")} <= set(judged)
    assert value["versions"]["tensorflow"]
    assert value["folders"]["cache"]["writable"]
    assert value["weights"]["missing_would_come_from"].startswith("https://")
    monkeypatch.setattr("pipeline.commands.doctor._verdicts", lambda: value["verdicts"])
    text = run.inside("doctor").stdout
    assert re.search(
        r"^checked       openvino in float32: features differ by \S+ of their length from those of Keras", text, re.M
    )
    assert "TLPIPE_WEIGHTS is not set" in text
    assert "can be written" in text


@pytest.mark.slow
@pytest.mark.skipif(not runtime.installed("jax"), reason="JAX is not installed")
def test_doctor_asks_jax_in_a_process_of_its_own(run: Any) -> None:
    verdicts = answer(run("doctor", "--json"))["verdicts"]
    judged = {(one["engine"], one["precision"]): one["holds"] for one in verdicts}
    assert judged["jax", "float32"] and judged["jax", "bfloat16"]


def test_backbones(run: Any) -> None:
    rows = {row["name"]: row for row in answer(run.inside("backbones", "--json"))["backbones"]}
    assert rows["densenet121"]["width"] == 1024
    assert "mobilenetv2035" in rows
    assert "densenet121" in run.inside("backbones").stdout


@pytest.mark.slow
def test_bench(run: Any) -> None:
    value = answer(run("bench", "--backbone", "mobilenet025", "--image-size", "64", "--seconds", "0.1", "--json"))
    assert value["measured"][0]["name"] == "keras predict"
    assert value["measured"][0]["times_predict"] == 1.0
    # Howard et al. 2017 (arXiv:1704.04861), table 6 gives 41 million at 224 px; 64 px are a twelfth of it.
    assert value["multiply_adds"] == pytest.approx(41e6 * (64 / 224) ** 2, rel=0.05)
    assert all(way["images_per_second"] > 0 for way in value["measured"])


@pytest.mark.slow
def test_demo_without_weights(run: Any) -> None:
    done = run("demo", no_proxy="*", https_proxy="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "RANDOM WEIGHTS" in done.stderr
    assert "finetune conv4,conv5" in done.stdout
    shutil.rmtree(run.folder / "cache")


@pytest.mark.weights
@pytest.mark.slow
def test_demo(run: Any) -> None:
    value = answer(run("demo", "--json", TLPIPE_WEIGHTS=os.environ["TLPIPE_WEIGHTS"]))
    assert value["weights"] == "imagenet"
    assert value["head"]["metrics"]["test"]["accuracy"] > 0.9
    assert value["finetune"]["metrics"]["val"]["accuracy"] >= value["head"]["metrics"]["val"]["accuracy"] - 0.02
    assert (run.folder / value["report"]["index"]).is_file()
    for page in value["report"]["pages"].values():
        assert (run.folder / page).read_text().count('<img src="data:image/webp') > 20


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.slow
def test_promises(run: Any, data: Path) -> None:
    """The script that checks the promised interface from outside, where it lies beside the data."""
    script = data.parent / "checks" / "contract.py"
    if not script.is_file():
        pytest.skip("there is no checks/contract.py beside the data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for part in ("stage one", "heads", "finetune", "use"):
        done = subprocess.run(
            [sys.executable, str(script), part],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
            check=False,
        )
        assert done.stdout.splitlines()[-1] == "all promises kept", done.stdout + done.stderr
