"""Image folders: `class/...`, `{train,val,test}/class/...`, or pictures without labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.dataset import Listing, printable, shortened
from pipeline.data.source import FileSource, RemoteSource
from pipeline.errors import DataError
from pipeline.util import remote
from pipeline.util.addresses import is_remote
from pipeline.util.files import MARKER
from pipeline.util.sealed import is_marked
from pipeline.util.text import counted
from pipeline.util.texts import Texts

TAR = ".tar"
PACKS = (".parquet", TAR)  # files that hold pictures, which are read where no pictures lie beside them
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

NO_DATA = ("__MACOSX",)  # what macOS adds to zip files, with a file `._name` for each
# A suffix only says whether a file was meant as an image: what can't be read is then quarantined, with its cause.
# Files without any suffix count as images, all others are left aside, and counted.
IMAGE_SUFFIXES = frozenset(
    """
    .apng .avif .avifs .bmp .dib .gif .heic .heif .icb .j2k .jfif .jif .jp2 .jpe .jpeg .jpf .jpg .jpx .jxl .mpo .pbm
    .pcx .pfm .pgm .png .pnm .ppm .psd .qoi .ras .raw .sgi .svg .tga .tif .tiff .vda .vst .webp
    """.split()  # noqa: SIM905
)


def read_folder(root: Path, least_classes: int = 2) -> Listing:
    """List the images of a folder: those of its class folders, or, without labels, those that lie in it themselves.

    Empty and hidden folders, `__MACOSX` and whatever tlpipe wrote are no classes. A single class folder is refused,
    as it is likely a mistake: its pictures can be extracted without labels, by naming the class folder itself.

    Args:
        root: The folder.
        least_classes: Class folders that there must be, if there are any; 1 for data to be rated on.

    Raises:
        DataError: If there are no images, only one class folder, or a folder can't be read.
    """
    if _is_marked(root):
        raise DataError(
            f"{root} was written by tlpipe, and is no data; give --cache and --reports folders of their own"
        )
    skipped: list[Path] = []
    classes = _class_folders(root, skipped)
    loose = [entry.name for entry in _entries(root) if entry.is_file()]
    if not classes:
        return _flat(root, loose, skipped)
    if len({folder.name for _, folder in classes}) < least_classes:
        raise DataError(_one_class(root, classes[0][1]) + _left_aside(root, skipped))

    files: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    aside = [name for name in loose if is_image(name) or name.lower().endswith(PACKS)]
    for split, folder in classes:
        above = folder.relative_to(root).as_posix()
        for below in files_below(folder):
            (files if is_image(below) else aside).append(f"{above}/{below}")
        n_new = len(files) - len(labels)
        labels += [folder.name] * n_new
        splits += [split] * n_new
    listing = _listing(root, files, labels, splits, aside, skipped)
    listing.notes.extend(
        f"All images of {folder.name} lie in folders of their own ({shortened(inner)}), which count as one class; "
        f"if they are the classes: tlpipe extract {folder}"
        for _, folder in classes
        if (inner := _inner(folder))
    )
    return listing


def _class_folders(root: Path, skipped: list[Path]) -> list[tuple[str, Path]]:
    """The class folders below a folder, each with the split whose folder it lies in, "" for none.

    Raises:
        DataError: If it holds folders of splits that don't fit together.
    """
    folders = _data_folders(root, skipped)
    splits_of = {folder: SPLIT_NAMES[name] for folder in folders if (name := folder.name.lower()) in SPLIT_NAMES}
    if "train" in splits_of.values() and len(splits_of) == len(folders):
        for folder in folders:
            _check_split_folder(root, folder)
        twice = [name for name, count in Counter(splits_of.values()).items() if count > 1]
        if twice:
            names = shortened([folder.name for folder in folders])
            raise DataError(f"{root} has several folders for the split {twice[0]!r}: {names}")
        return [(split, child) for folder, split in splits_of.items() for child in _data_folders(folder, skipped)]
    if len(splits_of) > 1:
        names = shortened([folder.name for folder in folders])
        raise DataError(
            f"{root} mixes folders of splits with others, or has no train folder: {names}; "
            "it needs class folders alone, or train and perhaps val and test"
        )
    _check_depth(root, folders)
    return [("", folder) for folder in folders]


def name_of(folder: Path) -> str:
    """The name by which people know a folder; of a bucket or a zip file, that of its address."""
    name = folder.name if is_remote(folder) else folder.resolve().name
    return name or re.split(r"[/:]+", str(folder).rstrip("/"))[-1]


def _inner(folder: Path) -> list[str]:
    """The folders in a class folder that holds all its images in such."""
    entries = _entries(folder)
    if any(is_image(entry.name) and not _is_folder(entry) for entry in entries):
        return []
    return [entry.name for entry in entries if _is_folder(entry)]


def _listing(
    root: Path, names: list[str], labels: list[str], splits: list[str], aside: list[str], skipped: list[Path]
) -> Listing:
    """What was found in a folder; names are paths from there."""
    notes = []
    if aside:
        where = shortened([printable(name) for name in sorted(aside, key=lambda name: name.split("/"))])
        notes.append(f"{counted(len(aside), 'file')} skipped (no image suffix, or not inside a class folder): {where}")
    if skipped:
        where = shortened([printable(path.relative_to(root)) for path in sorted(skipped)])
        notes.append(f"{counted(len(skipped), 'folder')} skipped (no images, hidden, or written by tlpipe): {where}")
    texts, locations = Texts(names), Texts(map(printable, names))
    if locations == texts:
        texts = locations
    source = RemoteSource(texts, root) if is_remote(root) else FileSource(texts, root)
    return Listing(name_of(root), labels, splits, locations, source, notes)


def _flat(root: Path, loose: list[str], skipped: list[Path]) -> Listing:
    """The images of a folder without class folders; they have no labels.

    Raises:
        DataError: If there are none, with what was looked for and what was found.
    """
    images = [name for name in loose if is_image(name)]
    if not images:
        found = f"{counted(len(loose), 'file')} without an image suffix" if loose else "no files"
        found += f", and folders without images: {shortened([path.name for path in skipped])}" if skipped else ""
        raise DataError(
            f"{root} has no class folders with images; tlpipe looks for class/*.jpg, {{train,val,test}}/class/*.jpg, "
            f"or *.jpg without labels, and found {found}"
        )
    aside = [name for name in loose if not is_image(name)]
    return _listing(root, images, [""] * len(images), [""] * len(images), aside, skipped)


def _one_class(root: Path, folder: Path) -> str:
    if inner := _inner(folder):
        return (
            f"{root} has only one class, {folder.name!r}, and that holds folders itself: {shortened(inner)}. "
            f"Looked for class/*.jpg and {{train,val,test}}/class/*.jpg; did you mean tlpipe extract {folder}?"
        )
    return (
        f"{root} has only one class, {folder.name!r}; a classifier needs two or more, a folder for each. "
        f"Without labels: tlpipe extract {folder}, for features alone, or tlpipe label {folder}, to give them"
    )


def _left_aside(root: Path, skipped: list[Path]) -> str:
    if not skipped:
        return ""
    return f" (skipped: {shortened([printable(path.relative_to(root)) for path in sorted(skipped)])})"


def _check_depth(root: Path, folders: list[Path]) -> None:
    """Refuse a folder of data sets: their splits would be lost."""
    sets = [folder.name for folder in folders if any(name.lower() == "train" for name in _inner(folder))]
    if sets and len(folders) > 1:
        raise DataError(
            f"{root} has no class folders: {shortened(sets)} hold a folder `train`, and look like data sets "
            "themselves. Looked for class/*.jpg and {train,val,test}/class/*.jpg; give one of them: "
            f"tlpipe extract {root / sets[0]}"
        )


def is_image(name: str) -> bool:
    """Whether a file is meant as an image, by its name."""
    suffix = os.path.splitext(name)[1]  # noqa: PTH122, a Path takes many times as long
    return len(suffix) < 2 or suffix.lower() in IMAGE_SUFFIXES


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by the suffix of its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122, as above


def _check_split_folder(root: Path, folder: Path) -> None:
    if not _data_folders(folder, []):
        raise DataError(
            f"{folder} has no class folders, but {root} is read as splits because it holds a folder `train`; "
            f"sort the images of {folder.name} into class folders, or take it away"
        )


def scan(folder: Path) -> Sequence[os.DirEntry[str] | remote.Entry]:
    """What is in a folder, by name.

    Raises:
        DataError: If it can't be read.
    """
    if is_remote(folder):
        return remote.entries(folder)
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"The folder {folder} can't be read: {error.strerror}; check its permissions") from error


def _is_marked(folder: Path) -> bool:
    """Whether tlpipe wrote a folder."""
    if is_remote(folder):
        return any(entry.name == MARKER for entry in remote.entries(folder))
    return is_marked(folder)


def _entries(folder: Path) -> Sequence[os.DirEntry[str] | remote.Entry]:
    """What is in a folder, but for what is hidden; nothing of a folder that tlpipe wrote."""
    if _is_marked(folder):
        return []
    return [entry for entry in scan(folder) if not entry.name.startswith(".") and entry.name not in NO_DATA]


def _data_folders(folder: Path, skipped: list[Path]) -> list[Path]:
    """The folders in a folder that may hold data; those that never do are added to `skipped`."""
    found: list[Path] = []
    for entry in scan(folder):
        if _is_folder(entry):
            path = folder / entry.name
            never = entry.name.startswith(".") or entry.name in NO_DATA or _is_marked(path)
            usable = not never and any(is_image(file) for file in files_below(path))
            (found if usable else skipped).append(path)
    return found


def _is_folder(entry: os.DirEntry[str] | remote.Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: as a file it is found unreadable, and named
        return False


def files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[str]:
    """All files below a folder, through links too, but not what is hidden or was written by tlpipe.

    Args:
        folder: Where to look.
        above: The folders on the way to it.

    Returns:
        Paths from the folder, in the order of the names of folders and files.

    Raises:
        DataError: If a link leads back to a folder above it.
    """
    real = str(folder) if is_remote(folder) else os.path.realpath(folder)
    if real in above:
        raise DataError(f"The link {folder} leads back to {real}, a folder above it; take the link away")
    for entry in _entries(folder):
        if _is_folder(entry):
            for below in files_below(folder / entry.name, (*above, real)):
                yield f"{entry.name}/{below}"
        else:
            yield entry.name
