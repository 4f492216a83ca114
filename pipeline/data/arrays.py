"""Arrays: an `.npz` file, or a folder of `train_images.npy`, `train_labels.npy`, ..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import Listing
from pipeline.data.folder import SPLIT_NAMES
from pipeline.data.source import ArraySource
from pipeline.errors import DataError
from pipeline.util.archives import arrays_of
from pipeline.util.texts import Texts

Part = tuple[str, str, NDArray[Any], NDArray[Any] | None]
"""(split or "", name of the images, images, labels, or None where there are none)"""


def read_npz(path: Path) -> Listing:
    """Read `x_train, y_train, x_test, y_test` (perhaps `x_val, y_val`), or `images, labels`; perhaps `class_names`.

    Without any labels the images are unlabelled; labels for only some of the arrays are taken for a mistake.

    Raises:
        DataError: If arrays are missing or don't fit each other.
    """
    try:
        with arrays_of(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds; what is no archive has no names
        raise DataError(
            f"{path} can't be read: {error}; save it with numpy.savez and without Python objects"
        ) from error
    if "images" in arrays:
        parts: list[Part] = [("", "images", arrays["images"], arrays.get("labels"))]
    else:
        labelled = any(name.startswith("y_") for name in arrays)
        lonely = [
            f"x_{name}" for name in SPLIT_NAMES if labelled and (f"x_{name}" in arrays) != (f"y_{name}" in arrays)
        ]
        if lonely:
            raise DataError(f"{path} has only one of {lonely[0]} and y{lonely[0][1:]}; both are needed, or none")
        parts = [
            (split, f"x_{name}", arrays[f"x_{name}"], arrays.get(f"y_{name}"))
            for name, split in SPLIT_NAMES.items()
            if f"x_{name}" in arrays
        ]
    if "train" not in {part[0] for part in parts} | {part[0] or "train" for part in parts}:
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; "
            "needed are x_train and y_train (perhaps x_val, x_test), or images and labels"
        )
    return listing_of_arrays(path.stem, parts, arrays.get("class_names"))


def is_array_folder(folder: Path) -> bool:
    """Whether a folder holds arrays rather than pictures."""
    return (folder / "train_images.npy").is_file()


def read_array_folder(folder: Path) -> Listing:
    """Read `train_images.npy, train_labels.npy` and perhaps `val_...`, `test_...` and `class_names.npy`.

    Without any labels the images are unlabelled.

    Raises:
        DataError: If only some of the images have labels.
    """
    parts: list[Part] = []
    labelled = any((folder / f"{name}_labels.npy").is_file() for name in SPLIT_NAMES)
    for name, split in SPLIT_NAMES.items():
        images, labels = folder / f"{name}_images.npy", folder / f"{name}_labels.npy"
        if images.is_file():
            if labelled and not labels.is_file():
                raise DataError(f"{images} is there, but {labels.name} isn't")
            parts.append((split, images.stem, _load(images), _load(labels) if labelled else None))
    names = folder / "class_names.npy"
    return listing_of_arrays(folder.resolve().name, parts, _load(names) if names.is_file() else None)


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, of which many kinds come
        raise DataError(f"{path} can't be read: {error}; save it with numpy.save and without Python objects") from error
    return array


def listing_of_arrays(name: str, parts: Sequence[Part], class_names: NDArray[Any] | None = None) -> Listing:
    """List images given as arrays.

    Args:
        name: Short name for people.
        parts: For each split its images [n, h, w] or [n, h, w, 1, 3 or 4], uint8, floats 0..1, or any numbers 0..255,
            and its labels [n] or [n, 1], integers or texts, or None.
        class_names: Name of each integer label, or None.

    Raises:
        DataError: If shapes, lengths or values don't fit.
    """
    labels: list[str] = []
    splits: list[str] = []
    source = []
    for split, title, images, numbers in parts:
        if numbers is not None and len(images) != len(numbers):
            raise DataError(f"{name}: {title} has {len(images):,} images, but there are {len(numbers):,} labels for it")
        if len(images) == 0:
            continue
        source.append((images, _factor(name, title, images)))
        labels += [""] * len(images) if numbers is None else _label_texts(name, title, numbers, class_names)
        splits += [split] * len(images)
    if not labels:
        raise DataError(f"{name} has no images")
    locations = Texts(f"{title}[{row}]" for _, title, images, _ in parts for row in range(len(images)))
    return Listing(name, labels, splits, locations, ArraySource(source))


def _factor(name: str, title: str, images: NDArray[Any]) -> float:
    """Check the images of one split and tell the factor that brings their values to 0..255."""
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{name}: {title} has the shape {list(images.shape)}; "
            "needed is [n, height, width], or [n, height, width, channels] with 1, 3 or 4 channels"
        )
    if images.dtype == np.uint8:
        return 1.0
    if not np.issubdtype(images.dtype, np.number) and images.dtype != np.bool_:
        raise DataError(f"{name}: {title} is of the type {images.dtype}; needed are numbers, best uint8")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255):
        raise DataError(f"{name}: {title} has values from {low:g} to {high:g}; needed are 0..255, or floats 0..1")
    in_shares = np.issubdtype(images.dtype, np.floating) and high <= 1
    return 255.0 if in_shares or images.dtype == np.bool_ else 1.0


def _label_texts(name: str, title: str, labels: NDArray[Any], class_names: NDArray[Any] | None) -> list[str]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{name}: the labels of {title} have the shape {list(labels.shape)}; needed is one label a row")
    if labels.dtype.kind in "US":
        return [text.decode() if isinstance(text, bytes) else str(text) for text in labels.tolist()]
    if labels.dtype.kind not in "iub":
        raise DataError(f"{name}: the labels of {title} are of the type {labels.dtype}; needed are integers or texts")
    if class_names is None:
        texts = {label: str(int(label)) for label in np.unique(labels).tolist()}  # one text for all of its images
        return [texts[label] for label in labels.tolist()]
    names = [text.decode() if isinstance(text, bytes) else str(text) for text in np.asarray(class_names).tolist()]
    if len(set(names)) != len(names):
        raise DataError(f"{name}: class_names repeats a name")
    if int(labels.min()) < 0 or int(labels.max()) >= len(names):
        raise DataError(
            f"{name}: the labels of {title} go from {labels.min()} to {labels.max()}, "
            f"but there are {len(names)} class names"
        )
    return [names[label] for label in labels]
