"""Answers as text for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.runs import Run
    from pipeline.stages import ExtractResult

__all__ = ["extract_text", "percent", "run_text", "size", "table"]


SCORES = ("", "split", "images", "accuracy", "95 % interval", "log loss")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with aligned columns; figures to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        figures = bool(rows) and all(str(row[number])[:1].isdigit() or str(row[number]) in ("", "-") for row in rows)
        grid.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=160).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def size(n_bytes: float) -> str:
    """Bytes in the largest unit that leaves 1 or more."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"


def extract_text(result: ExtractResult) -> str:
    """What an extract gave."""
    spec = result.record.spec
    lines = [
        f"{result.n_images:,} images: {result.n_computed:,} rows computed, {result.n_reused:,} reused, "
        f"{len(result.unreadable):,} images quarantined",
    ]
    if result.n_computed:
        lines.append(
            f"{result.images_per_second:,.0f} images/s with {result.choice.engine} in {result.choice.precision}, "
            f"{result.seconds['total']:.1f} s in all"
        )
    pooled = spec.pooling != "none"
    following = "tlpipe train-head" if pooled else f"tlpipe cache export FILE.h5 {result.record.id}"
    lines += [
        f"Features   {result.record.id} ({spec.backbone}, {spec.endpoint}, {'x'.join(map(str, spec.image_size))} px)",
        f"Next       {following}",
    ]
    return "\n".join(lines)


def _scores(name: str, metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for split, scores in metrics.items():
        if scores["n"]:
            low, high = scores["accuracy_95"]
            accuracy, interval = percent(scores["accuracy"]), f"{100 * low:.1f} to {100 * high:.1f} %"
            rows.append([name, split, f"{scores['n']:,}", accuracy, interval, f"{scores['log_loss']:.3f}"])
    return rows


def run_text(run: Run, folder: str) -> str:
    """What a training gave."""
    rows = _scores("before", run.baseline or {}) + _scores("fine-tuned" if run.baseline else run.head, run.metrics)
    sizes = ", ".join(
        f"{count:,} {split}"
        for split, count in (("train", run.n_train), ("val", run.n_val), ("test", run.n_test))
        if count
    )
    lines = [
        f"{run.head} on {run.features}: {sizes}; {run.trainable_parameters:,} trainable parameters",
        *run.notes,
        "",
        table(SCORES, rows) if rows else "There are no images to test on.",
        "",
        f"Run        {folder} ({run.seconds['total']:.1f} s)",
    ]
    if run.stage == "train-head":
        lines.append("Next       tlpipe finetune --blocks NAME; block names: tlpipe backbones")
    return "\n".join(lines)
