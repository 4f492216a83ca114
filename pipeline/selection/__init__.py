"""Choosing between heads: many settings on the same images, folds, and accuracy against the number of labels."""
