"""The pages in a real browser: no errors, sorting, filtering, keyboard, dark mode, phone width."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import started
from conftest import draw_shades, use_fake_engine
from playwright.sync_api import Page, Route

from pipeline import commands
from pipeline.config import Columns, ExtractConfig, FinetuneConfig, HeadConfig, SplitConfig
from pipeline.data import ArraySource, Dataset, array_key, open_dataset
from pipeline.errors import StoreError
from pipeline.labelling.journal import Journal
from pipeline.labelling.server import Desk, application, serving
from pipeline.labelling.session import Session
from pipeline.pages.pictures import Pictures
from pipeline.runs.run import Run

pytestmark = pytest.mark.browser

PHONE, DESKTOP = 390, 1280  # pixels


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with started() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Page]]:
    """Open a page; when the test ends, nothing must have been written to the console, and nothing asked for."""
    problems: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = DESKTOP, scheme: str = "light") -> Page:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page: Page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
        page.goto(path.resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Run]]]:
    """A leaderboard of three heads."""
    folder = tmp_path_factory.mktemp("work")
    cache, reports = folder / "cache", folder / "reports"
    with pytest.MonkeyPatch.context() as patch:
        use_fake_engine(patch)
        commands.extract(ExtractConfig(str(draw_shades(folder / "shades")), views=1, augment="flip"), cache)
        heads = [commands.train_head(HeadConfig(head), cache, reports) for head in ("mlp8", "centroid", "ridge")]
        index = commands.report([], cache, reports).index
    yield index, heads


@pytest.fixture
def index(work: tuple[Path, list[Run]]) -> Path:
    return work[0]


@pytest.fixture
def heads(work: tuple[Path, list[Run]]) -> list[Run]:
    return work[1]


def column(page: Page, number: int) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        "#runs tbody tr",
        "(rows, number) => rows.filter(row => !row.hidden).map(row => row.cells[number].textContent.trim())",
        number,
    )
    return found


def captions(page: Page) -> list[str]:
    texts: list[str] = page.locator("#gallery figure:not([hidden]) figcaption").all_inner_texts()
    return texts


def shown(page: Page) -> list[dict[str, str]]:
    found: list[dict[str, str]] = page.eval_on_selector_all(
        "#gallery figure", "all => all.filter(one => !one.hidden).map(one => ({...one.dataset}))"
    )
    return found


class TestIndex:
    def test_sorting(self, index: Path, visit: Callable[..., Page]) -> None:
        page = visit(index)
        accuracy, parameters = (page.locator("#runs thead th").nth(number) for number in (5, 11))
        first = [float(text.split()[0]) for text in column(page, 5)]
        assert first == sorted(first, reverse=True)
        assert accuracy.get_attribute("aria-sort") == "descending"
        accuracy.locator("button").click()
        assert [float(text.split()[0]) for text in column(page, 5)] == sorted(first)
        assert accuracy.get_attribute("aria-sort") == "ascending"
        parameters.locator("button").focus()
        page.keyboard.press("Enter")
        numbers = [int(text.replace(",", "")) for text in column(page, 11)]
        assert numbers == sorted(numbers, reverse=True)
        assert accuracy.get_attribute("aria-sort") is None
        page.locator("#runs thead th").nth(2).locator("button").click()
        assert column(page, 2) == ["centroid", "mlp8", "ridge"]

    def test_filtering(self, index: Path, visit: Callable[..., Page]) -> None:
        page = visit(index)
        page.get_by_label("Show runs with").fill("RID train")
        assert column(page, 2) == ["ridge"]
        assert page.locator("output").inner_text() == "1 of 3"
        page.get_by_label("Show runs with").fill("")
        assert len(column(page, 2)) == 3

    def test_links_lead_to_the_runs_and_back(self, index: Path, heads: list[Run], visit: Callable[..., Page]) -> None:
        page = visit(index)
        page.get_by_role("link", name=heads[0].id).click()
        assert page.locator("h1").inner_text() == heads[0].id
        page.get_by_role("link", name="All runs").click()
        assert page.locator("h1").inner_text() == "Runs"


class TestRunPage:
    @pytest.fixture
    def path(self, index: Path, heads: list[Run]) -> Path:
        return index.parent / heads[0].id / "report.html"

    def test_charts_are_drawn(self, path: Path, visit: Callable[..., Page]) -> None:
        page = visit(path)
        charts = page.locator(".chart")
        assert charts.count() == 4
        for number in range(4):
            charts.nth(number).scroll_into_view_if_needed()
            charts.nth(number).locator("svg").wait_for()
        assert page.locator(".chart").nth(3).locator(".mark-symbol.role-mark path").count() > 10

    def test_a_cell_filters_the_gallery(self, path: Path, heads: list[Run], visit: Callable[..., Page]) -> None:
        page = visit(path)
        assert all("wrong" in one for one in shown(page))
        cell = page.locator("#confusions button").first
        cell.click()
        wanted = {"true": cell.get_attribute("data-true"), "predicted": cell.get_attribute("data-predicted")}
        found = shown(page)
        assert found
        assert all({name: one[name] for name in wanted} == wanted for one in found)
        assert cell.get_attribute("aria-pressed") == "true"
        assert f"{len(found)} shown" in page.locator("output").inner_text()
        cell.click()
        assert page.get_by_role("button", name="Confidently wrong").get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="Least certain").click()
        assert all("uncertain" in one for one in shown(page))
        shares = [float(text.split("%")[0].split()[-1]) for text in captions(page)]
        assert shares == sorted(shares) and shares[0] < shares[-1], "the least certain first"
        page.get_by_role("button", name="Confidently wrong").click()
        shares = [float(text.split("%")[0].split()[-1]) for text in captions(page)]
        assert shares == sorted(shares, reverse=True)

    def test_keyboard(self, path: Path, heads: list[Run], visit: Callable[..., Page]) -> None:
        page = visit(path)
        assert page.locator('#confusions button[tabindex="0"]').count() == 1
        page.locator('#confusions button[tabindex="0"]').focus()
        before = page.evaluate("[document.activeElement.dataset.true, document.activeElement.dataset.predicted]")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        after = page.evaluate("[document.activeElement.dataset.true, document.activeElement.dataset.predicted]")
        assert after != before
        page.keyboard.press("Enter")
        assert {(one["true"], one["predicted"]) for one in shown(page)} == {tuple(after)}
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.view") == "wrong"

    def test_a_point_of_the_map_shows_its_picture(self, path: Path, visit: Callable[..., Page]) -> None:
        page = visit(path)
        chart = page.locator(".chart").nth(3)
        chart.scroll_into_view_if_needed()
        point = chart.locator(".mark-symbol.role-mark path").first
        point.wait_for()
        point.hover(force=True)
        image = page.locator("#vg-tooltip-element img")
        image.wait_for()
        assert str(image.get_attribute("src")).startswith("data:image/webp")
        assert image.evaluate("image => image.naturalWidth") == 48

    def test_the_map_by_keyboard(self, path: Path, visit: Callable[..., Page]) -> None:
        page = visit(path)
        chart = page.locator(".chart").nth(3)
        chart.scroll_into_view_if_needed()
        points = chart.locator(".mark-symbol.role-mark path")
        points.first.wait_for()
        points.first.focus()
        first = page.locator("#vg-tooltip-element img").get_attribute("src")
        page.keyboard.press("ArrowRight")
        assert points.nth(1).evaluate("one => one === document.activeElement")
        assert page.locator("#vg-tooltip-element img").get_attribute("src") != first
        chart.locator(".role-legend-symbol path").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)
        faint = points.evaluate_all("all => all.filter(one => Number(one.getAttribute('opacity')) < 0.1).length")
        assert 0 < faint < points.count()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [PHONE, DESKTOP])
    def test_colours_and_width(self, scheme: str, width: int, path: Path, visit: Callable[..., Page]) -> None:
        """Text stands out from the paper, also in charts, and only tables are wider than a phone."""
        for page in (visit(path, width, scheme), visit(path.parent.parent / "index.html", width, scheme)):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            colours = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
            paper, ink = (luminance(colour) for colour in colours)
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7  # AAA of WCAG 2.2
            assert (paper < ink) == (scheme == "dark")
        page = visit(path, width, scheme)
        page.locator(".chart").first.scroll_into_view_if_needed()
        label = page.locator(".chart svg text").first
        label.wait_for()
        assert label.evaluate("one => getComputedStyle(one).fill") == colours[1]


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2.2 defines it."""
    shares = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_names_that_are_code_do_nothing(
    tmp_path: Path, draw: Any, cache: Path, reports: Path, fake_engine: Any, visit: Callable[..., Page]
) -> None:
    for number in range(20):
        value = 60 + 5 * number
        draw(tmp_path / "data" / "<img src=x onerror=document.title='broken'>" / f"{number}.png", colour=(value,) * 3)
        draw(tmp_path / "data" / "'+(document.title='broken')+'" / f"<b>{number}.png", colour=(240 - value, 100, 100))
    commands.extract(ExtractConfig(str(tmp_path / "data")), cache)
    run = commands.train_head(HeadConfig("centroid"), cache, reports)
    commands.report([], cache, reports)
    inspected = commands.inspect(str(tmp_path / "data"), cache, reports).page
    for path in (reports / run.id / "report.html", inspected, reports / "index.html"):
        page = visit(path)
        for number in range(page.locator(".chart").count()):
            page.locator(".chart").nth(number).scroll_into_view_if_needed()
            page.locator(".chart svg").nth(number).wait_for()
        if page.locator(".chart").count():
            page.locator(".mark-symbol.role-mark path").first.hover(force=True)
            page.locator("#vg-tooltip-element img").wait_for()
        assert page.title() != "broken"


