"""What a run found, as rows of text: the same in the terminal and in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.util.text import interval, percent

if TYPE_CHECKING:
    from pipeline.runs.run import Against, RatedRun, SweepRun

SCORES = ("", "split", "images", "used to", "accuracy", "95 % interval", "balanced", "macro F1", "log loss", "ECE")
AGAINST = ("split", "images", "this", "other", "other used to", "difference", "95 % interval", "p (McNemar)")
CANDIDATES = ("head", "settings", "val accuracy", "log loss", "share of seconds")


def score_rows(run: RatedRun) -> list[list[str]]:
    """The scores of a run, a row for each split that has images; columns as in `SCORES`."""
    used = run.used()
    return [
        [
            name,
            split,
            f"{scores['n']:,}",
            used.get(split, ""),
            percent(scores["accuracy"]),
            f"{interval(*scores['accuracy_95'])} %",
            percent(scores["balanced_accuracy"]),
            percent(scores["macro_f1"]),
            f"{scores['log_loss']:.3f}",
            f"{scores['ece']:.3f}",
        ]
        for name, metrics in run.shown()
        for split, scores in metrics.items()
        if scores["n"]
    ]


def against_rows(found: Against) -> list[list[str]]:
    """The paired difference to another run, in points, a row for each split; columns as in `AGAINST`."""
    return [
        [
            split,
            f"{one.n:,}",
            percent(one.accuracy),
            percent(one.accuracy_other),
            found.used.get(split, ""),
            f"{100 * one.difference:+.1f}",
            interval(one.low, one.high, sign="+"),
            f"{one.p_value:.3f}",
        ]
        for split, one in found.splits.items()
    ]


def candidate_rows(run: SweepRun, most: int) -> list[list[str]]:
    """The best candidates of a sweep; columns as in `CANDIDATES`."""
    rows = []
    for one, settings in zip(run.candidates[:most], run.settings_that_differ(), strict=False):
        accuracy = percent(one["val_accuracy"])
        if "val_accuracy_std" in one:
            accuracy += f" ± {100 * one['val_accuracy_std']:.1f}"
        rows.append([one["head"], settings, accuracy, f"{one['val_log_loss']:.3f}", f"{one['seconds']:.2f}"])
    return rows
