"""Files that are made of labels: a manifest, and a folder for each class."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline.config import COMMON, Columns, ImageConfig
from pipeline.data import FileSource, Opened, open_labelled, printable
from pipeline.data.folder import is_picture
from pipeline.data.images import describe, from_array
from pipeline.errors import ConfigError, DataError, ImageError
from pipeline.store.records import plain_name
from pipeline.util import disk, log
from pipeline.util.addresses import is_remote
from pipeline.util.files import published, published_folder
from pipeline.util.memo import Memo
from pipeline.util.text import counted

MOST_NAME = 255  # bytes of a folder's name


def export_labels(data: str, labels: Path, target: Path, cache: Path, columns: Columns = COMMON) -> int:
    """Write labels as a manifest, which extract takes as data; the number of its rows.

    Pictures that are left out have none.

    Args:
        data: The data that was labelled.
        labels: The journal.
        target: The .csv file.
        cache: The cache folder.
        columns: As for extract.

    Raises:
        ConfigError: If the target is no .csv file, or is the data or the labels.
        DataError: If the data or the labels can't be read.
        StoreError: If the file can't be written.
    """
    if target.suffix.lower() != ".csv":
        raise ConfigError(f"--export is {target}; give a file that ends in .csv")
    for what, place in (("the data", Path(data)), ("the file of labels", labels)):
        if target.exists() and place.exists() and target.samefile(place):
            raise ConfigError(f"--export is {target}, which is {what}; name another file")
    opened = _with_labels(data, labels, cache, columns)
    dataset = opened.dataset
    text = io.StringIO()
    writer = csv.writer(text)
    groups = [[]] * len(dataset) if dataset.groups is None else dataset.groups[:, None].tolist()
    writer.writerow(["path", "key", "label", "split", *([] if dataset.groups is None else ["group"])])
    outside = False
    for row, key in enumerate(dataset.keys.tolist()):
        path = _path_from(opened, row, target.parent)
        outside = outside or path.startswith("../")
        if printable(path) != path:
            raise DataError(f"{printable(path)} has a name that no table can hold; rename the file")
        writer.writerow([path, key.decode(), dataset.label_name(row), dataset.splits[row], *groups[row]])
    if outside:
        log.warning(
            "%s names pictures outside its folder, so it can't be the DATA of tlpipe extract; "
            "to make one that can, write it into a folder above all pictures",
            target,
        )
    with published(target) as partial:
        disk.write(partial, text.getvalue())
    return len(dataset)


def _path_from(opened: Opened, row: int, folder: Path) -> str:
    """A picture's path from a folder; where it is no file, where it lies for people."""
    if isinstance(opened.source, FileSource) and not is_remote(Path(opened.source.path(row))):
        return os.path.relpath(opened.source.path(row), folder)
    return opened.dataset.locations[row]


def copy_to_folders(
    data: str, labels: Path, folder: Path, cache: Path, columns: Columns = COMMON, *, link: bool = False
) -> int:
    """Copy labelled pictures into a folder for each class; the number of pictures.

    Args:
        data: The data that was labelled.
        labels: The journal.
        folder: Where the folders go; it must be empty, or not be there.
        cache: The cache folder.
        columns: As for extract.
        link: Whether links are made in place of copies.

    Raises:
        ConfigError: If the folder isn't empty, or links can't be made of these pictures.
        DataError: If the data or the labels can't be read.
        StoreError: If the folder can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to-folders {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--to-folders {folder} is not empty; name another folder")
    opened = _with_labels(data, labels, cache, columns)
    if link and not isinstance(opened.source, FileSource):
        raise ConfigError(
            f"The pictures of {data} are no files of their own, so they can't be linked; leave out --link"
        )
    folders = _folders_of(opened.dataset.class_names)
    dataset = opened.dataset
    with published_folder(folder) as partial:
        places = [partial / folders[dataset.label_name(row)] for row in range(len(dataset))]
        return len({_copy(opened, row, place, link=link) for row, place in enumerate(places)})


def _folders_of(names: Sequence[str]) -> dict[str, str]:
    """A folder for each class, called like it as far as file systems can hold that.

    Raises:
        ConfigError: If two classes would have the same one.
    """
    found = {name: _folder_of(name) for name in names}
    first: dict[str, str] = {}
    for name, folder in found.items():
        other = first.setdefault(unicodedata.normalize("NFC", folder).casefold(), name)
        if other != name:
            raise ConfigError(
                f"The classes {other!r} and {name!r} would share the folder {folder!r}; rename one of them"
            )
    return found


def _folder_of(name: str) -> str:
    name = re.sub(r'[/\\:*?"<>|]', "_", name).strip(" .")
    while len(os.fsencode(name)) > MOST_NAME:
        name = name[:-1].rstrip(" .")
    return name or "_"


def _copy(opened: Opened, row: int, folder: Path, *, link: bool) -> Path:
    """Copy or link a picture into a folder, once if it is there several times."""
    source, dataset = opened.source, opened.dataset
    # Pictures of one name in different folders must not replace each other.
    name = Path(dataset.locations[row])
    stem = f"{plain_name(name.stem)}-{dataset.keys[row][:8].decode()}"
    disk.make_folder(folder)
    if isinstance(source, FileSource):
        target, path = folder / f"{stem}{name.suffix}", Path(source.path(row)).absolute()
        if not os.path.lexists(target):
            disk.change("write", target)
            target.symlink_to(path) if link else shutil.copyfile(path, target)
        return target
    content = source.read(row)
    if isinstance(content, bytes):
        target = folder / f"{stem}{_suffix(name, content)}"
        disk.write(target, content)
    else:
        target = folder / f"{stem}.png"
        from_array(content).save(disk.change("write", target))
    return target


def _suffix(name: Path, content: bytes) -> str:
    """That of a picture's name, which may be a place in a table; then that of its format."""
    if is_picture(name.name):
        return name.suffix
    with suppress(ImageError):
        return f".{describe(content, ImageConfig((1, 1)).pixel_limit).format.lower()}"
    return ".img"


def _with_labels(data: str, labels: Path, cache: Path, columns: Columns) -> Opened:
    if not labels.exists():
        raise DataError(f"There is no {labels}; label pictures first, or name another file: --labels")
    opened = open_labelled(data, columns=replace(columns, labels=str(labels)), memo=Memo(cache))
    for note in opened.notes:
        log.info("%s", note)
    log.info("%s of %s have a label", counted(len(opened.dataset), "picture"), printable(data))
    return opened
