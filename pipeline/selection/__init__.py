"""Choosing between heads: many settings on the same images, folds, and accuracy against the number of labels."""

from pipeline.selection.curve import Point, draw_subset, gain_of_doubling, sizes_for
from pipeline.selection.folds import Round, folds
from pipeline.selection.grid import GRIDS, candidates
from pipeline.selection.trials import Candidate, Rated, Ratings, mean_over_views, rate

__all__ = [
    "GRIDS",
    "Candidate",
    "Point",
    "Rated",
    "Ratings",
    "Round",
    "candidates",
    "draw_subset",
    "folds",
    "gain_of_doubling",
    "mean_over_views",
    "rate",
    "sizes_for",
]
