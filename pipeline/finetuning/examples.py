"""Images that are decoded when a step reads them, perhaps in another version in each epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig
from pipeline.data import Dataset, ImageSource, Opened
from pipeline.data.augment import Augment
from pipeline.data.images import read_pixels
from pipeline.errors import DataError, ImageError
from pipeline.store.rows import Part, Rows
from pipeline.store.table import FeatureTable
from pipeline.util import machine


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Inputs that are images of a data set, uint8 [n, height, width, 3].

    Attributes:
        dataset: The dataset, as it is now.
        source: Its images.
        config: How files become pixels.
        indices: Positions of the images in the dataset, shape [n].
        augment: What makes another version of each image in every epoch; None for the images themselves.
        epoch: Number of the epoch, from 1 on; 0 for the images themselves.
    """

    dataset: Dataset
    source: ImageSource
    config: ImageConfig
    indices: NDArray[np.int64]
    augment: Augment | None = None
    epoch: int = 0

    @property
    def workers(self) -> int:
        """Decoding threads."""
        return machine.cpu_count()

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, height, width, 3]."""
        return (len(self.indices), *self.config.image_size, 3)

    def take(self, rows: Rows) -> DecodedImages:
        """Some of the images."""
        return replace(self, indices=self.indices[rows])

    def _view(self, image_key: bytes) -> int:
        """Number of the view that an epoch takes of an image: of two, of which `flip` mirrors one, each in its turn.

        Half of the images take the mirrored one first.
        """
        return 2 * self.epoch - (image_key[-1] + self.epoch) % 2 if self.augment and self.epoch else 0

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode some of the images.

        Raises:
            DataError: If one can't be read any more.
        """
        pixels = np.empty((len(rows), *self.config.image_size, 3), np.uint8)
        for number, index in enumerate(self.indices[rows].tolist()):
            key = bytes(self.dataset.keys[index])
            try:
                pixels[number] = read_pixels(self.source, index, key, self.config, self.augment, self._view(key))
            except ImageError as error:
                raise DataError(
                    f"{self.dataset.locations[index]} could be read when its features were computed, and can't be "
                    f"now: {error}; repair it, or run tlpipe extract again"
                ) from error
        return pixels


def indices_of(dataset: Dataset, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Positions in a dataset of the images with some keys."""
    known, first = np.unique(dataset.keys, return_index=True)
    return first[np.searchsorted(known, keys)]


def images_of(
    table: FeatureTable, split: str, opened: Opened, config: ImageConfig, augment: Augment | None = None
) -> Part:
    """The images of one split of a table, decoded when they are read.

    Args:
        table: The table, of the images themselves, without views.
        split: The split.
        opened: What the table was extracted from, as it is now.
        config: How files become pixels.
        augment: As in `DecodedImages`.
    """
    rows, dataset = table.rows(split), opened.dataset
    images = DecodedImages(dataset, opened.source, config, indices_of(dataset, table.keys[rows]), augment)
    return Part(images, table.labels[rows], table.keys[rows], table.views[rows])


def of_epoch(part: Part, epoch: int) -> Part:
    """The rows as an epoch sees them: images may look different in each."""
    images = part.features
    return replace(part, features=replace(images, epoch=epoch)) if isinstance(images, DecodedImages) else part
