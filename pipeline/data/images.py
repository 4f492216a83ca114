"""Bytes or arrays in, uint8 RGB pixels of one size out; one library does it all, in training and in serving.

Every function here raises `ImageError` for an image that can't be shown as RGB, and nothing else for bad bytes.
Formats are told by content, never by suffix. Of an animation the first frame counts. A picture that ends too
early is refused, not half read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.config import ImageConfig
from pipeline.config.extract import share_of_crop
from pipeline.data.augment import Augment
from pipeline.data.source import ImageSource, array_key, file_key
from pipeline.errors import ImageError

Pixels = NDArray[np.uint8]

QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@cache
def _formats() -> list[str]:
    """All formats but those that Pillow hands to another program, or only a plugin of someone else can read."""
    Image.init()
    return [name for name in Image.OPEN if name not in ("EPS", "WMF", "BUFR", "GRIB", "HDF5")]


def reader_name(config: ImageConfig) -> str:
    """What decides whether a file can be read: another version or limit may read what this one can't."""
    return f"pillow {PIL.__version__}, {config.pixel_limit} pixels"


_limit: ContextVar[int | None] = ContextVar("pixel limit of the decoding at hand", default=None)
_pillows_check = Image._decompression_bomb_check


def _check_size(size: tuple[int, int], **options: Any) -> None:
    """Refuse what is far over the limit of the decoding at hand; outside of any, ask Pillow.

    Pillow's own limit is one for the process, so threads with different limits can't share it. It is asked not only as
    a file is opened, but also for its tiles and frames; these may be padded, and are allowed twice the limit.
    """
    limit = _limit.get()
    if limit is None:
        _pillows_check(size, **options)
    elif size[0] * size[1] > 2 * limit:
        raise _over(size, limit)


# Once, as this module is loaded, and before any thread decodes.
Image._decompression_bomb_check = _check_size
# What Pillow has to say about odd metadata is of no use to a reader of pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(data: bytes, config: ImageConfig, *, enlarge: int = 1) -> Image.Image:
    """Decode an image file's bytes as upright RGB.

    Args:
        data: The file's bytes.
        config: Size wanted, and the pixel limit.
        enlarge: How many times larger than `config.image_size` the picture is needed, before a part of it is cut out.

    Returns:
        An RGB image of the file's size, or smaller by a power of two where a JPEG is at least twice as large as needed.

    Raises:
        ImageError: If the bytes are no picture that can be shown as RGB.
    """
    with _limited(config.pixel_limit), _bad_bytes():
        image = _opened(data, config.pixel_limit)
        _draft(image, config, enlarge)
        image.load()
        return _rgb(_upright(image))


@dataclass(frozen=True, slots=True)
class Facts:
    """What an image file says of itself.

    Attributes:
        format: Pillow's name of the format, "JPEG"; "array" of an array.
        mode: Pillow's name of the colour mode: "RGB", "L", "P", "CMYK", ...
        width: Pixels, as stored.
        height: Pixels, as stored.
    """

    format: str
    mode: str
    width: int
    height: int


def describe(content: bytes | NDArray[np.uint8], pixel_limit: int) -> Facts:
    """What an image says of itself, after it was decoded to its end.

    Args:
        content: A file's bytes, or an array as in `from_array`.
        pixel_limit: Images of more pixels than this are refused.

    Raises:
        ImageError: As `decode`.
    """
    if not isinstance(content, bytes):
        mode = {4: "RGBA", 3: "RGB"}.get(content.shape[2] if content.ndim == 3 else 1, "L")
        return Facts("array", mode, content.shape[1], content.shape[0])
    with _limited(pixel_limit), _bad_bytes():
        image = _opened(content, pixel_limit)
        facts = Facts(image.format or "unknown", image.mode, image.width, image.height)
        _draft(image, ImageConfig((1, 1)), 1)  # the smaller, the faster; damage is found all the same
        image.load()
        return facts


def _opened(data: bytes, pixel_limit: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_formats())
    if image.width * image.height > pixel_limit:
        raise _over(image.size, pixel_limit)
    return image


def _over(size: tuple[int, int], limit: int) -> ImageError:
    return ImageError(f"{size[0]:,} x {size[1]:,} pixels, over the limit of {limit:,}")


