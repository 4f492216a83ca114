"""What a dataset holds and what is wrong with it: duplicates, leaks, doubtful labels, outliers."""

from pipeline.inspection.doubts import Neighbours, held_out_probabilities, label_errors, outliers
from pipeline.inspection.duplicates import PICTURE, Group, exact_duplicates, near_duplicates, same_pictures
from pipeline.inspection.findings import ByFeatures, Inspection, LabelError, facts_of
from pipeline.inspection.page import heading, sections

__all__ = [
    "PICTURE",
    "ByFeatures",
    "Group",
    "Inspection",
    "LabelError",
    "Neighbours",
    "exact_duplicates",
    "facts_of",
    "heading",
    "held_out_probabilities",
    "label_errors",
    "near_duplicates",
    "outliers",
    "same_pictures",
    "sections",
]
