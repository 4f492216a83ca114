"""Nearest class mean by cosine: as good as anything where there are a few images of each class.

Source: Snell et al. 2017, arXiv:1703.05175, with the cosine in place of the distance.
"""

from __future__ import annotations

import numpy as np

from pipeline.config import HeadConfig
from pipeline.heads.affine import AffineHead, AffineMap, one_column
from pipeline.heads.base import COSINE_TEMPERATURE, FitReport
from pipeline.heads.prepare import LEAST_LENGTH, Preparation
from pipeline.store.rows import Part


class CentroidHead(AffineHead):
    """Logits are the cosines between features and class means, over a temperature of 0.07."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.n_classes = 0

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`; nothing is chosen."""
        self.n_classes = n_classes
        self.trained = self.final = self._means(train)
        return FitReport()

    def refit(self, both: Part) -> None:
        """As `Head.refit`."""
        self.final = self._means(both)

    def _means(self, part: Part) -> AffineMap:
        prepare = Preparation.fit(part, standardize=self.config.standardize, l2_normalize=True)
        sums = np.zeros((self.n_classes, part.features.shape[1]))
        for rows in part.blocks():
            sums += np.eye(self.n_classes)[part.labels[rows]].T @ prepare(part.load(rows))
        lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), LEAST_LENGTH)
        # Prepared features have the length sqrt(d), so this product is the cosine over the temperature.
        weights = (sums / lengths).T / (COSINE_TEMPERATURE * np.sqrt(sums.shape[1]))
        return AffineMap(prepare, *one_column(weights, np.zeros(self.n_classes)))
