"""Take the pictures of the documentation: python tests/screenshots.py FOLDER.

The commands of the tutorial are run as they stand there, on drawn pictures, and their pages are opened in Chromium.
Curves are drawn from the tables of the documentation.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import vl_convert
from chromium import started
from PIL import Image
from playwright.sync_api import Page

from pipeline.pages import charts

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorials" / "first-classifier.md"
FIGURES = ROOT / "docs" / "reference" / "figures.md"
COLOURS, MARGIN = 256, 16
LABELLED, SETTLED = 45, 3_000  # answers, and milliseconds after which the page tells the newest accuracy
SHORTEN = """folder => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(folder, "");
}"""


def run_tutorial(work: Path) -> None:
    """Run the commands of the tutorial in a folder."""
    (work / "docs").symlink_to(ROOT / "docs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in re.findall(r"```sh\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL):
        subprocess.run(["bash", "-e", "-c", block], cwd=work, env={**os.environ, "PATH": path}, check=True)


def take(reports: Path, target: Path) -> list[Path]:
    """Take the pictures of all pages.

    Args:
        reports: The reports folder that the tutorial has left.
        target: Where the pictures go.
    """
    target.mkdir(parents=True, exist_ok=True)
    run = min(reports.glob("*-train-head-*/report.html"))
    inspected = next(reports.glob("inspect-*.html"))
    with started() as browser:
        page = browser.new_page()
        shots = [
            shot(reports.parent, page, reports / "index.html", target / "leaderboard.png", (2200, 440), "pictures"),
            shot(reports.parent, page, run, target / "run.png", (1000, 560), "Confusions", "#confusions button"),
            shot(reports.parent, page, inspected, target / "inspect.png", (820, 680), "Byte-identical"),
        ]
    return shots


def label(work: Path, target: Path) -> Path:
    """Label some of the pictures as their names say, and take a picture of the page.

    Args:
        work: The folder of the tutorial.
        target: Where the picture goes.
    """
    classes = sorted(folder.name for folder in (work / "pictures").iterdir())
    for path in sorted((work / "pictures").glob("*/*")):
        (work / "unsorted").mkdir(exist_ok=True)
        shutil.copy(path, work / "unsorted" / f"{path.parent.name}-{path.name}")
    options = ["--classes", ",".join(classes), "--backbone", "mobilenet025", "--image-size", "128", "--no-open"]
    command = [Path(sys.executable).with_name("tlpipe"), "label", "unsorted", *options]
    with (
        subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True) as process,
        started() as browser,
    ):
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(address)
        page.locator("#grid [role=option]").first.wait_for(timeout=300_000)
        for _ in range(LABELLED):
            name = page.eval_on_selector("#large img", "image => image.alt")
            page.keyboard.press(str(1 + classes.index(name.split("-")[0])))
            page.wait_for_function("name => document.querySelector('#large img').alt !== name", arg=name)
        page.wait_for_timeout(SETTLED)
        page.screenshot(path=target)
        process.send_signal(signal.SIGINT)
    return in_few_colours(target)


def query_curves(target: Path) -> Path:
    """Draw what each way to choose pictures for labelling gives, by the tables of the figures.

    Args:
        target: Where the picture goes.
    """
    _, section = FIGURES.read_text(encoding="utf-8").split("## Which pictures to label\n")
    both = []
    for data, table in re.findall(r"^(\S+), \d+ classes.*?\n\n((?:\|.*\n)+)", section, re.MULTILINE)[:2]:
        head, _, *lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        points = [
            {"series": name, "x": int(n), "value": float(cell.split()[0])}
            for name, *cells in lines
            for n, cell in zip(head[1:], cells, strict=True)
        ]
        chart = charts.curves(points, "labels", "accuracy on held-out images, %", log=True)
        encoding = chart["layer"][0]["encoding"]
        encoding["x"]["scale"]["domain"] = [points[0]["x"], points[-1]["x"]]
        encoding["color"]["legend"]["columns"] = 4
        both.append({**chart, "width": charts.WIDTH, "title": data})
    config = both[0]["config"] | {"background": "white"}
    whole = {"hconcat": [{k: v for k, v in one.items() if k not in ("$schema", "config")} for one in both]}
    drawn = vl_convert.vegalite_to_png({"$schema": charts.SCHEMA, "config": config, **whole}, charts.VERSION, scale=2)
    Image.open(io.BytesIO(drawn)).save(target)
    return in_few_colours(target)


def in_few_colours(picture: Path) -> Path:
    """Make a picture small."""
    with Image.open(picture) as taken:
        small = taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)
    return picture


def shot(
    work: Path, page: Page, path: Path, picture: Path, size: tuple[int, int], heading: str, clicked: str = ""
) -> Path:
    """Take a picture of a part of a page, in few colours.

    Args:
        work: The folder of the tutorial, which is left out where the page names it.
        page: A page of the browser.
        path: The file that it opens.
        picture: Where the picture goes.
        size: (width, height), pixels.
        heading: Where the part begins, by words of its heading.
        clicked: What is clicked before, as a selector.
    """
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.goto(path.resolve().as_uri())
    page.evaluate(SHORTEN, f"{work.resolve()}/")
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator("svg").wait_for()
    page.evaluate("Promise.all([...document.images].map(one => { one.loading = 'eager'; return one.decode() }))")
    page.add_style_tag(content="main { max-width: none }")  # a table is shown in its whole width
    if clicked:
        page.locator(clicked).first.click()
    box = page.locator("h2", has_text=heading).first.bounding_box()
    assert box is not None
    top = box["y"] + page.evaluate("window.scrollY") - MARGIN
    page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": top, "width": width, "height": height})
    return in_few_colours(picture)


def main(target: Path) -> None:
    """Run the tutorial in a folder that goes again, and take its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        run_tutorial(Path(folder))
        take(Path(folder) / "reports", target)
        label(Path(folder), target / "label.png")
    query_curves(target / "queries.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
