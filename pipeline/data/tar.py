"""Tars of pictures with their labels beside them, as WebDataset has them (github.com/webdataset/webdataset)."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.config import Columns
from pipeline.data.dataset import Listing, printable, shortened
from pipeline.data.manifest import questioned
from pipeline.data.packed import AT_ONCE, PackedSource, lacking, names_of, splits_of
from pipeline.errors import DataError, ImageError
from pipeline.util.fetching import Held, bytes_at
from pipeline.util.memo import Memo
from pipeline.util.sealed import decoded
from pipeline.util.text import counted, first_line
from pipeline.util.texts import Texts

PICTURES = ("jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "cls", "class")
LABELS = ("cls", "txt", "json")
LFS = b"version https://git-lfs"  # with which its pointers begin (github.com/git-lfs/git-lfs, docs/spec.md)
REMEMBERED = "tar 4"  # what the memo calls the contents of a tar; of other contents it needs another name


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
        twice: Names of members that are there more than once.
        further: Pictures of samples that have another one.
        torn: Whether its end is missing.
        behind: Bytes that lie behind its end.
    """

    samples: list[Sample] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    torn: bool = False
    behind: int = 0


class TarPack:
    """A tar, whose pictures are read by offset, from any thread."""

    kind, in_parts = "tar", True

    def __init__(self, held: Held, samples: Sequence[Sample]) -> None:
        self.path, self.held = held.path, held
        self._places = np.array([sample.picture for sample in samples], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, place: int, *, known: bool) -> bytes:
        """A picture's bytes."""
        start, length = self._places[place].tolist()
        try:
            return self.held.part(start, length, known=known)
        except OSError as error:
            raise ImageError(f"{self.path.name}: {error.strerror or error}", lasting=False) from error
        except DataError as error:
            raise ImageError(str(error), lasting=False) from error


def read_tars(held: Sequence[Held], name: str, columns: Columns, memo: Memo | None, *, again: bool) -> Listing:
    """List the pictures in tars; each tar has the split that its name or its folder tells.

    Args:
        held: The tars.
        name: Short name for people.
        columns: The key of labels in members that are JSON.
        memo: Where the contents of unchanged tars are remembered.
        again: Look through all of them, whatever is remembered.

    Raises:
        DataError: If a file is no tar, or a label can't be read.
    """
    if columns != Columns(label_key=columns.label_key, labels=columns.labels):
        raise DataError(
            f"{name} is of tars, which have no columns; their labels are in .cls, .txt or .json (--label-key)"
        )
    packs, labels, splits, locations, notes = list[TarPack](), list[str](), list[str](), list[str](), list[str]()
    without: list[str] = []
    further: list[str] = []
    unclear: list[str] = []

    def read(one: Held) -> tuple[Contents, list[tuple[str, str]]]:
        contents = _contents(one, memo, again=again)
        of_samples = _labels(one, contents.samples, columns.label_key)
        one.check()
        return contents, of_samples

    files = [one.path for one in held]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tars = list(pool.map(read, held))
    for file, called, split, one, (contents, of_samples) in zip(
        files, names_of(files), splits_of(files), held, tars, strict=True
    ):
        found = contents.samples
        packs.append(TarPack(one, found))
        labels += [label for label, _ in of_samples]
        unclear += [
            f"{called}/{printable(sample.name)}{cause}"
            for sample, (_, cause) in zip(found, of_samples, strict=True)
            if cause
        ]
        splits += [split] * len(found)
        locations += [f"{called}/{printable(sample.name)}" for sample in found]
        without += [f"{called}/{printable(sample)}" for sample in contents.without]
        further += [f"{called}/{printable(picture)}" for picture in contents.further]
        notes += _notes(file, contents)
    if not labels:
        torn = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"{name} has no pictures{torn}; tlpipe looks for members that end in .{', .'.join(PICTURES)}, without "
            "another dot in their names"
        )
    notes += [*_left_out(without, further, unclear), *lacking(files)]
    if not any(labels):
        notes.append(
            f"The pictures of {name} have no labels: no .cls, no .txt, and no .json with {', '.join(LABEL_KEYS)}; "
            "if there is another key, name it: --label-key KEY"
        )
    notes += questioned(files[0], "label", [text for text in labels if text])
    return Listing(name, labels, splits, Texts(locations), PackedSource(packs), notes)


def _left_out(without: list[str], further: list[str], unclear: list[str]) -> list[str]:
    """What is not read of some tars: samples without a picture, further pictures of others, and labels."""
    notes = []
    if without:
        notes.append(
            f"{counted(len(without), 'sample')} without a picture skipped: {shortened(without)}; members belong "
            "together that are called alike up to the first dot, and what follows it says what they are: .jpg, .cls"
        )
    if further:
        notes.append(f"{counted(len(further), 'further picture')} of the same samples skipped: {shortened(further)}")
    if unclear:
        notes.append(f"{counted(len(unclear), 'label')} can't be read: {shortened(unclear)}")
    return notes


def _notes(file: Path, contents: Contents) -> list[str]:
    """What a user should know of a tar."""
    notes = []
    if contents.twice:
        names = counted(len(contents.twice), "member")
        notes.append(
            f"{file} has {names} with a name that came before: {shortened(contents.twice)}; the last one counts"
        )
    before, more = counted(len(contents.samples), "picture"), counted(contents.behind, "byte")
    if contents.torn:
        how = f"is damaged, and {more} at its end are not read" if contents.behind else "is cut off"
        notes.append(f"{file} {how}; {before} before that can be read")
    elif contents.behind:
        notes.append(f"{file} continues after its end, as joined tars do; what follows ({more}) is not read")
    return notes


