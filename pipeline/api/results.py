"""What the commands give in Python: the facts of the layers below, as they print in a notebook and as pandas frames."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, overload

from pipeline import commands
from pipeline.api import notebook
from pipeline.commands import Answers, Explanation, Export, ExtractResult, ImageAnswer, Report, Search
from pipeline.config import ExtractConfig, Folders
from pipeline.errors import ConfigError
from pipeline.inspection.findings import Inspection
from pipeline.inspection.page import sections
from pipeline.pages.pictures import Pictures
from pipeline.util import runtime
from pipeline.util.text import counted, percent, sides

SHOWN_PICTURES = 8
SHOWN_ROWS = 20  # of a table in a notebook; a frame has all

T = TypeVar("T")


class Result(ABC):
    """What a command gives, and another one takes in place of an id.

    Attributes:
        folders: Where it lies.
    """

    __slots__ = ()
    folders: Folders

    @property
    @abstractmethod
    def reference(self) -> str:
        """What names it on the command line."""


def frame(rows: Any, **options: Any) -> Any:
    """A pandas frame.

    Raises:
        ConfigError: If pandas isn't installed.
    """
    if not runtime.installed("pandas"):
        raise ConfigError("to_frame() needs pandas; install it with: pip install pandas")
    import pandas

    return pandas.DataFrame(rows, **options)


def with_folders(kind: Callable[..., T], found: Any, folders: Folders) -> T:
    """What a command found, as the kind of it that knows its folders and prints in a notebook."""
    values = {one.name: getattr(found, one.name) for one in fields(found)}
    return kind(**values, folders=folders)


@dataclass(frozen=True)
class Placed:
    """What knows its folders.

    Attributes:
        folders: Where it lies, and what it is of.
    """

    folders: Folders


@dataclass(frozen=True, slots=True, repr=False)
class Extracted(ExtractResult, Placed, Result):
    """What `extract` gave; further commands take it as their features."""

    @property
    def id(self) -> str:
        """The features id."""
        return self.record.id

    @property
    def reference(self) -> str:
        """As `Result.reference`."""
        return self.record.id

    def __repr__(self) -> str:
        return f"<{self.id}: {counted(self.n_computed, 'row')} computed, {self.n_reused:,} reused>"

    def _repr_html_(self) -> str:
        spec = self.record.spec
        rows = [
            ("images", f"{self.n_images:,}"),
            ("rows computed", f"{self.n_computed:,}"),
            ("rows reused", f"{self.n_reused:,}"),
            ("can't be read", f"{len(self.unreadable):,}"),
            ("backbone", f"{spec.backbone}, {spec.endpoint}, {sides(spec.image_size)} px"),
            ("computed by", f"{self.choice.engine} in {self.choice.precision}"),
            ("seconds", f"{self.seconds['total']:.1f}"),
        ]
        bad = list(self.unreadable.items())[:SHOWN_ROWS]
        parts = [notebook.heading(self.id), notebook.html_table(("", ""), rows)]
        return notebook.joined(*parts, *([notebook.html_table(("can't be read", "why"), bad)] if bad else []))


@dataclass(frozen=True, slots=True, repr=False)
class Predicted(Answers, Placed):
    """What `predict` gave: a sequence of answers, in the order in which the images were named."""

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[ImageAnswer]:
        return iter(self.images)

    @overload
    def __getitem__(self, place: int) -> ImageAnswer: ...

    @overload
    def __getitem__(self, place: slice) -> list[ImageAnswer]: ...

    def __getitem__(self, place: int | slice) -> ImageAnswer | list[ImageAnswer]:
        return self.images[place]

    def __repr__(self) -> str:
        bad = f", {len(self.unreadable):,} can't be read" if self.unreadable else ""
        return f"<{counted(len(self), 'answer')} of {self.run}{bad}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each image; label_2, probability_2 and so on are the next most probable classes."""
        rows = []
        for image in self.images:
            row: dict[str, Any] = {"path": image.path, "label": None, "probability": None}
            for number, (label, probability) in enumerate(image.top, start=1):
                suffix = f"_{number}" if number > 1 else ""
                row |= {f"label{suffix}": label, f"probability{suffix}": probability}
            rows.append(row | {"error": image.error})
        # The cause stands last, also where the first image can't be read and so names no further classes.
        found = frame(rows)
        return found[[*(name for name in found.columns if name != "error"), "error"]]

    def _repr_html_(self) -> str:
        rows = [
            (image.path, *((image.top[0][0], percent(image.top[0][1])) if image.top else (image.error, "")))
            for image in self.images[:SHOWN_ROWS]
        ]
        more = notebook.more(len(self), SHOWN_ROWS)
        table = notebook.html_table(("path", "label", "probability"), rows)
        return notebook.joined(notebook.heading(f"{counted(len(self), 'answer')} of {self.run}", *more), table)


