"""Heads that are one affine map of prepared features: what they share, saved as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.heads.base import check_array, damaged, not_fitted, probabilities_of
from pipeline.heads.prepare import Preparation
from pipeline.util import disk, runtime
from pipeline.util.archives import arrays_of

if TYPE_CHECKING:
    import keras
    from typing_extensions import Self

FILE = "head.npz"


def one_column(
    weights: NDArray[np.floating], bias: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Of two classes, the logit of the second less that of the first; more classes as they are."""
    if weights.shape[1] == 2:
        return weights[:, 1:] - weights[:, :1], bias[1:] - bias[:1]
    return weights, bias


@dataclass(frozen=True, slots=True)
class AffineMap:
    """A preparation and an affine map to logits; with one column, to the log odds of the second class.

    Attributes:
        prepare: Of features.
        weights: Shape [d, logits].
        bias: Shape [logits].
    """

    prepare: Preparation
    weights: NDArray[np.floating]
    bias: NDArray[np.floating]

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities [n, classes] of features [n, d]."""
        return probabilities_of(self.prepare(features) @ self.weights.astype(np.float32) + self.bias)

    def gradients(self, features: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Head.gradients`; without equal lengths the same for all images of a class."""
        weights = self.weights.astype(np.float32)
        if weights.shape[1] == 1:
            weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        return self.prepare.backward(features, (weights - weights.mean(axis=1, keepdims=True)).T[labels])

    def arrays(self) -> dict[str, Any]:
        """As arrays to save."""
        return {**self.prepare.arrays(), "weights": self.weights, "bias": self.bias}


class AffineHead:
    """A head of one affine map; that of the training images is kept beside that which saw the validation images too.

    Attributes:
        trained: Fitted on the training images alone.
        final: What predicts: the same, or fitted on training and validation images.
    """

    refits = True
    keeps_train_alone = True

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.trained: AffineMap | None = None
        self.final: AffineMap | None = None

    @property
    def trainable_parameters(self) -> int:
        """As `Head.trainable_parameters`."""
        return 0 if self.final is None else self.final.weights.size + self.final.bias.size

    @property
    def n_features(self) -> int:
        """As `Head.n_features`."""
        return 0 if self.final is None else len(self.final.weights)

    def predict_proba(self, features: NDArray[np.floating], *, final: bool = True) -> NDArray[np.float64]:
        """As `Head.predict_proba`."""
        affine = self.final if final else self.trained
        if affine is None:
            raise not_fitted()
        return affine.predict_proba(features)

    def gradients(self, features: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Head.gradients`."""
        if self.final is None:
            raise not_fitted()
        return self.final.gradients(features, labels)

    def layers(self, *, final: bool = False) -> list[keras.Layer]:
        """As `Head.layers`."""
        affine = self.final if final else self.trained
        if affine is None:
            raise not_fitted()
        dense = runtime.keras().layers.Dense(affine.weights.shape[1], name="logits")
        dense.build((None, affine.weights.shape[0]))
        dense.set_weights([affine.weights, affine.bias])
        return [*affine.prepare.layers(), dense]

    def save(self, folder: Path) -> None:
        """As `Head.save`: plain arrays."""
        if self.trained is None or self.final is None:
            raise not_fitted()
        maps = {"trained": self.trained, "final": self.final}
        arrays = {f"{name}_{field}": array for name, part in maps.items() for field, array in part.arrays().items()}
        np.savez(disk.change("write", folder / FILE), **arrays)

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> Self:
        """As `Head.load`."""
        head = cls(config)
        try:
            with arrays_of(folder / FILE) as file:
                head.trained, head.final = (_read(file, name) for name in ("trained", "final"))
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise damaged(folder / FILE, error) from error
        return head


def _read(file: Any, name: str) -> AffineMap:
    prepare = Preparation.read(file, f"{name}_")
    found = AffineMap(prepare, check_array(file[f"{name}_weights"], 2), check_array(file[f"{name}_bias"], 1))
    if found.weights.shape != (len(prepare.mean), len(found.bias)):
        raise ValueError("the shapes of its arrays don't fit each other")
    return found
