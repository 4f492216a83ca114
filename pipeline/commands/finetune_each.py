"""Fine-tune with several settings, each a run of its own: here one after the other, or at once on a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.commands.finetune import check_options, finetune, read_examples, trained_first
from pipeline.config import FinetuneConfig, FinetuneOptions, Folders
from pipeline.errors import ConfigError, StoppedError, TlpipeError
from pipeline.finetuning.start import begin
from pipeline.runs.find import all_runs, find_run
from pipeline.runs.folder import called
from pipeline.runs.run import FinetuneRun, HeadRun
from pipeline.util import runtime
from pipeline.util.options import words_of
from pipeline.util.ray_cluster import check_on, each_there


def finetune_each(
    configs: Sequence[FinetuneConfig], cache: Path, reports: Path, options: FinetuneOptions = FinetuneOptions()
) -> dict[FinetuneConfig, FinetuneRun | TlpipeError]:
    """Fine-tune with several settings from the same head; what fails with one doesn't end the others.

    On a cluster the activations below each cut are computed once, before the runs that share them begin.

    Args:
        configs: The settings.
        cache: The cache folder.
        reports: Where the head's run lies, and where the runs go.
        options: As for `finetune`; `on` names the cluster.

    Returns:
        For each setting its run, or why there is none.

    Raises:
        ConfigError: If several runs would have one name, or none could be resumed.
        EngineError: If the cluster can't be reached.
        RunError: If there is no such head.
    """
    check_on(options.on)
    check_options(options, reports)
    settings = list(dict.fromkeys(configs))
    if options.name and len(settings) > 1:
        raise ConfigError(f"--name {options.name} names one run, and these settings make {len(settings)}; leave it out")
    if options.head and options.resume:
        raise ConfigError(f"--head {options.head} trains a new head each time; --resume needs the same: --head-run RUN")
    if options.on:  # machines of a cluster stand elsewhere
        cache, reports = cache.resolve(), reports.resolve()
    if options.head:
        head = trained_first(options.head, settings[0], cache, reports, options)
        options = replace(options, head=None, features=None, head_run=head)
    else:
        options = replace(options, head_run=find_run(reports, options.head_run, (HeadRun,))[0].id)
    each = {config: (config, cache, reports, options) for config in settings}
    done = _ended(each, reports) if options.resume else {}
    left = {config: one for config, one in each.items() if config not in done}
    if options.on is None:
        return done | {config: _run(*one) for config, one in left.items()}
    if len(left) > 1:
        cuts = {(config.blocks, config.views, config.augment): one for config, one in left.items()}
        each_there(options.on, _compute_activations, list(cuts.values()))
    return done | dict(zip(left, each_there(options.on, _run, list(left.values())), strict=True))


def _ended(
    each: Mapping[FinetuneConfig, tuple[FinetuneConfig, Path, Path, FinetuneOptions]], reports: Path
) -> dict[FinetuneConfig, FinetuneRun | TlpipeError]:
    """The runs of those settings that came to their end before the command was interrupted."""
    by_command = {run.command: run for run in all_runs(reports) if isinstance(run, FinetuneRun)}
    commands = {config: alone(*one) for config, one in each.items()}
    return {config: by_command[command] for config, command in commands.items() if command in by_command}


def _compute_activations(config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions) -> None:
    """Compute what all runs with the same cut start from; where that fails, they will say why."""
    with suppress(TlpipeError):
        with runtime.strategy().scope():
            begun = begin(config, cache, reports, options.head_run)
        read_examples(begun, cache, options.memory)


def _run(config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions) -> FinetuneRun | TlpipeError:
    try:
        with called(alone(config, cache, reports, options)):
            return finetune(config, cache, reports, options)
    except StoppedError:
        raise
    except TlpipeError as error:
        return error


def alone(config: FinetuneConfig, cache: Path, reports: Path, options: FinetuneOptions) -> str:
    """The command line that makes one of the runs alone."""
    words = words_of(asdict(config), asdict(FinetuneConfig()))
    words += words_of({"head_run": options.head_run, "memory": options.memory}, {"head_run": None, "memory": None})
    return shlex.join(["tlpipe", "finetune", *words, *Folders(cache, reports).words()])
