"""Reports: what the pages say, how large they are, and that what comes from disk does no harm."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import FakeEngine, change_run, draw_shades, use_fake_engine
from PIL import Image

from pipeline import commands
from pipeline.config import Columns, ExtractConfig, HeadConfig, SplitConfig
from pipeline.errors import ConfigError, RunError
from pipeline.evaluation.metrics import calibration_error, reliability
from pipeline.pages import charts
from pipeline.pages.gallery import choose
from pipeline.runs.predictions import Predictions, read_history, read_predictions
from pipeline.runs.run import Run

LARGEST = 5_000_000  # bytes of a page


class Page(HTMLParser):
    """The tags of a page, its text, and its charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.charts: list[Any] = []
        self.inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = "chart" if tag == "script" and ("type", "application/json") in attributes else tag

    def handle_data(self, data: str) -> None:
        if self.inside == "chart":
            self.charts.append(json.loads(data))
        elif self.inside not in ("script", "style"):
            self.text += data
        self.inside = None if self.inside in ("chart", "script", "style") else self.inside

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def with_head(folder: Path) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_engine(patch)
        data = draw_shades(folder / "shades")
        commands.extract(ExtractConfig(str(data), views=1, augment="flip"), folder / "cache")
        return commands.train_head(HeadConfig("mlp8", epochs=3), folder / "cache", folder / "reports")


@pytest.fixture
def made(request: pytest.FixtureRequest, once: Any, tmp_path: Path) -> tuple[Path, Run | None]:
    made: tuple[Path, Run] = once(with_head) if "run" in request.fixturenames else (tmp_path, None)
    return made


@pytest.fixture
def run(made: tuple[Path, Run], fake_engine: FakeEngine) -> Run:
    return made[1]


@pytest.fixture
def pictures(made: tuple[Path, Run]) -> Path:
    return made[0] / "shades"


@pytest.fixture
def home(made: tuple[Path, Run]) -> Path:
    return made[0]


def page_of(run: Run, cache: Path, reports: Path) -> Page:
    return Page(commands.report([run.id], cache, reports).pages[run.id])


