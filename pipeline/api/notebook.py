"""Results as HTML for a notebook; whatever comes from data is escaped by markupsafe."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.pages import charts

SIDE = 96  # pixels of a picture


def joined(*parts: Markup) -> Markup:
    """Parts, one below the other."""
    return Markup("<div>{}</div>").format(Markup("").join(parts))


def heading(title: str, *lines: str) -> Markup:
    """A title and lines below it."""
    return Markup("<h4>{}</h4>").format(title) + Markup("").join(Markup("<p>{}</p>").format(line) for line in lines)


def more(n: int, shown: int) -> list[str]:
    """What is said of rows that a table doesn't show."""
    return [f"and {n - shown:,} more: to_frame() has all"] if n > shown else []


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table."""
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in columns)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in rows
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def chart(spec: charts.Spec) -> Markup:
    """A chart.

    It stands in an address of its own: the names inside an SVG hold for the whole page, and those of two charts on one
    page would be the same.
    """
    data = base64.b64encode(charts.svg(spec).encode()).decode()
    return Markup('<img src="data:image/svg+xml;base64,{}" alt="{}">').format(data, spec["description"])


def pictures(shown: Iterable[tuple[str, str]]) -> Markup:
    """Thumbnails, each an address of its content and what stands below it."""
    figure = Markup(
        '<figure style="display: inline-block; margin: 4px; text-align: center">'
        '<img src="{}" width="{}" height="{}" alt=""><figcaption>{}</figcaption></figure>'
    )
    return Markup("<div>{}</div>").format(
        Markup("").join(figure.format(address, SIDE, SIDE, text) for address, text in shown)
    )
