"""The stages, and how they are wired: nothing else knows more than its own part."""

from pipeline.stages.choosing import CurveResult, learning_curve, sweep
from pipeline.stages.exporting import Export, export
from pipeline.stages.features import ExtractResult, extract
from pipeline.stages.inspecting import inspect
from pipeline.stages.judging import evaluate
from pipeline.stages.predicting import Answers, ImageAnswer, predict
from pipeline.stages.reporting import Report, report
from pipeline.stages.rows import features_of
from pipeline.stages.serving import Classifier, open_classifier
from pipeline.stages.starting import FinetuneOptions
from pipeline.stages.tables import TableOptions
from pipeline.stages.trained import TrainedHead, open_head
from pipeline.stages.training import train_head
from pipeline.stages.tuning import finetune

__all__ = [
    "Answers",
    "Classifier",
    "CurveResult",
    "Export",
    "ExtractResult",
    "FinetuneOptions",
    "ImageAnswer",
    "Report",
    "TableOptions",
    "TrainedHead",
    "evaluate",
    "export",
    "extract",
    "features_of",
    "finetune",
    "inspect",
    "learning_curve",
    "open_classifier",
    "open_head",
    "predict",
    "report",
    "sweep",
    "train_head",
]
