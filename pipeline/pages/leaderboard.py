"""The leaderboard: runs on the same data side by side, ordered by val, with what sets them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunError
from pipeline.evaluation.compare import Difference, paired_difference
from pipeline.runs.predictions import Predictions, both_right, read_predictions
from pipeline.runs.run import FinetuneRun, HeadRun, RatedRun, Run
from pipeline.util import log
from pipeline.util.text import sides


@dataclass(frozen=True, slots=True)
class Line:
    """A run on the leaderboard.

    Attributes:
        run: The run.
        page: Address of its page; None where it has none.
        options: Its options that are not the defaults.
        difference: Of its accuracy on test from that of the first of its group, on the same images; None for the first,
            and where there are no such images.
    """

    run: RatedRun
    page: str | None
    options: str
    difference: Difference | None

    @property
    def backbone(self) -> str:
        """What its features come from."""
        named = [f"{spec.backbone} {spec.endpoint} {sides(spec.image_size)}" for spec in self.run.specs]
        return ", ".join(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that can be compared: they were trained and rated on the same images, split alike.

    Attributes:
        data: Where the images lay.
        dataset: Id of the dataset, of which the splits are a part.
        lines: That of the highest accuracy on val first; without val the newest, as test is not to choose by.
    """

    data: str
    dataset: str
    lines: list[Line]

    @property
    def images(self) -> str:
        """How many images of each split there are, and the start of the dataset's id, which sets splits apart."""
        run = self.lines[0].run
        counts = (("train", run.n_train), ("val", run.n_val), ("test", run.n_test))
        return ", ".join([f"{n:,} {split}" for split, n in counts if n] + [f"dataset {self.dataset[:8]}"])


def groups(reports: Path, runs: Sequence[Run], page: str) -> list[Group]:
    """Trained runs by the images they were trained and rated on; the group of the newest run first.

    Args:
        reports: The reports folder.
        runs: All runs, the oldest first.
        page: Name of a run's page.
    """
    by_dataset: dict[str, list[RatedRun]] = {}
    for run in reversed(runs):
        if isinstance(run, (HeadRun, FinetuneRun)):
            by_dataset.setdefault(run.dataset, []).append(run)
    found = []
    for dataset, members in by_dataset.items():
        members.sort(key=lambda run: -run.metrics.get("val", {}).get("accuracy", -1.0))
        first = _test_of(reports, members[0])
        lines = [
            Line(run, address(reports, run, page), run.options(), _difference(first, reports, run) if place else None)
            for place, run in enumerate(members)
        ]
        found.append(Group(members[0].data, dataset, lines))
    return found


def address(reports: Path, run: Run, page: str) -> str | None:
    """The address of a run's page, as seen from the leaderboard."""
    return f"{run.id}/{page}" if (reports / run.id / page).is_file() else None


def _test_of(reports: Path, run: RatedRun) -> Predictions | None:
    """A run's predictions of its test images, else of its validation images; None if they can't be read."""
    try:
        found = read_predictions(reports / run.id, len(run.class_names), run.files)
    except RunError as error:
        log.warning("%s", error)
        return None
    return found.get("test") or found.get("val")


def _difference(first: Predictions | None, reports: Path, run: RatedRun) -> Difference | None:
    """The difference of a run from the first of its group, on the images that both were rated on."""
    own = _test_of(reports, run)
    if first is None or own is None or own.split != first.split:
        return None
    right, right_first = both_right(own, first)
    return paired_difference(right, right_first) if len(right) else None
