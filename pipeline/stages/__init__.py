"""The stages, and how they are wired: nothing else knows more than its own part."""

from pipeline.stages.extract import ExtractResult, extract, features_of
from pipeline.stages.finetune import finetune
from pipeline.stages.train_head import train_head

__all__ = ["ExtractResult", "extract", "features_of", "finetune", "train_head"]