class TestRunPage:
    def test_needs_nothing_but_itself(self, run: Run, cache: Path, reports: Path) -> None:
        page = page_of(run, cache, reports)
        addresses = [value for _, tag in page.tags for name, value in tag.items() if name in ("src", "href")]
        assert {address for address in addresses if not (address or "").startswith("data:")} == {"../index.html"}
        (policy,) = [tag["content"] for tag in page.all("meta") if "content" in tag and "http-equiv" in tag]
        assert (policy or "").startswith("default-src 'none'; img-src data:")

    def test_says_what_was_done_and_how_to_repeat_it(
        self, run: Run, pictures: Path, cache: Path, reports: Path
    ) -> None:
        text = page_of(run, cache, reports).text
        accuracy = 100 * run.metrics["test"]["accuracy"]
        spec = f"densenet121 (conv5, avg pooling, 32x32 px, {run.specs[0].precision})"
        assert f"mlp8 was trained on features of {spec}, of {pictures}: 3 classes" in text
        assert f"Of the test images {accuracy:.1f} % were right" in text
        assert f"tlpipe extract {pictures} --views 1 --augment flip" in text
        assert run.command in text
        assert run.versions["numpy"] in text

    def test_matrix_counts_the_predictions(self, run: Run, cache: Path, reports: Path) -> None:
        cells = {
            (int(str(tag["data-true"])), int(str(tag["data-predicted"]))): str(tag["aria-label"])
            for tag in page_of(run, cache, reports).all("button")
            if "data-true" in tag
        }
        matrix = run.metrics["test"]["confusion_matrix"]
        names = run.class_names
        assert cells == {
            (true, predicted): f"{n} of class {names[true]} predicted as {names[predicted]}"
            for true, row in enumerate(matrix)
            for predicted, n in enumerate(row)
            if n
        }

    def test_gallery_shows_the_images_themselves(self, run: Run, pictures: Path, cache: Path, reports: Path) -> None:
        import base64
        import io

        shown = [tag for tag in page_of(run, cache, reports).all("img") if ": " in str(tag["alt"])]
        assert shown
        for tag in shown:
            name, path = str(tag["alt"]).split(": ")
            assert path.startswith(f"{name}/")
            data = base64.b64decode(str(tag["src"]).removeprefix("data:image/webp;base64,"))
            colours = [
                np.asarray(image.convert("RGB")).mean()
                for image in (Image.open(io.BytesIO(data)), Image.open(pictures / path))
            ]
            assert colours[0] == pytest.approx(colours[1], abs=6)

    def test_charts_hold_the_history_and_the_map(self, run: Run, cache: Path, reports: Path) -> None:
        charts = page_of(run, cache, reports).charts
        accuracy, loss, bins, points = charts
        history = read_history(reports / run.id, run.files)
        assert [row["value"] for row in accuracy["data"]["values"]] == [row["val_accuracy"] for row in history]
        losses = [row["value"] for row in loss["data"]["values"] if row["series"] == "train"]
        assert losses == [row["loss"] for row in history]
        assert sum(row["n"] for row in bins["data"]["values"]) == run.n_test
        assert len(points["data"]["values"]) == run.n_test
        assert {row["right"] for row in points["data"]["values"]} <= {True, False}
        assert all(row["image"].startswith("data:image/webp") for row in points["data"]["values"])

    def test_views_of_the_samples(self, run: Run, cache: Path, reports: Path) -> None:
        samples = [tag for tag in page_of(run, cache, reports).all("img") if ", view " in str(tag["alt"])]
        views = [str(tag["alt"]).rsplit(" ", 1)[1] for tag in samples]
        assert views == ["0", "1"] * 6
        assert samples[0]["src"] != samples[1]["src"]

    def test_views_are_those_of_the_run(self, run: Run, pictures: Path, cache: Path, reports: Path) -> None:
        """Also beside a run whose views were made in another way, or that saw none."""
        commands.extract(ExtractConfig(str(pictures), views=2, augment="contrast"), cache)
        other = commands.train_head(HeadConfig("centroid"), cache, reports)
        plain = commands.train_head(HeadConfig("centroid", views=0), cache, reports)
        pages = commands.report([], cache, reports).pages
        pictured = {}
        for one in (run, other, plain):
            tags = [tag for tag in Page(pages[one.id]).all("img") if ", view " in str(tag["alt"])]
            pictured[one.id] = [tag["src"] for tag in tags]
        assert [len(found) for found in pictured.values()] == [12, 18, 6]
        assert pictured[run.id][0] == pictured[other.id][0] == pictured[plain.id][0]
        assert pictured[run.id][1] != pictured[other.id][1]

    def test_static_figures(self, run: Run, cache: Path, reports: Path) -> None:
        commands.report([run.id], cache, reports)
        for name in ("curves-accuracy", "curves-loss", "confusion"):
            with Image.open(reports / run.id / f"{name}.png") as image:
                assert image.width > 300
            assert (reports / run.id / f"{name}.svg").read_text().startswith("<svg")
        numbers = re.findall(r">(\d+)</text>", (reports / run.id / "confusion.svg").read_text())
        assert numbers == [str(n) for row in run.metrics["test"]["confusion_matrix"] for n in row]

    def test_t_sne(self, run: Run, cache: Path, reports: Path) -> None:
        commands.report([run.id], cache, reports, method="tsne")
        assert "by t-SNE" in (reports / run.id / "report.html").read_text()
        with pytest.raises(ConfigError, match="--map is 'umap'; it can be pca, tsne"):
            commands.report([run.id], cache, reports, method="umap")

    def test_what_is_gone_is_said(self, run: Run, pictures: Path, tmp_path: Path, reports: Path) -> None:
        pictures.rename(tmp_path / "elsewhere")
        page = page_of(run, tmp_path / "another cache", reports)
        assert "There are no pictures: There is no" in page.text
        assert "There is no map" in page.text
        assert "There are no pictures to show." in page.text

    def test_an_evaluation(self, run: Run, pictures: Path, cache: Path, reports: Path) -> None:
        again = commands.evaluate(run.id, str(pictures), cache, reports)
        text = page_of(again, cache, reports).text
        assert f"The run {run.id} (mlp8) was rated on {pictures}" in text

    def test_many_classes_give_a_list(
        self, cache: Path, reports: Path, tmp_path: Path, fake_engine: FakeEngine
    ) -> None:
        draw = np.random.default_rng(0)
        for label in range(30):
            for number in range(6):
                folder = tmp_path / "many" / f"class {label:02}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        splits = SplitConfig(0.1, 0.5)
        commands.extract(ExtractConfig(str(tmp_path / "many"), splits=splits), cache)
        run = commands.train_head(HeadConfig("centroid"), cache, reports)
        text = page_of(run, cache, reports).text
        assert "30 classes are too many for a matrix here" in text
        assert (reports / run.id / "confusion.svg").is_file()


