"""From an image of a source to pixels of one size."""

from __future__ import annotations

from pipeline.config import ImageConfig
from pipeline.data import images
from pipeline.data.augment import Augment
from pipeline.data.images import Pixels
from pipeline.data.source import ImageSource, array_key, file_key
from pipeline.errors import ImageError


def read_pixels(
    source: ImageSource,
    index: int,
    image_key: bytes,
    config: ImageConfig,
    augment: Augment | None = None,
    view: int = 0,
) -> Pixels:
    """Read one view of one image and bring it to the size wanted.

    Args:
        source: Where the image comes from.
        index: Its position in the source.
        image_key: Its image key, which its bytes must still have.
        config: How a file becomes pixels.
        augment: How views are made; None for the image itself.
        view: Number of the view.

    Returns:
        Shape [height, width, 3].

    Raises:
        ImageError: If it can't be read, or is no longer what its key says.
    """
    content = source.read(index)
    key = file_key(content) if isinstance(content, bytes) else array_key(content)
    if key != image_key:
        raise ImageError("changed since its key was computed; run again, with --rehash", lasting=False)
    if isinstance(content, bytes):
        image = images.decode(content, config, enlarge=2 if view else 1)
    else:
        image = images.from_array(content)
    if augment is not None:
        image = augment(image, image_key, view)
    return images.resize(image, config)
