"""HTML pages that need nothing but themselves: styles, scripts and pictures are inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.pages import charts
from pipeline.pages.pictures import Pictures
from pipeline.pages.run_page import CONFUSION, RunData, context, engine_of, figures, shown_split
from pipeline.runs.run import Run
from pipeline.util.files import mark_folder, published

INDEX, RUN_PAGE = "index.html", "report.html"
TEMPLATES = Path(__file__).parent / "templates"
SIDE = 144  # pixels of a picture on the page of an inspection


@dataclass(frozen=True, slots=True)
class Figure:
    """An image on the page of an inspection.

    Attributes:
        row: In the dataset.
        path: Where it lies.
        text: What is said of it.
    """

    row: int
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """Images that have something in common.

    Attributes:
        title: What.
        text: What it means.
        figures: The images.
        n: How many there are, shown or not.
    """

    title: str
    text: str
    figures: Sequence[Figure]
    n: int | None = None

    def first(self, most: int) -> Section:
        """With so many images at most."""
        return replace(self, figures=self.figures[:most], n=len(self.figures))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["number"] = lambda value: f"{value:,}"
    # Not of the data: files of this package, and the bundle of a library.
    environment.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    environment.globals["script"] = Markup((TEMPLATES / "page.js").read_text(encoding="utf-8"))
    environment.globals["sha256"] = _sha256
    environment.globals["vega"] = lambda: Markup(charts.javascript())
    return environment


def _sha256(text: str) -> str:
    """Of a script, as the policy of a page names it: nothing else that looks like a script is run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _write(path: Path, template: str, values: dict[str, Any]) -> None:
    text = _environment().get_template(template).render(values)
    with published(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_run(folder: Path, data: RunData) -> Path:
    """Write the page of a run and its figures into the run's folder; the path of the page.

    Raises:
        StoreError: If the folder can't be written.
    """
    drawn = figures(data)
    for name, spec in drawn.items():
        charts.write_figure(folder / name, spec)
    page = folder / RUN_PAGE
    _write(page, "run.html.j2", context(data, [spec for name, spec in drawn.items() if name != CONFUSION]))
    return page


def write_index(reports: Path, runs: Sequence[Run], inspections: Sequence[str]) -> Path:
    """Write the leaderboard; the path of the page.

    Args:
        reports: The reports folder.
        runs: All of them; those that have a page are linked.
        inspections: Names of the pages of datasets, in the same folder.

    Raises:
        StoreError: If the folder can't be written.
    """

    def by_accuracy(run: Run) -> float:
        split = shown_split(run)
        return -run.metrics[split]["accuracy"] if split else 1.0

    rows = []
    for run in sorted(runs, key=by_accuracy):
        split = shown_split(run)
        rows.append(
            {
                "run": run,
                "page": f"{run.id}/{RUN_PAGE}" if (reports / run.id / RUN_PAGE).is_file() else None,
                "split": split,
                "found": run.metrics[split] if split else None,
                "backbone": ", ".join(dict.fromkeys(str(spec.get("backbone", "?")) for spec in run.specs)),
                "engine": engine_of(run),
                "data": Path(run.data).name,
            }
        )
    mark_folder(reports)
    page = reports / INDEX
    _write(page, "index.html.j2", {"rows": rows, "inspections": inspections})
    return page


def write_inspection(page: Path, heading: dict[str, Any], sections: Sequence[Section], pictures: Pictures) -> None:
    """Write the page of a dataset.

    Args:
        page: Where.
        heading: Name, facts, counts, unreadable files and notes.
        sections: Images to look at.
        pictures: Of the dataset.

    Raises:
        StoreError: If the folder can't be written.
    """
    drawn = [
        {
            "section": section,
            "figures": [(figure, pictures.thumbnail(figure.row, SIDE)) for figure in section.figures],
        }
        for section in sections
    ]
    mark_folder(page.parent)
    _write(page, "inspection.html.j2", {**heading, "sections": drawn})
