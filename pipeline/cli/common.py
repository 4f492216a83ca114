"""What all commands share: options from dataclasses, errors in plain words, and the answer as text or JSON."""

from __future__ import annotations

import functools
import inspect
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from pipeline.cli.complete import COMPLETED
from pipeline.config import HEAD_DEFAULTS, Folders, HeadConfig
from pipeline.errors import StoppedError, TlpipeError
from pipeline.util.options import SEED, SEED_HELP, Declared, declared, made, option_name

log = logging.getLogger("tlpipe")

Function = TypeVar("Function", bound=Callable[..., "Answer"])


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


@dataclass(frozen=True, slots=True)
class Without:
    """Marks a parameter whose command doesn't have all options of its dataclass."""

    names: tuple[str, ...]


Seed = Annotated[int, typer.Option(min=0, max=int(SEED.most), help=SEED_HELP)]


def _flag(text: str, *names: str) -> Any:
    return Annotated[bool, typer.Option(*names, help=text)]


_SHARED = {
    "as_json": _flag("Print JSON, and nothing else, on standard output.", "--json"),
    "quiet": _flag("Print warnings and the answer only.", "--quiet", "-q"),
    "verbose": _flag("Print what happens inside, too.", "--verbose", "-v"),
}


_FOLDERS = tuple(one.name for one in fields(Folders))


def command(app: typer.Typer, name: str | None) -> Callable[[Function], Function]:
    """Register a function that gives an `Answer` as a command.

    Typer reads the options of a command from a function's signature, and knows no dataclasses. So a parameter of the
    function whose type is a dataclass of options stands for all of them: what is registered has them side by side, and
    puts them together again.

    Args:
        app: The program, or a group of commands.
        name: Of the command; None for what the group does where no command of its is named.
    """

    def register(function: Function) -> Function:
        carried: dict[str, tuple[Any, list[str]]] = {}
        shown: dict[str, inspect.Parameter] = {}
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            kind, without = _carried(hints[parameter.name])
            if kind is None:
                shown[parameter.name] = _parameter(parameter.name, hints[parameter.name], parameter.default)
                continue
            found = {
                one.name: _parameter(one.name, _annotated(one), one.default)
                for one in declared(kind)
                if one.name not in without
            }
            carried[parameter.name] = (kind, list(found))
            shown |= found
        own = set(shown) - {name for _, names in carried.values() for name in names}
        shown |= {option: _parameter(option, hint, False) for option, hint in _SHARED.items()}

        if name is None:
            shown["context"] = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

        def run(**values: Any) -> None:
            if name is None and values["context"].invoked_subcommand is not None:
                return
            _listen(quiet=values["quiet"], verbose=values["verbose"])
            _answer(lambda: function(**_together(values, carried, own)), as_json=values["as_json"])

        functools.update_wrapper(run, function, assigned=("__doc__", "__name__", "__module__"), updated=())
        del run.__wrapped__  # type: ignore[attr-defined]
        # Arguments come first, what all commands share comes last.
        ordered = sorted(
            shown.values(),
            key=lambda one: (one.default is not inspect.Parameter.empty, one.name in (*_FOLDERS, *_SHARED)),
        )
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
        (app.command(name) if name else app.callback(invoke_without_command=True))(run)
        return function

    return register


def _carried(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """The dataclass of options that a parameter stands for, and those it lacks here; None if it stands for itself."""
    kind, marks = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
    without = [name for mark in marks if isinstance(mark, Without) for name in mark.names]
    return (kind, tuple(without)) if is_dataclass(kind) else (None, ())


def _together(values: dict[str, Any], carried: dict[str, tuple[Any, list[str]]], own: set[str]) -> dict[str, Any]:
    """The arguments of a command's function: its dataclasses, and what stands for itself."""
    found = {name: values[name] for name in own}
    for parameter, (kind, names) in carried.items():
        found[parameter] = made(kind, {name: values[name] for name in names})
    return found


def _annotated(one: Declared) -> Any:
    """How Typer reads an option."""
    known, hint, words = one.option, one.hint, one.option.help
    if known.legal:
        legal = f"{', '.join(known.legal[:-1])} or {known.legal[-1]}" if len(known.legal) > 1 else known.legal[0]
        words = f"{words.rstrip('.')}: {legal}." if legal not in words else words
    if one.owner is HeadConfig and (defaults := _head_defaults(one.name)):
        words = f"{words} [{defaults}]"
    if known.parse:
        hint = str | None
    if known.argument:
        return Annotated[hint, typer.Argument(help=words, show_default=words[-1] != "]")]
    name = option_name(one.name)
    names = [name]
    if hint == bool | None:
        names = [f"{name}/--no-{name[2:]}"]
    return Annotated[hint, typer.Option(*names, help=words)]


def _head_defaults(name: str) -> str:
    """The default of an option for each kind of head that has one, such as `linear 30, mlp 20`."""
    found: dict[str, list[str]] = {}
    for head, defaults in HEAD_DEFAULTS.items():
        value = defaults.get(name)
        if value is not None:
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"
            found.setdefault(text, []).append(head)
    return "; ".join(f"{', '.join(heads)}: {text}" for text, heads in found.items())


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """A parameter as Typer reads it, completed by the shell where its name is known."""
    for mark in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        if name in COMPLETED and hasattr(mark, "autocompletion"):
            mark.autocompletion = COMPLETED[name]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


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
