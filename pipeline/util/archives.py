"""Archives of arrays and models, opened only if what they unpack to fits: a small file may unpack to any size."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pipeline.util import machine, runtime
from pipeline.util.text import readable_size

SHARE = 0.75  # of the machine's memory that what is unpacked may take


def check_archive(file: Path | io.BytesIO) -> None:
    """Refuse a zip file that unpacks to more than the machine's memory holds.

    A member can't unpack to more than the archive says of it: Python reads no further.

    Raises:
        ValueError: If it does, or is no zip file.
        OSError: If it can't be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_size(sum(member.file_size for member in archive.infolist()))
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as opened:
                        _check_header(opened, member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:  # of zipfile
        raise ValueError(f"it is no sound zip file: {error}") from error


def _check_size(size: int) -> None:
    most = SHARE * machine.memory_limit()
    if size > most:
        raise ValueError(f"it unpacks to {readable_size(size)}, and {readable_size(int(most))} is what fits here")


def _check_header(opened: Any, size: int) -> None:
    """Refuse an array that claims to be larger than the bytes it is made of: room for it would be taken first."""
    version = npy.read_magic(opened)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"it holds an array in the format {version}, which is not known")
    shape, _, dtype = read(opened)
    if not dtype.hasobject and int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize > size:
        raise ValueError("it holds an array that is larger than the archive says")


@contextmanager
def arrays_of(file: Path | io.BytesIO) -> Iterator[Any]:
    """The arrays of an `.npz` file by their names, without Python objects, once it is known that they fit.

    Raises:
        ValueError: As `check_archive`.
        OSError: If it can't be read.
    """
    check_archive(file)
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        yield arrays


def keras_model(file: Path) -> Any:
    """The model in a `.keras` file, in Keras's safe mode, which runs no code from it, once it is known that it fits.

    Raises:
        Exception: Of many kinds; Keras, zipfile and h5py each have their own.
    """
    check_archive(file)
    return runtime.keras().models.load_model(file, compile=False, safe_mode=True)
