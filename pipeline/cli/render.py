"""Answers as text for people."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runs.summary import AGAINST, CANDIDATES, SCORES, against_rows, candidate_rows, score_rows
from pipeline.util.text import counted, interval, percent, sides

if TYPE_CHECKING:
    from pipeline.commands import Answers, Explanation, Export, ExtractResult, Search
    from pipeline.config import Folders
    from pipeline.evaluation.compare import Difference
    from pipeline.inspection.duplicates import Group
    from pipeline.inspection.findings import Inspection
    from pipeline.runs.run import CurveRun, FinetuneRun, HeadRun, RatedRun, Run, SweepRun

FIGURES = re.compile(r"[-+\d.,% ()]*(to [-+\d.,% ()]*)?|[\d.,]+ [kMGT]?B")
WIDTH = 200  # of tables, characters


def aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as text in aligned columns, figures to the right; the first one, which names the rows, is kept whole.

    Names that would leave the others no room are broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    whole = max((cell_len(str(row[0])) for row in rows), default=0) <= WIDTH / 2
    for number, column in enumerate(columns):
        figures = bool(rows) and all(FIGURES.fullmatch(str(row[number])) for row in rows)
        grid.add_column(column, justify="right" if figures else "left", overflow="fold", no_wrap=whole and number == 0)
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def gain_text(gain: Difference) -> str:
    """What fine-tuning brought over the head, and whether the test images can tell."""
    points = f"{100 * gain.difference:+.1f} points on test (95 % interval {interval(gain.low, gain.high, '+')})"
    if gain.low <= 0 <= gain.high:
        return f"Fine-tuning: {points}: on {counted(gain.n, 'image')} the two can't be told apart."
    return f"Fine-tuning: {points}, image by image."


def extract_text(result: ExtractResult, folders: Folders) -> str:
    """What an extract gave."""
    spec = result.record.spec
    lines = [
        f"{counted(result.n_images, 'image')}: {counted(result.n_computed, 'row')} computed, "
        f"{result.n_reused:,} reused, "
        f"{len(result.unreadable):,} quarantined",
    ]
    if result.n_computed:
        lines.append(
            f"{result.images_per_second:,.0f} images/s with {result.choice.engine} in {result.choice.precision}, "
            f"{result.seconds['total']:.1f} s in all"
        )
    if result.part is not None:
        rest = folders.command(result.record.config.command())
        return "\n".join([*lines, f"Next       the other parts, then {rest}"])
    trainable = spec.pooling != "none" and result.n_classes > 1
    following = "tlpipe train-head" if trainable else f"tlpipe cache export FILE.h5 {result.record.id}"
    lines += [
        f"Features   {result.record.id} ({spec.backbone}, {spec.endpoint}, {sides(spec.image_size)} px)",
        f"Next       {folders.command(following)}",
    ]
    return "\n".join(lines)


def runs_text(runs: Sequence[Run]) -> str:
    """Runs as a table."""
    columns = ["run", "data", "features", "head", "options", "val", "test", "seconds"]
    return aligned(columns, [_run_line(run) for run in runs])


def tuned_text(runs: Sequence[FinetuneRun], failed: Sequence[Mapping[str, str]]) -> str:
    """What fine-tuning with several settings gave, and what failed."""
    lines = [runs_text(runs)] if runs else []
    rated = [run for run in runs if "val" in run.metrics]
    if len(rated) > 1:
        best = max(rated, key=lambda run: float(run.metrics["val"]["accuracy"]))
        lines.append(f"Best on val: {best.id}; the best of several is partly luck, so trust test.")
    lines += [f"Failed     {one['command']}\n           {one['cause']}" for one in failed]
    return "\n".join(lines)


def _run_line(run: Run) -> list[str]:
    from pipeline.runs.run import CurveRun, RatedRun

    named = f"{run.id} ({run.name})" if run.name else run.id
    seconds = f"{run.seconds['total']:.1f}"
    if isinstance(run, RatedRun):
        rated = [_share(run.metrics.get(split), run.caveat(split)) for split in ("val", "test")]
        return [named, Path(run.data).name, run.features, run.head, run.options(), *rated, seconds]
    what = (run.features, run.head) if isinstance(run, CurveRun) else ("", "")
    return [named, Path(run.data).name, *what, "", "", "", seconds]


def _share(found: Mapping[str, Any] | None, caveat: str) -> str:
    """Accuracy with its interval, in per cent, and what flatters it."""
    if not found or not found["n"]:
        return "-"
    return f"{100 * found['accuracy']:.1f} ({interval(*found['accuracy_95'])}) {caveat}".strip()


def run_text(run: RatedRun, folders: Folders) -> str:
    """What a training gave."""
    from pipeline.runs.run import EvaluateRun, HeadRun

    rows = score_rows(run)
    sizes = ", ".join(
        f"{count:,} {split}"
        for split, count in (("train", run.n_train), ("val", run.n_val), ("test", run.n_test))
        if count
    )
    on = run.data if isinstance(run, EvaluateRun) else run.features
    lines = [
        f"{run.head} on {on}: {sizes}; {run.trainable_parameters:,} trainable parameters",
        *run.notes,
        *(_repeated(run) if isinstance(run, HeadRun) else []),
        "",
        aligned(SCORES, rows) if rows else "There are no images to test on.",
        *([USED] if any(row[SCORES.index("used to")] for row in rows) else []),
        *_against(run),
        "",
        f"Run        {folders.reports / run.id} ({run.seconds['total']:.1f} s)",
    ]
    if isinstance(run, HeadRun) and _is_trainable(run) and not run.head.startswith("knn") and "," not in run.features:
        lines.append(f"Next       {folders.command('tlpipe finetune --blocks NAME')}; block names: tlpipe backbones")
    return "\n".join(lines)


def _is_trainable(run: HeadRun) -> bool:
    """Whether the backbone below a head could be fine-tuned."""
    from pipeline.backbones import is_onnx

    return not any(is_onnx(one.backbone) for one in run.extracts)


USED = "Figures on images that were used to choose or to fit are too good, sometimes by a lot; trust test."


def _against(run: RatedRun) -> list[str]:
    """The paired difference to another run."""
    if run.against is None:
        return []
    return [
        "",
        f"Against {run.against.run}, image by image, in points:",
        "",
        aligned(AGAINST, against_rows(run.against)),
    ]


def _repeated(run: HeadRun) -> list[str]:
    """Mean and deviation over folds and seeds, in a line."""
    found = run.repeats
    if not found:
        return []
    over = counted(found["folds"], "fold") if found["folds"] else "val"
    over += f", {counted(found['seeds'], 'seed')}" if found["seeds"] > 1 else ""
    line = f"Accuracy over {over}: {percent(found['accuracy'])}, standard deviation {percent(found['accuracy_std'])}"
    drawn = len(set(found["rounds"])) > 1
    return [line if drawn else f"{line}: this head uses no random numbers, or too few to matter"]


SHOWN = 20  # candidates of a sweep on the terminal; run.json has all


def sweep_text(run: SweepRun, folders: Folders) -> str:
    """What a sweep gave: a table of the candidates, then the winner's run."""
    found = run.candidates
    lines = [aligned(CANDIDATES, candidate_rows(run, SHOWN))]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more, all in {folders.reports / run.id}/run.json")
    return "\n".join([*lines, "", run_text(run, folders)])


