"""A labelling session: what is known of each picture, what is shown next, and what was answered."""

from __future__ import annotations

import getpass
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import UNLABELLED, Dataset
from pipeline.data.corrections import DROP
from pipeline.errors import ConfigError
from pipeline.labelling import tabs
from pipeline.labelling.journal import Answer, Journal
from pipeline.labelling.learner import Labels, Learner
from pipeline.labelling.model import Fit, Rating, labels_for_a_point
from pipeline.labelling.tabs import Found, Known, Picked
from pipeline.pages.pictures import Pictures

AT_ONCE = 5  # answers after which the head is fitted again
PATIENCE = 1.0  # seconds that the first page waits for a choice, before it shows any pictures
MOST_CLASSES = 1000
MOST_NAME = 200  # characters
DOUBTS = ("wrong", "errors")  # tabs on which a label that was looked at doesn't come again


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture as the page shows it.

    Attributes:
        key: Image key.
        path: Where it lies.
        label: Its class so far, or "drop"; "" if it has none.
        predicted: The class that the head sees; "" where it isn't told, so that it leads nobody.
        probability: Of that class.
        why: Why it is shown, in a few words.
    """

    key: str
    path: str
    label: str
    predicted: str = ""
    probability: float | None = None
    why: str = ""


@dataclass(slots=True)
class _Undo:
    """What an answer to several pictures at once has changed: keys, and what was said of them before."""

    before: list[tuple[str, str]] = field(default_factory=list)


class Session:
    """One labelling, which several windows may share; a thread of its own fits heads.

    Args:
        dataset: The pictures, with the labels that the data gives them.
        features: Shape [n, d]; they are brought to length 1 in place, as there may be much of them.
        pictures: To look at.
        journal: Where answers go.
        classes: Names that the user gave.
        seed: Of what is drawn at random.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: NDArray[np.float32],
        pictures: Pictures,
        journal: Journal,
        classes: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        from sklearn.preprocessing import normalize

        self.dataset, self.pictures, self.journal = dataset, pictures, journal
        self.features: NDArray[np.float32] = normalize(features, copy=False)
        self._row_of = {key.decode(): row for row, key in enumerate(dataset.keys.tolist())}
        self.classes = list(dict.fromkeys([*dataset.class_names, *journal.classes, *classes]))
        for name in (*dataset.class_names, *classes):
            _check_name(name)
            if name not in (*dataset.class_names, *journal.classes):
                journal.name_class(name)  # so that its key is the same the next time
        self._labels = dataset.labels.copy()
        self._dropped = np.zeros(len(dataset), np.bool_)
        self._checked = np.zeros(len(dataset), np.bool_)  # by an answer on a tab of doubts
        self._who = _user()
        self._lock = threading.RLock()
        self._undo: list[_Undo] = []
        self.learner = Learner(self.features, dataset.keys, seed, self._keep)
        self._learnt_at = 0  # so many answers
        self._found: dict[str, tuple[Fit | None, Found]] = {}
        for answer in journal.latest().values():
            if answer.label not in ("", DROP) and answer.label not in self.classes:
                self.classes.append(answer.label)
            if answer.key in self._row_of:
                self._set(answer.key, answer.label, answer.shown.get("tab"))
        self.learner.learn(self._labels_now)

    # Answers

    def name_class(self, name: str) -> None:
        """Add a class.

        Raises:
            ConfigError: If its name can't be one, or there are too many.
            StoreError: If it can't be written.
        """
        name = _check_name(name.strip())
        with self._lock:
            if name in self.classes:
                return
            if len(self.classes) >= MOST_CLASSES:
                raise ConfigError(f"There are {MOST_CLASSES:,} classes already")
            self.journal.name_class(name)
            self.classes.append(name)

    def answer(self, answers: Sequence[tuple[str, str]], shown: dict[str, str | float | bool]) -> None:
        """Say which class pictures are of; all of it is on disk when this returns.

        Args:
            answers: Image key and class of each, or "drop", or "" for none.
            shown: How they were shown.

        Raises:
            ConfigError: If there is no such picture or class.
            StoreError: If it can't be written; nothing of it counts then.
        """
        with self._lock:
            for key, label in answers:
                self._check(key, label)
            done = _Undo([(key, self._label(self._row_of[key])) for key, _ in answers])
            self.journal.append([self._entry(key, label, shown) for key, label in answers])
            for key, label in answers:
                self._set(key, label, shown.get("tab"))
            self._undo.append(done)
        self._learn_if_due()

    def undo(self) -> list[str]:
        """Take the last answer back, and tell of which pictures; none if there is nothing to take back.

        Raises:
            StoreError: If it can't be written.
        """
        with self._lock:
            if not self._undo:
                return []
            before = self._undo[-1].before
            entries = [replace(self._entry(key, label, {}), undoes=True) for key, label in before]
            self.journal.append(entries)
            self._undo.pop()
            for key, label in before:
                self._set(key, label)
        self._learn_if_due()
        return [key for key, _ in before]

    def _entry(self, key: str, label: str, shown: dict[str, str | float | bool]) -> Answer:
        row = self._row_of[key]
        facts: dict[str, str | float | bool] = {**shown, "drawn": bool(self.learner.drawn[row])}
        return Answer(key, self.dataset.locations[row], label, who=self._who, shown=facts)

    def _check(self, key: str, label: str) -> None:
        self._row(key)
        if label not in ("", DROP) and label not in self.classes:
            raise ConfigError(f"There is no class {label[:MOST_NAME]!r}; name it first")

    def _label(self, row: int) -> str:
        if self._dropped[row]:
            return DROP
        number = int(self._labels[row])
        return "" if number == UNLABELLED else self.classes[number]

    def _set(self, key: str, label: str, tab: str | float | bool | None = None) -> None:
        row = self._row_of[key]
        self._checked[row] = tab in DOUBTS
        self._dropped[row] = label == DROP
        if label == DROP:
            self._labels[row] = UNLABELLED
        else:
            self._labels[row] = self.classes.index(label) if label else UNLABELLED

    def _learn_if_due(self) -> None:
        with self._lock:
            if self.learner.fit is None or len(self.journal.answers) - self._learnt_at >= AT_ONCE:
                self.learner.learn(self._labels_now)

    def _keep(self, rating: Rating) -> None:
        with self._lock:
            ratings = self.journal.ratings
            if not ratings or ratings[-1].n_labels != rating.n_labels:
                self.journal.rate(rating)

    def _labels_now(self) -> Labels:
        with self._lock:
            self._learnt_at = len(self.journal.answers)
            return Labels(self._labels.copy(), self._dropped.copy(), len(self.classes))

    def settle(self) -> None:
        """Wait until the head is fitted on all answers."""
        self.learner.settle()

    def close(self) -> None:
        """End the thread, and close the journal."""
        self.learner.close()
        self.journal.close()

    # What is shown

    def state(self) -> dict[str, Any]:
        """What the page tells of the labelling as a whole."""
        with self._lock:
            numbers = np.bincount(self._labels + 1, minlength=len(self.classes) + 1).tolist()
            fitted, history = self.learner.fit, self.journal.ratings
            rating = fitted.rating if fitted else None
            return {
                "name": self.dataset.name,
                "n": len(self.dataset),
                "labelled": sum(numbers[1:]),
                "dropped": int(self._dropped.sum()),
                "answers": len(self.journal.answers),
                "classes": [{"name": name, "n": n} for name, n in zip(self.classes, numbers[1:], strict=True)],
                "rating": rating and asdict(rating),
                "history": [asdict(one) for one in history],
                "gain": labels_for_a_point(history),
                "fitting": self.learner.busy,
                "can_undo": bool(self._undo),
            }

    def show(self, tab: str, n: int, *, name: str = "", key: str = "", skip: Collection[str] = ()) -> list[Shown]:
        """The next pictures of a tab.

        Args:
            tab: "label", "confirm", "wrong", "errors", "duplicates", "outliers", "class" or "like".
            n: How many at most.
            name: A class, for "confirm" and "class".
            key: A picture, for "like".
            skip: Keys of pictures that the page holds already.

        Raises:
            ConfigError: If there is no such tab, class or picture.
        """
        if tab == "label":
            self.learner.has_chosen.wait(PATIENCE)
        known = self._known()
        found: dict[str, Callable[[], Found]] = {
            "label": lambda: tabs.to_label(known, self.learner.queue),
            "confirm": lambda: tabs.to_confirm(known, self._number(name)),
            "class": lambda: tabs.of_class(known, self._number(name)),
            "like": lambda: tabs.like(known, self._row(key)),
            "wrong": lambda: self._once(tab, known.fit, lambda: tabs.wrong(known)),
            "errors": lambda: self._once(tab, known.fit, lambda: tabs.errors(known)),
            "duplicates": lambda: self._once(tab, None, lambda: tabs.duplicates(known, self.pictures)),
            "outliers": lambda: self._once(tab, None, lambda: tabs.far_off(known)),
        }
        if tab not in found:
            raise ConfigError(f"There is no tab {tab[:40]!r}")
        passed = {self._row_of[one] for one in skip if one in self._row_of}
        picked = found[tab]()
        with self._lock:
            left = [one for one in picked if one.row not in passed and self._may_show(one.row, tab)]
            return [self._shown(one) for one in left[:n]]

    def _may_show(self, row: int, tab: str) -> bool:
        """Whether a picture belongs on a tab, as it is now.

        Those that rate the head get their labels where chance alone shows them, and not where someone looked for them.
        """
        if self._label(row):
            return tab not in ("label", "confirm") and not (tab in DOUBTS and self._checked[row])
        return tab == "label" or not self.learner.drawn[row]

    def _once(self, tab: str, fitted: Fit | None, find: Callable[[], Found]) -> Found:
        """What takes long to find, found once for each fit; what features alone tell, once and for all."""
        before = self._found.get(tab)
        if before is None or before[0] is not fitted:
            before = self._found[tab] = (fitted, find())
        return before[1]

    def row(self, key: str) -> int | None:
        """The row of a picture that is known."""
        return self._row_of.get(key)

    def _shown(self, picked: Picked) -> Shown:
        row, why, seen, probability = picked
        label = self._label(row)
        key, path = self.dataset.keys[row].decode(), self.dataset.locations[row]
        fitted = self.learner.fit
        if self.learner.drawn[row] and not label:  # a suggestion would lead to the answer that rates it
            return Shown(key, path, label, why=why)
        if not seen and fitted is not None:
            best = int(fitted.probabilities[row].argmax())
            seen, probability = self.classes[fitted.classes[best]], float(fitted.probabilities[row, best])
        return Shown(key, path, label, seen, probability, why)

    def _number(self, name: str) -> int:
        if name not in self.classes:
            raise ConfigError(f"There is no class {name[:MOST_NAME]!r}; name it first")
        return self.classes.index(name)

    def _row(self, key: str) -> int:
        if key not in self._row_of:
            raise ConfigError(f"There is no picture {key[:40]!r}")
        return self._row_of[key]

    def _known(self) -> Known:
        with self._lock:
            return Known(
                self.dataset,
                self.features,
                tuple(self.classes),
                self._labels.copy(),
                self._dropped.copy(),
                self.learner.drawn,
                self.learner.fit,
            )


def _user() -> str:
    """The name of the user, or their number where there is none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _check_name(name: str) -> str:
    """The name of a class, if it can be one.

    Raises:
        ConfigError: If not.
    """
    if not name or name == DROP or len(name) > MOST_NAME or not name.isprintable():
        raise ConfigError(
            f"{name[:MOST_NAME]!r} can't be the name of a class; give 1 to {MOST_NAME} printable characters, and not "
            f"{DROP!r}, which leaves a picture out"
        )
    return name
