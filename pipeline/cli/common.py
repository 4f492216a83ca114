"""What all commands share: the options that stand everywhere, errors in plain words, and the answer as text or JSON."""

from __future__ import annotations

import functools
import inspect
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pipeline.config import CACHE, REPORTS
from pipeline.errors import StoppedError, TlpipeError

log = logging.getLogger("tlpipe")

Function = TypeVar("Function", bound=Callable[..., "Answer"])


@dataclass(frozen=True, slots=True)
class Common:
    """Options that stand everywhere."""

    cache: Path
    reports: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found.

    Attributes:
        value: For `--json`.
        text: For people; made only if it is wanted.
        failed: Whether to exit with 1 all the same.
    """

    value: Any
    text: str | Callable[[], str]
    failed: bool = False

    def shown(self) -> str:
        """The text."""
        return self.text if isinstance(self.text, str) else self.text()


_COMMON = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and the answer only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print what happens inside, too.")],
    "seed": Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of all that is drawn.")],
    "cache": Annotated[Path, typer.Option(help="Folder of features and datasets.", file_okay=False)],
    "reports": Annotated[Path, typer.Option(help="Folder of runs.", file_okay=False)],
}
_DEFAULTS = {
    "as_json": False,
    "quiet": False,
    "verbose": False,
    "seed": 0,
    "cache": CACHE,
    "reports": REPORTS,
}


def command(app: typer.Typer, name: str, group: Mapping[str, Any] | None = None) -> Callable[[Function], Function]:
    """Register a command that takes `common` first and gives an `Answer`; the common options are added to its own.

    Args:
        app: The program.
        name: Of the command.
        group: Annotations of options that several commands share; all are None unless given, and the function takes
            them together, as a dictionary, after `common`.
    """

    def register(function: Function) -> Function:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[2 if group else 1 :]
        own += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for option, annotation in (group or {}).items()
        ]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[option], annotation=annotation)
            for option, annotation in _COMMON.items()
        ]

        @functools.wraps(function)
        def run(**options: Any) -> None:
            given = {option: options.pop(option) for option in _COMMON}
            _listen(quiet=given["quiet"], verbose=given["verbose"])
            common = Common(given["cache"], given["reports"], given["seed"])
            together = {option: options.pop(option) for option in group or ()}
            first = (common, together) if group else (common,)
            _answer(functools.partial(function, *first, **options), as_json=given["as_json"])

        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = inspect.Signature([*keyword_only, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        app.command(name)(run)
        return function

    return register


def _listen(*, quiet: bool, verbose: bool) -> None:
    """Send the log to standard error, as plain lines."""
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.propagate = False


STOPPED = "Stopped. What was finished before is kept; run the same command again (finetune: with --resume)."


def _terminate(*_: object) -> None:
    """End at once on SIGTERM: an exception from here could come up inside a library that takes it for its own."""
    log.error(STOPPED)
    if multiprocessing := sys.modules.get("multiprocessing"):
        for child in multiprocessing.active_children():
            with suppress(OSError):  # it may have ended by itself
                os.kill(child.pid, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def _print(text: str) -> None:
    """Write the answer to standard output; where that is closed or full, exit with 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a terminal that doesn't know all characters
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would fail again as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader, such as head, has had enough
            log.error("Error: The answer can't be written: %s", error.strerror)
        raise typer.Exit(1) from None


def _answer(function: Callable[[], Answer], *, as_json: bool) -> None:
    """Print a command's answer and exit: 0 done, 1 our error, 128 and the signal's number if stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        answer = function()
    except StoppedError as error:
        log.error("%s", error)
        raise typer.Exit(128 + error.signal) from None
    except KeyboardInterrupt:
        log.error(STOPPED)
        raise typer.Exit(128 + signal.SIGINT) from None
    except TlpipeError as error:
        log.debug("", exc_info=True)
        log.error("Error: %s", error)
        raise typer.Exit(1) from None
    _print(json.dumps(answer.value, indent=2, ensure_ascii=False) if as_json else answer.shown())
    if answer.failed:
        raise typer.Exit(1)