@contextmanager
def _limited(pixel_limit: int) -> Iterator[None]:
    """Let Pillow refuse images by this limit, in this thread alone."""
    token = _limit.set(pixel_limit)
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def _bad_bytes() -> Iterator[None]:
    """Turn whatever Pillow raises into the error of an image."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:  # the machine's fault, not the file's
        raise ImageError("there is too little memory to decode it", lasting=False) from None
    except UnidentifiedImageError:
        raise ImageError("not an image in a format that can be read") from None
    # Pillow's plugins let whatever goes wrong inside them escape: struct.error, SyntaxError, IndexError and others.
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """An RGB image of an array [h, w], [h, w, 1] (grey), [h, w, 3] (RGB) or [h, w, 4] (RGB and alpha)."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _rgb(Image.fromarray(np.ascontiguousarray(array)))


def to_array(picture: Image.Image) -> Pixels:
    """Upright RGB pixels [h, w, 3] of a Pillow picture.

    Raises:
        ImageError: If it can't be read to its end, or not be shown as RGB.
    """
    with _bad_bytes():
        picture.load()
        return np.asarray(_rgb(_upright(picture)))


def resize(image: Image.Image, config: ImageConfig) -> Pixels:
    """Bring an RGB image to `config.image_size`.

    Returns:
        Shape [height, width, 3].
    """
    height, width = config.image_size
    method = Image.Resampling[config.interpolation.upper()]
    if config.resize == "pad":
        image = _padded(image, (width, height), method)
    elif config.resize.startswith("crop"):
        image = ImageOps.fit(image, (width, height), method, bleed=(1 - share_of_crop(config.resize)) / 2)
    elif image.size != (width, height):
        image = image.resize((width, height), method)
    return np.asarray(image)


def _padded(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    try:
        return ImageOps.pad(image, size, method, color="white")
    except ValueError:  # before Pillow 13, of a picture that would become thinner than half a pixel
        thin = (size[0], 1) if image.width > image.height else (1, size[1])
        return ImageOps.pad(image.resize(thin, method), size, method, color="white")


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
    image = read_picture(source, index, image_key, config, enlarge=2 if view else 1)
    if augment is not None:
        image = augment(image, image_key, view)
    return resize(image, config)


def read_picture(
    source: ImageSource, index: int, image_key: bytes, config: ImageConfig, *, enlarge: int = 1
) -> Image.Image:
    """Read an image as it is; arguments and errors as in `read_pixels` and `decode`."""
    content = source.read(index)
    key = file_key(content) if isinstance(content, bytes) else array_key(content)
    if key != image_key:
        raise ImageError("changed since its key was computed; run again, with --rehash", lasting=False)
    return decode(content, config, enlarge=enlarge) if isinstance(content, bytes) else from_array(content)


def _draft(image: Image.Image, config: ImageConfig, enlarge: int) -> None:
    """Let the JPEG decoder shrink while it decodes, where the picture is at least twice as large as needed."""
    if image.format not in ("JPEG", "MPO"):
        return
    height, width = config.image_size
    if _orientation(image) in QUARTER_TURNS:
        height, width = width, height
    ratios = (width * enlarge / image.width, height * enlarge / image.height)
    # Padding needs the picture to fit into the size; cropping and stretching need it to cover the size.
    ratio = min(ratios) if config.resize == "pad" else max(ratios) / share_of_crop(config.resize)
    if ratio <= 0.5:
        image.draft(None, (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data doesn't spoil a picture
        return 1


def _upright(image: Image.Image) -> Image.Image:
    # TIFF is turned by Pillow as it loads, and the tag is gone then.
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Bring grey values of more than 8 bits to 0..255.

    The file doesn't say what white is. Integers are taken as 16-bit, floats in 0..1 as shares of white, other
    floats as 0..255; what lies outside of that is stretched from its least to its greatest value.
    """
    with np.errstate(invalid="ignore"):  # of a NaN that signals; the next line refuses it in words
        values = grey.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    white = 65535.0 if np.issubdtype(grey.dtype, np.integer) else 255.0 if high > 1 else 1.0
    if low < 0 or high > white:
        values, white = values - low, max(high - low, 1e-12)
    return np.rint(values * (255.0 / white)).astype(np.uint8)
