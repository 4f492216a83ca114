"""Views of an image: view 0 is the image itself, views 1..k are versions drawn once and for all.

What is drawn depends on the image key, the view's number and the operations alone, so a view's features are the
same in every run, and can be cached like those of the image itself.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pipeline.config.extract import OPERATIONS
from pipeline.errors import ConfigError
from pipeline.util.options import one_of

MAX_ANGLE = 15.0  # degrees to either side
CROP_AREA = (0.5, 1.0)  # share of the picture's area
CROP_RATIO = (3 / 4, 4 / 3)  # width to height, relative to the picture's own
ZOOM = (0.7, 1.0)  # share of the picture's sides, about its centre
STRENGTH = (0.7, 1.3)  # factor of brightness and contrast


@dataclass(frozen=True, slots=True)
class Augment:
    """Operations that make a view, always applied in the order of `OPERATIONS`.

    `crop` draws an area of 50 to 100 % and an aspect ratio (Szegedy et al. 2015, arXiv:1409.4842, section 6, with a
    milder area); `rotate` turns by at most 15 degrees and cuts the corners away; `zoom` takes 70 to 100 % of the
    sides about the centre; `brightness` and `contrast` change by at most 30 %; `flip` mirrors left and right in
    every odd view, so that one view of `flip` alone is the mirror image.
    """

    operations: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Augment:
        """Parse `flip,crop`.

        Raises:
            ConfigError: For an unknown operation, or none.
        """
        wanted = {one_of("--augment", part.strip(), OPERATIONS) for part in text.split(",") if part.strip()}
        if not wanted:
            raise ConfigError(f"--augment is empty; it can be {', '.join(OPERATIONS)}, several joined by commas")
        return cls(tuple(operation for operation in OPERATIONS if operation in wanted))

    def __str__(self) -> str:
        return ",".join(self.operations)

    def row_key(self, image_key: bytes, view: int) -> bytes:
        """Key under which a view's features are stored: the image key for view 0, else a digest of its own."""
        return image_key if view == 0 else self._digest(image_key, view)[:16].hex().encode()

    def __call__(self, image: Image.Image, image_key: bytes, view: int) -> Image.Image:
        """Make view number `view` of an RGB image."""
        if view == 0:
            return image
        draw = np.random.default_rng(np.frombuffer(self._digest(image_key, view), np.uint32))
        for operation in self.operations:
            if operation == "flip":
                image = ImageOps.mirror(image) if view % 2 else image
            elif operation == "crop":
                image = _crop(image, draw)
            elif operation == "rotate":
                image = _rotate(image, draw.uniform(-MAX_ANGLE, MAX_ANGLE))
            elif operation == "zoom":
                side = draw.uniform(*ZOOM)
                image = _centre(image, image.width * side, image.height * side)
            elif operation == "brightness":
                image = ImageEnhance.Brightness(image).enhance(draw.uniform(*STRENGTH))
            else:
                image = ImageEnhance.Contrast(image).enhance(draw.uniform(*STRENGTH))
        return image

    def _digest(self, image_key: bytes, view: int) -> bytes:
        return hashlib.blake2b(image_key + f"/{view}/{self}".encode(), digest_size=32).digest()


def _crop(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    area = draw.uniform(*CROP_AREA)
    ratio = math.exp(draw.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    width = max(1, round(image.width * min(1.0, math.sqrt(area * ratio))))
    height = max(1, round(image.height * min(1.0, math.sqrt(area / ratio))))
    left = int(draw.integers(0, image.width - width + 1))
    top = int(draw.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turn about the centre, then keep the largest centred part of the same shape without empty corners."""
    angle = math.radians(abs(degrees))
    longer, shorter = max(image.size), min(image.size)
    share = 1 / (math.cos(angle) + math.sin(angle) * longer / shorter)
    turned = image.rotate(degrees, Image.Resampling.BICUBIC)
    return _centre(turned, image.width * share, image.height * share)


def _centre(image: Image.Image, width: float, height: float) -> Image.Image:
    wide, high = max(1, int(width)), max(1, int(height))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high))
