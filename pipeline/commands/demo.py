"""The whole chain on the built-in digits: what tlpipe does, in about a minute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import commands
from pipeline.commands import ExtractResult, Report
from pipeline.config import ExtractConfig, FinetuneConfig, HeadConfig
from pipeline.errors import WeightsError
from pipeline.evaluation.compare import Difference, paired_difference
from pipeline.runs.predictions import both_right, read_predictions
from pipeline.runs.run import FinetuneRun, HeadRun
from pipeline.util import log

IMAGE_SIZE = (64, 64)
BLOCKS, EPOCHS, LEARNING_RATE = "conv4,conv5", 3, 3e-4


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What each stage gave.

    Attributes:
        weights: "imagenet" or "random".
        extracted: Of extract.
        head: Run of train-head.
        tuned: Run of finetune.
        report: Pages of both runs.
        gain: Of fine-tuning over the head, on the test images of both.
    """

    weights: str
    extracted: ExtractResult
    head: HeadRun
    tuned: FinetuneRun
    report: Report
    gain: Difference


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
    tuned = commands.finetune(
        FinetuneConfig(BLOCKS, epochs=EPOCHS, learning_rate=LEARNING_RATE, seed=seed), cache, reports, options
    )
    pages = commands.report([head.id, tuned.id], cache, reports, seed=seed)
    after, before = (
        read_predictions(reports / run.id, len(run.class_names), run.files)["test"] for run in (tuned, head)
    )
    gain = paired_difference(*both_right(after, before))
    return DemoResult(config.weights, extracted, head, tuned, pages, gain)