def test_frozen_and_fine_tuned_share_their_axes(
    red_and_blue: Path, cache: Path, reports: Path, visit: Callable[..., Page]
) -> None:
    small = {"backbone": "mobilenet025", "image_size": (32, 32), "weights": "random", "precision": "float32"}
    commands.extract(ExtractConfig(str(red_and_blue), **small), cache)
    commands.train_head(HeadConfig("mlp8", epochs=2), cache, reports)
    tuned = commands.finetune(FinetuneConfig("block13", epochs=2, batch_size=16), cache, reports)
    page = visit(commands.report([], cache, reports).pages[tuned.id])
    chart = page.locator(".chart").first
    chart.locator("svg").wait_for()
    legend = chart.locator(".role-legend-label text").all_text_contents()
    assert legend == ["fine-tuned, train", "fine-tuned, val", "frozen, val"]


def save_corrections(page: Page, table: Path) -> None:
    """Save what was corrected on the page of inspect, over a table."""
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save labels.csv").click()
    saved.value.save_as(table)


def leave_out_first(page: Page, table: Path) -> None:
    """Leave out the first picture, and save all corrections."""
    page.locator("figure").first.focus()
    page.keyboard.press("0")
    save_corrections(page, table)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_corrections_are_chosen_by_keyboard_and_saved(
    scheme: str, tmp_path: Path, red_and_blue: Path, cache: Path, visit: Callable[..., Page]
) -> None:
    shutil.copy(red_and_blue / "red/0.png", red_and_blue / "blue/0, again.png")
    found = commands.inspect(str(red_and_blue), cache, tmp_path / "reports")
    page = visit(found.page, scheme=scheme)
    save = page.get_by_role("button", name="Save labels.csv")
    page.keyboard.press("2")
    assert save.is_disabled(), "no picture was chosen"
    page.locator("figure").first.focus()
    page.keyboard.press("2")  # red; goes on to the next
    page.keyboard.press("0")
    page.keyboard.press("u")
    page.locator("figure").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("0")
    table = tmp_path / "labels.csv"
    save_corrections(page, table)
    assert table.read_text() == 'path,label\n"blue/0, again.png","red"\n"red/0.png","drop"\n'
    after = open_dataset(str(red_and_blue), SplitConfig(), columns=Columns(labels=str(table))).dataset
    assert "red/0.png" not in list(after.locations)
    assert after.label_name(list(after.locations).index("blue/0, again.png")) == "red"