class TestIndex:
    def test_leaderboard(self, run: Run, cache: Path, reports: Path) -> None:
        other = commands.train_head(HeadConfig("centroid"), cache, reports)
        done = commands.report([], cache, reports)
        assert set(done.pages) == {run.id, other.id}
        page = Page(done.index)
        assert {tag["href"] for tag in page.all("a")} == {f"{one.id}/report.html" for one in (run, other)}
        figures = [str(tag["data-value"]) for tag in page.all("td") if "data-value" in tag]
        for one in (run, other):
            assert str(one.metrics["test"]["accuracy"]) in figures
            assert str(one.trainable_parameters) in figures
        group = page.text.split("Parameters")[1]
        first, second = sorted((run, other), key=lambda one: group.index(one.id))
        assert first.metrics["val"]["accuracy"] >= second.metrics["val"]["accuracy"]

    def test_runs_without_a_page_have_no_link(self, run: Run, cache: Path, reports: Path) -> None:
        other = commands.train_head(HeadConfig("centroid"), cache, reports)
        page = Page(commands.report([run.id], cache, reports).index)
        assert other.id in page.text
        assert [tag["href"] for tag in page.all("a")] == [f"{run.id}/report.html"]

    def test_inspections_are_linked(self, run: Run, pictures: Path, cache: Path, reports: Path) -> None:
        page = commands.inspect(str(pictures), cache, reports).page
        assert page.name in {tag["href"] for tag in Page(commands.report([], cache, reports).index).all("a")}

    def test_no_runs(self, cache: Path, reports: Path) -> None:
        with pytest.raises(RunError, match="There are no runs in .* yet"):
            commands.report([], cache, reports)
        with pytest.raises(RunError, match="There are no runs"):
            commands.report(["2020"], cache, reports)


EVIL = "<script>alert(1)</script>"


