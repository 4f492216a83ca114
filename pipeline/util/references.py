"""What a text that a user gives for an id means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from pipeline.errors import TlpipeError
from pipeline.util import log

NAMED_AT_MOST = 5  # in an error


class _WithId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_WithId)


def tell(damaged: Iterable[TlpipeError], *, strict: bool = False) -> None:
    """Warn of what can't be read; if `strict`, the first is raised."""
    for problem in damaged:
        if strict:
            raise problem
        log.warning("%s", problem)


def one_meant(
    reference: str,
    known: Sequence[T],
    damaged: Mapping[str, TlpipeError],
    what: str,
    listing: str,
    error: type[TlpipeError],
    alias: Callable[[T], str | None] | None = None,
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
        alias: Gives another name of a thing, or None; left out if things have no other names.

    Raises:
        TlpipeError: If none fits, or several do, or one that can't be read.
    """
    if not reference:
        raise error(f"An empty text names none of the {what}; list them with: {listing}")
    exact = [one for one in known if one.id == reference or (alias and alias(one) == reference)]
    unread = [problem for name, problem in damaged.items() if name == reference]
    fitting = exact
    if not exact and not unread:
        for fits in (lambda name: name.startswith(reference), lambda name: reference in name):
            fitting = [one for one in known if fits(one.id)]
            # What other name a damaged one had, nobody knows.
            unread = [problem for name, problem in damaged.items() if alias or fits(name)]
            if fitting or unread:
                break
    if unread:
        raise unread[0]
    tell(damaged.values())
    if len(fitting) == 1:
        return fitting[0]
    listed = [one.id for one in fitting or known][::-1]
    older = len(listed) - NAMED_AT_MOST
    names = (", ".join(listed[:NAMED_AT_MOST]) or "none") + (f" and {older:,} older ones" if older > 0 else "")
    how = "fits several" if fitting else "is not among the"
    raise error(f"{reference!r} {how} {what}: {names}; list them with: {listing}")
