"""Runs: one training or evaluation with all that is needed to repeat it.

run.json is a header that all runs have, and a payload whose type the stage decides:

Run
├── CurveRun                 learning-curve
└── RatedRun                 predictions and metrics of splits
    ├── HeadRun              train-head
    │   └── SweepRun         sweep
    ├── FinetuneRun          finetune
    └── EvaluateRun          evaluate
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypedDict

from pipeline.backbones.catalogue import Block
from pipeline.config import BACKBONE, ExtractConfig, FeatureSpec, FinetuneConfig, HeadConfig
from pipeline.evaluation.compare import Difference
from pipeline.heads import kind_of, make_head
from pipeline.util.options import words_of


class Point(TypedDict):
    """A point of a learning curve: images of each class and in all (the mean over the draws), and what they gave."""

    per_class: int
    n_train: int
    accuracy: float
    std: float | None
    accuracies: list[float]


class _RoundFields(TypedDict, total=False):
    val_accuracy_std: float
    rounds: list[float]


class CandidateFields(_RoundFields):
    """A candidate of a sweep, as `Rated.to_json` gives it."""

    head: str
    settings: dict[str, Any]
    test_views: int
    val_accuracy: float
    val_log_loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What another run was found to be on the same images.

    Attributes:
        run: Its id.
        splits: The paired difference on each split.
        used: What it had used the images of each split for.
    """

    run: str
    splits: dict[str, Difference]
    used: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Run:
    """What run.json holds of every run.

    Attributes:
        id: Name of the folder.
        stage: The command that made it.
        created: Date and time, ISO 8601 in UTC.
        command: The command line.
        data: What the user gave as DATA.
        dataset: Id of the dataset.
        seed: Seed for all random choices.
        seconds: How long each part took; `total` is always there.
        name: The name that the user gave the run; None if it has none.
        versions: Versions of Python and the libraries.
        notes: What a user should know, in sentences; no program reads them.
        files: Digests of the files beside run.json, against which they are checked when they are read.
    """

    id: str
    stage: str
    created: str
    command: str
    data: str
    dataset: str
    seed: int
    seconds: dict[str, float]
    name: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it: header and payload side by side."""
        value = asdict(self)
        return {"run": value.pop("id"), **value}


@dataclass(slots=True, kw_only=True)
class RatedRun(Run):
    """A run that rated a classifier on images.

    Attributes:
        head: The head's name.
        features: Id of the features; several are joined by commas.
        class_names: Names of the classes, sorted.
        specs: What defines each set of features.
        extracts: The options of extract that gave each set of features; with them, new images get the same features.
        n_train: Number of training images.
        n_val: Number of validation images.
        n_test: Number of test images.
        metrics: Metrics of each split that has images.
        trainable_parameters: Number of parameters that were fitted.
        fitted_on: Splits on whose images the classifier that is kept was fitted.
        chosen_on: Splits by whose images something was chosen: the epoch, the penalty, the winner of a sweep. Their
            figures are a little too good.
        carved: Splits that the source doesn't have, so that tlpipe took their images from others.
        n_fitted: Of each split, the number of images that the classifier had been fitted on before it was rated by
            them, such as twins of training images.
        n_chosen: Of each split, the number of images by which something of the classifier had been chosen before.
        against: Another run that it was compared with on the same images: that of --against, or the one before labels
            were corrected; None if there is none.
    """

    head: str
    features: str
    class_names: list[str]
    specs: list[FeatureSpec]
    extracts: list[ExtractConfig]
    n_train: int
    n_val: int
    n_test: int
    metrics: dict[str, Any]
    trainable_parameters: int
    fitted_on: list[str]
    chosen_on: list[str]
    carved: list[str]
    n_fitted: dict[str, int] = field(default_factory=dict)
    n_chosen: dict[str, int] = field(default_factory=dict)
    against: Against | None = None

    def options(self) -> str:
        """The options of extract and of the run that are not the defaults, as on the command line.

        The backbone is left out, as it is shown beside them.
        """
        extracted = [shlex.join(replace(one, backbone=BACKBONE).options()) for one in self.extracts]
        return " ".join(word for word in (*dict.fromkeys(extracted), *self.own_options()) if word)

    def own_options(self) -> list[str]:
        """Those of the run alone."""
        return []

    def used(self) -> dict[str, str]:
        """What the images of each split were used for before they rated the classifier, which flatters its figures.

        Where it wasn't all of them, their number is given.
        """
        return uses_of(self.n_fitted, self.n_chosen, {split: found["n"] for split, found in self.metrics.items()})

    def caveat(self, split: str) -> str:
        """What `used` says of a split, where that is more than that something was chosen by val, as by every run."""
        said = self.used().get(split, "")
        return "" if (split, said) == ("val", "choose") else said

    def shown(self) -> list[tuple[str, dict[str, Any]]]:
        """The metrics that are shown side by side, each with a name."""
        return [(self.head, self.metrics)]

    @property
    def shown_split(self) -> str | None:
        """The split whose figures stand for the run: test, else val, else train; None if it was rated on no images."""
        return next((split for split in ("test", "val", "train") if self.metrics.get(split, {}).get("n")), None)


@dataclass(slots=True, kw_only=True)
class HeadRun(RatedRun):
    """A run of train-head.

    Attributes:
        config: The head's settings, with defaults filled in.
        chosen: Options whose values were found while fitting.
        test_views: Number of views whose probabilities are averaged with those of the image itself.
        memory: Bytes of features that were held in memory at most; None for half of the machine's memory.
        calibration: Temperature, and calibration errors before and after; None without --calibrate.
        repeats: Mean and standard deviation over folds and seeds; None if neither --cv nor --seeds was given.
    """

    config: HeadConfig
    chosen: dict[str, Any] = field(default_factory=dict)
    test_views: int = 0
    memory: int | None = None
    calibration: dict[str, Any] | None = None
    repeats: dict[str, Any] | None = None

    def own_options(self) -> list[str]:
        """As `RatedRun.own_options`."""
        words = [self.config.command(make_head(HeadConfig(self.head))[1]).removeprefix(f"--head {self.head}").strip()]
        words += [f"--test-views {self.test_views}"] if self.test_views else []
        words += ["--calibrate"] if self.calibration else []
        return words


@dataclass(slots=True, kw_only=True)
class SweepRun(HeadRun):
    """A run of sweep, which trained its winner.

    Attributes:
        grid: Which settings were tried, "small" or "full".
        heads: Heads that were tried, as the user named them.
        candidates: What was tried, the best first, each with its settings and its scores.
    """

    grid: str
    heads: list[str]
    candidates: list[CandidateFields]

    def settings_that_differ(self) -> list[str]:
        """The settings in which each candidate differs from others of its kind."""
        kinds = [kind_of(one["head"]).name for one in self.candidates]
        settings = [{**one["settings"], "test_views": one["test_views"]} for one in self.candidates]
        found = []
        for kind, own in zip(kinds, settings, strict=True):
            alike = [other for other, name in zip(settings, kinds, strict=True) if name == kind]
            varied = {name: value for name, value in own.items() if len({other.get(name) for other in alike}) > 1}
            texts = [
                f"{name} {value:g}" if type(value) is float else f"{name} {value}" for name, value in varied.items()
            ]
            found.append(", ".join(texts))
        return found


@dataclass(slots=True, kw_only=True)
class FinetuneRun(RatedRun):
    """A run of finetune.

    Attributes:
        config: Settings of the fine-tuning, with the blocks named.
        head_run: The run of the head it started from.
        cut: Highest layer of the frozen part.
        endpoint: Block or layer from which the head took the features.
        top: Name of the highest layer of the backbone.
        end_to_end: Whether the trained part began at the images.
        baseline: Metrics before fine-tuning.
        peak_memory: Largest resident memory of the process, in bytes.
        memory: Bytes of activations that were held in memory at most; None for half of the machine's memory.
        blocks: The blocks of a preset's network, by which its layers are told apart; empty if the table of backbones
            knows them.
    """

    config: FinetuneConfig
    head_run: str
    cut: str
    endpoint: str
    top: str
    end_to_end: bool
    baseline: dict[str, Any]
    peak_memory: int
    memory: int | None = None
    blocks: tuple[Block, ...] = ()

    def shown(self) -> list[tuple[str, dict[str, Any]]]:
        """As `RatedRun.shown`, with those of before."""
        return [("before", self.baseline), ("fine-tuned", self.metrics)]

    def own_options(self) -> list[str]:
        """As `RatedRun.own_options`."""
        return words_of(asdict(self.config), asdict(FinetuneConfig()))


@dataclass(slots=True, kw_only=True)
class EvaluateRun(RatedRun):
    """A run of evaluate.

    Attributes:
        of: The run that was rated.
        precision: Precision that the user asked for; None for that in which the run was rated before.
    """

    of: str
    precision: str | None


@dataclass(slots=True, kw_only=True)
class CurveRun(Run):
    """A run of learning-curve.

    Attributes:
        head: The head's name.
        features: Id of the features; several are joined by commas.
        config: The head's settings, with defaults filled in.
        split: Split on which accuracies were measured.
        points: Points of the curve, those with the fewest images first.
        gain_of_doubling: What twice as many images would add to the accuracy; None if no power law fits.
    """

    head: str
    features: str
    config: HeadConfig
    split: str
    points: list[Point]
    gain_of_doubling: float | None


TYPES: dict[str, type[Run]] = {
    "train-head": HeadRun,
    "sweep": SweepRun,
    "finetune": FinetuneRun,
    "evaluate": EvaluateRun,
    "learning-curve": CurveRun,
}


def uses_of(n_fitted: Mapping[str, int], n_chosen: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, str]:
    """What the images of each split were used for, in words; with their number where it wasn't all of them."""
    found: dict[str, list[str]] = {}
    for what, counts in (("fit", n_fitted), ("choose", n_chosen)):
        for split, n in counts.items():
            if n:
                found.setdefault(split, []).append(what if n == sizes.get(split) else f"{what} {n:,}")
    return {split: ", ".join(words) for split, words in found.items()}
