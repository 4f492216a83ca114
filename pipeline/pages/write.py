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

from pipeline.pages import charts, leaderboard
from pipeline.pages.pictures import Pictures
from pipeline.pages.run_page import CONFUSION, RunData, context, figures
from pipeline.runs.run import CurveRun, EvaluateRun, Run
from pipeline.util import disk
from pipeline.util.files import digest_of, mark_folder, published

INDEX, RUN_PAGE = "index.html", "report.html"
HEAD = 2000  # characters of a page that tell what it is made of
SEAL = "\n<!-- digest of all above: "
"""Starts the last line of a page, by which a changed bit is noticed where the page is not drawn anew."""
TEMPLATES = Path(__file__).parent / "templates"
SIDE = 144  # pixels of a picture on the page of an inspection


@dataclass(frozen=True, slots=True)
class Figure:
    """An image on the page of an inspection or a search.

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
        """The same section with so many images at most."""
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
    """The digest of a script, as the policy of a page names it: nothing else that looks like a script is run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _write(path: Path, template: str, values: dict[str, Any]) -> None:
    text = _environment().get_template(template).render(values)
    with published(path) as partial:
        disk.write(partial, text + _seal(text))


def _seal(text: str) -> str:
    return f"{SEAL}{digest_of(text.encode())} -->\n"


def write_run(folder: Path, data: RunData, made_of: str) -> Path:
    """Write the page of a run and its figures into the run's folder; the path of the page.

    Args:
        folder: The run folder.
        data: What is shown.
        made_of: Digest of all that the page is made of, by which `is_made_of` knows it again.

    Raises:
        StoreError: If the folder can't be written.
    """
    drawn = figures(data)
    for name, spec in drawn.items():
        charts.write_figure(folder / name, spec)
    page = folder / RUN_PAGE
    values = context(data, [spec for name, spec in drawn.items() if name != CONFUSION])
    _write(page, "run.html.j2", {**values, "made_of": made_of})
    return page


def is_made_of(folder: Path, made_of: str) -> bool:
    """Whether a run folder has a page already that is made of the same, and whole."""
    try:
        page = (folder / RUN_PAGE).read_bytes().decode()
    except (OSError, ValueError):
        return False
    return f'content="{made_of}"' in page[:HEAD] and is_whole(page)


def is_whole(page: str) -> bool:
    """Whether a page is, to the last bit, what was written."""
    text, seal, rest = page.rpartition(SEAL)
    return seal + rest == _seal(text)


def write_curve(folder: Path, run: CurveRun, made_of: str) -> Path:
    """Write the page of a learning curve and its figure into the run's folder; the path of the page.

    Args:
        folder: The run folder.
        run: The run.
        made_of: As for `write_run`.

    Raises:
        StoreError: If the folder can't be written.
    """
    chart = charts.learning(run.points, run.split)
    charts.write_figure(folder / "curve", chart)
    _write(folder / RUN_PAGE, "curve.html.j2", {"run": run, "chart": chart, "made_of": made_of})
    return folder / RUN_PAGE


def write_index(reports: Path, runs: Sequence[Run], inspections: Sequence[str]) -> Path:
    """Write the leaderboard; the path of the page.

    Args:
        reports: The reports folder.
        runs: All of them, the oldest first; those that have a page are linked.
        inspections: Names of the pages of datasets, in the same folder.

    Raises:
        StoreError: If the folder can't be written.
    """
    values = {
        "n": len(runs),
        "groups": leaderboard.groups(reports, runs, RUN_PAGE),
        "evaluations": [run for run in reversed(runs) if isinstance(run, EvaluateRun)],
        "curves": [run for run in reversed(runs) if isinstance(run, CurveRun)],
        "page": lambda run: leaderboard.address(reports, run, RUN_PAGE),
        "inspections": inspections,
    }
    mark_folder(reports)
    page = reports / INDEX
    _write(page, "index.html.j2", values)
    return page


def write_inspection(page: Path, heading: dict[str, Any], sections: Sequence[Section], pictures: Pictures) -> None:
    """Write the page of a dataset.

    Args:
        page: Where.
        heading: Name, facts, counts, unreadable files, notes, and labels that were corrected before.
        sections: Images to look at.
        pictures: Of the dataset.

    Raises:
        StoreError: If the folder can't be written.
    """
    drawn = [{"section": section, "figures": _drawn(section, pictures)} for section in sections]
    mark_folder(page.parent)
    _write(page, "inspection.html.j2", {**heading, "sections": drawn})


def write_search(page: Path, image: str, asked: Pictures, found: Section, pictures: Pictures) -> None:
    """Write the page of a search.

    Args:
        page: Where.
        image: Name of the picture that was searched for.
        asked: That picture.
        found: Those that are like it.
        pictures: Of the dataset.

    Raises:
        StoreError: If the folder can't be written.
    """
    mark_folder(page.parent)
    values = {"image": image, "picture": asked.thumbnail(0, SIDE), "section": found}
    _write(page, "search.html.j2", {**values, "figures": _drawn(found, pictures)})


def _drawn(section: Section, pictures: Pictures) -> list[tuple[Figure, str | None]]:
    """The figures of a section, with their pictures."""
    return [(figure, pictures.thumbnail(figure.row, SIDE)) for figure in section.figures]


def label_page(token: str) -> tuple[str, str]:
    """The page on which pictures are labelled, and the policy that tells browsers what it may load and run.

    Args:
        token: What its requests must name.
    """
    environment = _environment()
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("label_view.js", "label.js"))
    text = environment.get_template("label.html.j2").render(token=token, label_script=Markup(script))
    policy = (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; script-src 'sha256-{_sha256(script)}'"
    )
    return text, policy