def _contents(held: Held, memo: Memo | None, *, again: bool) -> Contents:
    """What is in a tar, which is looked through once."""
    path = held.path
    if memo is not None and held.stamp is not None and not again:
        try:
            return decoded(Contents, json.loads(memo.recall(REMEMBERED, {path: held.stamp})[path]))
        except (KeyError, ValueError):  # not known, or damaged
            pass
    found = held.opened(lambda file: _looked_through(file, path))
    if memo is not None and held.stamp is not None:
        memo.remember(REMEMBERED, {path: (held.stamp, json.dumps(asdict(found)))}, held.stamped)
    return found


def _looked_through(path: Path, named: Path) -> Contents:
    """What is in a tar, found by going from header to header."""
    try:
        size = path.stat().st_size
        if bytes_at(path, 0, len(LFS)) == LFS:
            raise DataError(f"{named} is only Git LFS's pointer to a tar; have it fetched: git lfs pull")
        if size < tarfile.BLOCKSIZE:  # not even the first header
            return Contents(torn=True)
        places, links, twice, end = _members(path, size)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{named} can't be read as a tar: {error}; a compressed one must be unpacked first, as pictures are read "
            "by their offset"
        ) from error
    mark = bytes(2 * tarfile.BLOCKSIZE)  # zeros, by which a tar ends
    torn = bytes_at(path, end, len(mark)) != mark
    if torn:
        behind = 0 if _is_header(bytes_at(path, end, tarfile.BLOCKSIZE)) else size - end
    else:
        behind = max(0, size - -(-(end + len(mark)) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)
    found = Contents(twice=twice, torn=torn, behind=behind)
    _add_samples(found, places, links)
    return found


def _is_header(block: bytes) -> bool:
    """Whether a member begins there, or there is what is left of one, or of the end, that is cut off."""
    if len(block) < tarfile.BLOCKSIZE or not any(block):
        return True
    try:
        return tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape").size >= 0
    except tarfile.HeaderError:
        return False


def _members(path: Path, size: int) -> tuple[dict[str, tuple[int, int]], dict[str, str], list[str], int]:
    """The members of a tar, up to where it is torn or damaged.

    Returns:
        Offset and length of each that is a file, and what each of the others links to, by name; names that came
        before; and where the last one ends.
    """
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    twice: list[str] = []
    end = 0
    with tarfile.open(path, "r:") as tar, suppress(tarfile.ReadError):
        for member in tar:
            if member.size < 0 or tar.offset <= end:  # it would never come to an end
                break
            end = tar.offset  # where the next header is: what the size is of differs by kind of member
            name = posixpath.normpath(member.name)
            if name in places or name in links:
                twice.append(name)
                places.pop(name, None)
                links.pop(name, None)
            if member.isreg() and not member.issparse() and member.offset_data + member.size <= size:
                places[name] = (member.offset_data, member.size)
            elif member.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif not member.isdir():
                links[name] = posixpath.normpath(member.linkname)
    return places, links, twice, end


def _add_samples(found: Contents, places: dict[str, tuple[int, int]], links: dict[str, str]) -> None:
    """Put members together that are called alike; those that are links stand for what they link to."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for name in [*places, *links]:
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        of_sample = samples.setdefault(f"{folder}{slash}{stem}", {})
        if place := places.get(links.get(name, name)):
            if suffix.lower() in of_sample:  # in other capitals
                found.twice.append(name)
            of_sample[suffix.lower()] = place
    for name, parts in samples.items():
        pictures = [suffix for suffix in PICTURES if suffix in parts]
        if not pictures:
            found.without.append(name)
        else:
            found.further += [f"{name}.{suffix}" for suffix in pictures[1:]]
            texts = {suffix: parts[suffix] for suffix in LABELS if suffix in parts}
            found.samples.append(Sample(name, parts[pictures[0]], texts))


def _labels(held: Held, samples: Sequence[Sample], key: str | None) -> list[tuple[str, str]]:
    """The labels of samples, as `_label` gives them.

    Raises:
        DataError: If the tar can't be read, or a key of labels is given and a sample has JSON without that.
    """
    if not any(sample.texts for sample in samples):
        return [("", "")] * len(samples)

    def read(path: Path) -> list[tuple[str, str]]:
        with path.open("rb") as file:
            return [_label(file, held.path, sample, key) for sample in samples]

    try:
        return held.opened(read)
    except OSError as error:
        raise DataError(f"{held.path} can't be read: {error.strerror or error}; run the same command again") from error


def _label(file: BinaryIO, path: Path, sample: Sample, key: str | None) -> tuple[str, str]:
    """The label of a sample, from the first that has one of .cls, .txt and .json.

    Returns:
        The label, "" if there is none; and where there is none, what could not be read and why, as what follows the
        sample's name.

    Raises:
        DataError: If a key of labels is given, and the sample has JSON without that.
    """
    unclear = ""
    for suffix in ("json",) if key else LABELS:
        if suffix in sample.texts:
            start, length = sample.texts[suffix]
            file.seek(start)
            try:
                label = _text_of(file.read(length), suffix, key)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if key is not None:
                    raise DataError(
                        f"{path.name}/{sample.name}.{suffix} has no label that can be read ({error}); "
                        "--label-key is the key of labels in every .json"
                    ) from error
                unclear = unclear or f".{suffix} ({first_line(error)})"
            else:
                if label:
                    return label, ""
    return "", unclear


def _text_of(data: bytes, suffix: str, key: str | None) -> str:
    text = data.decode()
    if suffix != "json":
        return text.strip()
    found = json.loads(text)
    label = found[key] if key else next((found[one] for one in LABEL_KEYS if one in found), None)
    if label is None:
        return ""
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise TypeError(f"{label!r} is no text or whole number")
    label = str(label).strip()
    label.encode()  # an escape in JSON may stand for what is no text
    return label
