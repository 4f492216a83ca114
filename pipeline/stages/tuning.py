"""Finetune: the top blocks of a backbone below a trained head, or all of it."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runtime
from pipeline.backbones import Pretrained, Unfrozen, open_backbone
from pipeline.config import ExtractConfig, ImageConfig
from pipeline.datasets import open_dataset
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.finetune import (
    Checkpoint,
    Examples,
    FinetuneConfig,
    FinetuneModels,
    Tuned,
    assemble,
    drawn_anew,
    fit,
    images_of,
    rows_of,
)
from pipeline.heads import HeadConfig
from pipeline.memo import Memo
from pipeline.records import TableRecord, find_record
from pipeline.runs import MODEL_FILE, Predictions, Run, save_run
from pipeline.stages.features import extract
from pipeline.stages.tables import TableOptions, memory_for
from pipeline.stages.trained import TrainedHead, open_head
from pipeline.stages.training import describe_run, train_head
from pipeline.table import FeatureTable, load_table

if TYPE_CHECKING:
    import keras

__all__ = ["FinetuneOptions", "finetune"]

VIEWS_BY = "flip,crop"

log = logging.getLogger("tlpipe")


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Where fine-tuning starts, and how it goes on.

    Attributes:
        head_run: Run id of a head; None for the newest.
        head: A head to train first, on the frozen features, instead.
        features: Features id that it is trained on; None for the newest pooled features.
        memory: Bytes of activations that may be held; None for half of the machine's.
        resume: Whether to go on from the checkpoint of the same command.
        tensorboard: Whether to write TensorBoard's logs.
    """

    head_run: str | None = None
    head: str | None = None
    features: str | None = None
    memory: int | None = None
    resume: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.head_run and self.head:
            raise ConfigError(f"--head-run {self.head_run} and --head {self.head}: give one of them")
        if self.features and not self.head:
            raise ConfigError(f"--features {self.features} needs --head: which head to train on them first")
        if self.tensorboard and not runtime.installed("tensorboard"):
            raise ConfigError("--tensorboard needs TensorBoard; install it with: pip install tensorboard")


NEWEST_HEAD = FinetuneOptions()
"""From the newest head, and nothing beside."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What is trained, before anything is computed.

    Attributes:
        trained: The head.
        record: Of the features it was trained on.
        pretrained: The backbone that training starts from.
        features: Its graph.
        unfrozen: What is trained of it.
        config: How, with the blocks named and the views resolved.
        end_to_end: Whether the images themselves are read, not activations.
    """

    trained: TrainedHead
    record: TableRecord
    pretrained: Pretrained
    features: keras.Model
    unfrozen: Unfrozen
    config: FinetuneConfig
    end_to_end: bool


def finetune(config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions = NEWEST_HEAD) -> Run:
    """Fine-tune the top blocks below a trained head.

    Args:
        config: Which blocks, and how.
        cache: The cache folder.
        reports: Where the head's run lies, and where this run goes.
        options: Where it starts, and how it goes on.

    Raises:
        RunError: If there is no such run, the loss diverges at once, or memory is too little.
        EndpointError: If there are no such blocks.
        StoppedError: After Ctrl-C or SIGTERM; the checkpoint stays.
    """
    start = time.perf_counter()
    checkpoint = Checkpoint.of(reports, _request(config, options))
    known = checkpoint.head_run() if options.resume else None
    if options.resume and known is None:
        log.info("This command has left no checkpoint; it begins at the beginning")
    strategy = runtime.strategy()
    if config.accumulate > 1 and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            f"--accumulate {config.accumulate} works on one GPU only, and {strategy.num_replicas_in_sync} are visible; "
            "give a larger --batch-size, or set CUDA_VISIBLE_DEVICES=0"
        )
    runtime.keras().utils.set_random_seed(config.seed)
    head_run = known or _head_run(config, cache, reports, options)
    with strategy.scope():
        begun = _begin(config, cache, reports, head_run)
    if known is None:
        checkpoint.begin(begun.trained.run.id)
    table, examples = _examples(begun, cache, options)
    extracted = time.perf_counter()
    with strategy.scope():
        models = _assemble(begun, len(table.class_names))
        logs = checkpoint.logs if options.tensorboard else None
        if logs:
            log.info("Logs for TensorBoard are in %s", logs)
        tuned = fit(models, examples, begun.config, checkpoint, logs)
    run, predictions = _described(begun, table, examples, models, tuned)
    run.settings["memory"] = options.memory
    run.seconds.update(activations=extracted - start, fit=time.perf_counter() - extracted)
    run.seconds["total"] = time.perf_counter() - start

    def save_models(folder: Path) -> None:
        models.serving().save(folder / MODEL_FILE)
        if logs:
            shutil.copytree(logs, folder / logs.name)

    save_run(reports, run, tuned.history, predictions, save_models)
    checkpoint.remove()
    return run


