"""tlpipe from Python: the commands with the options of the command line, and results that print in a notebook."""

from __future__ import annotations

import base64
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import FakeEngine, write_picture

import pipeline
import pipeline.commands
from pipeline import (
    ConfigError,
    CurveResult,
    Extracted,
    RunError,
    RunResult,
    evaluate,
    export,
    extract,
    finetune,
    learning_curve,
    load_features,
    load_head,
    load_runs,
    predict,
    report,
    sweep,
    train_head,
)
from pipeline.api.estimators import FeatureExtractor, HeadClassifier
from pipeline.cli.main import app
from pipeline.config import user_cache
from pipeline.errors import DataError
from pipeline.util import runtime

ROOT = Path(__file__).parent.parent
ABOUT_THE_MACHINE = {"backbones", "bench", "demo", "doctor"}
"""Commands that tell people of the machine; a program has no use for them."""
SHARED = {"json", "quiet", "verbose", "help", "cache", "reports"}


ELSEWHERE = {"runs": "load_runs", "runs.name": "name_run", "runs.rm": "remove_runs"}
"""`pipeline.runs` is a package, so functions of its name are called otherwise."""


KEYWORDS = {"in": "data", "class": "label"}
"""What options are called in Python whose names mean something else there."""


def commands() -> dict[str, Any]:
    """The commands of the command line, by their names in Python."""
    found: dict[str, Any] = {}
    for name, one in app.commands.items():
        found |= {f"{name}.{part}": own for part, own in getattr(one, "commands", {}).items()}
        if not one.no_args_is_help:
            found[name.replace("-", "_")] = one
    return {name: one for name, one in found.items() if name not in ABOUT_THE_MACHINE}


def function_of(name: str) -> Callable[..., Any]:
    found: Any = pipeline
    for part in ELSEWHERE.get(name, name).split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", commands())
def test_every_command_is_a_function_with_the_same_options(name: str) -> None:
    options = {}
    for one in commands()[name].params:
        words = [word for word in one.opts if word.startswith("--")]
        default = inspect.Parameter.empty if one.required else one.to_info_dict()["default"]
        if getattr(one, "multiple", False):  # which Python has once
            default = next(iter(default), None)
        name_of_option = words[0][2:].replace("-", "_") if words else one.name
        options[KEYWORDS.get(name_of_option, name_of_option)] = default
    parameters = inspect.signature(function_of(name)).parameters
    assert set(parameters) - SHARED == set(options) - SHARED
    assert {"cache", "reports"} & set(parameters)
    for option in set(parameters) - SHARED:
        assert parameters[option].default == options[option], option