def curve_text(run: CurveRun, folders: Folders) -> str:
    """A learning curve as a table, and what more labels would buy."""
    rows = []
    for point in run.points:
        deviation = "" if point["std"] is None else percent(point["std"])
        draws = len(point["accuracies"])
        rows.append(
            [f"{point['per_class']:,}", f"{point['n_train']:,.0f}", draws, percent(point["accuracy"]), deviation]
        )
    if run.gain_of_doubling is None:
        outlook = (
            "It can't be told what twice as many images would add: the errors of the last points follow no power law."
        )
    else:
        outlook = (
            f"Twice as many images would add about {100 * run.gain_of_doubling:.1f} points, if the error goes on "
            "falling as a power of their number."
        )
    return "\n".join(
        [
            f"{run.head} on {run.features}, accuracy on {run.split}",
            *run.notes,
            "",
            aligned(["per class", "images", "draws", "accuracy", "deviation"], rows),
            "",
            outlook,
            f"Run        {folders.reports / run.id} ({run.seconds['total']:.1f} s)",
        ]
    )


def predict_text(answers: Answers) -> str:
    """Labels of images, a line each; what can't be read has been listed already."""
    good = [image for image in answers.images if image.top]
    # A table of the library would take longer for thousands of lines than the predictions.
    path_width = max((len(image.path) for image in good), default=0)
    label_width = max((len(image.top[0][0]) for image in good), default=0)
    lines = []
    for image in good:
        (label, probability), *others = image.top
        then = ", ".join(f"{name} {percent(share)}" for name, share in others)
        lines.append(
            f"{image.path:<{path_width}}   {label:<{label_width}}   {percent(probability):>7}   {then}".rstrip()
        )
    n, bad = len(answers.images), len(answers.unreadable)
    line = f"{counted(n, 'image')} by {answers.run}: {counted(answers.n_computed, 'row')} computed"
    line += f" at {answers.images_per_second:,.0f} images/s" if answers.n_computed else ", all features were cached"
    line += f"; {bad:,} can't be read" if bad else ""
    return "\n".join([*lines, "", line])


