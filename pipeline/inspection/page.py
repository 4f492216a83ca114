"""The page of an inspection: what was found, with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.data import SPLITS
from pipeline.data.corrections import Correction
from pipeline.inspection.duplicates import Group
from pipeline.inspection.findings import NO_LABEL, Inspection
from pipeline.pages.write import Figure, Section
from pipeline.util.text import counted

SHOWN = 48  # figures in each section; the answer of --json has all


def heading(found: Inspection, given: Sequence[Correction]) -> dict[str, Any]:
    """What the page shows before the pictures, and the labels that were corrected before."""
    by = found.by_features
    facts = [
        ("Images", f"{len(found.dataset):,} in {counted(len(found.dataset.class_names), 'class', 'classes')}"),
        ("Width", " / ".join(f"{value:,}" for value in found.sizes().get("width", [])) + " px (least, median, most)"),
        ("Height", " / ".join(f"{value:,}" for value in found.sizes().get("height", [])) + " px"),
        ("Formats", ", ".join(f"{name} {count:,}" for name, count in found.formats().items())),
        ("Colour modes", ", ".join(f"{name} {count:,}" for name, count in found.modes().items())),
        ("Features", by.record.id if by else f"none yet; tlpipe extract {found.data} makes some"),
    ]
    if uneven := found.imbalance():
        facts.append(
            (
                "Imbalance",
                f"{uneven['largest']} has {uneven['ratio']:.1f} times as many training images as {uneven['smallest']}; "
                f"train with {uneven['option']}",
            )
        )
    splits = [split for split in SPLITS if split in found.dataset.counts()]
    rows = [[name, *(counts[split] for split in splits)] for name, counts in found.counts().items()]
    return {
        "name": found.dataset.name,
        "facts": facts,
        "class_names": found.dataset.class_names,
        "columns": ["class", *splits],
        "rows": rows,
        "unreadable": found.unreadable(),
        "notes": by.skipped if by else [],
        "given": [[one.name, one.path, one.label] for one in given],
    }


def sections(found: Inspection) -> list[Section]:
    """Images to look at."""
    dataset = found.dataset

    def figure(row: int, text: str) -> Figure:
        return Figure(row, dataset.locations[row], text)

    def pairs(groups: list[Group]) -> list[Figure]:
        # Leaks first: they make figures on val and test too good.
        groups = sorted(groups, key=lambda group: not group.leaks(dataset))
        return [
            figure(row, f"{number}. {dataset.splits[row]}, {dataset.label_name(row) or NO_LABEL}")
            for number, group in enumerate(groups, start=1)
            for row in group.rows
        ]

    sections = [Section("Byte-identical images", "The numbers tell what belongs together.", pairs(found.exact))]
    by = found.by_features
    if by is not None:
        sections += [
            Section("Near duplicates", "Different files of one picture; pairs across splits first.", pairs(by.near)),
            Section(
                "Likely label errors",
                "Labels that logistic regressions, fitted without the image, do not believe (confident learning).",
                [
                    figure(
                        one.row,
                        f"labelled {dataset.label_name(one.row)}, looks like {one.suggested} "
                        f"({100 * one.probability:.0f} %)",
                    )
                    for one in by.label_errors
                ],
            ),
            Section(
                "Outliers",
                "Images that are far from all others; some may not belong here.",
                [
                    figure(row, f"{dataset.label_name(row) or NO_LABEL}, distance {distance:.2f}")
                    for row, distance in by.outliers
                ],
            ),
        ]
    return [section.first(SHOWN) for section in sections]