def test_a_key_that_is_held_is_one_correction(
    tmp_path: Path, red_and_blue: Path, cache: Path, visit: Callable[..., Page]
) -> None:
    for number in range(2):
        shutil.copy(red_and_blue / f"red/{number}.png", red_and_blue / f"blue/{number}, again.png")
    page = visit(commands.inspect(str(red_and_blue), cache, tmp_path / "reports").page)
    said = page.locator("#corrections output")
    page.locator("figure").first.focus()
    for key, n in (("0", 1), ("2", 2), ("u", 1)):
        for _ in range(3):  # as the keyboard repeats it
            page.keyboard.down(key)
        page.keyboard.up(key)
        assert said.inner_text() == f"{n} corrected"


def test_earlier_corrections_are_saved_with_new_ones(
    tmp_path: Path, red_and_blue: Path, cache: Path, visit: Callable[..., Page]
) -> None:
    shutil.copy(red_and_blue / "red/0.png", red_and_blue / "blue/0, again.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nred/1.png,it's <b>\n")
    columns = Columns(labels=str(table))
    page = visit(commands.inspect(str(red_and_blue), cache, tmp_path / "reports", columns=columns).page)
    leave_out_first(page, table)
    assert table.read_text() == 'path,label\n"red/1.png","it\'s <b>"\n"blue/0, again.png","drop"\n'


def test_a_picture_that_was_saved_anew_is_still_found_after_more_corrections(
    tmp_path: Path, red_and_blue: Path, cache: Path, visit: Callable[..., Page]
) -> None:
    shutil.copy(red_and_blue / "red/0.png", red_and_blue / "blue/0, again.png")
    table = tmp_path / "labels.csv"
    table.write_text(f"key,path,label\n{'0' * 32},red/1.png,blue\n")
    columns = Columns(labels=str(table))
    page = visit(commands.inspect(str(red_and_blue), cache, tmp_path / "reports", columns=columns).page)
    leave_out_first(page, table)
    after = open_dataset(str(red_and_blue), SplitConfig(), columns=columns).dataset
    assert after.label_name(list(after.locations).index("red/1.png")) == "blue"
    assert "blue/0, again.png" not in list(after.locations)


