"""k nearest neighbours by cosine, each neighbour's vote weighed by exp(cosine / 0.07).

Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HeadConfig
from pipeline.errors import ConfigError
from pipeline.heads.base import COSINE_TEMPERATURE, FitReport, check_array, damaged, not_fitted
from pipeline.heads.many import Trial
from pipeline.heads.prepare import Preparation
from pipeline.store.rows import Part, nothing
from pipeline.util import disk
from pipeline.util.archives import arrays_of
from pipeline.util.text import counted

if TYPE_CHECKING:
    import keras

FILE = "head.npz"
MOST_CLASSES = 1_000_000  # a file that names more was not written by `save`
COSINES = 2**23  # that are held at a time


class KnnHead:
    """Keeps the training images; those nearest to an image vote for its class, each with weight exp(cosine / 0.07)."""

    trainable_parameters = 0
    refits = True

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.k = int(config.head.removeprefix("knn"))
        self.n_classes = 0
        self.prepare: Preparation | None = None
        self.n_train = 0  # rows of the bank that are training images; then come validation images
        self.bank = np.zeros((0, 0), np.float32)
        self.labels = np.zeros(0, np.int64)

    @property
    def keeps_train_alone(self) -> bool:
        """As `Head.keeps_train_alone`; a bank of before version 0.2 doesn't tell which images are which."""
        return self.n_train > 0

    @property
    def n_features(self) -> int:
        """As `Head.n_features`."""
        return self.bank.shape[1]

    def fit(self, train: Part, val: Part, n_classes: int) -> FitReport:
        """As `Head.fit`; nothing is chosen."""
        self.n_classes = n_classes
        self.prepare = Preparation.fit(train, standardize=self.config.standardize, l2_normalize=True)
        self.bank, self.labels, self.n_train = self.prepare(train.array()), train.labels, len(train)
        if self.k > len(train):
            return FitReport(notes=[f"There are only {counted(len(train), 'training image')}; all of them vote"])
        return FitReport()

    def refit(self, both: Part) -> None:
        """As `Head.refit`: the validation images, which stand last, get a vote too; features are prepared as before."""
        if self.prepare is None:
            raise not_fitted()
        self.bank, self.labels = self.prepare(both.array()), both.labels

    def predict_proba(self, features: NDArray[np.floating], *, final: bool = True) -> NDArray[np.float64]:
        """As `Head.predict_proba`."""
        return self.votes(features, [self.k], None if final else self.n_train or None)[0]

    def votes(
        self, features: NDArray[np.floating], ks: Sequence[int], n_bank: int | None = None
    ) -> list[NDArray[np.float64]]:
        """Probabilities [n, classes] for each number of neighbours, from one product.

        Args:
            features: Shape [n, d].
            ks: Numbers of neighbours.
            n_bank: Images that have a vote; None for all.
        """
        if self.prepare is None:
            raise not_fitted()
        bank, bank_labels = self.bank[:n_bank], self.labels[:n_bank]
        most = min(max(ks), len(bank_labels))
        found = [np.empty((len(features), self.n_classes)) for _ in ks]
        at_once = max(1, COSINES // len(bank))
        for start in range(0, len(features), at_once):
            query = self.prepare(features[start : start + at_once])
            cosines = (query @ bank.T) / np.float32(query.shape[1])
            nearest = np.argpartition(cosines, -most, axis=1)[:, -most:]
            near = _cosines_of(query, bank, nearest)
            order = np.argsort(-near, axis=1, kind="stable")
            near = np.take_along_axis(near, order, axis=1)
            labels = bank_labels[np.take_along_axis(nearest, order, axis=1)]
            weights = np.exp((near - near[:, :1]) / COSINE_TEMPERATURE)
            for k, probabilities in zip(ks, found, strict=True):
                votes = np.zeros((len(query), self.n_classes))
                rows = np.arange(len(query))[:, None]
                np.add.at(votes, (rows, labels[:, :k]), weights[:, :k])
                probabilities[start : start + at_once] = votes / votes.sum(axis=1, keepdims=True)
        return found

    def gradients(self, features: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.floating]:
        """As `Head.gradients`: there are none, as votes change in steps."""
        raise ConfigError(
            f"{self.config.head} is no network, so it can't be told where it sees a class; train another head: tlpipe "
            "train-head --head linear"
        )

    def layers(self, *, final: bool = False) -> list[keras.Layer]:
        """As `Head.layers`: there are none."""
        raise ConfigError(
            f"{self.config.head} is no network: it can be neither exported nor fine-tuned below; train another head: "
            "tlpipe train-head --head linear"
        )

    def save(self, folder: Path) -> None:
        """As `Head.save`: plain arrays."""
        if self.prepare is None:
            raise not_fitted()
        arrays = self.prepare.arrays()
        counts: dict[str, Any] = {"n_classes": np.array(self.n_classes), "n_train": np.array(self.n_train)}
        np.savez(disk.change("write", folder / FILE), bank=self.bank, labels=self.labels, **counts, **arrays)

    @classmethod
    def load(cls, folder: Path, config: HeadConfig) -> KnnHead:
        """As `Head.load`."""
        head = cls(config)
        try:
            with arrays_of(folder / FILE) as file:
                head.prepare = Preparation.read(file)
                head.bank, labels = check_array(file["bank"], 2), file["labels"]
                head.n_classes = int(file["n_classes"])
                head.n_train = int(file["n_train"]) if "n_train" in file else 0
            if head.bank.shape != (len(labels), len(head.prepare.mean)) or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError("the shapes of its arrays don't fit each other")
            if not 0 <= labels.min() <= labels.max() < head.n_classes <= MOST_CLASSES:
                raise ValueError("its labels are not those of its classes")
            if not 0 <= head.n_train <= len(labels):
                raise ValueError("it names more training images than it holds")
            head.labels = labels.astype(np.int64)
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise damaged(folder / FILE, error) from error
        return head


def fit_many(
    configs: Sequence[HeadConfig], train: Part, vals: Sequence[Part], n_classes: int, seconds: float
) -> Iterator[Trial]:
    """As `many.FitMany`: settings that differ in the number of neighbours alone, from one product."""
    head = KnnHead(configs[0])
    head.fit(train, nothing(train), n_classes)
    ks = [KnnHead(config).k for config in configs]
    for number, probabilities in enumerate(zip(*(head.votes(val.array(), ks) for val in vals), strict=True)):
        yield Trial(number, list(probabilities))


def _cosines_of(
    query: NDArray[np.floating], bank: NDArray[np.floating], nearest: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cosines [n, k] of images [n, d] and their neighbours, to more digits than the product that found these.

    Some libraries round that product by how many images are asked about, and the votes multiply it by 1 / 0.07.
    """
    found = np.empty(nearest.shape)
    for row, near in enumerate(nearest):
        found[row] = (bank[near].astype(np.float64) * query[row]).sum(axis=1) / query.shape[1]
    return found
