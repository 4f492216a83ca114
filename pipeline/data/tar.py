"""Tars of pictures with their labels beside them, as WebDataset has them (github.com/webdataset/webdataset)."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.config import Columns
from pipeline.data.dataset import Listing, printable, shortened
from pipeline.data.manifest import questioned
from pipeline.data.packed import PackedSource, split_of_file
from pipeline.errors import DataError, ImageError
from pipeline.util.files import decoded
from pipeline.util.memo import Memo, Stamp
from pipeline.util.text import counted
from pipeline.util.texts import Texts

SUFFIX = ".tar"
PICTURES = ("jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "cls", "class")
LABELS = ("cls", "txt", "json")


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of a tar that belong together, as their names begin alike.

    Attributes:
        name: What their names have in common.
        picture: Offset and length of the picture, bytes.
        texts: Offset and length of each member with its label, by suffix.
    """

    name: str
    picture: tuple[int, int]
    texts: dict[str, tuple[int, int]]


@dataclass(slots=True)
class Contents:
    """What is in a tar.

    Attributes:
        samples: Those that have a picture, in their order.
        without: Names that have none.
        torn: Whether its end is missing.
    """

    samples: list[Sample] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    torn: bool = False


class TarPack:
    """A tar, whose pictures are read by offset, from any thread."""

    kind = "tar"

    def __init__(self, path: Path, samples: Sequence[Sample]) -> None:
        self.path = path
        self._places = np.array([sample.picture for sample in samples], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, place: int) -> bytes:
        """A picture's bytes."""
        try:
            return _part(self.path, self._places[place].tolist())
        except OSError as error:
            raise ImageError(f"{self.path.name}: {error.strerror or error}", lasting=False) from error


def _part(path: Path, place: tuple[int, int]) -> bytes:
    offset, length = place
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def read_tars(files: Sequence[Path], name: str, columns: Columns, memo: Memo | None) -> Listing:
    """List the pictures in tars; each tar gives the split of its name.

    Args:
        files: The tars.
        name: Short name for people.
        columns: The key of labels in members that are JSON.
        memo: Where the contents of unchanged tars are remembered.

    Raises:
        DataError: If a file is no tar, or a label can't be read.
    """
    packs, labels, splits, locations, notes = list[TarPack](), list[str](), list[str](), list[str](), list[str]()
    without: list[str] = []
    for file in files:
        contents = _contents(file, memo)
        found = contents.samples
        packs.append(TarPack(file, found))
        labels += [_label(file, sample, columns.label_key) for sample in found]
        splits += [split_of_file(file)] * len(found)
        locations += [f"{printable(file.name)}/{printable(sample.name)}" for sample in found]
        without += [f"{printable(file.name)}/{printable(one)}" for one in contents.without]
        if contents.torn:
            before = counted(len(found), "picture")
            notes.append(f"{file} is torn, as its end is missing; {before} before that can be read")
    if not labels:
        raise DataError(f"{name} has no pictures; tlpipe looks for members that end in .{', .'.join(PICTURES)}")
    if without:
        notes.append(f"{counted(len(without), 'sample')} without a picture left aside: {shortened(without)}")
    if not any(labels):
        notes.append(
            f"The pictures of {name} have no labels: no .cls, no .txt, and no .json with {', '.join(LABEL_KEYS)}; "
            "if there is another key, name it: --label-key KEY"
        )
    notes += questioned(files[0], "label", [text for text in labels if text])
    return Listing(name, labels, splits, Texts(locations), PackedSource(packs), notes)


def _contents(path: Path, memo: Memo | None) -> Contents:
    """What is in a tar, which is looked through once."""
    stamped, stamp = time.time_ns(), Stamp.of(path)
    if memo is not None:
        try:
            return decoded(Contents, json.loads(memo.recall("tar", {path: stamp})[path]))
        except (KeyError, ValueError):  # not known, or damaged
            pass
    found = _looked_through(path)
    if memo is not None:
        memo.remember("tar", {path: (stamp, json.dumps(asdict(found)))}, stamped)
    return found


def _looked_through(path: Path) -> Contents:
    members: dict[str, dict[str, tuple[int, int]]] = {}
    end, size = 0, path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar, suppress(tarfile.ReadError):  # where it is torn
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isreg() and member.offset_data + member.size <= size:
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    of_sample = members.setdefault(f"{folder}{slash}{stem}", {})
                    of_sample[suffix.lower()] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{path} can't be read as a tar: {error}; a compressed one must be unpacked first, as pictures are read by "
            "their offset"
        ) from error
    mark = bytes(2 * tarfile.BLOCKSIZE)  # zeros, by which a tar ends
    found = Contents(torn=_part(path, (end, len(mark))) != mark)
    for name, parts in members.items():
        picture = next((parts[suffix] for suffix in PICTURES if suffix in parts), None)
        if picture is None:
            found.without.append(name)
        else:
            texts = {suffix: parts[suffix] for suffix in LABELS if suffix in parts}
            found.samples.append(Sample(name, picture, texts))
    return found


def _label(path: Path, sample: Sample, key: str | None) -> str:
    """The label of a sample, from the first that it has of .cls, .txt and .json; "" if there is none.

    Raises:
        DataError: If a key of labels is given, and the sample has no JSON with that.
    """
    suffix = next((one for one in (("json",) if key else LABELS) if one in sample.texts), None)
    if suffix is None:
        return ""
    try:
        text = _part(path, sample.texts[suffix]).decode()
        if suffix != "json":
            return text.strip()
        found = json.loads(text)
        label = found[key or next(one for one in LABEL_KEYS if one in found)]
        if not isinstance(label, (str, int)):
            raise TypeError(f"{label!r} is no text or whole number")
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        if key is None:
            return ""
        raise DataError(
            f"{path.name}/{sample.name}.{suffix} has no label that can be read ({error}); --label-key is the key of "
            "labels in every .json"
        ) from error
    return str(label).strip()
