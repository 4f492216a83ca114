"""What an interrupted fine-tuning goes on from: one file, written whole after each epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.files import digest_of, published, read_json, write_json

__all__ = ["Checkpoint", "State"]

FOLDER = ".unfinished"  # in the reports folder; names that start with a dot are no runs


@dataclass(frozen=True, slots=True)
class State:
    """How far training has come.

    Attributes:
        arrays: By name: "now" (weights and generators), "optimizer" and "best" (weights), each a list.
        history: A row for each epoch so far.
    """

    arrays: dict[str, list[NDArray[Any]]]
    history: list[dict[str, float]]


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
        return cls(reports / FOLDER / digest_of(json.dumps(request, sort_keys=True).encode()))

    def begin(self, head_run: str) -> None:
        """Forget what there was, and note the head that the command was found to start from."""
        self.remove()
        write_json(self.folder / "start.json", {"head_run": head_run})

    def head_run(self) -> str | None:
        """Run id of the head that `begin` noted; None if there is nothing to resume.

        Raises:
            RunError: If it can't be read.
        """
        if not self._arrays.is_file():
            return None
        try:
            found = read_json(self.folder / "start.json")["head_run"]
            if not isinstance(found, str):
                raise ValueError("it names no run")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        return found

    def save(self, state: State) -> None:
        """Replace the state, whole or not at all.

        Raises:
            StoreError: If the disk is full.
        """
        named: dict[str, Any] = {
            f"{name}_{i}": array for name, part in state.arrays.items() for i, array in enumerate(part)
        }
        with published(self._arrays) as partial, partial.open("wb") as file:
            np.savez(file, history=np.array(json.dumps(state.history)), **named)

    def load(self, names: Sequence[str]) -> State | None:
        """What was saved last; None if nothing was.

        Raises:
            RunError: If it can't be read.
        """
        if not self._arrays.is_file():
            return None
        try:
            with self._arrays.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                counts = {name: sum(key.startswith(f"{name}_") for key in file.files) for name in names}
                arrays = {name: [file[f"{name}_{i}"] for i in range(count)] for name, count in counts.items()}
                return State(arrays, json.loads(str(file["history"])))
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise self._damaged(error) from error

    def remove(self) -> None:
        """Forget it, and the folder of all of them if it was the last."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    @property
    def logs(self) -> Path:
        """Folder of TensorBoard's logs."""
        return self.folder / "tensorboard"

    @property
    def _arrays(self) -> Path:
        return self.folder / "state.npz"

    def _damaged(self, error: Exception) -> RunError:
        return RunError(f"{self.folder} can't be read: {error}; leave --resume out to begin again")