class TestUntrusted:
    def test_markup_in_names_is_text(
        self, tmp_path: Path, draw: Any, cache: Path, reports: Path, fake_engine: FakeEngine
    ) -> None:
        """A class, and files, named like HTML; a slash can't be in a file's name."""
        image = "<img src=x onerror=alert(1)>"
        for number in range(20):
            value = 60 + 5 * number
            draw(tmp_path / "data" / "<script>alert(1)" / f"{image}{number}.png", colour=(value, value, value))
            draw(tmp_path / "data" / "{{ 7 * 7 }}'\"&" / f"{number}.png", colour=(240 - value, 100, 100))
        commands.extract(ExtractConfig(str(tmp_path / "data")), cache)
        run = commands.train_head(HeadConfig("centroid"), cache, reports)
        commands.report([], cache, reports)
        inspected = commands.inspect(str(tmp_path / "data"), cache, reports).page
        for path in (reports / run.id / "report.html", reports / "index.html", inspected):
            page = Page(path)
            assert "x" not in {tag.get("src") for tag in page.all("img")}
            assert "<script>alert(1)" not in path.read_text()
            # Of the page itself: Vega and its own script, and on a run's page the data of charts.
            plain = [tag for tag in page.all("script") if "type" not in tag]
            assert len(plain) == (2 if path.name == "report.html" else 1)
        text = Page(reports / run.id / "report.html").text
        assert "<script>alert(1)" in text
        assert "{{ 7 * 7 }}'\"&" in text
        assert "49" not in [chart["data"]["values"][0].get("class") for chart in page_of(run, cache, reports).charts]

    def test_markup_in_run_json_is_text(self, run: Run, cache: Path, reports: Path) -> None:
        change_run(
            reports / run.id, command=EVIL, notes=[EVIL], data=EVIL, versions={EVIL: EVIL}, dataset=EVIL, name=EVIL
        )
        commands.report([], cache, reports)
        for page in (reports / run.id / "report.html", reports / "index.html"):
            assert EVIL not in page.read_text()
        assert EVIL in Page(reports / run.id / "report.html").text

    @pytest.mark.parametrize(
        "change",
        [
            {"specs": [1]},
            {"extracts": [{"data": 3}]},
            {"seconds": {"total": "long"}},
            {"seconds": {}},
            {"seconds": None},
            {"specs": []},
            {"notes": ["\ud800"]},
            {"metrics": {"test": {"n": 3, "accuracy_95": []}}},
            {"trainable_parameters": "many"},
            {"versions": 3},
            {"notes": [3]},
            {"stage": "finetune"},
            {"stage": "nothing"},
            {"config": {"head": "mlp8", "optimizer": "magic"}},
            {"created": 5},
            {"head": "foo"},
            {"command": None},
        ],
        ids=str,
    )
    def test_tampered_runs(
        self, change: dict[str, Any], run: Run, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A clear error for the run that was named, and a warning and no page where all are reported on."""
        other = commands.train_head(HeadConfig("centroid"), cache, reports)
        change_run(reports / run.id, **change)
        with pytest.raises((RunError, ConfigError)):
            commands.report([str(reports / run.id)], cache, reports)
        done = commands.report([], cache, reports)
        assert set(done.pages) == {other.id}
        assert run.id in caplog.text

    def test_a_path_that_escapes_leads_nowhere(self, run: Run, tmp_path: Path, cache: Path, reports: Path) -> None:
        change_run(reports / run.id, data="../../../../../../etc/passwd", features="../../secret")
        before = {file for file in tmp_path.rglob("*") if reports not in file.parents and cache not in file.parents}
        text = page_of(run, cache, reports).text
        assert "There are no pictures: ../../../../../../etc/passwd is no kind of data that can be read" in text
        assert "There is no map: '../../secret' is not among the features" in text
        after = {file for file in tmp_path.rglob("*") if reports not in file.parents and cache not in file.parents}
        assert after == before

    def test_tampered_predictions(self, run: Run, cache: Path, reports: Path) -> None:
        path = reports / run.id / "predictions.h5"
        with h5py.File(path, "r+") as file:
            file["test/label"][0] = 99
        with pytest.raises(RunError, match=r"predictions.h5 can't be read: it was changed after it was written"):
            commands.report([run.id], cache, reports)
        change_run(reports / run.id, files={})  # of before version 0.2, without digests
        with pytest.raises(RunError, match="its test doesn't fit run.json"):
            commands.report([run.id], cache, reports)
        path.write_text("no HDF5")
        with pytest.raises(RunError, match=r"predictions.h5 can't be read"):
            commands.report([run.id], cache, reports)

    def test_tampered_history(self, run: Run, cache: Path, reports: Path) -> None:
        (reports / run.id / "history.csv").write_text("epoch,loss\n1,<b>\n")
        with pytest.raises(RunError, match=r"history.csv can't be read: .*; make the run again"):
            commands.report([run.id], cache, reports)

    def test_a_run_elsewhere_is_not_written_into_the_reports(
        self, run: Run, tmp_path: Path, cache: Path, reports: Path
    ) -> None:
        away = tmp_path / "away" / run.id
        away.parent.mkdir()
        (reports / run.id).rename(away)
        commands.train_head(HeadConfig("centroid"), cache, reports)
        with pytest.raises(RunError, match="lies outside of the reports folder"):
            commands.report([str(away)], cache, reports)


class TestGallery:
    def test_choice(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55], [0.01, 0.99]], np.float32)
        labels = np.array([0, 0, 1, 0])
        keys = np.array([b"a", b"b", b"c", b"d"], "S32")
        shown = choose(Predictions("test", keys, labels, probabilities))
        assert [one.row for one in shown if one.wrong] == [3, 1]
        assert [(one.label, one.predicted) for one in shown] == [(0, 1), (0, 0), (0, 1), (1, 1)]
        assert all(one.uncertain for one in shown)

    def test_every_confusion_is_shown(self) -> None:
        draw = np.random.default_rng(0)
        probabilities = draw.dirichlet(np.ones(5), 2000).astype(np.float32)
        labels = draw.integers(0, 5, 2000)
        predictions = Predictions("test", np.arange(2000).astype("S32"), labels, probabilities)
        shown = choose(predictions)
        assert len(shown) <= 300
        pairs = {(one.label, one.predicted) for one in shown}
        assert pairs == {(int(a), int(b)) for a, b in zip(labels, probabilities.argmax(axis=1), strict=True)}


def test_reliability_adds_up_to_the_calibration_error() -> None:
    draw = np.random.default_rng(1)
    probabilities, labels = draw.dirichlet(np.ones(4), 500), draw.integers(0, 4, 500)
    bins = reliability(probabilities, labels)
    assert sum(one["n"] for one in bins) == 500
    assert all(one["low"] <= one["confidence"] <= one["high"] for one in bins)
    error = sum(one["n"] / 500 * abs(one["accuracy"] - one["confidence"]) for one in bins)
    assert calibration_error(probabilities, labels) == pytest.approx(error)


def test_a_changed_learning_curve_is_left_aside(
    run: Run, cache: Path, reports: Path, caplog: pytest.LogCaptureFixture
) -> None:
    curve = commands.learning_curve(HeadConfig("ridge"), cache, reports, per_class=[5], draws=2)
    assert set(commands.report([], cache, reports).pages) == {curve.id, run.id}
    assert commands.report([], cache, reports).n_drawn == 0
    change_run(reports / curve.id, points=[{"n_train": 5}])
    assert set(commands.report([], cache, reports).pages) == {run.id}
    assert curve.id in caplog.text


def test_a_page_is_drawn_anew_when_what_it_shows_has_changed(run: Run, cache: Path, reports: Path) -> None:
    page = reports / run.id / "report.html"
    assert commands.report([], cache, reports).n_drawn == 1
    assert commands.report([], cache, reports).n_drawn == 0
    change_run(reports / run.id, notes=["What was noted later"])
    assert "noted later" not in page.read_text()
    assert commands.report([], cache, reports).n_drawn == 1
    assert "noted later" in page.read_text()
    assert commands.report([], cache, reports, method="tsne").n_drawn == 1
    whole = page.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"something else", whole[:-1], whole[:middle] + b"~" + whole[middle + 1 :]):
        assert damaged != whole
        page.write_bytes(damaged)
        assert commands.report([], cache, reports, method="tsne").n_drawn == 1
        assert page.read_bytes() == whole


def test_each_run_shows_the_pictures_that_its_own_labels_keep(
    tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine
) -> None:
    """The labels of the older run, which is drawn first, leave half of the pictures out."""
    data, labels = draw_shades(tmp_path / "shades"), tmp_path / "labels.csv"
    dropped = [f"{path.relative_to(data).as_posix()},drop" for path in data.rglob("*.png") if int(path.stem) % 2]
    labels.write_text("\n".join(["path,label", *dropped]))
    for columns in (Columns(labels=str(labels)), Columns()):
        commands.extract(ExtractConfig(str(data), columns=columns), cache)
        commands.train_head(HeadConfig("centroid"), cache, reports)
    pages = commands.report([], cache, reports).pages.values()
    assert ["can't be read any more" in Page(page).text for page in pages] == [False, False]
    assert commands.report([], cache, reports).n_drawn == 0
    labels.write_text("\n".join(["path,label", *dropped[1:]]))
    assert commands.report([], cache, reports).n_drawn == 1


def test_only_the_mean_of_a_learning_curve_is_joined_by_a_line() -> None:
    points = [{"n_train": n, "accuracy": n / 200, "accuracies": [0.3, n / 100]} for n in (10, 100)]
    chart = charts.learning(points, "val")
    line, draws = chart["layer"]
    assert (line["mark"]["type"], draws["mark"]) == ("line", "point")
    assert [row["value"] for row in chart["data"]["values"]] == [0.05, 0.5]
    assert [(row["x"], row["value"]) for row in draws["data"]["values"]] == [(10, 0.3), (10, 0.1), (100, 0.3), (100, 1)]


def test_pages_of_large_data_stay_small(tmp_path: Path, cache: Path, reports: Path, fake_engine: FakeEngine) -> None:
    """Pictures of pure noise are the largest that there can be."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (4000, 48, 48, 3), dtype=np.uint8)
    labels = np.arange(4000) % 25
    np.savez(tmp_path / "noise.npz", images=images, labels=labels)
    commands.extract(ExtractConfig(str(tmp_path / "noise.npz"), splits=SplitConfig(0, 0.9)), cache)
    run = commands.train_head(HeadConfig("centroid"), cache, reports)
    page = commands.report([run.id], cache, reports).pages[run.id]
    predictions = read_predictions(reports / run.id, len(run.class_names), run.files)["test"]
    assert len(predictions.keys) > 3000
    assert 2_000_000 < page.stat().st_size < LARGEST
    chosen, drawn = choose(predictions), Page(page)
    figures = drawn.all("figure")
    for name in ("wrong", "uncertain"):
        assert sum(f"data-{name}" in tag for tag in figures) == sum(getattr(one, name) for one in chosen) > 0
    assert 0 < len(figures) < len(chosen)
    assert f"{len(chosen) - len(figures)} images of the gallery left out: the page would be too large." in drawn.text
