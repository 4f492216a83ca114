"""The stages, and how they are wired: nothing else knows more than its own part."""

from pipeline.commands.backbones import backbones
from pipeline.commands.evaluate import evaluate
from pipeline.commands.explain import Explanation, explain
from pipeline.commands.export import Export, export
from pipeline.commands.extract import ExtractResult, extract
from pipeline.commands.finetune import finetune
from pipeline.commands.finetune_each import finetune_each
from pipeline.commands.inspect import inspect
from pipeline.commands.label import Labelled, label
from pipeline.commands.learning_curve import learning_curve
from pipeline.commands.predict import Answers, ImageAnswer, predict
from pipeline.commands.report import Report, report
from pipeline.commands.search import Search, search
from pipeline.commands.sweep import sweep
from pipeline.commands.train_head import train_head
from pipeline.config import FinetuneOptions, LabelOptions, TrainingOptions
from pipeline.runs.classifier import Classifier, open_classifier
from pipeline.runs.trained_head import TrainedHead, open_head

__all__ = [
    "Answers",
    "Classifier",
    "Explanation",
    "Export",
    "ExtractResult",
    "FinetuneOptions",
    "ImageAnswer",
    "LabelOptions",
    "Labelled",
    "Report",
    "Search",
    "TrainedHead",
    "TrainingOptions",
    "backbones",
    "evaluate",
    "explain",
    "export",
    "extract",
    "finetune",
    "finetune_each",
    "inspect",
    "label",
    "learning_curve",
    "open_classifier",
    "open_head",
    "predict",
    "report",
    "search",
    "sweep",
    "train_head",
]
