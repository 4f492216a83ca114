"""What an interrupted fine-tuning goes on from: one file, written whole after each epoch."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.util import disk
from pipeline.util.archives import arrays_of
from pipeline.util.files import digest_of, published, writing
from pipeline.util.local_copies import own_part

FOLDER = ".unfinished"  # in the reports folder, or the own part of one; names that start with a dot are no runs
PARTS = ("now", "optimizer", "best")


@dataclass(frozen=True, slots=True)
class State:
    """How far training has come.

    Attributes:
        arrays: "now" (weights and generators), "optimizer" and "best" (weights), each a list.
        history: A row for each epoch, the start first.
        head_run: Run id of the head that training started from.
    """

    arrays: dict[str, list[NDArray[Any]]]
    history: list[dict[str, float]]
    head_run: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder for one command: the same options find it again.

    Attributes:
        folder: Where it lies.
    """

    folder: Path

    @classmethod
    def of(cls, reports: Path, request: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint of a command.

        Args:
            reports: The reports folder.
            request: All that the user asked for.
        """
        return cls(own_part(reports) / FOLDER / digest_of(json.dumps(request, sort_keys=True).encode()))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Let no other process work on the same command; what was never written to is removed.

        Raises:
            RunError: If one does.
            StoreError: If the disk is full or can't be written.
        """
        with writing(self.folder):
            disk.make_folder(self.folder)
            lock = disk.change("write", self.folder / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it, however a process ends
            except OSError as error:
                raise RunError(
                    "This command is running already, in another process; wait for it, or stop it"
                ) from error
            try:
                yield
            finally:
                if not self.exists():
                    self.remove()

    def exists(self) -> bool:
        """Whether there is a state."""
        return self._file.is_file()

    def save(self, state: State) -> None:
        """Replace the state, whole or not at all.

        Raises:
            StoreError: If the disk is full.
        """
        named: dict[str, Any] = {f"{name}_{i}": array for name in PARTS for i, array in enumerate(state.arrays[name])}
        about = json.dumps({"history": state.history, "head_run": state.head_run})
        with published(self._file) as partial, partial.open("wb") as file:
            np.savez(file, about=np.array(about), **named)

    def load(self) -> State | None:
        """What was saved last; None if nothing was.

        Raises:
            RunError: If it can't be read.
        """
        if not self.exists():
            return None
        try:
            with arrays_of(self._file) as file:
                counts = {name: sum(key.startswith(f"{name}_") for key in file.files) for name in PARTS}
                arrays = {name: [file[f"{name}_{i}"] for i in range(count)] for name, count in counts.items()}
                about = json.loads(str(file["about"]))
            history, head_run = about["history"], about["head_run"]
            sound = bool(history) and all(type(value) is float for row in history for value in row.values())
            if not sound or not isinstance(head_run, str) or os.sep in head_run:
                raise ValueError("its history or its head is not what tlpipe wrote")
            return State(arrays, history, head_run)
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise RunError(f"{self.folder} can't be read: {error}; leave --resume out to begin again") from error

    def remove(self) -> None:
        """Forget it, and the folder of all of them if it was the last."""
        with suppress(OSError):
            disk.remove_tree(self.folder)
            disk.remove_empty(self.folder.parent)

    @property
    def logs(self) -> Path:
        """Folder of TensorBoard's logs."""
        return self.folder / "tensorboard"

    @property
    def _file(self) -> Path:
        return self.folder / "state.npz"
