"""What a user can choose, checked once, and handed on unchanged; nothing here imports a heavy library."""

from pipeline.config.extract import (
    BACKBONE,
    COMMON,
    ENGINES,
    POOLINGS,
    PRECISIONS,
    Columns,
    ExtractConfig,
    ExtractOptions,
    ImageConfig,
    SplitConfig,
)
from pipeline.config.finetune import FinetuneConfig, FinetuneOptions
from pipeline.config.folders import Folders, user_cache
from pipeline.config.head import HEAD_DEFAULTS, HeadConfig, TrainingOptions
from pipeline.config.label import NOT_OF_LABEL, LabelOptions
from pipeline.config.spec import SPEC_VERSION, FeatureSpec

__all__ = [
    "BACKBONE",
    "COMMON",
    "ENGINES",
    "HEAD_DEFAULTS",
    "NOT_OF_LABEL",
    "POOLINGS",
    "PRECISIONS",
    "SPEC_VERSION",
    "Columns",
    "ExtractConfig",
    "ExtractOptions",
    "FeatureSpec",
    "FinetuneConfig",
    "FinetuneOptions",
    "Folders",
    "HeadConfig",
    "ImageConfig",
    "LabelOptions",
    "SplitConfig",
    "TrainingOptions",
    "user_cache",
]
