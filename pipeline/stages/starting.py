"""Where fine-tuning starts: the head, the backbone, what of it is trained, and what is read in training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import runtime
from pipeline.backbones import Pretrained, Unfrozen, open_backbone
from pipeline.config import ExtractConfig, ImageConfig
from pipeline.datasets import Opened, open_dataset
from pipeline.errors import CacheMismatchError, ConfigError, DataError
from pipeline.finetune import Examples, FinetuneConfig, images_of, indices_of, rows_of
from pipeline.memo import Memo
from pipeline.records import TableRecord, find_record
from pipeline.stages.features import extract
from pipeline.stages.rows import complete_rows
from pipeline.stages.tables import memory_for
from pipeline.stages.trained import TrainedHead, open_head
from pipeline.table import FeatureTable, load_table, read_features

if TYPE_CHECKING:
    import keras

__all__ = ["NEWEST_HEAD", "FinetuneOptions", "Start", "begin", "read_examples"]

VIEWS_BY = "flip,crop"
SPLITS = ("train", "val", "test")

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
class Start:
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

    def trained_layers(self) -> list[str]:
        """Names of the backbone's layers whose weights change."""
        norm = runtime.keras().layers.BatchNormalization
        still = {layer.name for layer in self.features.layers if isinstance(layer, norm) and not self.config.train_bn}
        return [name for name in self.unfrozen.depths if name not in still]


def begin(config: FinetuneConfig, cache: Path, reports: Path, head_run: str | None) -> Start:
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
    blocks = network.top_block(features) if config.blocks is None else config.blocks
    unfrozen = network.unfreeze(features, blocks)
    if config.layer_decay < 1 and pretrained.row is None:
        raise ConfigError("--layer-decay goes from block to block, and a model of your own has none that are known")
    if config.views and not config.augment:
        config = replace(config, augment=record.config.augment or VIEWS_BY)
    end_to_end = unfrozen.from_pixels or bool(config.augment and not config.views)
    _check_end_to_end(config, blocks, end_to_end)
    log.info("Fine-tuning %s, from the head %s", _what(blocks), from_run.id)
    config = replace(config, blocks=blocks, train_bn=config.train_bn or config.weights is not None)
    begun = Start(trained, record, pretrained, features, unfrozen, config, end_to_end)
    if blocks != "none" and not begun.trained_layers():
        raise ConfigError(
            f"--blocks {blocks} trains nothing of the backbone; name a block or layer further down, or none for the "
            "head alone"
        )
    return begun


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


def read_examples(begun: Start, cache: Path, memory: int | None) -> tuple[FeatureTable, dict[str, Examples]]:
    """A table of the images, and what is read in training: pooled features, activations, or the images.

    What is trained may stand on features of a fast engine; validation and test images are read as the saved model will
    see them, in float32, so that its figures are right.

    Args:
        begun: What is trained.
        cache: The cache folder.
        memory: Bytes that may be held; None for half of the machine's.

    Raises:
        DataError: If the images are no longer where they were.
        CacheMismatchError: If they are no longer the same.
    """
    record, config = begun.record, begun.config
    opened = _open_data(begun, cache)
    if begun.end_to_end:
        table = load_table(cache, [record], 0, memory=memory_for(memory))
        spec = record.spec
        images = ImageConfig(spec.image_size, spec.resize, spec.interpolation, record.config.pixel_limit)
        workers = runtime.cpu_count()
        found = {split: images_of(table, split, opened.dataset, opened.source, images, workers) for split in SPLITS}
    else:
        wanted = replace(record.config, views=config.views, augment=config.augment if config.views else None)
        if config.blocks != "none":
            log.info("Activations are cached at %s", begun.unfrozen.cut)
            wanted = replace(wanted, endpoint=begun.unfrozen.cut, pooling="none", dtype=None)
        table = load_table(cache, [extract(wanted, cache).record], config.views, memory=memory_for(memory))
        found = {split: rows_of(table, split) for split in SPLITS}
        if table.specs[0].precision != "float32" and (len(found["val"]) or len(found["test"])):
            exact = replace(wanted, precision="float32", views=0, augment=None)
            found |= _exact(exact, cache, opened, table, memory_for(memory))
    return table, {split: part for split, part in found.items() if len(part)}


def _exact(config: ExtractConfig, cache: Path, opened: Opened, table: FeatureTable, memory: int) -> dict[str, Examples]:
    """Validation and test rows of a table, computed in another precision."""
    log.info("Validation and test images are rated in float32, as the saved model will run")
    parts = {split: table.rows(split) for split in ("val", "test")}
    rows = np.concatenate(list(parts.values()))
    store = complete_rows(config, cache, opened, np.unique(indices_of(opened.dataset, table.keys[rows])))
    features = read_features([store], table.keys[rows], [table.locations[row] for row in rows], memory)
    exact = replace(
        table, features=features, **{name: getattr(table, name)[rows] for name in ("labels", "splits", "views", "keys")}
    )
    return {split: rows_of(exact, split) for split in parts}


def _open_data(begun: Start, cache: Path) -> Opened:
    """The data that the features were extracted from.

    Raises:
        DataError: If they are no longer there.
        CacheMismatchError: If they are no longer the same.
    """
    record, run = begun.record, begun.trained.run
    try:
        opened = open_dataset(record.config.data, record.config.splits, memo=Memo(cache))
    except DataError as error:
        raise DataError(f"The images that the head {run.id} was trained on can't be opened: {error}") from error
    if opened.dataset.id != record.dataset:
        raise CacheMismatchError(
            f"{record.config.data} has changed since {record.id} was extracted, so the head {run.id} belongs "
            f"to other images; run {record.config.command()} and tlpipe train-head again"
        )
    return opened


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