class TestLabelling:
    @pytest.fixture
    def served(self, tmp_path: Path) -> Iterator[tuple[str, Session]]:
        """A page of 120 pictures in three shades, served on this machine; its address and session."""
        shade = np.random.default_rng(0).integers(0, 3, 120)
        images = (60 + 60 * shade)[:, None, None, None] + np.arange(120)[:, None, None, None] % 40
        images = np.broadcast_to(images, (120, 16, 16, 3)).astype(np.uint8)
        images[:, 0, 0, 1] = np.arange(120)
        keys = np.array([array_key(image) for image in images], "S32")
        locations = [f"{('dark', 'grey', 'light')[one]}-{row}.png" for row, one in enumerate(shade)]
        dataset = Dataset("shades", keys, np.full(120, -1), np.full(120, "train"), locations, ())
        features = np.eye(3, 8)[shade] + np.random.default_rng(1).normal(0, 0.2, (120, 8))
        pictures = Pictures(ArraySource([(images, 1.0)]), keys, 10**6)
        journal = Journal(tmp_path / "labels.jsonl", "/data")
        desk = Desk()
        desk.session = Session(dataset, features.astype(np.float32), pictures, journal)
        with serving(application(desk, ["127.0.0.1"]), "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}/?token={desk.token}", desk.session
        desk.session.close()

    @pytest.fixture
    def label_page(self, served: tuple[str, Session], chromium: Any) -> Iterator[Callable[..., Page]]:
        problems: list[str] = []
        contexts = []

        def open_page(**known: Any) -> Page:
            context = chromium.new_context(**known)
            contexts.append(context)
            page: Page = context.new_page()
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(served[0])
            page.wait_for_selector("#grid [role=option]")
            return page

        yield open_page
        for context in contexts:
            context.close()
        assert [one for one in problems if "409 (Conflict)" not in one] == []

    def name_classes(self, page: Page) -> None:
        for name in ("dark", "grey", "light"):
            page.keyboard.press("/")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#classes button:has-text('{name}')")

    def begin(self, page: Page, session: Session, n: int) -> None:
        """Name the classes, label so many pictures, and wait for the head."""
        self.name_classes(page)
        self.label(page, n)
        session.settle()

    def counts(self, page: Page, n: int) -> None:
        """Wait until the page says that so many have a label."""
        page.wait_for_function("n => document.getElementById('count').textContent.startsWith(`${n} of 120`)", arg=n)

    def find(self, page: Page, text: str) -> None:
        page.keyboard.press("/")
        page.keyboard.type(text)
        page.keyboard.press("Enter")

    def large(self, page: Page) -> str:
        """The path of the large picture."""
        path: str = page.eval_on_selector("#large img", "image => image.alt")
        return path

    def delay(self, page: Page, address: str, seconds: float) -> None:
        """Let answers of the server come late."""

        def late(route: Route) -> None:
            time.sleep(seconds)
            route.continue_()

        page.route(f"**{address}", late)

    @contextmanager
    def held(self, page: Page, address: str) -> Iterator[None]:
        """Hold back what is asked first while the block runs."""
        asked: list[Route] = []
        page.route(f"**{address}", lambda route: asked.append(route), times=1)
        yield
        asked[0].continue_()

    def label(self, page: Page, n: int) -> None:
        for _ in range(n):
            path = page.eval_on_selector("#large img", "image => image.alt")
            page.keyboard.press({"d": "1", "g": "2", "l": "3"}[path[0]])
            page.wait_for_function("path => document.querySelector('#large img').alt !== path", arg=path)

    def can_be_seen(self, page: Page) -> None:
        """Wait until all pictures that are selected are there, as they can't be confirmed before."""
        page.wait_for_function(
            "() => { const all = [...document.querySelectorAll('#grid [aria-selected=true] img')];"
            " return all.length && all.every((one) => one.naturalWidth); }"
        )

    def test_the_keyboard_is_enough(self, served: tuple[str, Session], label_page: Callable[..., Page]) -> None:
        page, session = label_page(), served[1]
        self.begin(page, session, 41)
        state = session.state()
        assert state["labelled"] == 41
        for answer in session.journal.answers:
            assert answer.path.startswith(answer.label)
        path = session.journal.answers[-1].path
        page.keyboard.press("u")
        page.wait_for_function("path => document.querySelector('#large img').alt === path", arg=path)
        self.counts(page, 40)
        page.keyboard.press("t")
        self.can_be_seen(page)
        assert page.locator("#tabs [aria-pressed=true]").inner_text() == "Confirm"
        shown = page.locator("#grid [role=option]")
        first = shown.first.get_attribute("data-key")
        page.keyboard.press(" ")
        page.keyboard.press("Enter")
        page.wait_for_function("() => !document.getElementById('count').textContent.startsWith('40 of 120')")
        latest = {one.key: one for one in session.journal.answers}
        assert first not in {key for key, answer in latest.items() if answer.label}
        page.wait_for_selector("#accuracy span")
        assert "drawn at random" in page.locator("#accuracy").inner_text()

    def test_a_labelled_set_is_checked_beyond_the_first_grid(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        session = served[1]
        for name in ("dark", "grey", "light"):
            session.name_class(name)
        dataset = session.dataset
        names = [path.split("-")[0] for path in dataset.locations]
        shown = dict(zip([key.decode() for key in dataset.keys.tolist()], names, strict=True))
        wrong = set(list(shown)[::4])
        others = {"dark": "grey", "grey": "light", "light": "dark"}
        session.answer([(key, others[name] if key in wrong else name) for key, name in shown.items()], {"tab": "label"})
        session.answer([(list(shown)[1], "drop")], {"tab": "label"})
        session.settle()
        page = label_page()
        options = page.locator("#grid [role=option]")
        for place in range(25):
            option = options.nth(place)
            option.wait_for()
            key = option.get_attribute("data-key")
            assert key in wrong
            page.keyboard.press({"dark": "1", "grey": "2", "light": "3"}[shown[key]])
            page.wait_for_function(
                "([place, name]) => document.querySelectorAll('#grid [role=option]')[place].innerText.startsWith(name)",
                arg=[place, shown[key]],
            )
            page.wait_for_function(
                "place => document.querySelectorAll('#grid [role=option]').length > place + 1", arg=place
            )
        looked_at = {answer.key for answer in session.journal.answers if answer.shown["tab"] == "errors"}
        assert len(looked_at) == 25
        session.settle()
        page.get_by_role("button", name="Label errors").click()
        page.wait_for_function("key => !document.querySelector(`[data-key='${key}']`)", arg=key)
        options.first.wait_for()
        assert not looked_at & {option.get_attribute("data-key") for option in options.all()}

    def test_what_was_clicked_away_is_not_offered_again(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        self.begin(page, session, 12)
        page.get_by_role("button", name="Confirm", exact=True).click()
        self.can_be_seen(page)
        shown = page.locator("#grid [role=option]")
        first = shown.first.get_attribute("data-key")
        shown.first.click()
        page.keyboard.press("Enter")
        page.wait_for_function("first => !document.querySelector(`[data-key='${first}']`)", arg=first)
        page.wait_for_selector("#grid [aria-selected=true]")
        assert page.locator(f"[data-key='{first}']").count() == 0

    def test_names_that_begin_alike_and_keys_that_are_held(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        for name in ("star", "sta"):  # with Shift, as another one begins alike
            page.keyboard.press("/")
            page.keyboard.type(name)
            page.keyboard.press("Shift+Enter")
            page.wait_for_selector(f"#classes button:has-text('{name}')")
        page.wait_for_function("() => document.querySelectorAll('#classes button').length === 3")
        assert session.classes == ["star", "sta"]
        first = page.eval_on_selector("#large img", "image => image.alt")
        page.keyboard.down("1")
        page.keyboard.down("1")  # held, as the keyboard repeats it
        page.keyboard.down("1")
        page.keyboard.up("1")
        page.wait_for_function("() => document.getElementById('count').textContent.startsWith('1 of 120')")
        assert [(answer.path, answer.label) for answer in session.journal.answers] == [(first, "star")]
        page.keyboard.press("/")
        page.keyboard.type("st")
        page.wait_for_function("() => document.getElementById('found').textContent === 'star, sta'")
        page.keyboard.press("Shift+Enter")
        page.wait_for_function("() => document.querySelectorAll('#classes button').length === 4")
        page.keyboard.press("/")
        page.keyboard.type("sta")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('count').textContent.startsWith('2 of 120')")
        assert session.journal.answers[-1].label == "sta"

    def test_tabs_are_turned_by_keys_and_their_pictures_have_the_focus(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page = label_page()
        self.begin(page, served[1], 20)
        for key, tab in (("Shift+T", "One class"), ("t", "To label"), ("t", "Confirm")):
            page.keyboard.press(key)
            page.wait_for_function(
                "tab => document.querySelector('#tabs [aria-pressed=true]').innerText === tab", arg=tab
            )
            page.wait_for_function("() => document.activeElement.getAttribute('role') === 'option'")
        page.locator("#classes button").nth(2).click()  # by mouse, and then Enter confirms
        page.wait_for_selector("#actions button:has-text('as light')")
        page.wait_for_function("() => document.activeElement.getAttribute('role') === 'option'")
        self.can_be_seen(page)
        n = int(re.findall("[0-9]+", page.locator("#actions button").first.inner_text())[0])
        page.keyboard.press("Enter")
        self.counts(page, 20 + n)
        page.get_by_label("Pictures of").select_option("dark")
        page.get_by_label("Pictures of").focus()
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.activeElement.getAttribute('role') === 'option'")

    def test_the_picture_under_the_focus_is_what_others_are_like(self, label_page: Callable[..., Page]) -> None:
        page = label_page()
        self.name_classes(page)
        page.keyboard.press("ArrowRight")
        path = page.wait_for_selector("[role=option]:nth-child(2):focus").get_attribute("data-key")
        page.locator("#tabs button", has_text="Alike").click()
        page.wait_for_selector(f"#grid [role=option]:first-child[data-key='{path}']")
        assert page.locator("#tabs [aria-pressed=true]").inner_text() == "Alike"
        assert page.locator("#trouble").inner_text() == ""

    def test_undo_brings_all_of_an_answer_back(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        self.begin(page, session, 20)
        page.keyboard.press("t")
        self.can_be_seen(page)
        confirmed = [one.get_attribute("data-key") for one in page.locator("#grid [role=option]").all()]
        page.keyboard.press("Enter")
        self.counts(page, 20 + len(confirmed))
        session.settle()  # and what is chosen next leaves them out
        self.delay(page, "/show", 0.5)
        page.locator("#classes button").first.click()  # shows the class anew, and U is sooner
        page.keyboard.press("u")
        self.counts(page, 20)
        page.wait_for_function("n => document.querySelectorAll('#grid [role=option]').length >= n", arg=len(confirmed))
        page.wait_for_timeout(700)
        assert re.findall("[0-9]+", page.locator("#actions button").first.inner_text())[0] == str(
            page.locator("#grid [aria-selected=true]").count()
        )
        found = page.locator("#grid [role=option]").all()[: len(confirmed)]
        assert [one.get_attribute("data-key") for one in found] == confirmed
        assert all(one.get_attribute("aria-selected") == "true" for one in found)
        assert page.evaluate("document.activeElement.dataset.key") == confirmed[0]

    def test_a_name_that_is_not_clear_yet_is_typed_on(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        for name in ("sunflower", "sundew"):
            session.name_class(name)
        page.wait_for_selector("#classes button:has-text('sundew')")
        path = self.large(page)
        self.find(page, "sun")
        assert "2 classes begin with sun" in page.locator("#trouble").inner_text()
        page.keyboard.type("flower")
        assert page.locator("#trouble").inner_text() == ""
        page.keyboard.press("Enter")
        self.counts(page, 1)
        assert [(one.path, one.label) for one in session.journal.answers] == [(path, "sunflower")]
        page.keyboard.press("/")
        page.keyboard.type("sun")
        page.keyboard.press("Escape")
        assert page.locator("#found").inner_text() == page.locator("#find").input_value() == ""

    def test_a_class_is_found_before_there_is_a_label(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        for name in ("rose", "daisy"):
            session.name_class(name)
        page.wait_for_selector("#classes button:has-text('daisy')")
        self.find(page, "dai")
        self.counts(page, 1)
        assert session.classes == ["rose", "daisy"]
        assert session.journal.answers[0].label == "daisy"

    def test_keys_count_in_their_order(self, served: tuple[str, Session], label_page: Callable[..., Page]) -> None:
        page, session = label_page(), served[1]
        self.name_classes(page)
        first, second = (one.get_attribute("data-key") for one in page.locator("#grid [role=option]").all()[:2])
        self.delay(page, "/answer", 0.3)
        page.keyboard.press("1")
        page.keyboard.press("u")
        page.keyboard.press("2")
        page.keyboard.press("3")
        self.counts(page, 2)
        found = [(one.key, one.label, one.undoes) for one in session.journal.answers]
        assert found == [
            (first, "dark", False),
            (first, "", True),
            (first, "grey", False),
            (second, "light", False),
        ]

    @pytest.mark.parametrize("stays", [False, True])
    def test_what_was_clicked_is_answered_whatever_comes_before(
        self, stays: bool, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        """Also where that takes a picture away, or goes on to the next."""
        page, session = label_page(), served[1]
        self.begin(page, session, 20)
        if stays:
            page.get_by_role("button", name="One class", exact=True).click()
            page.wait_for_selector("#grid [role=option] span:has-text('dark')")
        options = page.locator("#grid [role=option]")
        first, clicked = (options.nth(place).get_attribute("data-key") for place in (0, 2))
        with self.held(page, "/answer"):
            page.keyboard.press("1")
            options.nth(2).click()
            page.keyboard.press("2")
        page.wait_for_function("() => document.getElementById('said').textContent === 'Picture: grey'")
        assert [(one.key, one.label) for one in session.journal.answers[20:]] == [(first, "dark"), (clicked, "grey")]

    def test_a_class_is_not_given_to_another_picture_if_the_one_that_was_clicked_has_gone(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        self.name_classes(page)
        with self.held(page, "/answer"):
            page.keyboard.press("1")
            page.locator("#grid [role=option]").nth(15).click()
            page.keyboard.press("2")
            page.evaluate("desk.pictures.length = 9")  # as a newer head would have it
        page.locator("#trouble", has_text="The picture that was clicked is no longer here").wait_for()
        assert [one.label for one in session.journal.answers] == ["dark"]

    def test_after_trouble_keys_that_wait_are_let_go(
        self, served: tuple[str, Session], label_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page, session = label_page(), served[1]
        self.name_classes(page)
        self.label(page, 1)
        path = self.large(page)
        monkeypatch.setattr(session.journal, "append", fails)
        self.delay(page, "/answer", 0.3)
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("u")
        page.wait_for_function("() => document.getElementById('trouble').textContent.includes('No space is left')")
        monkeypatch.undo()
        page.wait_for_timeout(500)
        assert len(session.journal.answers) == 1
        assert self.large(page) == path
        page.keyboard.press("3")
        self.counts(page, 2)

    def test_no_window_overwrites_the_other_unseen(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        one, session = label_page(), served[1]
        self.name_classes(one)
        two = label_page()
        two.wait_for_selector("#classes button:has-text('light')")
        path = self.large(one)
        assert self.large(two) == path
        one.keyboard.press("1")
        self.counts(one, 1)
        two.keyboard.press("2")
        two.wait_for_function("() => document.getElementById('trouble').textContent.includes('meanwhile (dark)')")
        two.wait_for_function("path => document.querySelector('#large img').alt !== path", arg=path)
        assert [answer.label for answer in session.journal.answers] == ["dark"]
        two.keyboard.press("3")
        self.counts(two, 2)
        one.reload()  # which forgets nothing
        one.wait_for_selector("#actions button:has-text('Undo')")
        one.keyboard.press("u")
        one.wait_for_function("path => document.querySelector('#large img').alt === path", arg=path)
        assert session.journal.answers[-1].path == path

    def test_it_reads_well_without_eyes_and_hands(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page = label_page(viewport={"width": PHONE, "height": 500})
        self.name_classes(page)
        held = "key => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, repeat: true, bubbles: true, cancelable: true}))"
        for key, goes_on in (
            ("PageDown", True),
            ("Home", True),
            ("Tab", True),
            ("1", False),
            ("u", False),
            ("Enter", False),
        ):
            assert page.evaluate(held, key) == goes_on, key
        assert page.locator("#preparing").get_attribute("aria-live") is None
        assert page.locator("#done").get_attribute("aria-labelledby") == "doing"
        order = "() => ['large', 'classes', 'actions', 'find-form', 'grid'].map((id) => document.getElementById(id))"
        assert page.evaluate(
            f"({order})().every((one, n, all) => !n || (one.getBoundingClientRect().top >= all[n - 1].getBoundingClientRect().top"
            " && all[n - 1].compareDocumentPosition(one) === Node.DOCUMENT_POSITION_FOLLOWING))"
        )
        page.keyboard.press("0")
        page.wait_for_function("() => document.getElementById('said').textContent === 'Picture: left out'")
        page.keyboard.press("u")
        page.wait_for_function("() => document.getElementById('said').textContent === 'The last answer is taken back'")

    def test_the_end_is_told(self, served: tuple[str, Session], label_page: Callable[..., Page]) -> None:
        page, session = label_page(), served[1]
        session.name_class("dark")
        page.wait_for_selector("#classes button:has-text('dark')")
        last, *others = (key.decode() for key in session.dataset.keys.tolist())
        page.locator("#grid [role=option]").first.wait_for()
        session.answer([(key, "dark") for key in others], {})
        page.reload()
        page.locator(f"[data-key='{last}']").wait_for()
        page.keyboard.press("1")
        page.locator("#empty", has_text="All pictures have a label, or are left out.").wait_for()

    def test_names_that_are_code_do_nothing(self, served: tuple[str, Session], label_page: Callable[..., Page]) -> None:
        names = ["<img src=x onerror=document.title='broken'>", "'+(document.title='broken')+'", "</script><b>x"]
        session = served[1]
        session.dataset.locations[:] = [f"{names[row % 3]}-{row}.png" for row in range(120)]
        for name in names:
            session.name_class(name)
        answers = [(key.decode(), names[row % 2]) for row, key in enumerate(session.dataset.keys.tolist())]
        session.answer(answers[:60], {})
        session.settle()
        page = label_page()
        self.find(page, "</script>")
        self.counts(page, 61)
        for tab in ("Confirm", "One class", "Confidently wrong", "Label errors", "To label"):
            page.get_by_role("button", name=tab, exact=True).click()
            page.wait_for_function("() => document.querySelector('#empty:not([hidden]), #grid [role=option]')")
        assert page.title() == "tlpipe label"
        assert page.locator("#classes button span").all_inner_texts() == [*names, "leave out"]
        assert page.locator("#desk b, #desk img[src=x], #desk script").count() == 0
        assert names[0] in page.locator("#large").inner_text() + page.locator("#grid").inner_text()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [PHONE, DESKTOP])
    def test_colours_and_width(
        self, scheme: str, width: int, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        session = served[1]
        for name in ("dark", "grey", "a class with a name that is much longer than any phone is wide " * 2):
            session.name_class(name.strip())
        page = label_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.label(page, 1)
        page.keyboard.press("0")
        self.counts(page, 1)
        for tab in ("To label", "Confirm", "One class", "Outliers"):
            page.get_by_role("button", name=tab, exact=True).click()
            page.wait_for_function("() => document.querySelector('#empty:not([hidden]), #grid [role=option]')")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (paper < 0.5) == (scheme == "dark")
        for selector in (
            "#count",
            ".note",
            "#classes button",
            "#classes small",
            "kbd",
            "#tabs [aria-pressed=true]",
            "#hint",
        ):
            text, ground = page.locator(selector).first.evaluate(
                "one => { const style = getComputedStyle(one); return [style.color, style.backgroundColor]; }"
            )
            ink, under = luminance(text), paper if ground.endswith(", 0)") else luminance(ground)
            assert (max(ink, under) + 0.05) / (min(ink, under) + 0.05) > 4.5, selector  # AA of WCAG 2.2

    def test_in_a_grid_a_number_chooses_what_is_confirmed(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        self.begin(page, session, 20)
        page.get_by_role("button", name="Confirm", exact=True).click()
        page.wait_for_selector("#grid [aria-selected=true]")
        page.locator("#grid [role=option]").first.focus()
        page.keyboard.press("3")
        page.wait_for_function("() => document.getElementById('one').value === 'light'")
        page.wait_for_selector("#actions button:has-text('as light')")
        self.can_be_seen(page)
        assert len(session.journal.answers) == 20
        page.get_by_role("button", name=re.compile("Confirm [0-9]+ as light")).click()
        page.wait_for_function("() => !document.getElementById('count').textContent.startsWith('20 of 120')")
        assert {answer.label for answer in session.journal.answers[20:]} == {"light"}

    def test_a_grid_is_confirmed_as_what_it_is_shown_for(
        self, served: tuple[str, Session], label_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where another class was chosen while an answer failed, after which all that waits is let go."""
        page, session = label_page(), served[1]
        self.begin(page, session, 20)
        page.get_by_role("button", name="Confirm", exact=True).click()
        self.can_be_seen(page)
        monkeypatch.setattr(session.journal, "append", fails)
        page.evaluate(
            """() => {
                const key = new KeyboardEvent("keydown", { key: "0", bubbles: true });
                document.getElementById("grid").firstChild.dispatchEvent(key);
                document.getElementById("one").value = "light";
                document.getElementById("one").dispatchEvent(new Event("change"));
            }"""
        )
        page.wait_for_function("() => document.getElementById('trouble').textContent.includes('No space is left')")
        page.wait_for_function("() => document.getElementById('one').value === 'dark'")
        monkeypatch.undo()
        page.locator("#grid [role=option]").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("() => !document.getElementById('count').textContent.startsWith('20 of 120')")
        assert {answer.label for answer in session.journal.answers[20:]} == {"dark"}

    def test_nothing_is_confirmed_that_can_not_be_seen(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        self.begin(page, session, 20)
        late: list[Route] = []
        page.route(re.compile("side=160"), lambda route: late.append(route))
        page.get_by_role("button", name="Confirm", exact=True).click()
        page.wait_for_selector("#grid [aria-selected=true]")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('trouble').textContent.includes(\"can't be seen\")")
        assert len(session.journal.answers) == 20
        shown = {one.get_attribute("data-key") for one in page.locator("#grid [role=option]").all()}
        broken = late.pop()
        (gone,) = (key for key in shown if f"/{key}?" in broken.request.url)
        broken.fulfill(content_type="image/webp", body="no picture")
        for one in late:
            one.continue_()
        page.wait_for_selector(f"[data-key='{gone}'][aria-selected=false]:has-text(\"can't be shown\")")
        self.can_be_seen(page)
        page.keyboard.press("Enter")
        self.counts(page, 20 + len(shown) - 1)
        assert {one.key for one in session.journal.answers[20:]} == shown - {gone}

    def test_pictures_further_on_are_those_of_the_newest_head_unless_some_are_selected(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        keys = "[...document.querySelectorAll('#grid [role=option]')].map((one) => one.dataset.key)"
        self.begin(page, session, 40)
        page.evaluate("refresh()")
        chosen = [one.key for one in session.show("label", 12, skip=page.evaluate(keys)[:8])]
        page.wait_for_function(f"chosen => {keys}.slice(8, 20).join() === chosen.join()", arg=chosen)
        page.keyboard.press(" ")
        before = page.evaluate(keys)
        for one in session.show("label", 10, skip=before):
            session.answer([(one.key, "dark")], {})
        session.settle()
        page.evaluate("refresh()")
        self.counts(page, 50)
        assert page.evaluate(keys) == before
        assert [one.key for one in session.show("label", 12, skip=before[:8])] != before[8:20]

    def test_nothing_is_shown_before_it_is_chosen(
        self, served: tuple[str, Session], chromium: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served[1].settle()
        monkeypatch.setattr("pipeline.labelling.session.PATIENCE", 0.05)
        served[1].learner.has_chosen.clear()
        with chromium.new_context() as context:
            page = context.new_page()
            page.goto(served[0])
            page.locator("#empty", has_text="The next pictures are being chosen.").wait_for()
            served[1].learner.has_chosen.set()
            page.wait_for_selector("#grid [role=option]")

    def test_two_windows_share_a_labelling(self, served: tuple[str, Session], label_page: Callable[..., Page]) -> None:
        one = label_page()
        self.name_classes(one)
        two = label_page(color_scheme="dark", viewport={"width": PHONE, "height": 800})
        two.wait_for_selector("#classes button:has-text('light')")
        assert two.evaluate("document.documentElement.scrollWidth") <= PHONE
        self.label(one, 3)
        two.wait_for_function("() => document.getElementById('count').textContent.startsWith('3 of 120')")

    def test_what_has_not_changed_is_not_drawn_anew(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        """As who reads it would lose their place."""
        session = served[1]
        for name in ("dark", "grey", "light"):
            session.name_class(name)
        named = [
            (key.decode(), path.split("-")[0])
            for key, path in zip(session.dataset.keys.tolist(), session.dataset.locations, strict=True)
        ]
        session.answer(named[:60], {})
        session.settle()
        page = label_page()
        accuracy = page.wait_for_selector("#accuracy span")
        for _ in range(2):  # when the second one is asked for, the first has been drawn
            page.wait_for_event("response", lambda response: response.url.endswith("/state"))
        assert accuracy.evaluate("one => one.isConnected")

    def test_what_another_window_said_is_shown_where_it_can_not_be_undone(
        self, served: tuple[str, Session], label_page: Callable[..., Page]
    ) -> None:
        page, session = label_page(), served[1]
        self.begin(page, session, 20)
        page.get_by_role("button", name="One class", exact=True).click()
        page.wait_for_selector("#grid [role=option] span:has-text('dark')")
        key = page.locator("#grid [role=option]").first.get_attribute("data-key")
        n = len(session.journal.answers)
        page.keyboard.press("2")
        page.wait_for_selector(f"#grid [data-key='{key}'] span:has-text('grey')")
        session.answer([(str(key), "light")], {}, window="other")
        page.keyboard.press("u")
        page.wait_for_selector(f"#grid [data-key='{key}'] span:has-text('light')")
        assert [answer.label for answer in session.journal.answers[n:]] == ["grey", "light"]

    def test_what_can_not_be_saved_is_said_and_the_picture_stays(
        self, served: tuple[str, Session], label_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page, session = label_page(), served[1]
        self.name_classes(page)
        path = page.eval_on_selector("#large img", "image => image.alt")
        monkeypatch.setattr(session.journal, "append", fails)
        page.keyboard.press("1")
        page.wait_for_function("() => document.getElementById('trouble').textContent.includes('No space is left')")
        assert page.eval_on_selector("#large img", "image => image.alt") == path
        monkeypatch.undo()


def fails(_: Any) -> None:
    raise StoreError("No space is left for labels.jsonl")
