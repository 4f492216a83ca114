"""Charts as Vega-Lite specifications: drawn by the page itself, and as PNG and SVG for papers and slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.util import disk
from pipeline.util.files import published

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name of the format; nothing is fetched
VERSION = "6.4"
NAMED_CLASSES = 20  # in a legend; more can't be told apart by colour
WIDTH, HEIGHT = 420, 300  # pixels of a static figure


def _chart(title: str, data: Sequence[dict[str, Any]], **rest: Any) -> Spec:
    """What all charts share; the page gives them its width and its colours."""
    return {
        "$schema": SCHEMA,
        "description": title,
        "width": "container",
        "height": HEIGHT,
        "data": {"values": list(data)},
        "config": {
            "background": "transparent",
            "view": {"stroke": None},
            "axis": {"gridOpacity": 0.4},
            "legend": {"labelLimit": 0},
        },
        **rest,
    }


def curves(rows: Sequence[dict[str, Any]], x: str, y: str, *, log: bool = False, baseline: float | None = None) -> Spec:
    """Values over epochs, or over settings.

    Args:
        rows: Each with `x`, `value` and `series`.
        x: What `x` is.
        y: What `value` is.
        log: Whether `x` is on a logarithmic scale.
        baseline: A value to compare with, drawn as a dashed line.
    """
    scale: Spec = {"type": "log"} if log else {"nice": False}
    axis = {} if log else {"tickMinStep": 1}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": scale, "axis": axis},
        "y": {"field": "value", "type": "quantitative", "title": y, "scale": {"zero": False}},
        "color": {"field": "series", "type": "nominal", "title": None, "legend": {"orient": "bottom", "columns": 1}},
        "tooltip": [
            {"field": "series", "title": "curve"},
            {"field": "x", "title": x},
            {"field": "value", "title": y, "format": ".4f"},
        ],
    }
    layers: list[Spec] = [{"mark": {"type": "line", "point": True}, "encoding": encoding}]
    if baseline is not None:
        line = {"y": {"datum": baseline}, "tooltip": {"value": f"frozen: {baseline:.4f}"}}
        layers.append({"mark": {"type": "rule", "strokeDash": [6, 4], "color": "#888"}, "encoding": line})
    return _chart(f"{y} by {x}", rows, layer=layers)


def learning(points: Sequence[Mapping[str, Any]], split: str) -> Spec:
    """A learning curve: accuracy on a split by the number of training images, of each draw and in the mean."""
    means = [{"x": point["n_train"], "value": point["accuracy"], "series": "mean"} for point in points]
    draws = [
        {"x": point["n_train"], "value": value, "series": f"accuracy on {split}, each draw"}
        for point in points
        for value in point["accuracies"]
    ]
    chart = curves(means, "training images", "accuracy", log=True)
    (line,) = chart["layer"]
    chart["layer"].append({"data": {"values": draws}, "mark": "point", "encoding": line["encoding"]})
    return chart


def reliability(bins: Sequence[dict[str, Any]]) -> Spec:
    """Accuracy against confidence, in bins: on the diagonal, probabilities mean what they say.

    Args:
        bins: Each with `low`, `high`, `confidence`, `accuracy` and `n`; empty ones left out.
    """
    share = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    bars = {
        "mark": {"type": "bar", "color": "#4c78a8", "opacity": 0.8},
        "encoding": {
            "x": {"field": "low", **share, "title": "probability of the predicted class", "bin": "binned"},
            "x2": {"field": "high"},
            "y": {"field": "accuracy", **share, "title": "share that is right"},
            "tooltip": [
                {"field": "n", "title": "images"},
                {"field": "confidence", "title": "mean probability", "format": ".3f"},
                {"field": "accuracy", "title": "share that is right", "format": ".3f"},
            ],
        },
    }
    diagonal = {
        "data": {"values": [{"p": 0}, {"p": 1}]},
        "mark": {"type": "line", "strokeDash": [6, 4], "color": "#888"},
        "encoding": {"x": {"field": "p", **share}, "y": {"field": "p", **share}},
    }
    return _chart("Reliability: accuracy by predicted probability", bins, layer=[bars, diagonal])


def embedding(points: Sequence[dict[str, Any]], class_names: Sequence[str]) -> Spec:
    """Images as points, coloured by class; the wrong ones are crosses.

    Args:
        points: Each with `x`, `y`, `class`, `predicted`, `right`, `path` and perhaps `image`.
        class_names: Sorted; more than twenty get no legend.
    """
    legend: Spec = {"orient": "bottom", "columns": 4, "title": None, "symbolLimit": 0}
    colour: Spec = {
        "field": "class",
        "type": "nominal",
        "scale": {"domain": list(class_names), "scheme": "tableau20" if len(class_names) > 10 else "tableau10"},
        "legend": legend if len(class_names) <= NAMED_CLASSES else None,
    }
    nothing = {"title": None, "axis": None, "type": "quantitative", "scale": {"zero": False}}
    chosen = {"name": "chosen", "select": {"type": "point", "fields": ["class"]}}
    return _chart(
        "Map of the images by their features",
        points,
        height=460,
        params=[{**chosen, "bind": "legend"} if colour["legend"] else chosen],
        mark={"type": "point", "filled": True, "size": 45},
        encoding={
            "x": {"field": "x", **nothing},
            "y": {"field": "y", **nothing},
            "color": colour,
            "shape": {
                "field": "right",
                "type": "nominal",
                "scale": {"domain": [True, False], "range": ["circle", "cross"]},
                "legend": None,
            },
            "opacity": {"condition": {"param": "chosen", "value": 0.75}, "value": 0.06},
            "description": {"field": "path", "type": "nominal"},
            "tooltip": [{"field": name, "type": "nominal"} for name in ("image", "class", "predicted", "path")],
        },
    )


def confusion(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> Spec:
    """A confusion matrix: rows are true classes, colours are shares of each row."""
    totals = [max(sum(row), 1) for row in matrix]
    cells = [
        {"true": true, "predicted": predicted, "n": n, "share": n / totals[row]}
        for row, true in enumerate(class_names)
        for predicted, n in zip(class_names, matrix[row], strict=True)
    ]
    order = list(class_names)
    position = {
        "x": {"field": "predicted", "type": "nominal", "sort": order, "title": "predicted"},
        "y": {"field": "true", "type": "nominal", "sort": order, "title": "true class"},
    }
    squares = {
        "mark": "rect",
        "encoding": {
            **position,
            "color": {
                "field": "share",
                "type": "quantitative",
                "title": "share of the class",
                "scale": {"scheme": "blues", "domain": [0, 1]},
            },
        },
    }
    layers: list[Spec] = [squares]
    if len(class_names) <= NAMED_CLASSES:
        dark = {"condition": {"test": "datum.share > 0.5", "value": "white"}, "value": "black"}
        numbers = {"text": {"field": "n", "type": "quantitative"}, "color": dark}
        layers.append({"mark": {"type": "text", "fontSize": 10}, "encoding": {**position, **numbers}})
    side = int(np.clip(28 * len(class_names), 160, 900))
    return _chart("Confusion matrix", cells, layer=layers, width=side, height=side)


def _fixed(spec: Spec) -> Spec:
    """A chart on white, of a width of its own."""
    width = WIDTH if spec["width"] == "container" else spec["width"]
    return {**spec, "width": width, "background": "white", "config": {**spec["config"], "background": "white"}}


def svg(spec: Spec) -> str:
    """A chart as SVG, on white."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_fixed(spec), VERSION))


def write_figure(path: Path, spec: Spec) -> None:
    """Write a chart as PNG and SVG, on white, beside each other; the suffix of `path` is replaced.

    Raises:
        StoreError: If the folder can't be written.
    """
    import vl_convert

    fixed = _fixed(spec)
    with published(path.with_suffix(".svg")) as partial:
        disk.write(partial, svg(spec))
    with published(path.with_suffix(".png")) as partial:
        disk.write(partial, vl_convert.vegalite_to_png(fixed, VERSION, scale=2))


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script that needs no network."""
    import vl_convert

    return str(vl_convert.javascript_bundle(vl_version=VERSION))  # type: ignore[call-arg]  # its stub is wrong
