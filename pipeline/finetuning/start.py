"""Where fine-tuning starts: the head, the backbone, what of it is trained, and what is read in training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backbones import Pretrained, Unfrozen, check_keras, open_keras
from pipeline.config import ExtractConfig, FinetuneConfig
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.runs.run import HeadRun
from pipeline.runs.trained_head import TrainedHead, open_head
from pipeline.store.records import TableRecord, find_record
from pipeline.util import log, runtime
from pipeline.util.memo import Memo

if TYPE_CHECKING:
    import keras

VIEWS_BY = "flip,crop"


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
        end_to_end: Whether all is trained, from the images on.
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


def record_of(run: HeadRun, cache: Path) -> TableRecord:
    """The features that a head was trained on.

    Raises:
        CacheMismatchError: If it was trained on several sets of features.
        ConfigError: If their backbone can't be trained.
    """
    if len(run.specs) > 1:
        raise CacheMismatchError(
            f"The head {run.id} was trained on {len(run.specs)} sets of features, and one backbone can be "
            "fine-tuned below a head; train another: tlpipe train-head FEATURES"
        )
    record = find_record(cache, run.features)
    check_keras(record.config.backbone)
    return record


def check_blocks(blocks: str | None, record: TableRecord, cache: Path) -> None:
    """Refuse names of blocks that are none, before TensorFlow is loaded, as far as that can be told.

    Raises:
        EndpointError: If there is no such block or layer.
    """
    if blocks in (None, "all", "none"):
        return
    config = record.config
    pretrained = open_keras(config.backbone, config.weights, config.seed, config.image_size, Memo(cache))
    for name in str(blocks).split(","):
        pretrained.check_name("--blocks", name.strip())


def begin(config: FinetuneConfig, cache: Path, reports: Path, head_run: str | None) -> Start:
    """Find out what is trained, and refuse what can't be."""
    trained, _ = open_head(reports, head_run)
    from_run = trained.run
    record = record_of(from_run, cache)
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
    _check_images(config, blocks, unfrozen)
    log.info("Fine-tuning %s, from the head %s", _what(blocks), from_run.id)
    config = replace(config, blocks=blocks, train_bn=config.train_bn or config.weights is not None)
    begun = Start(trained, record, pretrained, features, unfrozen, config, unfrozen.from_pixels)
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


def _check_images(config: FinetuneConfig, blocks: str, unfrozen: Unfrozen) -> None:
    if unfrozen.from_pixels and config.views:
        raise ConfigError(
            f"--views {config.views} with --blocks {blocks}: views are cached below what is trained, and nothing lies "
            "there; give --augment alone, for images that are augmented anew in each epoch"
        )
    if config.mixup and not unfrozen.from_pixels and not config.drawn_anew:
        raise ConfigError(
            f"--mixup {config.mixup:g} mixes images, and --blocks {blocks} starts from activations; it needs "
            "--blocks all, or --augment without --views"
        )


def _from_scratch(record: TableRecord, config: FinetuneConfig) -> Pretrained:
    """The backbone of some features with weights that are drawn.

    Raises:
        ConfigError: If it is a model file, which has no others than its own.
    """
    if record.spec.backbone != record.config.backbone:
        raise ConfigError(
            f"--weights random needs a backbone from the table, and {record.id} comes from {record.config.backbone}"
        )
    return open_keras(record.config.backbone, "random", config.seed, record.spec.image_size)


def _same_backbone(record: TableRecord, cache: Path) -> Pretrained:
    """The backbone of some features.

    Raises:
        CacheMismatchError: If its weights are no longer the same.
    """
    config: ExtractConfig = record.config
    pretrained = open_keras(config.backbone, config.weights, config.seed, record.spec.image_size, Memo(cache))
    if pretrained.digest() != record.spec.weights_digest:
        raise CacheMismatchError(
            f"The weights of {record.spec.backbone} are not those that {record.id} was made with "
            f"(digest {pretrained.digest()[:8]}, then {record.spec.weights_digest[:8]}); "
            f"run {record.config.command()} again"
        )
    return pretrained