class Explained(tuple[Explanation, ...]):
    """What `explain` gave: an explanation for each image."""

    __slots__ = ()

    def to_frame(self) -> Any:
        """A pandas frame: a row for each image."""
        return frame([one.to_json() for one in self])

    def _repr_html_(self) -> str:
        shown = [
            (f"data:image/png;base64,{base64.b64encode(one.file.read_bytes()).decode()}", f"{one.label}: {one.path}")
            for one in self[:SHOWN_PICTURES]
        ]
        title = notebook.heading(counted(len(self), "picture"), *notebook.more(len(self), SHOWN_PICTURES))
        return notebook.joined(title, notebook.pictures(shown))


@dataclass(frozen=True, slots=True, repr=False)
class Exported(Export, Placed):
    """What `export` gave."""

    def __repr__(self) -> str:
        return f"<{self.path}: {percent(self.agreement)} of {counted(self.n, 'image')} labelled as by predict>"

    def _repr_html_(self) -> str:
        rows = [
            ("run", self.run),
            ("file", self.path),
            ("labelled as by predict", f"{percent(self.agreement)} of {counted(self.n, 'image')}"),
            ("largest difference of a probability", f"{self.difference:.1e}"),
        ]
        return notebook.joined(notebook.heading(f"Exported as {self.format}"), notebook.html_table(("", ""), rows))


@dataclass(frozen=True, slots=True, repr=False)
class Inspected(Inspection, Placed):
    """What `inspect` found."""

    def __repr__(self) -> str:
        return f"<{self.data}: {counted(len(self.dataset), 'image')}, {self.page}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each class, with its images by split."""
        return frame(list(self.counts().values()), index=list(self.counts()))

    def _repr_html_(self) -> str:
        splits = list(self.dataset.counts())
        rows = [(name, *(counts[split] for split in splits)) for name, counts in self.counts().items()]
        parts = [notebook.heading(self.data, f"All of it: {self.page}"), notebook.html_table(("class", *splits), rows)]
        if bad := list(self.unreadable().items())[:SHOWN_ROWS]:
            parts.append(notebook.html_table(("can't be read", "why"), bad))
        limit = self.by_features.record.config.pixel_limit if self.by_features else ExtractConfig.pixel_limit
        pictures = Pictures(self.opened.source, self.dataset.keys, limit)
        for section in sections(self):
            if section.figures:
                some = section.figures[:SHOWN_PICTURES]
                shown = [(pictures.thumbnail(one.row, notebook.SIDE), one.text) for one in some]
                found = [(picture, text) for picture, text in shown if picture]
                parts += [notebook.heading(section.title, section.text), notebook.pictures(found)]
        return notebook.joined(*parts)


@dataclass(frozen=True, slots=True, repr=False)
class Labelled(commands.Labelled, Placed):
    """What there is after `label`."""

    def __repr__(self) -> str:
        return f"<{self.labels}: {counted(self.n_labels, 'picture')} with a label>"


@dataclass(frozen=True, slots=True, repr=False)
class Searched(Search, Placed):
    """What `search` found."""

    def __repr__(self) -> str:
        return f"<{counted(len(self.nearest), 'image')} like {self.image}, of {self.data}>"

    def to_frame(self) -> Any:
        """A pandas frame: a row for each picture that was found, the most similar first."""
        return frame([asdict(one) for one in self.nearest])

    def _repr_html_(self) -> str:
        rows = [(one.path, one.label, one.split, f"{one.similarity:.3f}") for one in self.nearest]
        more = [f"All of it: {self.page}"] if self.page else []
        table = notebook.html_table(("path", "label", "split", "similarity"), rows)
        return notebook.joined(notebook.heading(f"Pictures like {self.image}", *more), table)


@dataclass(frozen=True, slots=True, repr=False)
class Reported(Report, Placed):
    """What `report` wrote."""

    def __repr__(self) -> str:
        return f"<{self.index}: {counted(len(self.pages), 'page')}>"

    def _repr_html_(self) -> str:
        rows = list(self.pages.items())[:SHOWN_ROWS]
        return notebook.joined(notebook.heading(str(self.index)), notebook.html_table(("run", "page"), rows))
