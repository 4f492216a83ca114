"""What all commands share: options from dataclasses, errors in plain words, and the answer as text or JSON."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from pipeline.cli.complete import COMPLETED
from pipeline.config import HEAD_DEFAULTS, HeadConfig
from pipeline.errors import ConfigError, StoppedError, TlpipeError
from pipeline.util import log
from pipeline.util.options import SEED, SEED_HELP, Declared, declared, made, option_name
from pipeline.util.remote import of_this_machine

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


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


def takes(parameter: str, kind: type, without: tuple[str, ...] = (), *, each: bool = False) -> Decorator[Any]:
    """Give a command all options of a dataclass; its function receives them as one argument.

    Args:
        parameter: The name of that argument.
        kind: The dataclass.
        without: Options that this command doesn't have; their defaults hold.
        each: Whether an option may be given several times; the argument is a list then, of one dataclass for each
            combination of what was given.
    """
    shown = [one for one in declared(kind) if one.name not in without]

    def decorate(function: Function) -> Callable[..., Any]:
        @functools.wraps(function)
        def composed(**values: Any) -> Any:
            given = {one.name: values.pop(one.name) for one in shown}
            if not each:
                return function(**values, **{parameter: made(kind, given)})
            several = [(value or (None,)) if isinstance(value, tuple) else (value,) for value in given.values()]
            made_of = [dict(zip(given, choice, strict=True)) for choice in itertools.product(*several)]
            return function(**values, **{parameter: [made(kind, one) for one in made_of]})

        for one in reversed(shown):
            composed = _option(one, multiple=each)(composed)
        return composed

    return decorate


def _option(one: Declared, *, multiple: bool = False) -> Decorator[Any]:
    """Declare an option of a dataclass to Click; if `multiple`, one that may be given several times, unless a flag."""
    hint = str if one.option.parse else one.hint
    known = {
        "type": next(iter(get_args(hint)), hint),  # int of `int | None`
        "default": one.default,
        "help": _help(one),
        "shell_complete": COMPLETED.get(one.name),
    }
    if one.option.argument:
        return click.argument(one.name, **known)
    name = option_name(one.name)
    names = f"{name}/--no-{name[2:]}" if hint == bool | None else name
    is_flag = known["type"] is bool
    if multiple and not is_flag:
        known |= {"multiple": True, "default": [] if one.default is None else [one.default]}
    return click.option(names, one.name, is_flag=is_flag, **known)


def _help(one: Declared) -> str:
    """What an option means, its legal values, and defaults that aren't one value."""
    legal = one.option.legal
    words, *default = one.option.help.split(" [")
    if legal and any(word not in words for word in legal):
        listed = f"{', '.join(legal[:-1])} or {legal[-1]}" if len(legal) > 1 else legal[0]
        words = f"{words.rstrip('.')}: {listed}."
    if one.owner is HeadConfig and (defaults := _head_defaults(one.name)):
        default = [f"{defaults}]"]
    if one.option.argument and one.default is not None:  # of which Click shows no default
        default = [f"default: {one.default}]"]
    return " [".join([words, *default])


def _head_defaults(name: str) -> str:
    """The default of an option for each kind of head that has one, such as `linear 30, mlp 20`."""
    found: dict[str, list[str]] = {}
    for head, defaults in HEAD_DEFAULTS.items():
        value = defaults.get(name)
        if value is not None:
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"
            found.setdefault(text, []).append(head)
    return "; ".join(f"{', '.join(heads)}: {text}" for text, heads in found.items())


seed_option = click.option("--seed", type=click.IntRange(0, int(SEED.most)), default=0, help=SEED_HELP)
run_argument = click.argument(
    "run",
    shell_complete=COMPLETED["run"],
    help="Run of train-head, sweep or finetune: its id or a part of it, its name, latest, best, or reports/RUN.",
)


class _LocalPath(click.ParamType[Path]):
    """A file or folder of this machine, which is to be written."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path that a text means."""
        try:
            return of_this_machine(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


LOCAL_PATH = _LocalPath()


class Group(click.Group):
    """Commands that are listed as they were added, not by their letters."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(self.commands)


def command(name: str, cls: type[click.Command] = click.Command, **known: Any) -> Callable[[Function], Any]:
    """Make a command of a function that gives an `Answer`: its text or JSON is printed, errors are put into words.

    Args:
        name: Of the command.
        cls: What Click makes of it: a group, if other commands stand below it.
        **known: More that Click is told.
    """

    def register(function: Function) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> None:
            if click.get_current_context().invoked_subcommand is None:
                _listen(quiet=quiet, verbose=verbose)
                _answer(lambda: function(**values), as_json=as_json)

        made = click.command(name, cls, **known)(run)
        made.params += [
            _flag("--json", "as_json", help="Print JSON, and nothing else, on standard output."),
            _flag("--quiet", "-q", help="Print only warnings and the answer."),
            _flag("--verbose", "-v", help="Also print what happens inside."),
        ]
        return made

    return register


def _flag(*names: str, help: str) -> click.Option:
    return click.Option(names, is_flag=True, help=help)


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
        raise click.exceptions.Exit(1) from None


def _answer(function: Callable[[], Answer], *, as_json: bool) -> None:
    """Print a command's answer and exit: 0 done, 1 our error, 128 and the signal's number if stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        answer = function()
    except (StoppedError, KeyboardInterrupt) as error:
        warnings.simplefilter("ignore")  # joblib would remark that tasks were cancelled
        text, number = (str(error), error.signal) if isinstance(error, StoppedError) else (STOPPED, signal.SIGINT)
        log.error("%s", text)
        raise click.exceptions.Exit(128 + number) from None
    except TlpipeError as error:
        log.debug("", exc_info=True)
        log.error("Error: %s", error)
        raise click.exceptions.Exit(1) from None
    _print(json.dumps(answer.value, indent=2, ensure_ascii=False) if as_json else answer.shown())
    if answer.failed:
        raise click.exceptions.Exit(1)
