"""Calls from Python as commands: the options of the command line as keywords, with its words, defaults and errors."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from pipeline.api.results import Extracted, Result
from pipeline.api.runs import RunResult
from pipeline.config import Folders, user_cache
from pipeline.runs.folder import called
from pipeline.runs.run import RatedRun
from pipeline.util.options import Declared, declared, words_of
from pipeline.util.remote import shared

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Place = str | Path | None
"""A folder, or None: for that of the results that are given, else the usual one."""

FeaturesLike = str | Extracted | Sequence[str | Extracted] | None
"""What `extract` returned, a features id or its start, several of them, or None for the newest."""

RunLike = str | Path | RunResult[RatedRun]
"""What another function returned, a run's id or a part of it, its name, its folder, "latest" or "best"."""

POSITIONAL = ("run", "data", "features", "runs", "images")  # on the command line they stand without a name

ERRORS = """Raises:
    TlpipeError: As `tlpipe {}`, with what to do about it.
    TypeError: For an unknown option, or a value of another type.
"""


def folders_of(cache: str | Path | None, reports: str | Path | None, *given: Any) -> Folders:
    """The folders of a call: those that were named, else those of the results that were given, else the usual ones."""
    first = next((one.folders for one in _flat(given) if isinstance(one, Result)), None)
    usual = first or Folders(cache=user_cache())
    return Folders(
        usual.cache if cache is None else shared(str(cache)),
        usual.reports if reports is None else shared(str(reports)),
    )


def reference_to(value: Any) -> Any:
    """What names a result, or a path, on the command line; anything else as it is."""
    if isinstance(value, Result):
        return value.reference
    if isinstance(value, Path):  # a path without a separator would be taken for the part of an id
        return str(value) if len(value.parts) > 1 or value.is_absolute() else f"./{value}"
    return value


def joined(values: Any) -> str | None:
    """Names, or results in place of them, joined by commas as on the command line."""
    if values is None:
        return None
    several = values if isinstance(values, (list, tuple)) else [values]
    return ",".join(str(reference_to(one)) for one in several)


def command(*kinds: type, without: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a command: its `**options` are those that some dataclasses declare.

    The function is called with what was given, as the command line would have it: folders as paths, results as what
    names them, options checked for their names and types. Its signature and docstring name all options and errors.

    Args:
        kinds: The dataclasses.
        without: Options of theirs that this command doesn't have.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        plain = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        known = {name: one for name, one in _known(*kinds).items() if name not in (*own.parameters, *without)}
        shown = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.hint)
            for name, one in known.items()
        ]
        signature = own.replace(parameters=[*plain, *shown])

        @functools.wraps(function)
        def run(*args: P.args, **given: P.kwargs) -> R:
            _check_names(function.__name__, given, signature)
            values = signature.bind(*args, **given).arguments
            hints = get_type_hints(function)
            for name in values.keys() & hints.keys() - known.keys():
                _check_kind(name, values[name], hints[name])
            folders = folders_of(values.pop("cache", None), values.pop("reports", None), *values.values())
            values = {name: _named(value) for name, value in values.items()}
            values |= checked({name: value for name, value in values.items() if name in known}, *kinds)
            places: dict[str, Any] = {"cache": folders.cache, "reports": folders.reports}
            values |= {name: place for name, place in places.items() if name in own.parameters}
            with called(_line(function.__name__, values, signature)):
                return function(**values)  # type: ignore[call-arg]

        run.__signature__ = signature  # type: ignore[attr-defined]
        lines = [f"    {name}: {one.option.help}" for name, one in known.items()]
        options = ["Options:", *lines, ""] if lines else []
        # Python 3.13 takes the indentation from docstrings, and older ones keep it.
        own_text = inspect.cleandoc(run.__doc__ or "")
        errors = ERRORS.format(function.__name__.replace("_", "-"))
        run.__doc__ = "\n".join([own_text, "", *options, errors])
        return run

    return decorate


def checked(options: dict[str, Any], *kinds: type) -> dict[str, Any]:
    """Options in the types that dataclasses declare them with.

    Raises:
        ConfigError: For a text that can't be parsed.
        TypeError: For a value of another type.
    """
    known = _known(*kinds)
    return {name: _checked(value, known[name]) for name, value in options.items()}


def _known(*kinds: type) -> dict[str, Declared]:
    """The options of dataclasses by their names."""
    return {one.name: one for kind in kinds for one in declared(kind)}


def _check_names(function: str, given: dict[str, Any], signature: inspect.Signature) -> None:
    """Refuse an unknown option, with the legal ones."""
    for name in given:
        if name not in signature.parameters:
            near = get_close_matches(name, signature.parameters, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise TypeError(f"{function}() has no option {name!r}.{hint} It takes {', '.join(signature.parameters)}")


def _check_kind(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type than a parameter's, with the types that are taken."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = tuple(get_origin(kind) or kind for kind in kinds)
    taken = (*plain, int) if float in plain else plain
    value = _without_numpy(value)
    if not isinstance(value, taken) or (isinstance(value, bool) and bool not in plain):  # which is an int, too
        legal = " or ".join("None" if kind is NoneType else kind.__name__ for kind in plain)
        raise TypeError(f"{name} is of the type {type(value).__name__}; give {legal}")


def _without_numpy(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _checked(value: Any, one: Declared) -> Any:
    """The value of an option in the type that it is declared with; errors as in `checked`."""
    known, value = one.option, _without_numpy(value)
    if known.parse and isinstance(value, (str, int)) and not isinstance(value, bool):
        value = known.parse(str(value))
    if known.several and isinstance(value, (list, tuple)):
        value = ",".join(value)
    try:
        return msgspec.convert(value, one.hint)
    except msgspec.ValidationError:
        legal = " or ".join(known.legal) or str(getattr(one.hint, "__name__", one.hint)).replace(" | ", " or ")
        raise TypeError(f"{one.name} is {value!r}, of the type {type(value).__name__}; give {legal}") from None


def _named(value: Any) -> Any:
    """A value as it is on the command line, for lists, too."""
    return [reference_to(one) for one in value] if isinstance(value, (list, tuple)) else reference_to(value)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else [value]


def _line(function: str, values: dict[str, Any], signature: inspect.Signature) -> str:
    """The command line that a call stands for."""
    usual: dict[str, Any] = {name: one.default for name, one in signature.parameters.items()}
    usual |= {"cache": Folders().cache, "reports": Folders().reports}
    given = {name: value for name, value in values.items() if value is not None and value != usual[name]}
    words = [str(one) for one in _flat(given.pop(name) for name in POSITIONAL if name in given)]
    return shlex.join(["tlpipe", function.replace("_", "-"), *words, *words_of(given, {})])
