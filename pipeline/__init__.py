"""Transfer learning for images: extract features once, train heads in seconds, fine-tune the top blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import FeatureExtractor, Features, Model, extract, load_features, load_head, load_model

__all__ = ["FeatureExtractor", "Features", "Model", "extract", "load_features", "load_head", "load_model"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `tlpipe --help` needs none of it."""
    if name == "__version__":
        from pipeline.util import runtime

        return runtime.version("tlpipe")
    if name in __all__:
        from pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
