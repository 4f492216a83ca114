"""Transfer learning for images: extract features once, train heads in seconds, fine-tune the top blocks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api.cache import cache
    from pipeline.api.estimators import FeatureExtractor, HeadClassifier
    from pipeline.api.loading import (
        Features,
        Model,
        load_features,
        load_head,
        load_model,
        load_runs,
        name_run,
        remove_runs,
    )
    from pipeline.api.results import Explained, Exported, Extracted, Inspected, Labelled, Predicted, Reported, Searched
    from pipeline.api.runs import CurveResult, RunResult, Runs
    from pipeline.api.stages import extract, finetune, learning_curve, sweep, train_head
    from pipeline.api.use import evaluate, explain, export, inspect, label, predict, report, search
    from pipeline.errors import (
        CacheMismatchError,
        ConfigError,
        DataError,
        EndpointError,
        EngineError,
        ImageError,
        QuarantineError,
        RunError,
        StoppedError,
        StoreError,
        TlpipeError,
        UnknownBackboneError,
        WeightsError,
    )

    __version__: str

__all__ = [
    "CacheMismatchError",
    "ConfigError",
    "CurveResult",
    "DataError",
    "EndpointError",
    "EngineError",
    "Explained",
    "Exported",
    "Extracted",
    "FeatureExtractor",
    "Features",
    "HeadClassifier",
    "ImageError",
    "Inspected",
    "Labelled",
    "Model",
    "Predicted",
    "QuarantineError",
    "Reported",
    "RunError",
    "RunResult",
    "Runs",
    "Searched",
    "StoppedError",
    "StoreError",
    "TlpipeError",
    "UnknownBackboneError",
    "WeightsError",
    "__version__",
    "cache",
    "evaluate",
    "explain",
    "export",
    "extract",
    "finetune",
    "inspect",
    "label",
    "learning_curve",
    "load_features",
    "load_head",
    "load_model",
    "load_runs",
    "name_run",
    "predict",
    "remove_runs",
    "report",
    "search",
    "sweep",
    "train_head",
]

_MODULES = ("errors", "api.results", "api.runs", "api.stages", "api.use", "api.cache", "api.loading", "api.estimators")
"""Where the names lie, those first that load the least."""


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `tlpipe --help` needs none of it."""
    if name == "__version__":
        from pipeline.util import runtime

        return runtime.version("tlpipe")
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if name in vars(found):
                return vars(found)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
