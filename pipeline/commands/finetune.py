"""Finetune: the top blocks of a backbone below a trained head, or all of it."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import Backbone, check_keras
from pipeline.backbones.open import MODEL_FILE
from pipeline.commands.extract import extract
from pipeline.commands.runs import check_name
from pipeline.commands.train_head import train_head
from pipeline.config import ExtractConfig, FinetuneConfig, FinetuneOptions, HeadConfig, ImageConfig, TrainingOptions
from pipeline.data import Opened, open_dataset
from pipeline.data.augment import Augment
from pipeline.data.dataset import SPLITS
from pipeline.errors import CacheMismatchError, ConfigError, DataError, RunError, StoreError
from pipeline.extraction.engines.base import Engine
from pipeline.extraction.plan import complete_rows, open_plan, settle_backend
from pipeline.finetuning import (
    Checkpoint,
    FinetuneModels,
    State,
    Tuned,
    assemble,
    drawn_anew,
    fit,
)
from pipeline.finetuning.examples import images_of, indices_of
from pipeline.finetuning.notes import notes_of
from pipeline.finetuning.start import Start, begin, check_blocks, record_of
from pipeline.heads import make_head
from pipeline.runs.describe import header, ratings, seen
from pipeline.runs.find import find_run
from pipeline.runs.folder import save_run
from pipeline.runs.predictions import Predictions
from pipeline.runs.run import FinetuneRun, HeadRun
from pipeline.store.records import find_record, splits_of
from pipeline.store.rows import Part
from pipeline.store.table import FeatureTable, load_table, read_features
from pipeline.util import disk, log, machine, runtime
from pipeline.util.memo import Memo


def finetune(
    config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions = FinetuneOptions()
) -> FinetuneRun:
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
    check_options(options, reports)
    checkpoint = Checkpoint.of(reports, _request(config, options))
    with checkpoint.claimed():
        run = _finetune(config, cache, reports, options, checkpoint)
        checkpoint.remove()
    return run


def check_options(options: FinetuneOptions, reports: Path) -> None:
    """Refuse what could not be done in the end, before anything is.

    Raises:
        ConfigError: If logs can't be written, or the run can't have its name.
        StoreError: If no run can be kept at an address.
    """
    if options.tensorboard and not runtime.installed("tensorboard"):
        raise ConfigError("--tensorboard needs TensorBoard; install it with: pip install tensorboard")
    if options.tensorboard and runtime.keras_backend() == "jax":
        raise ConfigError("--tensorboard writes by TensorFlow, and Keras runs on JAX here; leave it out")
    check_name(options.name, reports)


def _finetune(
    config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions, checkpoint: Checkpoint
) -> FinetuneRun:
    start = time.perf_counter()
    state = _state(checkpoint, resume=options.resume)
    begun, strategy = _begun(config, cache, reports, options, state)
    table, examples, engine = read_examples(begun, cache, options.memory)
    extracted = time.perf_counter()
    logs = _logs(checkpoint, resumed=state is not None) if options.tensorboard else None

    def keeping(arrays: dict[str, list[NDArray[Any]]], history: list[dict[str, float]]) -> None:
        checkpoint.save(State(arrays, history, begun.trained.run.id))

    with strategy.scope():
        models = _assemble(begun, len(table.class_names))
        tuned = fit(models, examples, begun.config, keeping, state, logs, engine)
    seconds = {
        "epoch": tuned.seconds_per_epoch,
        "activations": extracted - start,
        "fit": time.perf_counter() - extracted,
        "total": time.perf_counter() - start,
    }
    run, predictions = _described(begun, table, examples, models, tuned, options, seconds)

    def save_models(folder: Path) -> None:
        models.serving().save(disk.change("write", folder / MODEL_FILE))
        if logs:
            shutil.copytree(logs, disk.change("write", folder / logs.name))

    try:
        save_run(
            cache,
            reports,
            run,
            history=tuned.history,
            predictions=predictions,
            seen=seen(table),
            save_models=save_models,
        )
    except StoreError as error:
        raise StoreError(
            f"{error}. The epochs are kept: once there is room, run the same command with --resume"
        ) from error
    return run


def _begun(
    config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions, state: State | None
) -> tuple[Start, Any]:
    """What is trained, from a head that is trained first if need be, and TensorFlow's strategy for its devices."""
    head_run = state.head_run if state and not options.head_run else options.head_run
    first = options.head if state is None else None
    if first:
        record = find_record(cache, options.features)
        check_keras(record.config.backbone)
    else:
        record = record_of(find_run(reports, head_run, (HeadRun,))[0], cache)
    settle_backend(record.config)
    if state is None and options.head is None:
        check_blocks(config.blocks, record, cache)
    strategy = runtime.strategy()
    _check_devices(config, strategy.num_replicas_in_sync)
    runtime.keras().utils.set_random_seed(config.seed)
    if first:
        head_run = trained_first(first, config, cache, reports, options)
    with strategy.scope():
        return begin(config, cache, reports, head_run), strategy


