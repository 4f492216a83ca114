"""Fit many candidates on the same images, each kind in its own way, and rate them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads import Head, HeadConfig, Kind, kind_of, predict
from pipeline.metrics import scores
from pipeline.parts import Part
from pipeline.progress import progress
from pipeline.selection.folds import Round

__all__ = ["Candidate", "Rated", "mean_over_views", "rate"]


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

    def to_json(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        found: dict[str, Any] = {
            "head": self.candidate.config.head,
            "settings": self.candidate.config.given(),
            "test_views": self.candidate.test_views,
            "val_accuracy": self.accuracy,
            "val_log_loss": self.log_loss,
            "seconds": self.seconds,
        }
        if len(self.accuracies) > 1:
            found |= {"val_accuracy_std": float(np.std(self.accuracies, ddof=1)), "rounds": self.accuracies}
        return found


def mean_over_views(head: Head, parts: Sequence[Part]) -> NDArray[np.floating]:
    """Probabilities [n, classes], the mean over the views of each image; the parts hold the same images in order."""
    return _mean([predict(head, part) for part in parts])


def _mean(probabilities: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    mean: NDArray[np.floating] = np.mean(probabilities, axis=0, dtype=np.float64)
    return mean


def rate(
    candidates: Sequence[Candidate], rounds: Sequence[Round], n_classes: int, budget: float
) -> tuple[list[Rated], list[Candidate]]:
    """Fit and rate candidates, in their order, until the budget ends; the first group is always fitted.

    Args:
        candidates: What to try.
        rounds: What to fit on, and what to rate by.
        n_classes: Number of classes.
        budget: Seconds after which nothing new is begun.

    Returns:
        Those that were rated, the best first, and those that were not tried.
    """
    start = time.monotonic()
    rated: list[Rated] = []
    with progress("Trying", len(candidates), "heads") as advance:
        for group in _groups(candidates):
            left = budget - (time.monotonic() - start)
            if rated and left <= 0:
                break
            rated += _rate_group(group, rounds, n_classes, max(left, 0.0))
            advance(len(group))
    tried = {id(one.candidate) for one in rated}
    rated.sort(key=lambda one: (-one.accuracy, one.log_loss))
    return rated, [candidate for candidate in candidates if id(candidate) not in tried]


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that their kind fits in one go."""
    groups: dict[Any, list[Candidate]] = {}
    for candidate in candidates:
        kind = kind_of(candidate.config.head)
        fixed = {name: value for name, value in asdict(candidate.config).items() if name not in kind.varies}
        groups.setdefault((kind.form, *fixed.items()), []).append(candidate)
    return list(groups.values())


def _rate_group(group: list[Candidate], rounds: Sequence[Round], n_classes: int, seconds: float) -> list[Rated]:
    kind = kind_of(group[0].config.head)
    configs = list(dict.fromkeys(candidate.config for candidate in group))
    found = {candidate: Rated(candidate) for candidate in group}
    start = time.monotonic()
    for turn in rounds:
        left = max(0.0, seconds - (time.monotonic() - start)) / len(rounds)
        for trial in kind.fit_many(
            _seeded(configs, turn.seed), _train(kind, configs, turn), turn.vals, n_classes, left
        ):
            for candidate in group:
                if candidate.config == configs[trial.number]:
                    mean = _mean(trial.probabilities[: candidate.test_views + 1])
                    rating = scores(mean, turn.vals[0].labels)
                    found[candidate].accuracies.append(rating["accuracy"])
                    found[candidate].log_losses.append(rating["log_loss"])
    # Where the time ran out, only those that went through all rounds can be compared.
    done = [one for one in found.values() if len(one.accuracies) == len(rounds)]
    for one in done:
        one.seconds = (time.monotonic() - start) / len(done)
    return done


def _seeded(configs: Sequence[HeadConfig], offset: int) -> list[HeadConfig]:
    from dataclasses import replace

    return [replace(config, seed=config.seed + offset) for config in configs]


def _train(kind: Kind, configs: Sequence[HeadConfig], turn: Round) -> Part:
    """The training rows of the views that are used; a kind that mixes views looks for itself."""
    most = [int(turn.train.views.max(initial=0)) if config.views is None else config.views for config in configs]
    return turn.train.up_to_view(max(most))
