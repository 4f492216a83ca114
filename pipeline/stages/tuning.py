"""Finetune: the top blocks of a backbone below a trained head, or all of it."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline import runtime
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.finetune import (
    Checkpoint,
    Examples,
    FinetuneConfig,
    FinetuneModels,
    State,
    Tuned,
    assemble,
    drawn_anew,
    fit,
)
from pipeline.heads import HeadConfig, make_head
from pipeline.predictions import Predictions
from pipeline.runs import MODEL_FILE, Run, save_run
from pipeline.stages.starting import NEWEST_HEAD, FinetuneOptions, Start, begin, read_examples
from pipeline.stages.tables import TableOptions
from pipeline.stages.training import describe_run, train_head
from pipeline.table import FeatureTable

__all__ = ["finetune"]

log = logging.getLogger("tlpipe")


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
    checkpoint = Checkpoint.of(reports, _request(config, options))
    with checkpoint.claimed():
        run = _finetune(config, cache, reports, options, checkpoint)
        checkpoint.remove()
    return run


def _finetune(
    config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions, checkpoint: Checkpoint
) -> Run:
    start = time.perf_counter()
    state = _state(checkpoint, resume=options.resume)
    strategy = runtime.strategy()
    _check_devices(config, strategy.num_replicas_in_sync)
    runtime.keras().utils.set_random_seed(config.seed)
    head_run = state.head_run if state and not options.head_run else _head_run(config, cache, reports, options)
    with strategy.scope():
        begun = begin(config, cache, reports, head_run)
    table, examples = read_examples(begun, cache, options.memory)
    extracted = time.perf_counter()
    logs = checkpoint.logs if options.tensorboard else None
    if logs:
        if state is None:
            shutil.rmtree(logs, ignore_errors=True)
        log.info("Logs for TensorBoard are in %s", logs)

    def keeping(arrays: dict[str, list[NDArray[Any]]], history: list[dict[str, float]]) -> None:
        checkpoint.save(State(arrays, history, begun.trained.run.id))

    with strategy.scope():
        models = _assemble(begun, len(table.class_names))
        tuned = fit(models, examples, begun.config, keeping, state, logs)
    run, predictions = _described(begun, table, examples, models, tuned)
    run.settings["memory"] = options.memory
    run.seconds.update(activations=extracted - start, fit=time.perf_counter() - extracted)
    run.seconds["total"] = time.perf_counter() - start

    def save_models(folder: Path) -> None:
        models.serving().save(folder / MODEL_FILE)
        if logs:
            shutil.copytree(logs, folder / logs.name)

    try:
        save_run(reports, run, tuned.history, predictions, save_models)
    except StoreError as error:
        raise StoreError(
            f"{error}. The epochs are kept: once there is room, run the same command with --resume"
        ) from error
    return run


def _state(checkpoint: Checkpoint, *, resume: bool) -> State | None:
    """What to go on from; None to begin."""
    if not resume:
        if checkpoint.exists():
            log.warning("The epochs that this command left when it was interrupted are replaced; --resume keeps them")
        return None
    state = checkpoint.load()
    if state is None:
        log.warning("This command, with these options, has left no checkpoint; it begins at the beginning")
    return state


def _described(
    begun: Start, table: FeatureTable, examples: dict[str, Examples], models: FinetuneModels, tuned: Tuned
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
    head = HeadConfig(options.head, seed=config.seed)
    with suppress(RunError):  # it isn't fitted yet; a head without layers says so
        make_head(head)[0].layers()
    run = train_head(head, cache, reports, TableOptions(options.features, memory=options.memory))
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


def _notes(begun: Start, tuned: Tuned) -> list[str]:
    """What a user should know of how it went."""
    config, run, record = begun.config, begun.trained.run, begun.record
    notes = [f"Before: {run.id}, on frozen features"]
    if config.weights:
        notes.append("The backbone and the head started from random weights; BatchNormalization is trained")
    else:
        mode = "trained" if config.train_bn else "in inference mode"
        where = "end to end" if begun.end_to_end else f"above {begun.unfrozen.cut}"
        n = len(begun.trained_layers())
        notes.append(f"{n} {'layer' if n == 1 else 'layers'} trained {where}, BatchNormalization {mode}")
        head = "The head was drawn anew" if config.cold_head else "Started from the head as fitted on train alone"
        notes.append(head)
    if any("train and val" in note for note in run.notes):
        notes.append("For its test the frozen head was fitted on val, too; this model has seen train only")
    if begun.trained.temperature != 1 or run.settings.get("test_views"):
        notes.append("The head's temperature and means over views are not carried over")
    if record.config.views and not config.views:
        notes.append("Trained on the images themselves; their cached views are not used")
    if record.spec.precision != "float32":
        notes.append(f"Rated in float32, as the saved model runs; the frozen head in {record.spec.precision}")
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
