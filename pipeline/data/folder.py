"""Image folders: `class/...` or `{train,val,test}/class/...`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.dataset import FileSource, Listing, printable, shortened
from pipeline.errors import DataError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# A suffix only says whether a file was meant as an image: what can't be read is then quarantined, with its cause.
# Files without any suffix count as images, all others are left aside, and counted.
IMAGE_SUFFIXES = frozenset(
    """
    .apng .avif .avifs .bmp .dib .gif .heic .heif .icb .j2k .jfif .jif .jp2 .jpe .jpeg .jpf .jpg .jpx .jxl .mpo .pbm
    .pcx .pfm .pgm .png .pnm .ppm .psd .qoi .ras .raw .sgi .svg .tga .tif .tiff .vda .vst .webp
    """.split()  # noqa: SIM905
)


def read_folder(root: Path) -> Listing:
    """List the images of a folder.

    Raises:
        DataError: If there are no class folders, a class is empty, or a folder can't be read.
    """
    folders = _subfolders(root)
    splits_of = {folder: SPLIT_NAMES[name] for folder in folders if (name := folder.name.lower()) in SPLIT_NAMES}
    if "train" in splits_of.values() and len(splits_of) == len(folders):
        for folder in folders:
            _check_split_folder(root, folder)
        twice = [name for name, count in Counter(splits_of.values()).items() if count > 1]
        if twice:
            names = shortened([folder.name for folder in folders])
            raise DataError(f"{root} has several folders for the split {twice[0]!r}: {names}")
        classes = [(split, child) for folder, split in splits_of.items() for child in _subfolders(folder)]
    elif len(splits_of) > 1:
        names = shortened([folder.name for folder in folders])
        raise DataError(
            f"{root} mixes folders of splits with others, or has no train folder: {names}; "
            "it needs class folders alone, or train and perhaps val and test"
        )
    else:
        classes = [("", folder) for folder in folders]
    if not classes:
        raise DataError(f"{root} has no class folders; tlpipe reads class/*.jpg, {{train,val,test}}/class/*.jpg, ...")

    paths: list[Path] = []
    labels: list[str] = []
    splits: list[str] = []
    aside: list[Path] = [child for child in root.iterdir() if child.is_file() and is_image(child)]
    for split, folder in classes:
        files = sorted(files_below(folder))
        images = [file for file in files if is_image(file)]
        aside += [file for file in files if not is_image(file)]
        if not images:
            raise DataError(f"The class folder {folder} has no images; fill it, or take it away")
        paths += images
        labels += [folder.name] * len(images)
        splits += [split] * len(images)
    notes = []
    if aside:
        where = shortened([printable(path.relative_to(root)) for path in sorted(aside)])
        notes.append(f"{len(aside):,} files left aside (no image suffix, or not inside a class folder): {where}")
    locations = [printable(path.relative_to(root)) for path in paths]
    return Listing(root.resolve().name, labels, splits, locations, FileSource(paths), notes)


def is_image(path: Path) -> bool:
    """Whether a file is meant as an image, by its name."""
    return not path.suffix or path.suffix.lower() in IMAGE_SUFFIXES


def _check_split_folder(root: Path, folder: Path) -> None:
    if not _subfolders(folder):
        raise DataError(
            f"{folder} has no class folders, but {root} is read as splits because it holds a folder `train`; "
            f"sort the images of {folder.name} into class folders, or take it away"
        )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"The folder {folder} can't be read: {error.strerror}; check its permissions") from error


def _subfolders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: as a file it is found unreadable, and named
        return False


def files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder, through links too; `above` holds the folders it was come through.

    Raises:
        DataError: If a link leads back to a folder above it.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"The link {folder} leads back to {real}, a folder above it; take the link away")
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from files_below(folder / entry.name, (*above, real))
        else:
            yield folder / entry.name
