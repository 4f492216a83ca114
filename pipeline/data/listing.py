"""What DATA on the command line can be, and which reader it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import COMMON, Columns
from pipeline.data import parquet, tar
from pipeline.data.arrays import is_array_folder, listing_of_arrays, read_array_folder, read_npz
from pipeline.data.cifar import is_cifar_folder, read_cifar, read_cifar_folder
from pipeline.data.dataset import Listing, printable
from pipeline.data.folder import PACKS, TAR, files_below, is_image, name_of, read_folder
from pipeline.data.manifest import MANIFEST_SUFFIXES, read_manifest, read_paths
from pipeline.data.mixed import MixedSource, source_of
from pipeline.data.packed import files_in, files_meant, held_files, is_pattern, there
from pipeline.data.source import ImageSource
from pipeline.errors import DataError
from pipeline.util import remote
from pipeline.util.addresses import is_remote
from pipeline.util.memo import Memo

BUILT_IN = ("digits", "cifar10", "cifar100")


def is_arrays(path: Path) -> bool:
    """Whether a file or folder of this machine holds arrays rather than pictures, each in a file of its own."""
    if is_remote(path):
        return False
    return is_array_folder(path) or is_cifar_folder(path) if path.is_dir() else path.suffix.lower() == ".npz"


def check_there(data: str) -> None:
    """Refuse DATA that isn't there, before anything is prepared for it.

    Raises:
        DataError: If it isn't.
    """
    if data not in BUILT_IN and not is_pattern(data) and not there(_reached(data)):
        raise _absent(data)


def _absent(data: str) -> DataError:
    return DataError(
        f"There is no {data!r}; DATA is a folder, a {', '.join(MANIFEST_SUFFIXES)}, .tar or .npz file, "
        f"or one of {', '.join(BUILT_IN)}"
    )


def list_source(
    data: str, columns: Columns, least_classes: int = 2, memo: Memo | None = None, *, again: bool = False
) -> Listing:
    """What a user names as DATA, before any of its images is read.

    Args:
        data: As the user names it.
        columns: Of a manifest.
        least_classes: Class folders that a folder must have, if it has any.
        memo: Where the contents of unchanged tars are remembered.
        again: Fetch again what is copied whole from addresses, and look through all tars.

    Raises:
        DataError: If it isn't there, or can't be listed.
    """
    if not data:
        raise DataError("DATA is empty; give a folder, a file, or a built-in name")
    path = _reached(data)
    is_there = there(path)
    own = data in BUILT_IN or (is_there and is_arrays(path))  # a folder of a built-in name is ./NAME
    if not own and (listing := _packed(data, path, columns, memo, again=again)):
        return listing
    if replace(columns, labels=None) != COMMON and path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DataError(f"{data} has no columns to choose; those are of a {', '.join(MANIFEST_SUFFIXES)} file or a tar")
    if data == "digits":
        return _digits()
    if data in BUILT_IN:
        return read_cifar(data)
    if not is_there:
        raise _absent(data)
    if path.is_dir():
        if own:
            return read_array_folder(path) if is_array_folder(path) else read_cifar_folder(path)
        return read_folder(path, least_classes)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        if columns.image_column or columns.label_key:
            raise DataError(
                f"{data} holds paths; --image-column is for Parquet files with pictures, --label-key for tars"
            )
        return read_manifest(path, columns, again=again)
    if own:
        return read_npz(path)
    if path.suffix.lower() == ".zip":
        raise DataError(f"{data} is an archive; unpack it, or have it read as it is: zip://::{data}")
    raise DataError(
        f"{data} is no kind of data that can be read; give a folder, or a {', '.join(MANIFEST_SUFFIXES)}, .tar or "
        f"{'(on this machine) ' if is_remote(path) else ''}.npz file"
    )


def _reached(data: str) -> Path:
    """The path of DATA, which can be looked into if it is there; a folder at an address is listed at once."""
    if is_pattern(data):
        return Path(data)
    path = remote.place(data)
    if is_remote(path):
        remote.forget_lists(path)
        with remote.reaching(path):
            is_folder = path.is_dir()
        if is_folder:
            remote.look_through(path)
        return path
    try:
        path.exists()
        if there(path) and path.is_dir():
            next(path.iterdir(), None)
    except OSError as error:
        raise DataError(f"{data[:100]} can't be read: {error.strerror}; check its name and permissions") from error
    return path


def _packed(data: str, path: Path, columns: Columns, memo: Memo | None, *, again: bool = False) -> Listing | None:
    """The pictures in the Parquet files or tars that a user means; None if these are not what is meant."""
    is_folder = there(path) and path.is_dir()
    if is_folder:
        files = files_in(path)
    elif there(path):
        files = [path] if path.is_file() else []
    else:
        files = files_meant(data) if is_pattern(data) else []
    if not files:
        return None
    suffix = files[0].suffix.lower()
    if suffix not in PACKS:
        return None
    held = held_files(files, again=again)
    name = files[0].stem if files == [path] else name_of(path if is_folder else files[0].parent)
    if suffix == TAR:
        return tar.read_tars(held, name, columns, memo, again=again)
    if (files == [path] or is_folder) and parquet.picture_column(held[0], columns) is None:
        return None  # a table of paths, perhaps
    return parquet.read_parquet(held, name, columns)


def list_images(names: Sequence[str], columns: Columns = COMMON) -> tuple[list[str], ImageSource]:
    """The images that a user names, and where each lies, as a path from where the user stands.

    Args:
        names: Files, folders (with all that lies below them), manifests, Parquet files and tars with pictures inside,
            on this machine or at addresses.
        columns: Columns of paths, or of the pictures themselves.

    Raises:
        DataError: If one isn't there, or holds no images.
    """
    locations: list[str] = []
    paths: list[str] = []
    others: list[ImageSource] = []
    places: list[tuple[int, int]] = []
    for name in names:
        path = _reached(name) if name else Path()
        if name and (listing := _packed(name, path, columns, None)):
            others.append(listing.source)
            places += [(len(others), index) for index in range(len(listing.source))]
            locations += listing.locations
            continue
        if not name or not there(path):
            raise DataError(
                f"There is no {name!r}; give images, folders, or {', '.join(MANIFEST_SUFFIXES)} or .tar files"
            )
        if path.is_dir():
            found = [str(path / file) for file in files_below(path) if is_image(file)]
        elif path.suffix.lower() in MANIFEST_SUFFIXES:
            found = read_paths(path, columns.path_column)
        else:
            found = [str(path)]
        if not found:
            raise DataError(f"{name} holds no images; give a folder or a manifest that does")
        places += [(0, len(paths) + index) for index in range(len(found))]
        paths += found
        locations += [printable(file) for file in found]
    files = source_of(paths)
    return locations, MixedSource([files, *others], places) if others else files


def _digits() -> Listing:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels, grey 0..16 (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return listing_of_arrays("digits", [("", "digits", images, digits.target)])
