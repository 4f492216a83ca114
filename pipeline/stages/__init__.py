"""The stages, and how they are wired: nothing else knows more than its own part."""

from pipeline.stages.choosing import CurveResult, learning_curve, sweep
from pipeline.stages.features import ExtractResult, extract, features_of
from pipeline.stages.starting import FinetuneOptions
from pipeline.stages.tables import TableOptions
from pipeline.stages.trained import TrainedHead, open_head
from pipeline.stages.training import train_head
from pipeline.stages.tuning import finetune

__all__ = [
    "CurveResult",
    "ExtractResult",
    "FinetuneOptions",
    "TableOptions",
    "TrainedHead",
    "extract",
    "features_of",
    "finetune",
    "learning_curve",
    "open_head",
    "sweep",
    "train_head",
]
