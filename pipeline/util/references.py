"""What a text that a user gives for an id means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from pipeline.errors import TlpipeError
from pipeline.util import log

NAMED_AT_MOST = 5  # in an error


class _WithId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_WithId)


def one_meant(
    reference: str,
    known: Sequence[T],
    damaged: Mapping[str, TlpipeError],
    what: str,
    listing: str,
    error: type[TlpipeError],
    alias: Callable[[T], str | None] = lambda _: None,
) -> T:
    """The one of some things that a text names: by its whole id or alias, else by the start or a part of its id.

    Args:
        reference: The text.
        known: The things, the newest last.
        damaged: Why each thing that can't be read can't be, by its id. One that may be meant is an error, for another
            one in its place would be a wrong answer; of the others there is a warning.
        what: What errors call them, with where they are: "features of cache".
        listing: The command that lists them.
        error: What is raised.
        alias: Gives another name of a thing; None if it has none.

    Raises:
        TlpipeError: If none fits, or several do, or one that can't be read.
    """
    if not reference:
        raise error(f"An empty text names none of the {what}; list them with: {listing}")
    exact = [one for one in known if reference in (one.id, alias(one))]
    for name, problem in damaged.items():
        if reference == name or (reference in name and not exact):
            raise problem
        log.warning("%s", problem)
    fitting = (
        exact or [one for one in known if one.id.startswith(reference)] or [one for one in known if reference in one.id]
    )
    if len(fitting) == 1:
        return fitting[0]
    listed = [one.id for one in fitting or known][::-1]
    older = len(listed) - NAMED_AT_MOST
    names = (", ".join(listed[:NAMED_AT_MOST]) or "none") + (f" and {older:,} older ones" if older > 0 else "")
    how = "fits several" if fitting else "is not among the"
    raise error(f"{reference!r} {how} {what}: {names}; list them with: {listing}")
