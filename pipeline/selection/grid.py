"""Which heads and settings a sweep tries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pipeline.config import one_of
from pipeline.errors import ConfigError
from pipeline.heads import FORMS, KINDS, HeadConfig, Kind, kind_of
from pipeline.selection.trials import Candidate

__all__ = ["GRIDS", "candidates"]

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
        for kind, axes in _axes(name, grid):
            own = {option: value for option, value in common.given().items() if option in kind.defaults}
            foreign -= set(own)
            axes = {option: values for option, values in axes.items() if option not in own}
            if "views" not in own:
                axes["views"] = list(views)
            for values in itertools.product(*axes.values()):
                settings = {**own, **dict(zip(axes, values, strict=True))}
                config = HeadConfig(**settings, seed=common.seed).resolved(dict(kind.defaults))
                found += [Candidate(config, number) for number in test_views]
    if foreign:
        raise ConfigError(f"--{', --'.join(sorted(foreign)).replace('_', '-')} means nothing to {', '.join(heads)}")
    return list(dict.fromkeys(found))


def _axes(name: str, grid: str) -> Iterator[tuple[Kind, dict[str, Sequence[object]]]]:
    """The kind of a head, and the values of each option; a name alone stands for the heads of a grid."""
    of_kind = {kind.form.rstrip("0123456789-"): kind for kind in KINDS}
    kind = of_kind[name] if name in of_kind else kind_of(name)
    values = dict(kind.small if grid == "small" else kind.full)
    if not values and name in of_kind:
        values = dict(kind.full)  # asked for by name, though not in the small grid
    if name not in of_kind or not values:
        values["head"] = [name]
    if name in of_kind and not values.get("head"):
        raise ConfigError(f"Unknown head {name!r}. Legal are {FORMS}")
    yield kind, values
