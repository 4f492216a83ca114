"""Which reports folders took features from a cache, so that cleaning it up takes nothing from them."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.util.addresses import asking, is_remote
from pipeline.util.files import digest_of, matching
from pipeline.util.remote import is_address
from pipeline.util.sealed import decoded, read_json, write_json

FOLDER = "uses"


@dataclass(frozen=True, slots=True)
class Use:
    """Features that a run was made of.

    Attributes:
        reports: The reports folder, its whole path or address.
        features: Their id.
        machine: Where that folder is, if only the cache lies at an address; "" otherwise.
    """

    reports: str
    features: str
    machine: str = ""

    def is_here(self) -> bool:
        """Whether the folder is one of this machine."""
        return self.machine in ("", platform.node())


def remember_use(cache: Path, reports: Path, features: Iterable[str]) -> None:
    """Remember that a run in a reports folder was made of some features; a file for each, so that none is appended to.

    Raises:
        StoreError: If the cache can't be written.
    """
    for name in features:
        machine = platform.node() if is_remote(cache) and not is_remote(reports) else ""
        use = Use(str(reports.resolve()), name, machine)
        path = cache / FOLDER / f"{digest_of(f'{use.machine}{use.reports}/{name}'.encode())}.json"
        with asking(path):
            is_there = path.exists()
        if not is_there:
            write_json(path, asdict(use))


def uses(cache: Path) -> list[Use]:
    """All uses that a cache remembers.

    Raises:
        StoreError: If one can't be read: what it needs can't be told.
    """
    found = []
    for path in matching(cache / FOLDER, "*.json"):
        try:
            use = decoded(Use, read_json(path))
            if not is_address(use.reports):
                Path(use.reports).is_dir()  # a name that no file system could hold is an error here
            found.append(use)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} can't be read ({error}); remove it, if no runs of other folders need it"
            ) from error
    return found
