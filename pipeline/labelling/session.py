"""A labelling session: what is known of each picture, what is shown next, and what was answered."""

from __future__ import annotations

import getpass
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Dataset
from pipeline.data.corrections import DROP
from pipeline.errors import ConfigError
from pipeline.labelling import tabs
from pipeline.labelling.journal import Answer, Journal
from pipeline.labelling.learner import Labels, Learner
from pipeline.labelling.marks import BY_DATA, NEW, Change, Mark, Marks, OvertakenError, check_name
from pipeline.labelling.model import Rating, bundles_of, growth, labels_for_a_point
from pipeline.labelling.tabs import Found, Known, Picked, Shown
from pipeline.pages.pictures import Pictures

AT_ONCE = 5  # answers after which the head is fitted again
PATIENCE = 1.0  # seconds that an answer waits for the first choice, before it says that there is none yet
MOST_CLASSES = 1000
MOST_POINTS = 50  # ratings of which the page draws a curve
DOUBTS = ("wrong", "errors")  # tabs on which a label that was looked at doesn't come again


class Session:
    """One labelling, which several windows may share; a thread of its own fits heads.

    Args:
        dataset: The pictures, with the labels that the data gives them.
        features: Shape [n, d]; they are brought to length 1 in place, as there may be much of them.
        pictures: To look at.
        journal: Where answers go.
        classes: Names that the user gave.
        seed: Of what is drawn at random.
        features_id: Digest of the feature spec; only heads on the same features are compared.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: NDArray[np.float32],
        pictures: Pictures,
        journal: Journal,
        classes: Sequence[str] = (),
        seed: int = 0,
        features_id: str = "",
    ) -> None:
        from sklearn.preprocessing import normalize

        self.dataset, self.pictures, self.journal, self._features_id = dataset, pictures, journal, features_id
        self.features: NDArray[np.float32] = normalize(features, copy=False)
        self._row_of = {key.decode(): row for row, key in enumerate(dataset.keys.tolist())}
        self.marks = Marks(dataset, dict.fromkeys([*dataset.class_names, *journal.classes, *classes]))
        self.classes = self.marks.classes
        for name in (*dataset.class_names, *classes):
            check_name(name)
            if name not in (*dataset.class_names, *journal.classes):
                journal.name_class(name)  # so that its key is the same the next time
        self._who = _user()
        self._lock, self._finding = threading.RLock(), threading.Lock()
        self._done: dict[str, list[list[Change]]] = {}  # by window
        self._bundles = bundles_of(dataset)
        self.learner = Learner(self.features, dataset.keys, self._bundles, seed, self._keep)
        self._learnt_at = 0  # so many answers
        self._found: dict[str, tuple[int, Found]] = {}
        for number, answer in enumerate(journal.answers):
            if answer.label not in ("", DROP, *self.classes):
                self.classes.append(answer.label)
            if answer.key in self._row_of:
                row, (checked, led) = self._row_of[answer.key], map(answer.shown.get, ("checked", "led"))
                mark = Mark(answer.label, bool(checked), bool(led), number)
                self.marks[row] = mark if answer.label else self.marks.by_data(row)
        self.learner.learn(self._labels_now)

    # Answers

    def name_class(self, name: str) -> None:
        """Add a class.

        Raises:
            ConfigError: If its name can't be one, or there are too many.
            StoreError: If it can't be written.
        """
        name = check_name(name.strip())
        with self._lock:
            if name in self.classes:
                return
            if len(self.classes) >= MOST_CLASSES:
                raise ConfigError(f"There are {MOST_CLASSES:,} classes already")
            self.journal.name_class(name)
            self.classes.append(name)

    def answer(
        self,
        answers: Sequence[tuple[str, str]],
        shown: Mapping[str, str | float],
        *,
        saw: Mapping[str, str] | None = None,
        window: str = "",
    ) -> None:
        """Say which class pictures are of; all of it is on disk when this returns.

        Args:
            answers: Image key and class of each, or "drop", or "" for what the data say.
            shown: How they were shown.
            saw: The labels that they had on the page, by image key; what isn't there is not compared.
            window: Which window asks; each takes back its own answers.

        Raises:
            ConfigError: If there is no such picture or class, or a picture is named twice.
            OvertakenError: If another window has changed a label that was seen; nothing is changed then.
            StoreError: If it can't be written; nothing of it counts then.
        """
        saw = saw or {}
        with self._lock:
            found = {self._row(key): label for key, label in answers}
            if len(found) < len(answers):
                raise ConfigError("An answer names a picture twice; name it once")
            for label in found.values():
                if label not in ("", DROP):
                    self.marks.number(label)
            before = {row: self.marks[row] for row in found}
            self._refuse([row for row, mark in before.items() if saw.get(self._key(row), mark.label) != mark.label])
            changes = [
                Change(row, before[row], self._mark(row, before[row], label, shown)) for row, label in found.items()
            ]
            changes = self._make(changes, shown)
            self._done.setdefault(window, []).append(changes)
            was_last = any(not change.before.label for change in changes) and not self.marks.free.any()
        self._learn_if_due(at_once=was_last)

    def undo(self, window: str = "") -> list[Shown]:
        """Take the last answer of a window back, and show its pictures; none if there is nothing to take back.

        Raises:
            OvertakenError: If another window has changed all of it meanwhile.
            StoreError: If it can't be written.
        """
        with self._lock:
            if not self._done.get(window):
                return []
            changes = self._done[window][-1]
            still = [change for change in changes if self.marks[change.row] == change.after]
            back = [Change(row, after, before) for row, before, after in still]
            if back:
                back = self._make(back, {}, undoes=True)
            self._done[window].pop()
            if not back:
                self._refuse([change.row for change in changes])
            found = [self._shown(tabs.to_be_labelled(self.learner.drawn, one.row)) for one in back]
        self._learn_if_due()
        return found

    def _refuse(self, overtaken: Sequence[int]) -> None:
        """Refuse what was asked of pictures of which another window has said something else, if there are any."""
        if overtaken:
            raise OvertakenError({self._key(row): self.marks[row].label for row in overtaken})

    def _mark(self, row: int, was: Mark, label: str, shown: Mapping[str, str | float]) -> Mark:
        """What an answer makes of a picture; its number comes with its writing."""
        if not label:
            return self.marks.by_data(row)
        led = was.led if was.label else shown.get("tab", "label") != "label"
        return Mark(label, bool(was.label), led, NEW)

    def _make(
        self, changes: Sequence[Change], shown: Mapping[str, str | float], *, undoes: bool = False
    ) -> list[Change]:
        """Write changes, and let them count once they are on disk; new ones with the numbers of their answers."""
        entries, made = [], []
        for number, (row, before, after) in enumerate(changes, start=len(self.journal.answers)):
            said = after.answer != BY_DATA
            facts = {**shown, "drawn": bool(self.learner.drawn[row]), "checked": after.checked, "led": after.led}
            label, path = after.label if said else "", self.dataset.locations[row]
            entries.append(Answer(self._key(row), path, label, who=self._who, shown=facts, undoes=undoes))
            made.append(Change(row, before, after._replace(answer=number) if after.answer == NEW else after))
        self.journal.append(entries)
        for row, _, after in made:
            self.marks[row] = after
        return made

    def _learn_if_due(self, *, at_once: bool = False) -> None:
        with self._lock:
            if at_once or self.learner.fit is None or len(self.journal.answers) - self._learnt_at >= AT_ONCE:
                self.learner.learn(self._labels_now)

    def _keep(self, rating: Rating) -> None:
        with self._lock:
            before = growth(self.journal.ratings, self._features_id)
            rating = replace(rating, features=self._features_id)
            if not before or before[-1] != rating:
                self.journal.rate(rating)

    def _labels_now(self) -> Labels:
        with self._lock:
            self._learnt_at = len(self.journal.answers)
            marks = self.marks
            return Labels(marks.labels.copy(), marks.dropped.copy(), marks.led.copy(), len(self.classes))

    def settle(self) -> None:
        """Wait until the head is fitted on all answers."""
        self.learner.settle()

    def close(self) -> None:
        """End the thread, and close the journal."""
        self.learner.close()
        self.journal.close()

    # What is shown

    def state(self, window: str = "") -> dict[str, Any]:
        """What the page tells of the labelling as a whole, in one of its windows."""
        with self._lock:
            numbers = np.bincount(self.marks.labels + 1, minlength=len(self.classes) + 1).tolist()
            fitted, history = self.learner.fit, growth(self.journal.ratings, self._features_id)
            rating = fitted.rating if fitted else None
            return {
                "name": self.dataset.name,
                "n": len(self.dataset),
                "labelled": sum(numbers[1:]),
                "dropped": int(self.marks.dropped.sum()),
                "answers": len(self.journal.answers),
                "classes": [{"name": name, "n": n} for name, n in zip(self.classes, numbers[1:], strict=True)],
                "rating": rating and _told(rating),
                "history": [_told(one) for one in reversed(history[:: -(len(history) // MOST_POINTS + 1)])],
                "gain": labels_for_a_point(history),
                "fit": fitted.number if fitted else 0,
                "fitting": self.learner.busy,
                "can_undo": bool(self._done.get(window)),
            }

    def show(self, tab: str, n: int, *, name: str = "", key: str = "", skip: Collection[str] = ()) -> list[Shown]:
        """The next pictures of a tab.

        Args:
            tab: One of `TABS`.
            n: How many at most.
            name: A class, for "confirm" and "class".
            key: A picture, for "like".
            skip: Keys of pictures that the page holds already.

        Raises:
            ConfigError: If there is no such tab, class or picture.
        """
        if tab == "label" and not self.learner.has_chosen.wait(PATIENCE):
            return []
        known, passed = self._known(), {self._row_of[one] for one in skip if one in self._row_of}
        number = known.fit.number if known.fit else 0
        found: dict[str, Callable[[], Found]] = {
            "label": lambda: tabs.to_label(known, self.learner.queue, passed, n),
            "confirm": lambda: tabs.to_confirm(known, self.marks.number(name)),
            "class": lambda: tabs.of_class(known, self.marks.number(name)),
            "like": lambda: tabs.like(known, self._row(key)),
            "wrong": lambda: self._once(tab, number, lambda: tabs.wrong(known)),
            "errors": lambda: self._once(tab, number, lambda: tabs.errors(known)),
            "duplicates": lambda: self._once(tab, 0, lambda: tabs.duplicates(known, self.pictures)),
            "outliers": lambda: self._once(tab, 0, lambda: tabs.far_off(known)),
        }
        if tab not in found:
            raise ConfigError(f"There is no tab {tab[:40]!r}")
        picked, start = found[tab](), self._row_of.get(key)
        with self._lock:
            left = (one for one in picked if one.row not in passed and self._may_show(one.row, tab, start))
            return [self._shown(one) for one in islice(left, n)]

    def _may_show(self, row: int, tab: str, start: int | None) -> bool:
        """Whether a picture belongs on a tab, as it is now.

        Those that rate the head get their labels where chance alone shows them, and not where someone looked for them;
        but a picture that others are like, and both of a pair, are there to be seen.
        """
        mark = self.marks[row]
        if mark.label:
            return tab not in ("label", "confirm") and not (tab in DOUBTS and mark.checked)
        return tab in ("label", "duplicates") or row == start or not self.learner.drawn[row]

    def _once(self, tab: str, fit: int, find: Callable[[], Found]) -> Found:
        """What takes long to find, found once for each number of a fit; what features alone tell, once and for all."""
        with self._finding:  # a second window waits for what the first one finds
            before = self._found.get(tab)
            if before is None or before[0] != fit:
                before = self._found[tab] = (fit, find())
            return before[1]

    def row(self, key: str) -> int | None:
        """The row of a picture that is known."""
        return self._row_of.get(key)

    def _shown(self, picked: Picked) -> Shown:
        row, why, seen, probability = picked
        label, key, path = self.marks[row].label, self._key(row), self.dataset.locations[row]
        fitted = self.learner.fit
        if self.learner.drawn[row] and not label:  # a suggestion would lead to the answer that rates it
            return Shown(key, path, label, why=why)
        if not seen and fitted is not None:
            best = int(fitted.probabilities[row].argmax())
            seen, probability = self.classes[fitted.classes[best]], float(fitted.probabilities[row, best])
        return Shown(key, path, label, seen, probability, why)

    def _key(self, row: int) -> str:
        key: bytes = self.dataset.keys[row]
        return key.decode()

    def _row(self, key: str) -> int:
        if key not in self._row_of:
            raise ConfigError(f"There is no picture {key[:40]!r}")
        return self._row_of[key]

    def _known(self) -> Known:
        with self._lock:
            return Known(
                self.dataset,
                self.features,
                self._bundles,
                tuple(self.classes),
                self.marks.labels.copy(),
                self.marks.dropped.copy(),
                self.learner.drawn,
                self.learner.fit,
            )


def _told(rating: Rating) -> dict[str, Any]:
    return {name: value for name, value in asdict(rating).items() if name != "features"}


def _user() -> str:
    """The name of the user, or their number where there is none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
