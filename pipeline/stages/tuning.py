"""Finetune: the top blocks of a backbone below a trained head."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from pipeline.backbones import Pretrained, Unfrozen, open_backbone
from pipeline.errors import CacheMismatchError
from pipeline.finetune import FinetuneConfig, Tuned, assemble, fit
from pipeline.memo import Memo
from pipeline.metrics import evaluate
from pipeline.records import TableRecord, find_record
from pipeline.runs import Predictions, Run, save_run
from pipeline.stages.features import extract
from pipeline.stages.trained import TrainedHead, open_head
from pipeline.stages.training import describe_run
from pipeline.table import load_table

__all__ = ["finetune"]

log = logging.getLogger("tlpipe")


def finetune(config: FinetuneConfig, cache: Path, reports: Path, head_run: str | None = None) -> Run:
    """Fine-tune the top blocks below a trained head.

    Args:
        config: Which blocks, and how.
        cache: The cache folder.
        reports: Where the head's run lies, and where this run goes.
        head_run: Run id of a head; None for the newest.

    Raises:
        RunError: If there is no such run.
        EndpointError: If there are no such blocks.
    """
    start = time.perf_counter()
    trained, _ = open_head(reports, head_run)
    from_run = trained.run
    if len(trained.specs) > 1:
        raise CacheMismatchError(
            f"The head {from_run.id} was trained on {len(trained.specs)} sets of features, and one backbone can be "
            "fine-tuned below a head; train another: tlpipe train-head FEATURES"
        )
    record = find_record(cache, from_run.features)
    trained.check([record.spec], record.id)
    trained.head.layers()
    pretrained = _same_backbone(record, cache)
    blocks = config.blocks or pretrained.default_endpoint()
    log.info("Fine-tuning %s and all above it, from the head %s", blocks, from_run.id)
    features = pretrained.network().features(record.spec.endpoint, record.spec.pooling)
    unfrozen = pretrained.network().unfreeze(features, blocks)
    cut_config = replace(record.config, endpoint=unfrozen.cut, pooling="none", dtype="float16", views=0, augment=None)
    log.info("Activations are cached at %s", unfrozen.cut)
    cut = extract(cut_config, cache)
    if cut.record.dataset != record.dataset:
        raise CacheMismatchError(
            f"{record.config.data} has changed since {record.id} was extracted, so the head {from_run.id} belongs to "
            f"other images; run {record.config.command()} and tlpipe train-head again"
        )
    extracted = time.perf_counter()
    table = load_table(cache, [cut.record])
    parts = {split: part for split in ("train", "val", "test") if len(part := table.part(split))}
    models = assemble(features, unfrozen, trained.head, len(table.class_names))
    tuned = fit(models, parts, config)
    predictions = [
        Predictions(split, parts[split].keys, parts[split].labels, probabilities)
        for split, probabilities in tuned.end.items()
    ]
    run = describe_run(
        "finetune",
        from_run.head,
        table,
        settings={**config.to_json(), "blocks": blocks, "head_run": from_run.id, "cut": unfrozen.cut},
        seed=config.seed,
        predictions=predictions,
        seconds={
            "activations": extracted - start,
            "fit": time.perf_counter() - extracted,
            "total": time.perf_counter() - start,
        },
        trainable_parameters=models.trainable_parameters(),
        notes=_notes(trained, unfrozen, record, tuned),
        baseline={split: evaluate(part, parts[split].labels, table.class_names) for split, part in tuned.start.items()},
    )
    save_run(reports, run, tuned.history, predictions, lambda folder: models.serving().save(folder / "model.keras"))
    return run


def _notes(trained: TrainedHead, unfrozen: Unfrozen, record: TableRecord, tuned: Tuned) -> list[str]:
    """What a user should know of how it went."""
    notes = [
        f"{len(unfrozen.layers)} layers above {unfrozen.cut}, BatchNormalization in inference mode",
        "Started from the head as fitted on the training images alone",
    ]
    if trained.temperature != 1 or trained.run.settings.get("test_views"):
        notes.append("The head's temperature and means over views are not carried over")
    if record.config.views:
        notes.append("Trained on the images themselves; their cached views are not used")
    if tuned.best_epoch:
        notes.append(f"Kept the weights of epoch {tuned.best_epoch} of {len(tuned.history) - 1}")
    else:
        notes.append("No epoch was better than the start on val; the start is kept. Use the head itself instead")
    return notes


def _same_backbone(record: TableRecord, cache: Path) -> Pretrained:
    """The backbone of some features.

    Raises:
        CacheMismatchError: If its weights are no longer the same.
    """
    config = record.config
    pretrained = open_backbone(config.backbone, config.weights, config.seed, record.spec.image_size, Memo(cache))
    if pretrained.digest() != record.spec.weights_digest:
        raise CacheMismatchError(
            f"The weights of {record.spec.backbone} are not those that {record.id} was made with "
            f"(digest {pretrained.digest()[:8]}, then {record.spec.weights_digest[:8]}); "
            f"run {record.config.command()} again"
        )
    return pretrained
