"""The epochs of fine-tuning: steps, validation, the best weights, and a checkpoint after each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FinetuneConfig
from pipeline.errors import ConfigError, RunError, StoppedError, StoreError
from pipeline.evaluation.metrics import scores
from pipeline.extraction.engines import Engine
from pipeline.finetuning.checkpoint import State
from pipeline.finetuning.examples import of_epoch
from pipeline.finetuning.models import FinetuneModels, with_remat
from pipeline.finetuning.steps import objective, optimizer_of, preparation, schedule_of, targets_of
from pipeline.heads import probabilities_of
from pipeline.store.rows import Part
from pipeline.training.batches import batches, predict_logits
from pipeline.training.watch import Watch
from pipeline.util import log, runtime
from pipeline.util.machine import freed_memory_kept
from pipeline.util.progress import Advance, progress
from pipeline.util.stopping import Stopping, stopping

if TYPE_CHECKING:
    import keras

PREDICTED = 64  # images whose activations are run at a time where nothing is kept for a backward pass
DIVERGED = 30.0  # times the loss of a guess: no network that learns is so sure of what is wrong

Keeping = Callable[[dict[str, list[NDArray[Any]]], list[dict[str, float]]], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What fine-tuning gave; the models hold the best weights now.

    Attributes:
        history: A row for each epoch; epoch 0 is the start.
        best_epoch: Epoch whose weights were kept; 0 if none was better than the start.
        probabilities: Of the images of each split but train.
        resumed: Epochs that an earlier process had done.
        notes: What a user should know.
    """

    history: list[dict[str, float]]
    best_epoch: int
    probabilities: dict[str, NDArray[np.float64]]
    resumed: int
    notes: list[str]

    @property
    def seconds_per_epoch(self) -> float:
        """Mean length of the passes over the training images, validation left out."""
        return float(np.mean([row["epoch_seconds"] for row in self.history[1:]]))


def fit(
    models: FinetuneModels,
    examples: dict[str, Part],
    config: FinetuneConfig,
    keeping: Keeping | None = None,
    state: State | None = None,
    logs: Path | None = None,
    engine: Engine | None = None,
) -> Tuned:
    """Train; the weights kept are those of the epoch with the best validation accuracy, the start included.

    Args:
        models: What `assemble` gave, made in the scope of the strategy that is used.
        examples: Of `train` and, where there are any, of `val` and `test`.
        config: How.
        keeping: Keeps the state after each epoch; None to keep nothing.
        state: What to go on from; None to begin.
        logs: Folder of TensorBoard's logs; None for none.
        engine: Gives the activations at the cut of the training images, which are read as images then; None where the
            examples are what the trained model takes.

    Raises:
        ConfigError: If all epochs together make no update.
        RunError: If the loss diverges in the first epoch, memory is too little, or the state is of another network.
        StoppedError: After Ctrl-C or SIGTERM; the checkpoint stays.
    """
    with freed_memory_kept(), _enough_memory(config), _writer(logs) as written, stopping() as stop:
        training = _Training(models, examples, config, keeping, engine)
        resumed = training.take_up(state) if state else training.start()
        left = config.epochs - resumed
        with progress("Fine-tuning", left * training.n_steps, "steps") as advance:
            while len(training.history) <= config.epochs and not training.finished:
                training.epoch(stop, advance)
                written(training.history[-1])
                training.save()
        probabilities = training.end()
    return Tuned(training.history, training.best_epoch, probabilities, resumed, training.notes)


