"""Runs as results: what training, sweeps, fine-tuning, evaluations and learning curves give, and all of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from markupsafe import Markup

from pipeline.api import notebook
from pipeline.api.results import SHOWN_PICTURES, SHOWN_ROWS, Result, frame
from pipeline.config import Folders
from pipeline.data import open_labelled
from pipeline.errors import DataError, RunError
from pipeline.pages import charts
from pipeline.pages.gallery import choose
from pipeline.pages.pictures import Pictures
from pipeline.pages.run_page import RunData, figures
from pipeline.runs.folder import read_run
from pipeline.runs.predictions import Predictions, read_history, read_predictions
from pipeline.runs.run import CurveRun, EvaluateRun, FinetuneRun, RatedRun, Run, SweepRun
from pipeline.runs.summary import AGAINST, CANDIDATES, SCORES, against_rows, candidate_rows, score_rows
from pipeline.util import log
from pipeline.util.memo import Memo
from pipeline.util.text import counted, percent

AnyRun = TypeVar("AnyRun", bound=Run, covariant=True)
AnyRated = TypeVar("AnyRated", bound=RatedRun, covariant=True)


@dataclass(frozen=True, slots=True, repr=False)
class _OfRun(Result, Generic[AnyRun]):
    """A run and where it lies.

    Attributes:
        run: What its run.json holds.
        folders: The folders it was made in.
    """

    run: AnyRun
    folders: Folders

    @property
    def id(self) -> str:
        """The run's id."""
        return self.run.id

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.folders.reports / self.run.id

    @property
    def reference(self) -> str:
        """The absolute path of the run's folder."""
        return str(self.folder.resolve())


@dataclass(frozen=True, slots=True, repr=False)
class RunResult(_OfRun[AnyRated]):
    """A run of `train_head`, `sweep`, `finetune` or `evaluate`; further commands take it as their run."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of each split that has images: accuracy, its 95 % interval, and others."""
        return self.run.metrics

    def __repr__(self) -> str:
        found = [f"{split} {percent(one['accuracy'])}" for split, one in self.metrics.items() if one["n"]]
        return f"<{self.id}: {', '.join(found) or 'not rated'}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each split, with its metrics and what its images were used for before."""
        used = self.run.used()
        rows = []
        for split, found in self.metrics.items():
            low, high = found.get("accuracy_95") or (None, None)
            numbers = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
            row = {"split": split, "images": found["n"], "used_to": used.get(split, "")}
            rows.append(row | {"low": low, "high": high} | {name: found.get(name) for name in numbers})
        return frame(rows).set_index("split")

    def _repr_html_(self) -> str:
        run = self.run
        parts = [notebook.heading(run.id, *run.notes), notebook.html_table(SCORES, score_rows(run))]
        if isinstance(run, SweepRun):
            parts.append(notebook.html_table(CANDIDATES, candidate_rows(run, SHOWN_ROWS)))
        if run.against is not None:
            parts.append(notebook.heading("", f"Against {run.against.run}, image by image, in points:"))
            parts.append(notebook.html_table(AGAINST, against_rows(run.against)))
        try:
            data = self._data()
        except RunError as error:  # the figures above stand all the same
            return notebook.joined(*parts, notebook.heading("", str(error)))
        parts += [notebook.chart(spec) for spec in figures(data).values()]
        return notebook.joined(*parts, *self._pictures(data))

    def _data(self) -> RunData:
        run = self.run
        frozen = None
        if isinstance(run, FinetuneRun) and (self.folders.reports / run.head_run).is_dir():
            before = read_run(self.folders.reports / run.head_run)
            if isinstance(before, RatedRun):
                frozen = (before, read_history(self.folders.reports / before.id, before.files))
        predictions = read_predictions(self.folder, len(run.class_names), run.files)
        return RunData(run, read_history(self.folder, run.files), predictions, frozen)

    def _pictures(self, data: RunData) -> list[Markup]:
        """The surest mistakes, then the least certain answers; none where the pictures are gone."""
        run = self.run
        predictions = data.predictions.get(run.shown_split or "")
        if predictions is None:
            return []
        config = run.extracts[0]
        try:
            opened = open_labelled(run.data, columns=config.columns_of(run.data), memo=Memo(self.folders.cache))
        except DataError as error:
            log.info("There are no pictures: %s", error)
            return []
        pictures = Pictures(opened.source, opened.dataset.keys, config.pixel_limit)
        return [notebook.pictures(_captioned(predictions, pictures, run.class_names))]


def _captioned(predictions: Predictions, pictures: Pictures, class_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    left = SHOWN_PICTURES
    shown = choose(predictions)
    for one in [*(one for one in shown if one.wrong), *reversed([one for one in shown if not one.wrong])]:
        row = pictures.rows.get(bytes(predictions.keys[one.row]))
        picture = None if row is None else pictures.thumbnail(row, notebook.SIDE)
        if picture is not None and left:
            left -= 1
            text = f"{class_names[one.predicted]} {percent(one.probability)}"
            yield picture, text if one.label == one.predicted else f"{class_names[one.label]}, taken for {text}"


@dataclass(frozen=True, slots=True, repr=False)
class CurveResult(_OfRun[CurveRun]):
    """A run of `learning_curve`."""

    def __repr__(self) -> str:
        points = [f"{counted(point['n_train'], 'image')} {percent(point['accuracy'])}" for point in self.run.points]
        return f"<{self.id}: {', '.join(points)}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each number of images."""
        points = self.run.points
        return frame([{name: value for name, value in one.items() if name != "accuracies"} for one in points])

    def _repr_html_(self) -> str:
        run = self.run
        rows = [(point["per_class"], point["n_train"], percent(point["accuracy"])) for point in run.points]
        return notebook.joined(
            notebook.heading(run.id, f"{run.head}, accuracy on {run.split}", *run.notes),
            notebook.html_table(("per class", "images", "accuracy"), rows),
            notebook.chart(charts.learning(run.points, run.split)),
        )


@dataclass(frozen=True, slots=True, repr=False)
class Runs:
    """The leaderboard: the runs of a reports folder, the newest first.

    Attributes:
        results: The runs.
    """

    results: tuple[RunResult[RatedRun] | CurveResult, ...]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[RunResult[RatedRun] | CurveResult]:
        return iter(self.results)

    def __getitem__(self, place: int) -> RunResult[RatedRun] | CurveResult:
        return self.results[place]

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'run')}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each run."""
        return frame(self._rows(), columns=None if len(self) else ["run"]).set_index("run")

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for run in (one.run for one in self.results):
            known = {"run": run.id, "name": run.name, "stage": run.stage, "head": run.head, "data": run.data}
            known["features"] = run.features
            if isinstance(run, EvaluateRun):
                known["of"] = run.of
            metrics = run.metrics if isinstance(run, RatedRun) else {}
            accuracies = {split: metrics.get(split, {}).get("accuracy") for split in ("val", "test")}
            rows.append(known | accuracies | {"seconds": run.seconds["total"]})
        return rows

    def _repr_html_(self) -> str:
        columns = ("run", "head", "data", "val", "test")
        rows = [
            [percent(row[name]) if isinstance(row[name], float) else row[name] or "" for name in columns]
            for row in self._rows()[:SHOWN_ROWS]
        ]
        more = notebook.more(len(self), SHOWN_ROWS)
        return notebook.joined(notebook.heading(counted(len(self), "run"), *more), notebook.html_table(columns, rows))
