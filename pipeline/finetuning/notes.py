"""What a user should know of how fine-tuning went."""

from __future__ import annotations

from pipeline.finetuning.fit import Tuned
from pipeline.finetuning.start import Start
from pipeline.util.text import counted


def notes_of(begun: Start, tuned: Tuned) -> list[str]:
    """What a user should know of how it went."""
    config, run, record = begun.config, begun.trained.run, begun.record
    notes = [f"Before: {run.id}, on frozen features"]
    if config.weights:
        notes.append("The backbone and the head started from random weights; BatchNormalization is trained")
    else:
        mode = "trained" if config.train_bn else "in inference mode"
        where = "end to end" if begun.end_to_end else f"above {begun.unfrozen.cut}"
        where += ", on new versions of the images in each epoch" if config.drawn_anew else ""
        notes.append(f"{counted(len(begun.trained_layers()), 'layer')} trained {where}, BatchNormalization {mode}")
        as_fitted = "The head started as it was fitted on train alone"
        notes.append("The head started from random weights" if config.cold_head else as_fitted)
    if "val" in run.fitted_on:
        notes.append("For its test the frozen head was fitted on val, too; this model has seen train only")
    if begun.trained.temperature != 1 or run.test_views:
        notes.append("The head's temperature, and its means over views, do not apply to this model")
    if record.config.views and not config.views:
        notes.append("Trained on the images themselves; their cached views are not used")
    if record.spec.precision != "float32":
        notes.append(f"Rated in float32, as the saved model runs; the frozen head was rated in {record.spec.precision}")
    if tuned.resumed:
        notes.append(f"Resumed after epoch {tuned.resumed}")
    notes += tuned.notes
    if tuned.best_epoch:
        notes.append(f"Kept the weights of epoch {tuned.best_epoch} of {len(tuned.history) - 1}")
    else:
        notes.append(f"No epoch was better on val than the start, whose weights are kept; use the head: {run.id}")
    notes += _beaten(begun, tuned)
    return notes


def _beaten(begun: Start, tuned: Tuned) -> list[str]:
    """Whether the frozen baseline is better after all, though the start was not."""
    before = begun.trained.run.metrics.get("val", {}).get("accuracy")
    best = tuned.history[tuned.best_epoch].get("val_accuracy")
    if not tuned.best_epoch or before is None or best is None or best > before:
        return []
    return [
        f"It is no better on val than the frozen baseline ({100 * best:.1f} %, {100 * before:.1f} %); "
        f"use the head: {begun.trained.run.id}"
    ]
