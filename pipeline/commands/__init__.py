"""The stages, and how they are wired: nothing else knows more than its own part."""

from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import Export, export
from pipeline.commands.extract import ExtractResult, extract
from pipeline.commands.finetune import finetune
from pipeline.commands.inspect import inspect
from pipeline.commands.predict import Answers, ImageAnswer, predict
from pipeline.commands.report import Report, report
from pipeline.commands.sweep import CurveResult, learning_curve, sweep
from pipeline.commands.train_head import train_head
from pipeline.extraction.plan import features_of
from pipeline.finetuning.start import FinetuneOptions
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.runs.trained_head import TrainedHead, open_head
from pipeline.selection.tables import TableOptions

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