def _logs(checkpoint: Checkpoint, *, resumed: bool) -> Path:
    """The folder of logs for TensorBoard, without those of an earlier command."""
    if not resumed:
        with suppress(OSError):
            disk.remove_tree(checkpoint.logs)
    log.info("Logs for TensorBoard are in %s", checkpoint.logs)
    return checkpoint.logs


def read_examples(begun: Start, cache: Path, memory: int | None) -> tuple[FeatureTable, dict[str, Part], Engine | None]:
    """A table of the images, what is read in training (pooled features, activations, or images), and its engine.

    What is trained may stand on features of a fast engine; validation and test images are read as the saved model will
    see them, in float32, so that its figures are right. Where every epoch sees new versions of the training images, the
    engine runs them through the frozen part while the steps before are taken.
    """
    record, config = begun.record, begun.config
    opened, limit, engine = _open_data(begun, cache), machine.memory_for(memory), None
    augment = Augment.parse(config.augment) if config.augment and config.drawn_anew else None
    wanted = replace(record.config, views=config.views, augment=config.augment if config.views else None)
    exact = replace(wanted, precision="float32", views=0, augment=None)
    if begun.end_to_end or augment:
        table = load_table(cache, [record], 0, memory=limit)
        spec = record.spec
        images = ImageConfig(spec.image_size, spec.resize, spec.interpolation, record.config.pixel_limit)
        found = {
            split: images_of(table, split, opened, images, augment if split == "train" else None) for split in SPLITS
        }
        if not begun.end_to_end:
            wanted, exact = (_at_the_cut(begun, one) for one in (wanted, exact))
            plan = open_plan(wanted, cache)
            # Where a device computes, a step's images are one batch; OpenVINO splits them.
            size = None if plan.choice.engine == "openvino" else -(-config.batch_size // runtime.n_devices())
            engine = plan.engine(size)
            found |= _exact(exact, cache, opened, table, limit)
    else:
        if config.blocks != "none":
            log.info("Activations are cached at %s", begun.unfrozen.cut)
        wanted, exact = (_at_the_cut(begun, one) for one in (wanted, exact))
        table = load_table(cache, [extract(wanted, cache, made_by="finetune").record], config.views, memory=limit)
        found = {split: table.examples(split) for split in SPLITS}
        if table.specs[0].precision != "float32":
            found |= _exact(exact, cache, opened, table, limit)
    return table, {split: part for split, part in found.items() if len(part)}, engine


def _at_the_cut(begun: Start, config: ExtractConfig) -> ExtractConfig:
    """Options that give what the trained part takes: activations at the cut, or pooled features for the head alone."""
    if begun.config.blocks == "none":
        return config
    return replace(config, endpoint=begun.unfrozen.cut, pooling="none", dtype=None)


def _exact(config: ExtractConfig, cache: Path, opened: Opened, table: FeatureTable, memory: int) -> dict[str, Part]:
    """Validation and test rows of a table, computed in another precision."""
    parts = {split: table.rows(split) for split in ("val", "test")}
    rows = np.concatenate(list(parts.values()))
    if not len(rows):
        return {}
    log.info("Validation and test images are rated in float32, as the saved model will run")
    store = complete_rows(config, cache, opened, np.unique(indices_of(opened.dataset, table.keys[rows])))
    features = read_features([store], table.keys[rows], [table.locations[row] for row in rows], memory)
    exact = replace(
        table, features=features, **{name: getattr(table, name)[rows] for name in ("labels", "splits", "views", "keys")}
    )
    return {split: exact.examples(split) for split in parts}


def _open_data(begun: Start, cache: Path) -> Opened:
    """The data that the features were extracted from, if they are there and the same."""
    record, run = begun.record, begun.trained.run
    try:
        config = record.config
        opened = open_dataset(
            config.data,
            config.splits,
            columns=config.columns,
            known=lambda: splits_of(cache, record),
            memo=Memo(cache),
        )
    except DataError as error:
        raise DataError(f"The images that the head {run.id} was trained on can't be opened: {error}") from error
    if opened.dataset.id != record.dataset:
        raise CacheMismatchError(
            f"{record.config.data} has changed since {record.id} was extracted, so the head {run.id} belongs "
            f"to other images; run {record.config.command()} and tlpipe train-head again"
        )
    return opened


def _state(checkpoint: Checkpoint, *, resume: bool) -> State | None:
    """What to go on from; None to begin."""
    if not resume:
        if checkpoint.exists():
            log.warning("This command was interrupted before, and now starts over; --resume would keep its epochs")
        return None
    state = checkpoint.load()
    if state is None:
        log.warning("This command has left no checkpoint with these options, so training starts from the beginning")
    return state


def _described(
    begun: Start,
    table: FeatureTable,
    examples: dict[str, Part],
    models: FinetuneModels,
    tuned: Tuned,
    options: FinetuneOptions,
    seconds: dict[str, float],
) -> tuple[FinetuneRun, list[Predictions]]:
    """The run, and the predictions it is rated by."""
    from_run, endpoint, row = begun.trained.run, begun.record.spec.endpoint, begun.pretrained.row
    predictions = [
        Predictions(split, examples[split].keys, examples[split].labels, probabilities)
        for split, probabilities in tuned.probabilities.items()
    ]
    run = FinetuneRun(
        **header("finetune", from_run.head, table, begun.config.seed, seconds),
        **ratings(table, predictions, ["train"], ["val"] if "val" in examples else []),
        trainable_parameters=models.trainable_parameters(),
        config=begun.config,
        head_run=from_run.id,
        cut=begun.unfrozen.cut,
        endpoint=endpoint,
        top=begun.pretrained.network().top(endpoint),
        end_to_end=begun.end_to_end,
        baseline=from_run.metrics,
        peak_memory=machine.peak_memory(),
        memory=options.memory,
        blocks=() if row is None or isinstance(row, Backbone) else row.blocks,
        notes=notes_of(begun, tuned),
        name=options.name,
    )
    return run, predictions


def _request(config: FinetuneConfig, options: FinetuneOptions) -> dict[str, Any]:
    """What makes two commands the same."""
    asked = asdict(options)
    return {**asdict(config), **{name: asked[name] for name in ("head_run", "head", "features", "memory")}}


def trained_first(name: str, config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions) -> str:
    """Train the head that was asked for; its run."""
    head = HeadConfig(name, seed=config.seed)
    with suppress(RunError):  # it isn't fitted yet; a head without layers says so
        make_head(head)[0].layers()
    run = train_head(head, cache, reports, TrainingOptions(options.features, memory=options.memory))
    scores = ", ".join(f"{split} {100 * found['accuracy']:.1f} %" for split, found in run.metrics.items())
    log.info("Trained %s first, as %s: %s", run.head, run.id, scores)
    return run.id


def _check_devices(config: FinetuneConfig, n: int) -> None:
    """Refuse what Keras can't do, or does wrongly, on several devices."""
    alone = f"{n} GPUs are visible; or set CUDA_VISIBLE_DEVICES=0"
    if n > 1 and config.accumulate > 1:
        raise ConfigError(f"--accumulate {config.accumulate} works on one GPU; give a larger --batch-size, as {alone}")
    if config.batch_size % n:
        raise ConfigError(f"--batch-size {config.batch_size} must be shared evenly: give a multiple of {n}, as {alone}")


def _assemble(begun: Start, n_classes: int) -> FinetuneModels:
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
