"""Which heads and settings a sweep tries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pipeline.config import HeadConfig
from pipeline.errors import ConfigError
from pipeline.heads import KINDS, Kind, kind_of
from pipeline.selection.trials import Candidate
from pipeline.util.options import one_of, option_name

GRIDS = ("small", "full")


def candidates(
    heads: Sequence[str], grid: str, common: HeadConfig, views: Sequence[int], test_views: Sequence[int]
) -> list[Candidate]:
    """Every setting of a grid.

    Args:
        heads: Names of heads ("mlp256"), or of kinds ("mlp") for the heads that the grid has of them.
        grid: "small" or "full".
        common: Options that are the same for all; where one is given, the grid doesn't vary it.
        views: Numbers of training views to try.
        test_views: Numbers of views to average over.

    Raises:
        ConfigError: For an unknown head or grid, or an option that none of the heads has.
    """
    one_of("--grid", grid, GRIDS)
    found: list[Candidate] = []
    foreign = set(common.given())
    for name in heads:
        kind, axes = _axes(name, grid)
        own = {option: value for option, value in common.given().items() if option in kind.defaults}
        foreign -= set(own)
        axes = {"views": views, **axes}
        varied = {option: values for option, values in axes.items() if option not in own}
        for values in itertools.product(*varied.values()):
            settings = {**own, **dict(zip(varied, values, strict=True))}
            config = HeadConfig(**settings, seed=common.seed).resolved(kind.defaults)
            found += [Candidate(config, number) for number in test_views]
    if foreign:
        raise ConfigError(f"{', '.join(map(option_name, sorted(foreign)))} means nothing to {', '.join(heads)}")
    return list(dict.fromkeys(found))


def _axes(name: str, grid: str) -> tuple[Kind, dict[str, Sequence[Any]]]:
    """The kind of a head, and the values of each option.

    A kind's name without figures stands for the heads that the grid has of it, or, if it has none, the full grid.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind, dict((grid == "small" and kind.small) or kind.full)
    kind = kind_of(name)
    return kind, {**(kind.small if grid == "small" else kind.full), "head": [name]}
