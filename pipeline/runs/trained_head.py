"""A trained head: what a run folder keeps of one, which knows its classes and what features it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FeatureSpec
from pipeline.errors import CacheMismatchError, DataError, EngineError, RunError
from pipeline.evaluation.calibration import tempered
from pipeline.heads import Head, load_head
from pipeline.runs.find import find_run
from pipeline.runs.folder import at_hand
from pipeline.runs.run import HeadRun
from pipeline.store.rows import check_finite
from pipeline.util import log, runtime
from pipeline.util.text import counted


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A fitted head with what it needs to be used.

    Attributes:
        run: The run it comes from.
        head: The classifier.
        class_names: In the order of its probabilities.
        specs: Of the features it takes; of several sets, whose columns stand side by side.
        temperature: By which its logits are divided.
    """

    run: HeadRun
    head: Head
    class_names: tuple[str, ...]
    specs: tuple[FeatureSpec, ...]
    temperature: float

    def __repr__(self) -> str:
        return f"<head of {self.run.id}: {self.run.head}, {counted(len(self.class_names), 'class', 'classes')}>"

    def check(self, specs: Sequence[FeatureSpec], name: str | None) -> None:
        """Refuse features that are not those the head was trained on; other precision alone is only noted.

        Args:
            specs: Of the features.
            name: Their id; None where it isn't known.

        Raises:
            CacheMismatchError: Naming the fields that differ.
        """
        again = f"Train it again: tlpipe train-head {name or 'FEATURES'} --head {self.run.head}"
        if len(specs) != len(self.specs):
            raise CacheMismatchError(
                f"The head {self.run.id} was trained on {len(self.specs)} sets of features, not on {len(specs)}. "
                f"{again}"
            )
        for mine, theirs in zip(self.specs, specs, strict=True):
            differing = mine.differences(theirs)
            if set(differing) == {"precision"}:
                log.info("The head was trained on features in %s, these are in %s", *differing["precision"])
            elif differing:
                fields = ", ".join(f"{field} {own!r}, not {other!r}" for field, (own, other) in differing.items())
                raise CacheMismatchError(f"The head {self.run.id} was trained on features with {fields}. {again}")

    def predict_proba(
        self, features: NDArray[np.floating], specs: Sequence[FeatureSpec], name: str | None = None
    ) -> NDArray[np.floating]:
        """Probabilities [n, classes] of features [n, d].

        Args:
            features: Shape [n, d].
            specs: What they are.
            name: Their id, for the error; None where it isn't known.

        Raises:
            CacheMismatchError: If they are not what the head was trained on.
            DataError: If they have another shape or type, or are no finite numbers.
        """
        self.check(specs, name)
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.head.n_features or not np.issubdtype(array.dtype, np.floating):
            raise DataError(
                f"Expected features [n, {self.head.n_features}] of floating-point numbers. "
                f"Received: {array.dtype} of shape {list(array.shape)}"
            )
        check_finite(array)
        return self.mean_proba([array])

    def mean_proba(self, views: Sequence[NDArray[np.floating]], *, final: bool = True) -> NDArray[np.floating]:
        """Probabilities [n, classes], means over views of the same images, each [n, d]; their specs are not checked.

        Args:
            views: Features of each view.
            final: As in `Head.predict_proba`.

        Raises:
            RunError: If the head is one of other classes.
        """
        with np.errstate(all="ignore"):  # what comes of it is looked at below
            probabilities = np.mean([self.head.predict_proba(features, final=final) for features in views], axis=0)
        if not np.isfinite(probabilities).all():
            raise RunError(
                f"The head of {self.run.id} gives NaN or infinity for these features; its files were changed. "
                "Train it again"
            )
        if probabilities.shape[1] != len(self.class_names):
            raise RunError(
                f"The head of {self.run.id} gives {probabilities.shape[1]} probabilities, run.json names "
                f"{len(self.class_names)} classes; one of them was changed. Train the head again"
            )
        return probabilities if self.temperature == 1 else tempered(probabilities, self.temperature)


def open_head(reports: Path, reference: str | None) -> tuple[TrainedHead, Path]:
    """The trained head that a user means, and its run folder.

    Args:
        reports: The reports folder.
        reference: A run, as in `find_run`.

    Raises:
        RunError: If there is none, or it can't be read.
    """
    run, folder = find_run(reports, reference, (HeadRun,))
    return trained_head(run, folder), folder


def trained_head(run: HeadRun, folder: Path) -> TrainedHead:
    """The trained head of a run.

    Raises:
        RunError: If it can't be read.
    """
    temperature = (run.calibration or {}).get("temperature", 1.0)
    if run.config.head != run.head or not isinstance(temperature, float) or not 0 < temperature < math.inf:
        raise RunError(
            f"{folder}/run.json is not what tlpipe wrote: its head is {run.head!r} here and {run.config.head!r} there, "
            f"at a temperature of {temperature}"
        )
    if any(spec.precision.startswith("jax-") for spec in run.specs):
        with suppress(EngineError):  # what computes the features then will say what it needs
            runtime.keras_on("jax")
    return TrainedHead(
        run, load_head(at_hand(folder, run), run.config), tuple(run.class_names), tuple(run.specs), temperature
    )
