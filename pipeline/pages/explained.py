"""Copies of pictures in which the parts that support a class are coloured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.config import ImageConfig
from pipeline.data import ImageSource
from pipeline.data.images import Pixels, read_pixels
from pipeline.runs.class_maps import Maps, class_maps
from pipeline.runs.classifier import Classifier
from pipeline.store.records import plain_name
from pipeline.util import disk
from pipeline.util.files import published
from pipeline.util.progress import progress

SIDE = 448  # pixels that a picture has at least
COVERED = 0.7  # share of a picture's own colours that the strongest place hides


def draw_maps(
    classifier: Classifier,
    source: ImageSource,
    locations: Sequence[str],
    labels: NDArray[np.int64],
    cache: Path,
    folder: Path,
) -> list[Path]:
    """Draw where each picture shows a class, as the network sees it, but large enough for people; tell the files.

    Args:
        classifier: The run.
        source: The pictures, all of which can be read.
        locations: Where they lie, for people.
        labels: The class that is asked about, for each picture, shape [n].
        cache: The cache folder.
        folder: Where the files go.

    Raises:
        ConfigError: If the run has no places to show.
        StoreError: If a file can't be written.
    """
    spec = classifier.run.specs[0]
    height, width = spec.image_size
    times = max(1, round(SIDE / min(height, width)))
    limit = classifier.run.extracts[0].pixel_limit
    seen = ImageConfig((height * times, width * times), spec.resize, spec.interpolation, limit)
    keys = source.keys(None, rehash=False).column.tolist()
    files: list[Path] = []
    with progress("Drawing", len(keys)) as advance:
        for row, maps in enumerate(class_maps(classifier, source, locations, labels, cache)):
            # Pictures of one name, such as 1.jpg, are told apart by what they hold, and classes by their numbers.
            label = int(labels[row])
            parts = (Path(locations[row]).stem, keys[row][:8].decode(), str(label), classifier.class_names[label])
            files.append(folder / f"{'-'.join(map(plain_name, parts))}.png")
            pixels = coloured(read_pixels(source, row, keys[row], seen), maps)
            with published(files[-1]) as partial:
                Image.fromarray(pixels).save(disk.change("write", partial), "PNG")
            advance(1)
    return files


def coloured(pixels: Pixels, maps: Maps) -> Pixels:
    """A picture [h, w, 3] with those places coloured where maps are above 0; the strongest the most."""
    height, width = pixels.shape[:2]
    enlarged = [
        Image.fromarray(one.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC) for one in maps
    ]
    total = np.maximum(np.sum([np.asarray(one) for one in enlarged], axis=0), 0.0)
    strength = total / max(float(total.max()), np.finfo(np.float32).tiny)
    grey = Image.fromarray(np.rint(255 * strength).astype(np.uint8))
    colours = ImageOps.colorize(grey, black="navy", mid="orangered", white="yellow")
    mask = Image.fromarray(np.rint(255 * COVERED * strength).astype(np.uint8))
    return np.asarray(Image.composite(colours, Image.fromarray(pixels), mask))