LISTED = 10  # findings of a kind on the terminal; the page and --json have more


def inspect_text(found: Inspection) -> str:
    """What is in a dataset and what is wrong with it."""
    dataset, by = found.dataset, found.by_features
    splits = list(dataset.counts())
    classes = [[name, *(f"{counts[split]:,}" for split in splits)] for name, counts in found.counts().items()]
    lines = [aligned(["class", *splits], classes), ""]
    if found.opened.carved:
        how = "as tlpipe extract does by default" if by is None else f"as for the features {by.record.id}"
        lines.append(f"The data does not say which images are {' or '.join(found.opened.carved)}; split {how}.")
    for name, values in found.sizes().items():
        lines.append(f"{name:<11}{values[0]:,} to {values[2]:,} px, median {values[1]:,}")
    for name, tally in (("formats", found.formats()), ("modes", found.modes())):
        lines.append(f"{name:<11}{', '.join(f'{kind} {n:,}' for kind, n in tally.items())}")
    if uneven := found.imbalance():
        lines.append(
            f"imbalance  {uneven['largest']} has {uneven['ratio']:.1f} times as many training images as "
            f"{uneven['smallest']}; train with {uneven['option']}"
        )
    bad = [f"{path}: {cause}" for path, cause in found.unreadable().items()]
    lines += _listed(bad, "image can't be read", "images can't be read")
    lines += _listed(_pairs(found, found.exact), "group of byte-identical images", "groups of byte-identical images")
    if by is None:
        lines += ["", f"Near duplicates, label errors and outliers need features: tlpipe extract {found.data}"]
    else:
        wrong = [
            f"{dataset.locations[one.row]}: labelled {dataset.label_name(one.row)}, looks like {one.suggested} "
            f"({percent(one.probability)})"
            for one in by.label_errors
        ]
        far = [f"{dataset.locations[row]}: {distance:.2f} from the nearest image" for row, distance in by.outliers]
        lines += ["", f"By the features {by.record.id} of {counted(by.n, 'image')}:"]
        lines += _listed(_pairs(found, by.near), "pair of near duplicates", "pairs of near duplicates")
        lines += [*_listed(wrong, "likely label error"), *_listed(far, "outlier"), *by.skipped]
    return "\n".join([*lines, "", f"Open       {found.page} ({found.seconds:.1f} s)"])


def _pairs(found: Inspection, groups: Sequence[Group]) -> list[str]:
    """Groups of the same picture, leaks first, with what is wrong with each."""
    dataset = found.dataset
    lines = []
    for group in sorted(groups, key=lambda group: not group.leaks(dataset)):
        line = " = ".join(dataset.locations[row] for row in group.rows)
        line += "  LEAK: in different splits" if group.leaks(dataset) else ""
        lines.append(line + ("  DIFFERENT LABELS" if group.disputed(dataset) else ""))
    return lines


def _listed(items: Sequence[str], what: str, several: str = "") -> list[str]:
    """How many there are, and the first of them; `what` and `several` as in `counted`."""
    more = [f"  and {len(items) - LISTED:,} more"] if len(items) > LISTED else []
    return [counted(len(items), what, several), *(f"  {item}" for item in items[:LISTED]), *more]


def explain_text(found: Sequence[Explanation]) -> str:
    """Pictures that show where a class is seen, a line each."""
    rows = [[one.path, one.label, percent(one.probability), str(one.file)] for one in found]
    return aligned(["path", "class", "probability", "parts that support it"], rows)


def search_text(found: Search) -> str:
    """Pictures that are like another, a line each."""
    rows = [[one.path, one.label or "-", one.split, f"{one.similarity:.3f}"] for one in found.nearest]
    end = [f"The nearest of {counted(found.n, 'image')} of {found.data} by {found.features}"]
    end += [f"Open       {found.page} ({found.seconds:.1f} s)"] if found.page else []
    return "\n".join([aligned(["path", "label", "split", "similarity"], rows), "", *end])


def export_text(done: Export) -> str:
    """What an export gave."""
    return "\n".join(
        [
            f"Agreement  the same label as from tlpipe predict on {percent(done.agreement)} of "
            f"{counted(done.n, 'image')} of the run; probabilities differ by {done.difference:.1e} at most",
            f"File       {done.path} ({done.seconds:.1f} s)",
        ]
    )
