"""The whole chain on the built-in digits: what tlpipe does, in about a minute."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import commands
from pipeline.commands import ExtractResult, Report
from pipeline.config import ExtractConfig, FinetuneConfig, HeadConfig
from pipeline.errors import WeightsError
from pipeline.runs.run import FinetuneRun, HeadRun

IMAGE_SIZE = (64, 64)
EPOCHS = 3

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What each stage gave.

    Attributes:
        weights: "imagenet" or "random".
        extracted: Of extract.
        head: Run of train-head.
        tuned: Run of finetune.
        report: Pages of both runs.
    """

    weights: str
    extracted: ExtractResult
    head: HeadRun
    tuned: FinetuneRun
    report: Report


def demo(cache: Path, reports: Path, seed: int) -> DemoResult:
    """Extract, train a head, fine-tune the top block, report; with random weights where real ones can't be had."""
    config = ExtractConfig(data="digits", image_size=IMAGE_SIZE, seed=seed)
    try:
        extracted = commands.extract(config, cache)
    except WeightsError as error:
        log.warning("%s", error)
        log.warning(
            "%s\nRANDOM WEIGHTS: %s has seen no picture yet. All stages run, but the accuracies below say nothing "
            "about transfer learning.\n%s",
            "!" * 78,
            config.backbone,
            "!" * 78,
        )
        config = replace(config, weights="random")
        extracted = commands.extract(config, cache)
    head = commands.train_head(
        HeadConfig("logreg", seed=seed), cache, reports, commands.TrainingOptions(extracted.record.id)
    )
    options = commands.FinetuneOptions(head.id)
    tuned = commands.finetune(FinetuneConfig("conv5", epochs=EPOCHS, seed=seed), cache, reports, options)
    pages = commands.report([head.id, tuned.id], cache, reports, seed=seed)
    return DemoResult(config.weights, extracted, head, tuned, pages)
