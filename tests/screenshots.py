"""Take the pictures of the documentation: python tests/screenshots.py FOLDER.

The commands of the tutorial are run as they stand there, on drawn pictures, and their pages are opened in Chromium.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorials" / "first-classifier.md"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1100, 760  # pixels
COLOURS = 128


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
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(path for name in BROWSERS if (path := shutil.which(name))), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        shots = [
            shot(page, reports / "index.html", target / "leaderboard.png", height=420),
            shot(page, run, target / "run.png"),
            shot(page, inspected, target / "inspect.png"),
        ]
        browser.close()
    return shots


def shot(page: Page, path: Path, picture: Path, height: int = HEIGHT) -> Path:
    """Take a picture of the upper part of a page, in few colours."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto(path.resolve().as_uri())
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator("svg").wait_for()
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=picture)
    with Image.open(picture) as taken:
        small = taken.convert("RGB").quantize(COLOURS)
    small.save(picture, optimize=True)
    return picture


def main(target: Path) -> None:
    """Run the tutorial in a folder that goes again, and take its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        run_tutorial(Path(folder))
        take(Path(folder) / "reports", target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