class _Training:
    """Weights, optimizer and history between the epochs."""

    def __init__(
        self,
        models: FinetuneModels,
        examples: dict[str, Part],
        config: FinetuneConfig,
        keeping: Keeping | None,
        engine: Engine | None = None,
    ) -> None:
        self.config = config
        self.keeping = keeping
        self.model = models.trained
        self.n_steps = math.ceil(len(examples["train"]) / config.batch_size)
        if config.accumulate > config.epochs * self.n_steps:
            raise ConfigError(
                f"--accumulate {config.accumulate} is more than the {config.epochs * self.n_steps} steps of all "
                "epochs, so nothing would ever be updated; give less"
            )
        self.engine = engine
        self.examples = examples
        self.targets = targets_of(config, examples["train"].labels, models.n_classes)
        # Of images every layer's maps are held; of activations little lies above.
        self.n_predicted = config.batch_size if models.trained is models.whole else max(PREDICTED, config.batch_size)
        self.stepped = (
            with_remat(self.model)
            if config.remat
            else runtime.keras().Model(self.model.inputs[0], self.model.outputs[0])
        )
        self.schedule = schedule_of(config, self.n_steps)
        self.optimizer = optimizer_of(self.stepped, self.model, models.depths, config, self.schedule)
        self.chance = math.log(models.n_classes)
        self.diverged = DIVERGED * self.chance
        on_jax = runtime.keras_backend() == "jax"
        # On a processor XLA ran no faster, took half as much memory again, and 6 s more for each shape of a batch.
        jit = "auto" if on_jax or runtime.tensorflow().config.list_physical_devices("GPU") else False
        self.stepped.compile(optimizer=self.optimizer, jit_compile=jit, **objective(config, models.n_classes))
        if on_jax:
            # Else `fit` would build the metrics by a first batch, begin anew, and give what it had read ahead first.
            source = self.model.inputs[0]
            self.stepped.test_on_batch(np.zeros((1, *source.shape[1:]), source.dtype), self.targets[:1])
        self.watch = Watch(1, config.patience, config.schedule, stops=True)
        self.history: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.best: list[NDArray[Any]] = self.model.get_weights()
        self.last = self.best  # weights after the last step; what Keras leaves in the model is their average (--ema)
        self.finished = False
        self._n_kept = 0

    @property
    def best_epoch(self) -> int:
        """Epoch of the weights that are kept; 0 for the start."""
        return max(int(self.watch.best_epoch[0]) - 1, 0)

    def start(self) -> int:
        """Look at the validation images before anything has changed; 0, as no epoch is done."""
        figures = ["loss"] if self.config.mixup else ["accuracy", "loss"]
        row = dict.fromkeys(["learning_rate", *figures], math.nan)
        self._take_in({"epoch": 0.0, **row, **self._validation(), "epoch_seconds": 0.0, "seconds": 0.0})
        return 0

    def take_up(self, state: State) -> int:
        """Go on from a checkpoint; the number of epochs that are done."""
        try:
            self.model.set_weights(state.arrays["best"])  # refuses what doesn't fit
            for name, variables in self._variables().items():
                for variable, array in zip(variables, state.arrays[name], strict=True):
                    variable.assign(array)
            for row in state.history[: self.config.epochs + 1]:
                self._take_in(row)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"The checkpoint belongs to another network: {error}; leave --resume out to begin again"
            ) from error
        self.best = state.arrays["best"]
        self._n_kept = len(self.history) - 1
        log.info("Continuing after epoch %d of %d", self._n_kept, self.config.epochs)
        return self._n_kept

    def epoch(self, stop: Stopping, advance: Advance) -> None:
        """One pass over the training images, then one look at the validation images."""
        config, number = self.config, len(self.history)
        start = time.perf_counter()
        generator = np.random.default_rng((config.seed, number))
        sound = self.model.get_weights()
        train, prepare = of_epoch(self.examples["train"], number), preparation(config, self.engine, number)
        # Keras would shuffle the batches again, by a generator that no checkpoint knows.
        with batches(train, self.targets, config.batch_size, generator, prepare) as (data, _):
            callbacks = [self._callback(stop, advance)]
            fitted = self.stepped.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
        figures = {name: float(values[-1]) for name, values in sorted(fitted.history.items())}
        seconds = time.perf_counter() - start
        row = {"epoch": float(number), "learning_rate": self._rate(number), **figures}
        if not figures["loss"] < self.diverged:
            self.model.set_weights(sound)
            self.finished = True
            what = f"The loss diverged in epoch {number} ({figures['loss']:.3g}; guessing gives {self.chance:.2f})"
            if number == 1:
                raise RunError(f"{what}; lower --learning-rate {config.learning_rate:g}")
            self.notes.append(f"{what}; training ended there, a lower --learning-rate may do better")
            row |= {name: math.nan for name in self.history[0] if name.startswith("val_")}
        else:
            row |= self._validation()
        row["epoch_seconds"] = seconds
        self._take_in({**row, "seconds": self.history[-1]["seconds"] + time.perf_counter() - start})
        if config.ema and not self.finished:
            self.model.set_weights(self.last)
        named = [name for name in ("loss", "val_accuracy", "val_loss") if name in row]
        shown = ", ".join(f"{name.replace('_', ' ')} {row[name]:.4f}" for name in named)
        took = self.history[-1]["seconds"] - self.history[-2]["seconds"]
        log.info("Epoch %d of %d: %s; %.0f s", number, config.epochs, shown, took)

    def save(self) -> None:
        """Write the checkpoint; what can't be written ends nothing."""
        if self.keeping is None or self.finished:
            return
        variables = {name: [np.asarray(variable) for variable in part] for name, part in self._variables().items()}
        try:
            self.keeping({**variables, "best": self.best}, self.history)
        except StoreError as error:
            self.keeping = None
            log.warning("No more checkpoints are written: %s", error)
        else:
            self._n_kept = len(self.history) - 1

    def end(self) -> dict[str, NDArray[np.float64]]:
        """Put the best weights back; probabilities of all splits but train."""
        self.model.set_weights(self.best)
        return {split: self._probabilities(part) for split, part in self.examples.items() if split != "train"}

    def _callback(self, stop: Stopping, advance: Advance) -> keras.callbacks.Callback:
        """What happens after each step."""
        done, epochs, training = self._n_kept, self.config.epochs, self

        class AfterStep(runtime.keras().callbacks.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
                if stop.signal is not None:
                    going_on = "with --resume goes on from there" if done else "begins again"
                    raise StoppedError(
                        f"Stopped; {done} of {epochs} epochs are kept. The same command {going_on}.",
                        signal=stop.signal,
                    )
                advance(1)
                # Keras's own callback for this writes to standard output.
                self.model.stop_training = not math.isfinite(logs["loss"])

            def on_epoch_end(self, epoch: int, logs: object = None) -> None:
                if training.config.ema:
                    training.last = training.model.get_weights()

        return AfterStep()

    def _take_in(self, row: dict[str, float]) -> None:
        """Add an epoch to the history, and draw the conclusions from it."""
        losses = np.array([row.get("val_loss", row["loss"])])
        if not self.history and "val_loss" not in row:
            losses = np.array([np.finfo(np.float64).max])  # with nothing to compare by, any epoch is better
        accuracies = np.array([row["val_accuracy"]]) if "val_accuracy" in row else None
        self.history.append(row)
        if self.finished:
            return
        if self.watch.update(losses, accuracies)[0]:
            self.best = self.model.get_weights()
        self.finished = self.watch.finished
        self.optimizer.factor.assign(self.watch.reductions[0])

    def _rate(self, epoch: int) -> float:
        """Learning rate of the head in the middle of an epoch."""
        middle = self.schedule(int((epoch - 0.5) * self.n_steps))
        return float(middle) * float(self.watch.reductions[0])

    def _validation(self) -> dict[str, float]:
        if "val" not in self.examples:
            return {}
        val = self.examples["val"]
        found = scores(self._probabilities(val), val.labels)
        return {"val_loss": found["log_loss"], "val_accuracy": found["accuracy"]}

    def _probabilities(self, part: Part) -> NDArray[np.float64]:
        return probabilities_of(predict_logits(self.model, part, self.n_predicted))

    def _variables(self) -> dict[str, list[keras.Variable]]:
        """All that an epoch changes: weights, the state of random generators, and what the optimizer remembers."""
        return {"now": list(self.model.variables), "optimizer": list(self.optimizer.variables)}


def _enough_memory(config: FinetuneConfig) -> AbstractContextManager[None]:
    ways = []
    if config.batch_size > 1:
        ways.append(f"--batch-size {config.batch_size // 2} --accumulate {2 * config.accumulate} (about the same)")
    if not config.remat and not config.train_bn:
        ways.append("--remat")
    what = f"{config.batch_size} images in a step"
    return runtime.enough_memory(RunError, what, ", ".join([*ways, "or fewer --blocks"]))


@contextmanager
def _writer(folder: Path | None) -> Iterator[Callable[[dict[str, float]], None]]:
    """Write epochs as TensorBoard reads them."""
    if folder is None:
        yield lambda _: None
        return
    tf = runtime.tensorflow()
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():

        def written(row: dict[str, float]) -> None:
            for name, value in row.items():
                if name != "epoch":
                    tf.summary.scalar(name, value, step=int(row["epoch"]))
            writer.flush()

        yield written
    writer.close()
