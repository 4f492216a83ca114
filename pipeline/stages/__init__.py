"""The stages, and how they are wired: nothing else knows more than its own part."""

from pipeline.stages.features import ExtractResult, extract, features_of
from pipeline.stages.training import train_head
from pipeline.stages.tuning import finetune

__all__ = ["ExtractResult", "extract", "features_of", "finetune", "train_head"]
