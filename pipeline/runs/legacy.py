"""What run.json was before version 0.2: one flat object, in which some fields were filled by some stages alone."""

from __future__ import annotations

from typing import Any

REFITTED = "train and val"  # how a note told that the head had seen the validation images, too


def upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of today, from those of version 0.1.

    Raises:
        KeyError: If a field is missing.
        TypeError: If one is of another type.
    """
    stage, settings, notes = value["stage"], value["settings"], value["notes"]
    flat = {name: item for name, item in value.items() if name not in ("settings", "candidates", "baseline")}
    flat["fitted_on"] = ["train", "val"] if any(REFITTED in note for note in notes) else ["train"]
    flat["chosen_on"] = ["val"] if stage != "evaluate" and value["n_val"] else []
    flat["n_chosen"] = {split: value["metrics"][split]["n"] for split in flat["chosen_on"] if split in value["metrics"]}
    flat["carved"] = ["val", "test"]  # which of them it was is not known any more
    if stage in ("train-head", "sweep"):
        flat |= {"config": settings["head"], "test_views": settings.get("test_views") or 0}
        flat |= {name: settings[name] for name in ("chosen", "memory") if name in settings}
        if stage == "sweep":
            flat |= {"grid": settings["grid"], "heads": settings["heads"], "candidates": value["candidates"]}
    elif stage == "finetune":
        own = ("head_run", "cut", "endpoint", "top", "end_to_end", "memory")
        config = {name: item for name, item in settings.items() if name not in own}
        flat |= {"config": config, "baseline": value["baseline"], **{name: settings.get(name) for name in own}}
        flat["fitted_on"] = ["train"]
    else:
        flat |= {"of": settings["of"], "precision": settings.get("precision")}
    return flat