def _described(
    begun: _Start, table: FeatureTable, examples: dict[str, Examples], models: FinetuneModels, tuned: Tuned
) -> tuple[Run, list[Predictions]]:
    """The run, and the predictions it is rated by."""
    from_run, endpoint = begun.trained.run, begun.record.spec.endpoint
    predictions = [
        Predictions(split, examples[split].keys, examples[split].labels, probabilities)
        for split, probabilities in tuned.probabilities.items()
    ]
    run = describe_run(
        "finetune",
        from_run.head,
        table,
        settings={
            **begun.config.to_json(),
            "head_run": from_run.id,
            "cut": begun.unfrozen.cut,
            "endpoint": endpoint,
            "top": begun.pretrained.network().top(endpoint),
            "end_to_end": begun.end_to_end,
        },
        seed=begun.config.seed,
        predictions=predictions,
        seconds={"epoch": tuned.seconds_per_epoch},
        trainable_parameters=models.trainable_parameters(),
        notes=_notes(begun, tuned),
        baseline=from_run.metrics,
        peak_memory=runtime.peak_memory(),
    )
    return run, predictions


def _request(config: FinetuneConfig, options: FinetuneOptions) -> dict[str, Any]:
    """What makes two commands the same."""
    asked = asdict(options)
    return {**config.to_json(), **{name: asked[name] for name in ("head_run", "head", "features", "memory")}}


def _head_run(config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions) -> str | None:
    """Train the head that was asked for; else the run that was given."""
    if options.head is None:
        return options.head_run
    run = train_head(HeadConfig(options.head, seed=config.seed), cache, reports, TableOptions(options.features))
    scores = ", ".join(f"{split} {100 * found['accuracy']:.1f} %" for split, found in run.metrics.items())
    log.info("Trained %s first, as %s: %s", run.head, run.id, scores)
    return run.id


def _begin(config: FinetuneConfig, cache: Path, reports: Path, head_run: str | None) -> _Start:
    """Find out what is trained, and refuse what can't be."""
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
    pretrained = _from_scratch(record, config) if config.weights else _same_backbone(record, cache)
    network = pretrained.network()
    features = network.features(record.spec.endpoint, record.spec.pooling)
    blocks = config.blocks or network.top_block(features)
    unfrozen = network.unfreeze(features, blocks)
    if config.layer_decay < 1 and pretrained.row is None:
        raise ConfigError("--layer-decay goes from block to block, and a model of your own has none that are known")
    if config.views and not config.augment:
        config = replace(config, augment=record.config.augment or VIEWS_BY)
    end_to_end = unfrozen.from_pixels or bool(config.augment and not config.views)
    _check_end_to_end(config, blocks, end_to_end)
    log.info("Fine-tuning %s, from the head %s", _what(blocks), from_run.id)
    config = replace(config, blocks=blocks, train_bn=config.train_bn or config.weights is not None)
    return _Start(trained, record, pretrained, features, unfrozen, config, end_to_end)


def _what(blocks: str) -> str:
    if blocks == "none":
        return "the head alone"
    return "the whole network" if blocks == "all" else f"{blocks} and all above"


def _check_end_to_end(config: FinetuneConfig, blocks: str, end_to_end: bool) -> None:
    if end_to_end and config.views:
        raise ConfigError(
            f"--views {config.views} with --blocks {blocks}: views are cached below what is trained, and nothing lies "
            "there; give --augment alone, for images that are augmented in each step"
        )
    if config.mixup and not end_to_end:
        raise ConfigError(
            f"--mixup {config.mixup:g} mixes images, and --blocks {blocks} starts from activations; it needs "
            "--blocks all, or --augment without --views"
        )


def _examples(begun: _Start, cache: Path, options: FinetuneOptions) -> tuple[FeatureTable, dict[str, Examples]]:
    """A table of the images, and what is read in training: pooled features, activations, or the images."""
    record, config, cut = begun.record, begun.config, begun.unfrozen.cut
    memory = memory_for(options.memory)
    if begun.end_to_end:
        table = load_table(cache, [record], 0, memory=memory)
        examples = _images(begun, cache, table)
    elif config.blocks == "none":
        table = load_table(cache, [record], config.views, memory=memory)
        examples = {split: rows_of(table, split) for split in ("train", "val", "test")}
    else:
        log.info("Activations are cached at %s", cut)
        augment = config.augment if config.views else None
        wanted = replace(record.config, endpoint=cut, pooling="none", dtype=None, views=config.views, augment=augment)
        found = extract(wanted, cache)
        _check_same(record, found.record.dataset, begun.trained)
        table = load_table(cache, [found.record], config.views, memory=memory)
        examples = {split: rows_of(table, split) for split in ("train", "val", "test")}
    return table, {split: part for split, part in examples.items() if len(part)}


