"""Pictures of a dataset for a page: thumbnails as data addresses, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import ImageConfig
from pipeline.data import ImageSource
from pipeline.data.augment import Augment
from pipeline.data.images import Pixels, read_picture, read_pixels
from pipeline.errors import ImageError

QUALITY = 70


class Pictures:
    """The images of a dataset, by row; those that can't be read have no picture.

    Args:
        source: The images.
        keys: Their keys, shape [n].
        pixel_limit: Images of more pixels are not decoded.
    """

    def __init__(self, source: ImageSource, keys: NDArray[np.bytes_], pixel_limit: int) -> None:
        self.source = source
        self.pixel_limit = pixel_limit
        self.keys = keys
        self.rows = {bytes(key): row for row, key in reversed(list(enumerate(keys.tolist())))}
        self._made: dict[tuple[bytes, int, str, int], str | None] = {}

    def pixels(self, row: int, config: ImageConfig) -> Pixels:
        """Pixels [h, w, 3] of an image.

        Raises:
            ImageError: If it can't be read, or has changed.
        """
        return self._read(row, replace(config, pixel_limit=self.pixel_limit), None, 0)

    def thumbnail(self, row: int, side: int, augment: Augment | None = None, view: int = 0) -> str | None:
        """A square picture as the address of its own content; the same for the same image.

        Args:
            row: Of the image.
            side: Pixels.
            augment: How views are made.
            view: 0 for the image itself.
        """
        name = (bytes(self.keys[row]), side, str(augment) if view else "", view)
        if name not in self._made:
            self._made[name] = self._draw(row, side, augment, view)
        return self._made[name]

    def webp(self, row: int, side: int, augment: Augment | None = None, view: int = 0) -> bytes | None:
        """A square picture as the bytes of a WebP file; arguments as in `thumbnail`."""
        try:
            config = ImageConfig((side, side), "crop", pixel_limit=self.pixel_limit)
            pixels = self._read(row, config, augment if view else None, view)
        except ImageError:
            return None
        return _webp(Image.fromarray(pixels))

    def _draw(self, row: int, side: int, augment: Augment | None, view: int) -> str | None:
        data = self.webp(row, side, augment, view)
        return None if data is None else _address(data)

    def whole(self, row: int, side: int) -> bytes | None:
        """A picture with its own proportions, as the bytes of a WebP file; None if it can't be read.

        Args:
            row: Of the image.
            side: Pixels of its longer side at most.
        """
        try:
            config = ImageConfig((side, side), pixel_limit=self.pixel_limit)
            picture = read_picture(self.source, row, bytes(self.keys[row]), config)
        except ImageError:
            return None
        picture.thumbnail((side, side))
        return _webp(picture)

    def _read(self, row: int, config: ImageConfig, augment: Augment | None, view: int) -> Pixels:
        key = bytes(self.keys[row])
        return read_pixels(self.source, row, key, config, augment, view)


def webp_address(pixels: Pixels) -> str:
    """Pixels [h, w, 3] as the address of their own content."""
    return _address(_webp(Image.fromarray(pixels)))


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def _address(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
