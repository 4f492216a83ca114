"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

The original batches come as flat binary files or as Python pickles. Pickles are not loaded: their instructions are
read as a list, without running any, which is enough to find the pixels and the labels.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.arrays import listing_of_arrays
from pipeline.data.dataset import Listing
from pipeline.errors import DataError
from pipeline.util import runtime

PIXELS = 3 * 32 * 32
END_OF_ITEMS = object()

# The addresses and digests are those of Keras (keras.datasets.cifar10 and cifar100), and so is the folder that is
# downloaded to: what Keras has fetched is not fetched again.
DOWNLOADS = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-py",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "cifar-100-python",
    ),
}


def is_cifar_folder(folder: Path) -> bool:
    """Whether a folder holds original batches."""
    names = {path.stem for path in folder.iterdir() if path.suffix in ("", ".bin") and path.is_file()}
    return {"data_batch_1", "test_batch"} <= names or {"train", "test"} <= names


def read_cifar(name: str) -> Listing:
    """Read `cifar10` or `cifar100` from the folder that Keras downloads it to.

    Raises:
        DataError: If it isn't there and can't be fetched.
    """
    address, digest, folder_name = DOWNLOADS[name]
    folder = runtime.keras_home() / "datasets" / f"{folder_name}-target" / folder_name
    if not folder.is_dir():
        get_file = runtime.keras().utils.get_file
        try:
            # Where the folder isn't there yet, Keras would quietly take another one.
            runtime.keras_home().mkdir(parents=True, exist_ok=True)
            with redirect_stdout(sys.stderr):  # Keras draws its progress on standard output
                get_file(f"{folder_name}-target", origin=address, extract=True, file_hash=digest)
        except Exception as error:  # Keras raises a bare Exception where the network fails
            raise DataError(
                f"{name} can't be fetched from {address} ({error}); "
                "fetch and unpack it elsewhere, then give the folder: tlpipe extract FOLDER"
            ) from error
    listing = read_cifar_folder(folder)
    return Listing(name, listing.labels, listing.splits, listing.locations, listing.source, listing.notes)


def read_cifar_folder(folder: Path) -> Listing:
    """Read a folder of original batches, binary or Python version.

    Raises:
        DataError: If files are missing or not what they should be.
    """
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in ("", ".bin")}
    batches = sorted(name for name in files if name.startswith("data_batch_"))
    train, test = (batches, "test_batch") if batches else (["train"], "test")
    read = _read_binary if files[train[0]].suffix == ".bin" else _read_pickled
    parts = []
    for split, names in (("train", train), ("test", [test])):
        pixels, labels = zip(*(read(files[name], hundred=not batches) for name in names), strict=True)
        parts.append((split, f"x_{split}", np.concatenate(pixels), np.concatenate(labels)))
    return listing_of_arrays(folder.resolve().name, parts, np.array(_class_names(folder, hundred=not batches)))


def _images(flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_binary(path: Path, *, hundred: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows of label (CIFAR-100: coarse, then fine label) and pixels."""
    n_labels = 2 if hundred else 1
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % (n_labels + PIXELS):
        raise DataError(f"{path} has {data.size:,} bytes, not a multiple of {n_labels + PIXELS}; fetch it again")
    rows = data.reshape(-1, n_labels + PIXELS)
    return _images(rows[:, n_labels:]), rows[:, n_labels - 1].astype(np.int64)


def _read_pickled(path: Path, *, hundred: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    arguments = list(_arguments(path))
    texts = (argument for argument in arguments if isinstance(argument, str) and len(argument) >= PIXELS)
    pixels = np.frombuffer("".join(texts).encode("latin-1"), np.uint8)
    labels = list(_after(arguments, "fine_labels" if hundred else "labels", int))
    if pixels.size == 0 or pixels.size != len(labels) * PIXELS:
        raise DataError(f"{path} has {len(labels):,} labels and {pixels.size:,} bytes of pixels; fetch it again")
    return _images(pixels), np.array(labels, np.int64)


def _class_names(folder: Path, *, hundred: bool) -> list[str]:
    text = folder / ("fine_label_names.txt" if hundred else "batches.meta.txt")
    if text.is_file():
        return text.read_text().split()
    meta = folder / ("meta" if hundred else "batches.meta")
    if not meta.is_file():
        raise DataError(f"{folder} lacks {meta.name} (or {text.name}), which names the classes")
    return list(_after(list(_arguments(meta)), "fine_label_names" if hundred else "label_names", str))


def _arguments(path: Path) -> Iterator[Any]:
    """Arguments of a pickle's instructions, none of which is run; END_OF_ITEMS where a list's items end."""
    try:
        for instruction, argument, _ in pickletools.genops(path.read_bytes()):
            if instruction.name == "APPENDS":
                yield END_OF_ITEMS
            elif argument is not None and "PUT" not in instruction.name and "GET" not in instruction.name:
                yield argument
    except ValueError as error:
        raise DataError(f"{path} can't be read: {error}; fetch it again") from error


def _after(arguments: list[Any], title: str, kind: type) -> Iterator[Any]:
    """The values of one kind that follow the title of a dictionary's entry."""
    start = next((index for index, argument in enumerate(arguments) if argument == title), len(arguments))
    for argument in arguments[start + 1 :]:
        # Long lists come as several runs of items. The title of the next entry, a text, ends a list of numbers; it
        # can't be told from the items of a list of texts, but those are short and come as one run.
        if type(argument) is kind:
            yield argument
        elif argument is not END_OF_ITEMS or kind is str:
            return