def _images(begun: _Start, cache: Path, table: FeatureTable) -> dict[str, Examples]:
    """The images of each split, as the features' own extract read them."""
    record, spec = begun.record, begun.record.spec
    opened = open_dataset(record.config.data, record.config.splits, memo=Memo(cache))
    _check_same(record, opened.dataset.id, begun.trained)
    config = ImageConfig(spec.image_size, spec.resize, spec.interpolation, record.config.pixel_limit)
    return {
        split: images_of(table, split, opened.dataset, opened.source, config, runtime.cpu_count())
        for split in ("train", "val", "test")
    }


def _check_same(record: TableRecord, dataset: str, trained: TrainedHead) -> None:
    """Refuse data that are no longer those of a head.

    Raises:
        CacheMismatchError: If the dataset is another.
    """
    if dataset != record.dataset:
        raise CacheMismatchError(
            f"{record.config.data} has changed since {record.id} was extracted, so the head {trained.run.id} belongs "
            f"to other images; run {record.config.command()} and tlpipe train-head again"
        )


def _assemble(begun: _Start, n_classes: int) -> FinetuneModels:
    config, head = begun.config, begun.trained.head.layers()
    if config.cold_head or config.weights:
        head = drawn_anew(head, config.seed, prepared=config.weights is None)
    return assemble(
        begun.features,
        begun.unfrozen,
        head,
        n_classes,
        train_bn=config.train_bn,
        from_images=begun.end_to_end,
    )


def _notes(begun: _Start, tuned: Tuned) -> list[str]:
    """What a user should know of how it went."""
    config, run, record = begun.config, begun.trained.run, begun.record
    notes = [f"Before: {run.id}, on frozen features"]
    if config.weights:
        notes.append("The backbone and the head started from random weights; BatchNormalization is trained")
    else:
        mode = "trained" if config.train_bn else "in inference mode"
        where = "from the images" if begun.end_to_end else f"above {begun.unfrozen.cut}"
        notes.append(f"{len(begun.unfrozen.depths)} layers {where}, BatchNormalization {mode}")
        head = "The head was drawn anew" if config.cold_head else "Started from the head as fitted on train alone"
        notes.append(head)
    if begun.trained.temperature != 1 or run.settings.get("test_views"):
        notes.append("The head's temperature and means over views are not carried over")
    if record.config.views and not config.views:
        notes.append("Trained on the images themselves; their cached views are not used")
    if tuned.resumed:
        notes.append(f"Resumed after epoch {tuned.resumed}")
    notes += tuned.notes
    if tuned.best_epoch:
        notes.append(f"Kept the weights of epoch {tuned.best_epoch} of {len(tuned.history) - 1}")
    else:
        notes.append(f"No epoch was better on val than the start, whose weights are kept; use the head: {run.id}")
    notes += _beaten(begun, tuned)
    return notes


def _beaten(begun: _Start, tuned: Tuned) -> list[str]:
    """Whether the frozen baseline is better after all, though the start was not."""
    before = begun.trained.run.metrics.get("val", {}).get("accuracy")
    best = tuned.history[tuned.best_epoch].get("val_accuracy")
    if not tuned.best_epoch or before is None or best is None or best > before:
        return []
    return [
        f"It is no better on val than the frozen baseline ({100 * best:.1f} %, {100 * before:.1f} %); "
        f"use the head: {begun.trained.run.id}"
    ]


def _from_scratch(record: TableRecord, config: FinetuneConfig) -> Pretrained:
    """The backbone of some features with weights that are drawn.

    Raises:
        ConfigError: If it is a model file, which has no others than its own.
    """
    if record.spec.backbone != record.config.backbone:
        raise ConfigError(
            f"--weights random needs a backbone from the table, and {record.id} comes from {record.config.backbone}"
        )
    return open_backbone(record.config.backbone, "random", config.seed, record.spec.image_size)


def _same_backbone(record: TableRecord, cache: Path) -> Pretrained:
    """The backbone of some features.

    Raises:
        CacheMismatchError: If its weights are no longer the same.
    """
    config: ExtractConfig = record.config
    pretrained = open_backbone(config.backbone, config.weights, config.seed, record.spec.image_size, Memo(cache))
    if pretrained.digest() != record.spec.weights_digest:
        raise CacheMismatchError(
            f"The weights of {record.spec.backbone} are not those that {record.id} was made with "
            f"(digest {pretrained.digest()[:8]}, then {record.spec.weights_digest[:8]}); "
            f"run {record.config.command()} again"
        )
    return pretrained
