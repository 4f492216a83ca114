"""What is done to features before a head sees them: standardisation, then equal lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.base import check_array
from pipeline.store.rows import Part
from pipeline.util import runtime

if TYPE_CHECKING:
    import keras

LEAST_DEVIATION = 1e-6  # of a feature's mean; below lies the rounding of float32
LEAST_SHARE = 1e-12  # of the largest deviation of all features
LEAST_LENGTH = 1e-12
LEAST_OF_KERAS = 1e-5
ROWS = 4096  # rows that are widened to float64 at a time


@dataclass(frozen=True, slots=True)
class Preparation:
    """Fitted on training features: z = (x - mean) / scale, and where asked for z * sqrt(d) / |z|.

    The length is the square root of d, not 1, so that features keep a mean square of 1 and learning rates and
    penalties their meaning.

    Attributes:
        l2_normalize: Whether the features of each image are brought to the same length.
        mean: Shape [d]; zeros without standardisation.
        scale: Shape [d]; ones without standardisation.
    """

    l2_normalize: bool
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, part: Part, *, standardize: bool | None, l2_normalize: bool | None) -> Preparation:
        """Learn means and standard deviations of the training features, reading them once.

        A feature that hardly ever changes is not scaled: it would explode when it moves.

        Args:
            part: The training images; their features may lie on disk.
            standardize: Whether to standardise.
            l2_normalize: Whether to bring the features of each image to the same length.
        """
        width = part.features.shape[1]
        plain = cls(bool(l2_normalize), np.zeros(width, np.float32), np.ones(width, np.float32))
        if not standardize:
            return plain
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        for rows in part.blocks():
            block = part.load(rows)
            for start in range(0, len(block), ROWS):
                scaler.partial_fit(block[start : start + ROWS].astype(np.float64))
        return cls.of(scaler.mean_, scaler.var_, l2_normalize=plain.l2_normalize)

    @classmethod
    def of(cls, mean: NDArray[np.float64], variance: NDArray[np.float64], *, l2_normalize: bool) -> Preparation:
        """That which standardises features of this mean [d] and variance [d]."""
        deviations = np.sqrt(variance)
        still = deviations <= np.maximum(LEAST_DEVIATION * np.abs(mean), LEAST_SHARE * deviations.max())
        scale = np.where(still, 1.0, deviations)
        return cls(l2_normalize, mean.astype(np.float32), scale.astype(np.float32))

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Prepare features [n, d]; a copy."""
        prepared = features.astype(np.float32)
        prepared -= self.mean
        prepared /= self.scale
        if self.l2_normalize:
            lengths = np.linalg.norm(prepared, axis=1, keepdims=True) / np.sqrt(np.float32(len(self.mean)))
            prepared /= np.maximum(lengths, LEAST_LENGTH)
        return prepared

    def backward(self, features: NDArray[np.floating], gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """Gradients [n, d] by features, from those by prepared features, shape [n, d]."""
        if self.l2_normalize:
            prepared = self(features)  # of length sqrt(d)
            along = (prepared * gradients).mean(axis=1, keepdims=True)
            lengths = np.linalg.norm((features - self.mean) / self.scale, axis=1, keepdims=True)
            scale = np.sqrt(np.float32(len(self.mean))) / np.maximum(lengths, LEAST_LENGTH)
            gradients = scale * (gradients - along * prepared)
        return (gradients / self.scale).astype(np.float32)

    def layers(self) -> list[keras.Layer]:
        """The same as Keras layers."""
        layers = runtime.keras().layers
        # Keras takes no deviation below 1e-7 for what it is; features of random weights are smaller.
        unit = float(min(1.0, self.scale.min()))
        found = [layers.Rescaling(1 / unit, name="enlarge")] if unit < LEAST_OF_KERAS else []
        unit = unit if found else 1.0
        # Where nearly all features are tiny, one that never changes and so is not scaled would leave single precision.
        variance = np.minimum(np.square(self.scale / unit, dtype=np.float64), np.finfo(np.float32).max)
        mean = self.mean / unit
        found.append(layers.Normalization(mean=mean, variance=variance, name="standardise"))
        if self.l2_normalize:
            scale = float(np.sqrt(len(self.mean)))
            found += [layers.UnitNormalization(name="length_one"), layers.Rescaling(scale, name="lengthen")]
        return found

    @classmethod
    def read(cls, file: Mapping[str, Any], prefix: str = "") -> Preparation:
        """Read what `arrays` gave, from a file that may hold anything.

        Raises:
            ValueError: If it holds something else.
        """
        mean, scale = (check_array(file[f"{prefix}{name}"], 1) for name in ("mean", "scale"))
        if mean.shape != scale.shape or not (scale > 0).all():
            raise ValueError("its means and deviations don't fit each other")
        return cls(bool(file[f"{prefix}l2_normalize"]), mean.astype(np.float32), scale.astype(np.float32))

    def arrays(self) -> dict[str, Any]:
        """As arrays to save."""
        return {"l2_normalize": np.array(self.l2_normalize), "mean": self.mean, "scale": self.scale}