def test_all_is_complete_and_sorted() -> None:
    assert pipeline.__all__ == sorted(pipeline.__all__)
    assert set(pipeline.__all__) <= set(dir(pipeline))
    assert pipeline.__version__ == runtime.version("tlpipe")
    for name in set(pipeline.__all__) - {"__version__", "cache"}:
        assert getattr(pipeline, name).__name__ == name
        assert getattr(pipeline, name).__module__.startswith(("pipeline.api.", "pipeline.errors"))
    errors = {name for name, one in vars(pipeline.errors).items() if inspect.isclass(one)}
    assert errors <= set(pipeline.__all__)
    assert {ELSEWHERE.get(name, name).partition(".")[0] for name in commands()} <= set(pipeline.__all__)
    assert not {one.name for one in pkgutil.iter_modules(pipeline.__path__)} & set(pipeline.__all__)
    for one in pkgutil.iter_modules(pipeline.commands.__path__):
        importlib.import_module(f"pipeline.commands.{one.name}")
    assert not any(inspect.ismodule(getattr(pipeline.commands, name)) for name in pipeline.commands.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipeline.nothing


def test_importing_loads_no_large_library() -> None:
    script = "import pipeline, sys; print({'tensorflow', 'sklearn', 'pandas', 'numpy'} & set(sys.modules))"
    script += "; pipeline.train_head; print({'tensorflow', 'sklearn', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["set()", "set()"]


def test_types_are_told() -> None:
    assert Path(pipeline.__file__).with_name("py.typed").is_file()


@pytest.fixture
def features(pictures: Path, cache: Path, fake_engine: FakeEngine) -> Extracted:
    return extract(pictures, cache=cache, views=1, augment="flip")


@pytest.fixture
def run(features: Extracted, reports: Path) -> RunResult[Any]:
    return train_head(features, "ridge", reports=reports, name="mine")


def test_extract_and_load(red_and_blue: Path, cache: Path, fake_engine: FakeEngine) -> None:
    result = extract(red_and_blue, cache=cache, views=1, augment=["flip", "crop"], val_fraction=0.3)
    assert (result.record.config.augment, result.record.config.splits.val_fraction) == ("flip,crop", 0.3)
    features = load_features(result)
    n_train = int(((features.split == "train") & (features.view == 0)).sum())
    assert features.X.shape == (40 + n_train, 12)
    assert features.class_names == ("blue", "red")
    for path, label in zip(features.paths, features.y, strict=True):
        assert path.split("/")[0] == features.class_names[label]
    plain = load_features(cache=cache, views=0)
    assert len(plain.X) == len(plain.paths) == 40
    assert set(plain.split.tolist()) == {"train", "val", "test"}
    table = load_features([result]).to_frame()
    assert list(table.columns[:5]) == ["path", "label", "split", "view", "feature_0"]
    np.testing.assert_array_equal(table.filter(like="feature_").to_numpy(), features.X)
    assert (table["label"] == table["path"].str.split("/").str[0]).all()
    assert table["view"].sum() == n_train


def test_options_arrive_as_on_the_command_line(features: Extracted, reports: Path) -> None:
    found = train_head(features, "linear", epochs=2, learning_rate=np.float64(0.01), memory="1GB", reports=reports)
    assert (found.run.config.epochs, found.run.config.learning_rate, found.run.memory) == (2, 0.01, 10**9)
    found = sweep([features.id], ["ridge", "knn5"], views=0, reports=reports, cache=features.folders.cache)
    assert found.run.heads == ["ridge", "knn5"]
    assert {one["settings"]["views"] for one in found.run.candidates} == {0}


def test_a_run_names_the_command_that_it_stands_for(features: Extracted, reports: Path) -> None:
    first = train_head(features, "linear", l2=0.5, standardize=False, epochs=1, memory=10**9, reports=reports)
    assert first.run.command.startswith(f"tlpipe train-head {features.id} --head linear --epochs 1 --l2 0.5 --no-stand")
    done = CliRunner().invoke(app, [*shlex.split(first.run.command)[1:], "--json"])
    assert done.exit_code == 0, done.output
    again, before = load_runs(reports=reports)
    assert before.id == first.id
    assert (again.run.config, again.run.memory) == (first.run.config, first.run.memory)
    assert again.metrics == first.metrics
    rated = evaluate(first, against=again)
    assert shlex.split(rated.run.command)[:5] == ["tlpipe", "evaluate", first.reference, "--against", again.reference]


@pytest.mark.parametrize(
    ("call", "kind", "word"),
    [
        (
            lambda: train_head(epoch=3),
            TypeError,
            r"train_head\(\) has no option 'epoch'. Did you mean epochs\? It takes",
        ),
        (lambda: train_head(head="linear", epochs="five"), TypeError, "epochs is 'five', of the type str; give int or"),
        (lambda: train_head(head="linear", epochs=True), TypeError, "epochs is True"),
        (lambda: train_head(head="linear", optimizer="adan"), ConfigError, "it can be adam, adamw, sgd. Did you mean"),
        (lambda: train_head(head="ridge", epochs=3), ConfigError, "--epochs means nothing to ridge"),
        (lambda: train_head(memory="much"), ConfigError, "--memory is 'much'"),
        (lambda: extract(image_size="9x"), ConfigError, "--image-size is '9x'"),
        (lambda: extract(pooling=3), TypeError, "pooling is 3, of the type int; give avg or max or none"),
        (lambda: learning_curve(cv=3), TypeError, "no option 'cv'"),
        (lambda: finetune("conv5", schedule="cosin"), ConfigError, "Did you mean cosine"),
        (lambda: evaluate(), TypeError, "'run'"),
        (lambda: evaluate(None), TypeError, "run is of the type NoneType; give str or Path or RunResult"),
        (lambda: extract(np.zeros((4, 8, 8, 3))), TypeError, "data is of the type ndarray; give str or Path"),
        (lambda: train_head(head=None), TypeError, "head is of the type NoneType; give str"),
        (lambda: predict("run", ["a.png"], top=1.5), TypeError, "top is of the type float; give int"),
        (lambda: predict("run", []), DataError, "no images to label"),
        (lambda: sweep(head=[]), ConfigError, "--head names no head"),
        (lambda: learning_curve(per_class=[1.5]), ConfigError, "--per-class is '1.5'"),
        (lambda: HeadClassifier(None).fit(np.eye(4), [0, 1, 0, 1]), TypeError, "head is of the type NoneType"),
        (lambda: FeatureExtractor(image_size=(8, 8, 8)).fit("a.png"), TypeError, "image_size is"),
    ],
)
def test_wrong_options(call: Callable[[], Any], kind: type[Exception], word: str) -> None:
    with pytest.raises(kind, match=word):
        call()


@pytest.mark.parametrize(("given", "expected"), [(64, (64, 64)), ((48, 64), (48, 64)), ("48x64", (48, 64))])
def test_image_size(
    given: Any, expected: tuple[int, int], red_and_blue: Path, cache: Path, fake_engine: FakeEngine
) -> None:
    assert extract(red_and_blue, cache=cache, image_size=given).record.config.image_size == expected


def test_a_run_may_be_given_in_every_way(run: RunResult[Any], reports: Path, cache: Path, monkeypatch: Any) -> None:
    for reference in (run, run.id, run.id[-4:], "mine", "latest", "best", run.folder, str(run.folder)):
        assert load_head(reference, reports=reports).run.id == run.id
    monkeypatch.chdir(reports)
    assert load_head(Path(run.id)).run.id == run.id
    with pytest.raises(RunError, match="'other' is not among the"):
        load_head("other", reports=reports)


def test_folders_of_results_are_taken_over(run: RunResult[Any], reports: Path, cache: Path, pictures: Path) -> None:
    rated = evaluate(run, against=run)
    assert rated.folder.parent == reports
    assert rated.run.of == run.id
    assert rated.metrics["test"]["confusion_matrix"] == run.metrics["test"]["confusion_matrix"]
    assert f"Against {run.id}, image by image" in rated._repr_html_()
    assert report([run, rated]).index == reports / "index.html"
    assert predict(run, pictures / "dark" / "0.png").run == run.id
    assert set(load_head(run).class_names) == {"dark", "grey", "light"}


def test_usual_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TLPIPE_CACHE", str(tmp_path / "named"))
    assert user_cache() == tmp_path / "named"
    monkeypatch.delenv("TLPIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert user_cache() == tmp_path / "tlpipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "tlpipe"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert user_cache() == Path.home() / "Library" / "Caches" / "tlpipe"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert user_cache() == tmp_path / "local" / "tlpipe"


def test_the_usual_cache_is_used(
    red_and_blue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_engine: FakeEngine
) -> None:
    monkeypatch.setenv("TLPIPE_CACHE", str(tmp_path / "usual"))
    monkeypatch.chdir(tmp_path)
    found = train_head(extract(red_and_blue, views=0), "ridge")
    assert (tmp_path / "usual" / "features").is_dir()
    assert found.folder == Path("reports") / found.id
    assert found.folder.is_dir()
    assert not (tmp_path / "cache").exists()


def test_a_run_prints_well(run: RunResult[Any], pictures: Path) -> None:
    html = run._repr_html_()
    found = run.metrics["test"]
    low, high = found["accuracy_95"]
    cells = f"<td>test</td><td>{found['n']}</td><td></td><td>{100 * found['accuracy']:.1f} %</td>"
    assert cells + f"<td>{100 * low:.1f} to {100 * high:.1f} %</td>" in html
    assert f"<td>val</td><td>{run.metrics['val']['n']}</td><td>choose</td>" in html
    charts = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', html)
    assert [title for _, title in charts] == ["accuracy by l2", "log loss by l2", "Confusion matrix"]
    assert all(b"<svg" in base64.b64decode(chart) for chart, _ in charts)
    assert html.count("data:image/webp") == 8
    assert "taken for" in html
    assert repr(run).startswith(f"<{run.id}: val {100 * run.metrics['val']['accuracy']:.1f} %, test")
    for path in pictures.rglob("*.png"):
        path.unlink()
    assert "data:image/webp" not in run._repr_html_()
    (run.folder / "predictions.h5").write_bytes(b"")
    assert cells in run._repr_html_()
    assert "can&#39;t be read" in run._repr_html_()


def test_what_comes_from_data_is_escaped(tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> None:
    random = np.random.default_rng(0)
    for number in range(12):
        for name, colour in (("<script>", (200, 60, 60)), ("b&b", (190, 60, 60))):
            write_picture(random, tmp_path / "odd" / name / f"{number}.png", colour=colour)
    found = train_head(extract(tmp_path / "odd", cache=cache), "ridge", reports=reports)
    answers = predict(found, tmp_path / "odd")
    for result in (found, answers, pipeline.inspect(tmp_path / "odd", cache=cache, reports=reports)):
        html = result._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_frames(run: RunResult[Any], features: Extracted, reports: Path, pictures: Path, cache: Path) -> None:
    splits = run.to_frame()
    assert splits.loc["test", "accuracy"] == run.metrics["test"]["accuracy"]
    assert splits.loc["val", "used_to"] == "choose"
    answers = predict(run, [pictures / "dark", pictures / "light" / "0.png"], top=2)
    (pictures / "bad.png").write_bytes(b"no image")
    table = predict(run, [pictures / "bad.png", *answers.to_frame()["path"]], top=2).to_frame()
    assert list(table.columns) == ["path", "label", "probability", "label_2", "probability_2", "error"]
    assert table["label"].tolist()[1:] == [one.top[0][0] for one in answers]
    assert table["probability_2"].tolist()[1:] == [one.top[1][1] for one in answers]
    assert table["error"][0] == "not an image in a format that can be read"
    curve = learning_curve(features, per_class=[2, 4], draws=2, reports=reports)
    assert isinstance(curve, CurveResult)
    assert curve.to_frame()["per_class"].tolist() == [2, 4]
    assert curve.to_frame()["accuracy"].tolist() == [point["accuracy"] for point in curve.run.points]
    assert "data:image/svg" in curve._repr_html_()
    runs = load_runs(reports=reports)
    assert [one.id for one in runs] == [curve.id, run.id]
    assert runs.to_frame().loc[run.id, "val"] == run.metrics["val"]["accuracy"]
    assert runs.to_frame().loc[run.id, "name"] == "mine"
    assert run.id in runs._repr_html_() and curve.id in runs._repr_html_()
    assert load_runs(reports=reports / "none").to_frame().empty
    assert repr(load_head(run)) == f"<head of {run.id}: {run.run.head}, 3 classes>"
    counts = pipeline.inspect(pictures, cache=cache, reports=reports).to_frame()
    assert counts.sum(axis=1).to_dict() == {"dark": 40, "grey": 40, "light": 40}


def test_the_others_print_well(run: RunResult[Any], features: Extracted, pictures: Path, cache: Path) -> None:
    assert f"<td>rows computed</td><td>{features.n_computed}</td>" in features._repr_html_()
    assert repr(features) == f"<{features.id}: {features.n_computed} rows computed, 0 reused>"
    pages = report(run)
    assert f"<td>{run.id}</td><td>{pages.pages[run.id]}</td>" in pages._repr_html_()
    (pictures / "dark" / "twin.png").write_bytes((pictures / "dark" / "0.png").read_bytes())
    found = pipeline.inspect(pictures, cache=cache, reports=run.folder.parent)
    html = found._repr_html_()
    assert "Byte-identical images" in html
    assert html.count("data:image/webp") >= 2
    assert f"<td>dark</td><td>{found.counts()['dark']['train']}</td>" in html


def test_a_sweep_prints_its_candidates(features: Extracted, reports: Path) -> None:
    found = sweep(features, "ridge,knn", reports=reports)
    html = found._repr_html_()
    assert html.count("<td>ridge</td>") > 5
    assert f"<td>{100 * found.run.candidates[0]['val_accuracy']:.1f} %</td>" in html


def test_runs_are_named_and_removed(run: RunResult[Any], features: Extracted, reports: Path) -> None:
    other = train_head(features, "centroid", reports=reports)
    pipeline.name_run(other, "other")
    assert load_head("other", reports=reports).run.id == other.id
    pipeline.remove_runs([other, run])
    assert len(load_runs(reports=reports)) == 0


def test_frames_need_pandas(run: RunResult[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "installed", lambda module: module != "pandas")
    with pytest.raises(ConfigError, match="pip install pandas"):
        run.to_frame()


def test_answers_are_a_sequence_and_a_table(run: RunResult[Any], pictures: Path, tmp_path: Path) -> None:
    answers = predict(run, pictures / "dark", csv=tmp_path / "answers.csv")
    assert len(answers) == len(list(answers)) == 40
    assert answers[0].path == answers[:2][0].path
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 41
    assert "and 20 more: to_frame() has all" in answers._repr_html_()
    assert repr(answers) == f"<40 answers of {run.id}>"


def test_cache(features: Extracted, run: RunResult[Any], cache: Path, reports: Path, tmp_path: Path) -> None:
    assert [row["features_id"] for row in pipeline.cache.ls(cache=cache)] == [features.id]
    verified = pipeline.cache.verify(cache=cache)
    assert verified.n_files >= 3
    assert not verified.damaged
    assert pipeline.cache.gc(cache=cache, reports=reports).found == []
    assert pipeline.cache.export(tmp_path / "all.npz", features).id == features.id
    with np.load(tmp_path / "all.npz") as file:
        np.testing.assert_array_equal(file["features"], load_features(features).X)


@pytest.mark.weights
def test_from_a_folder_to_a_model(
    red_and_blue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "docs" / "how-to" / "from_folder_to_model.py"
    assert len(script.read_text().splitlines()) <= 25
    for path in sorted(red_and_blue.rglob("1?.png")):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLPIPE_CACHE", str(tmp_path / "cache"))
    main = runpy.run_path(str(script))["main"]
    model = runtime.keras().models.load_model(main(str(red_and_blue), 1, backbone="mobilenet025", image_size=32))
    assert model.input_shape == (None, 32, 32, 3)
    assert "used_to" in capsys.readouterr().out
    stages = [one.run.stage for one in load_runs()]
    assert stages == ["evaluate", "finetune", "train-head"]
    tuned = load_runs()[1]
    html = tuned._repr_html_()
    assert "<td>before</td>" in html
    assert 'alt="accuracy by epoch"' in html
    done = export(tuned, "keras")
    assert done.agreement == 1.0
    assert f"<td>{done.path}</td>" in done._repr_html_()
