"""Datasets: what DATA on the command line can be, and how it becomes rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.config import SplitConfig
from pipeline.data.arrays import is_array_folder, listing_of_arrays, read_array_folder, read_npz
from pipeline.data.cifar import is_cifar_folder, read_cifar, read_cifar_folder
from pipeline.data.dataset import (
    KEY_DTYPE,
    SPLITS,
    ArraySource,
    Dataset,
    FileSource,
    ImageSource,
    Listing,
    Unreadable,
    array_key,
    check_classes,
    file_key,
    printable,
    read_bytes,
    shortened,
)
from pipeline.data.folder import read_folder
from pipeline.data.manifest import MANIFEST_SUFFIXES, read_manifest
from pipeline.data.splits import carve, twin_rows, twins
from pipeline.data.unlabelled import list_images
from pipeline.errors import DataError
from pipeline.util.memo import Memo

__all__ = [
    "BUILT_IN",
    "KEY_DTYPE",
    "SPLITS",
    "ArraySource",
    "Dataset",
    "FileSource",
    "ImageSource",
    "Opened",
    "Unreadable",
    "array_key",
    "check_classes",
    "file_key",
    "list_images",
    "open_dataset",
    "open_labelled",
    "printable",
    "read_bytes",
    "shortened",
    "twin_rows",
]

BUILT_IN = ("digits", "cifar10", "cifar100")


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset, the pixels of its rows, and what a user should know.

    Attributes:
        dataset: The rows.
        source: Pixels, in the order of the rows.
        unreadable: Files that could not even be opened; they are no rows.
        notes: Sentences for people.
        carved: The splits that the source doesn't have.
    """

    dataset: Dataset
    source: ImageSource
    unreadable: list[Unreadable]
    notes: list[str]
    carved: tuple[str, ...]


def open_dataset(data: str, config: SplitConfig, *, memo: Memo | None = None, rehash: bool = False) -> Opened:
    """Open what a user names as DATA.

    Args:
        data: A folder, a manifest, an `.npz` file, a folder of arrays, or a built-in name.
        config: How missing splits are carved.
        memo: Where image keys of unchanged files are remembered.
        rehash: Read every file again, whatever the memo says.

    Raises:
        DataError: If it isn't there, or can't be used to train a classifier.
    """
    opened = _opened(data, memo, rehash)
    dataset = opened.dataset
    check_classes(dataset.name, dataset.class_names)
    splits = carve(dataset.keys, dataset.labels, dataset.splits, config)
    carved = tuple(split for split in SPLITS if split not in dataset.splits)
    dataset = replace(dataset, splits=splits)
    if not (splits == "train").any():
        raise DataError(f"{data} has no training images: {dataset.counts()}")
    notes = [*opened.notes, *twins(dataset.keys, dataset.labels, splits, list(dataset.locations))]
    return replace(opened, dataset=dataset, notes=notes, carved=carved)


def open_labelled(data: str, *, memo: Memo | None = None) -> Opened:
    """Open labelled data to be rated on: splits as the source has them, "" where it has none; one class will do.

    Raises:
        DataError: If it isn't there, or can't be read.
    """
    return _opened(data, memo, rehash=False)


def _opened(data: str, memo: Memo | None, rehash: bool) -> Opened:
    """The images of a source that can be opened, with the splits it gives."""
    listing = _read(data)
    keys = listing.source.keys(memo, rehash=rehash)
    kept = [index for index, key in enumerate(keys) if isinstance(key, bytes)]
    unreadable = [
        Unreadable(listing.locations[index], str(key)) for index, key in enumerate(keys) if not isinstance(key, bytes)
    ]
    if not kept:
        raise DataError(f"None of the {len(keys):,} images of {data} can be opened: {unreadable[0].cause}")
    class_names = _class_order({listing.labels[index] for index in kept})
    numbers = {name: number for number, name in enumerate(class_names)}
    key_column = np.array([keys[index] for index in kept], KEY_DTYPE)
    labels = np.array([numbers[listing.labels[index]] for index in kept], np.int64)
    locations = [listing.locations[index] for index in kept]
    given = np.array([listing.splits[index] for index in kept], "U5")
    dataset = Dataset(printable(listing.name), key_column, labels, given, tuple(locations), class_names)
    return Opened(dataset, listing.source.take(kept), unreadable, listing.notes, ())


def _class_order(names: set[str]) -> tuple[str, ...]:
    """Sorted; by value where all names are whole numbers, so that 10 comes after 9."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _read(data: str) -> Listing:
    if not data:
        raise DataError("DATA is empty; give a folder, a file, or a built-in name")
    path = Path(data).expanduser()
    try:
        there = path.exists()
        if path.is_dir():
            next(path.iterdir(), None)
    except OSError as error:
        raise DataError(f"{data[:100]} can't be read: {error.strerror}; check its name and permissions") from error
    if data == "digits":
        return _digits()
    if data in BUILT_IN:  # a folder of this name is ./NAME
        return read_cifar(data)
    if path.is_dir():
        if is_array_folder(path):
            return read_array_folder(path)
        return read_cifar_folder(path) if is_cifar_folder(path) else read_folder(path)
    if not there:
        raise DataError(
            f"There is no {data!r}; DATA is a folder, a {', '.join(MANIFEST_SUFFIXES)} or .npz file, "
            f"or one of {', '.join(BUILT_IN)}"
        )
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return read_manifest(path)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    raise DataError(
        f"{data} is no kind of data that can be read; give a folder, a {', '.join(MANIFEST_SUFFIXES)} or an .npz file"
    )


def _digits() -> Listing:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels, grey 0..16 (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return listing_of_arrays("digits", [("", "digits", images, digits.target)])
