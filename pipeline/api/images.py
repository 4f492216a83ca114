"""Images as Python programs hold them: paths, arrays, and Pillow's pictures, alone or together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from pipeline.data import ArraySource, FileSource, ImageSource, MixedSource, printable
from pipeline.data.images import to_array
from pipeline.errors import DataError, ImageError

Images = Sequence[str | Path | NDArray[Any] | Picture] | NDArray[Any]
"""Paths, uint8 arrays [h, w] or [h, w, 1, 3 or 4] of any size, and Pillow images, in any mixture; or one uint8 array
[n, h, w] or [n, h, w, 1, 3 or 4]."""


def source_of(images: Images) -> tuple[ImageSource, list[str]]:
    """Where the pixels of images come from, and what errors call each of them: its number, and its path if it has one.

    Raises:
        DataError: If a picture of Pillow can't be read to its end.
        ValueError: If these are no images; scikit-learn's convention for bad input.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind not in "UO":
        return _stack(images)
    items = [images] if isinstance(images, (str, Path)) else list(images)
    if not items:
        raise ValueError("Found array with 0 sample(s), a minimum of 1 is required: there are no images")
    files: list[str] = []
    arrays: list[tuple[NDArray[Any], float]] = []
    places, locations = [], []
    for number, item in enumerate(items):
        path = _path_of(item)
        name = f"Image {number}" if path is None else f"Image {number} ({printable(path)})"
        locations.append(name)
        if isinstance(item, (str, Path)):
            places.append((0, len(files)))
            files.append(str(item))
            continue
        places.append((1, len(arrays)))
        arrays.append((_pixels(item, name)[None], 1.0))
    return MixedSource([FileSource(files), ArraySource(arrays)], places), locations


def _stack(array: NDArray[Any]) -> tuple[ImageSource, list[str]]:
    """Images of one size."""
    if array.shape[:1] == (0,):
        raise ValueError("Found array with 0 sample(s), a minimum of 1 is required: there are no images")
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3, 4)):
        raise _no_images(_described(array))
    return ArraySource([(array, 1.0)]), [f"Image {number}" for number in range(len(array))]


def _path_of(item: Any) -> str | None:
    """The path of an image that has one; a picture that Pillow opened knows its own."""
    if isinstance(item, (str, Path)):
        return os.fspath(item)
    path = getattr(item, "filename", None)
    return os.fspath(path) if isinstance(path, (str, Path)) and os.fspath(path) else None


def _pixels(item: Any, name: str) -> NDArray[Any]:
    """Pixels of an image in memory."""
    if isinstance(item, Picture):
        try:
            return to_array(item)
        except ImageError as error:
            raise DataError(f"{name} can't be read: {error}") from error
    if not isinstance(item, np.ndarray):
        raise _no_images(f"{type(item).__name__} as {name}")
    if item.dtype != np.uint8 or not _is_picture(item.shape):
        raise _no_images(f"{_described(item)} as {name}")
    return item


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"


def _no_images(received: str) -> ValueError:
    return ValueError(
        "Expected paths, pictures of Pillow, or uint8 arrays [height, width] or [height, width, 1, 3 or 4], in a list "
        "of any of them, or one uint8 array [n, height, width] or [n, height, width, 1, 3 or 4]. "
        f"Received: {received}. Reshape your data"
    )
