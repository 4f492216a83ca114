"""Fit many candidates on the same images, each kind in its own way, and rate them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.errors import ConfigError, RunError, TlpipeError
from pipeline.evaluation.metrics import scores
from pipeline.heads import Head, kind_of, make_head, predict
from pipeline.heads.many import one_each
from pipeline.runs.run import CandidateFields
from pipeline.selection.folds import Round
from pipeline.store.rows import Part, joined
from pipeline.util.progress import progress


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head with its settings, and how it is asked.

    Attributes:
        config: With the defaults of its kind.
        test_views: Views over which probabilities are averaged, beside the image itself.
    """

    config: HeadConfig
    test_views: int


@dataclass(slots=True)
class Rated:
    """A candidate and how it did.

    Attributes:
        candidate: What was fitted.
        accuracies: On the validation images of each round.
        log_losses: The same.
        seconds: Its share of the time its group took.
    """

    candidate: Candidate
    accuracies: list[float] = field(default_factory=list)
    log_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Mean over the rounds."""
        return float(np.mean(self.accuracies))

    @property
    def log_loss(self) -> float:
        """Mean over the rounds."""
        return float(np.mean(self.log_losses))

    def to_json(self) -> CandidateFields:
        """As a dictionary that JSON can hold."""
        found: CandidateFields = {
            "head": self.candidate.config.head,
            "settings": self.candidate.config.given(),
            "test_views": self.candidate.test_views,
            "val_accuracy": self.accuracy,
            "val_log_loss": self.log_loss,
            "seconds": self.seconds,
        }
        if len(self.accuracies) > 1:
            found["val_accuracy_std"] = float(np.std(self.accuracies, ddof=1))
            found["rounds"] = self.accuracies
        return found


def mean_over_views(head: Head, parts: Sequence[Part]) -> NDArray[np.floating]:
    """Probabilities [n, classes], the mean over the views of each image; the parts hold the same images in order."""
    return _mean([predict(head, part) for part in parts])


def _mean(probabilities: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    mean: NDArray[np.floating] = np.mean(probabilities, axis=0, dtype=np.float64)
    return mean


def repeat(config: HeadConfig, rounds: Sequence[Round], n_classes: int, test_views: int) -> dict[str, Any]:
    """Accuracy of one head over folds and seeds, each time trained as `train-head` does it.

    What the head chooses (an epoch, a penalty) it chooses by a part of the training images of the round, so that the
    images it is rated by decide nothing.
    """
    rated = Rated(Candidate(config, test_views))
    with progress("Repeating", len(rounds), "fits") as advance:
        for found in one_each(_fit_round, ((config, turn, n_classes, test_views) for turn in rounds)):
            rated.accuracies.append(found["accuracy"])
            rated.log_losses.append(found["log_loss"])
            advance(1)
    deviation = float(np.std(rated.accuracies, ddof=1)) if len(rated.accuracies) > 1 else 0.0
    return {
        "accuracy": rated.accuracy,
        "accuracy_std": deviation,
        "log_loss": rated.log_loss,
        "rounds": rated.accuracies,
    }


def _fit_round(config: HeadConfig, turn: Round, n_classes: int, test_views: int) -> dict[str, Any]:
    """Train a head for one round, as `train-head` does it, and rate it."""
    head, _ = make_head(replace(config, seed=config.seed + turn.seed))
    inner = turn.inner()
    train, chosen_by = inner.train(config.views), inner.vals()[0]
    head.fit(train, chosen_by, n_classes)
    if head.refits:
        head.refit(joined(train, chosen_by))
    vals = turn.vals()
    return scores(mean_over_views(head, vals[: test_views + 1]), vals[0].labels)


@dataclass(frozen=True, slots=True)
class Ratings:
    """What became of candidates.

    Attributes:
        rated: The best first.
        failed: Those that could not be fitted, and why.
        untried: Those that the budget left out.
    """

    rated: list[Rated]
    failed: dict[Candidate, str]
    untried: list[Candidate]


def rate(candidates: Sequence[Candidate], rounds: Sequence[Round], n_classes: int, budget: float) -> Ratings:
    """Fit and rate candidates, in their order, until the budget ends; something is always fitted.

    Args:
        candidates: What to try.
        rounds: What to fit on, and what to rate by.
        n_classes: Number of classes.
        budget: Seconds after which nothing new is begun.

    Raises:
        TlpipeError: The first cause, if no candidate could be fitted.
    """
    start = time.monotonic()
    rated: list[Rated] = []
    failed: dict[Candidate, str] = {}
    first: TlpipeError | None = None
    with progress("Trying", len(candidates), "heads") as advance:
        for group in _groups(candidates):
            left = budget - (time.monotonic() - start)
            if rated and left <= 0:
                break
            try:
                rated += _rate_group(group, rounds, n_classes, max(left, 0.0), failed)
            except (ConfigError, RunError) as error:
                failed.update(dict.fromkeys(group, str(error)))
                first = first or error
            advance(len(group))
    if not rated:
        raise first or RunError(next(iter(failed.values())))
    rated.sort(key=lambda one: (-one.accuracy, one.log_loss))
    tried = {one.candidate for one in rated}
    return Ratings(rated, failed, [one for one in candidates if one not in tried and one not in failed])


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that their kind fits in one go."""
    groups: dict[Any, list[Candidate]] = {}
    for candidate in candidates:
        kind = kind_of(candidate.config.head)
        fixed = {name: value for name, value in asdict(candidate.config).items() if name not in kind.varies}
        groups.setdefault((kind.form, *fixed.items()), []).append(candidate)
    return list(groups.values())


def _rate_group(
    group: list[Candidate], rounds: Sequence[Round], n_classes: int, seconds: float, failed: dict[Candidate, str]
) -> list[Rated]:
    kind = kind_of(group[0].config.head)
    configs = list(dict.fromkeys(candidate.config for candidate in group))
    # A kind that mixes views looks itself which head uses which.
    views = None if any(config.views is None for config in configs) else max(config.views or 0 for config in configs)
    found = {candidate: Rated(candidate) for candidate in group}
    start = time.monotonic()
    for turn in rounds:
        left = max(0.0, seconds - (time.monotonic() - start)) / len(rounds)
        seeded = [replace(config, seed=config.seed + turn.seed) for config in configs]
        vals = turn.vals()
        for trial in kind.fit_many(seeded, turn.train(views), vals, n_classes, left):
            for candidate in [candidate for candidate in group if candidate.config == configs[trial.number]]:
                if trial.failure:
                    failed[candidate] = trial.failure
                    continue
                rating = scores(_mean(trial.probabilities[: candidate.test_views + 1]), vals[0].labels)
                found[candidate].accuracies.append(rating["accuracy"])
                found[candidate].log_losses.append(rating["log_loss"])
    # Where the time ran out, only those that went through all rounds can be compared.
    done = [one for one in found.values() if len(one.accuracies) == len(rounds)]
    for one in done:
        one.seconds = (time.monotonic() - start) / len(done)
    return done
