"""Datasets: how what DATA on the command line means becomes rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import COMMON, Columns, SplitConfig
from pipeline.data.corrections import corrected, read_corrections
from pipeline.data.dataset import (
    SPLITS,
    UNKNOWN,
    UNLABELLED,
    Dataset,
    KnownSplits,
    Listing,
    Unreadable,
    among,
    check_classes,
    in_order,
    printable,
    shortened,
    split_names,
    split_numbers,
)
from pipeline.data.listing import BUILT_IN, check_there, is_arrays, list_images, list_source
from pipeline.data.mixed import MixedSource
from pipeline.data.source import KEY_DTYPE, ArraySource, FileSource, ImageSource, array_key, file_key
from pipeline.data.splits import carve, joined_groups, twin_rows, twins
from pipeline.errors import DataError, ImageError
from pipeline.util.memo import Memo
from pipeline.util.text import counted
from pipeline.util.texts import Texts

__all__ = [
    "BUILT_IN",
    "KEY_DTYPE",
    "SPLITS",
    "UNLABELLED",
    "ArraySource",
    "Dataset",
    "FileSource",
    "ImageSource",
    "Listing",
    "MixedSource",
    "Opened",
    "among",
    "array_key",
    "check_classes",
    "check_there",
    "file_key",
    "in_order",
    "is_arrays",
    "list_images",
    "list_source",
    "open_dataset",
    "open_labelled",
    "printable",
    "shortened",
    "split_again",
    "twin_rows",
]

KnownLater = Callable[[], Sequence[KnownSplits]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset, the pixels of its rows, and what a user should know.

    Attributes:
        dataset: The rows.
        source: Pixels, in the order of the rows.
        unreadable: Files that could not even be opened; they are no rows.
        notes: Sentences for people.
        given: Numbers in `SPLITS` of the splits that the source gives, `UNKNOWN` where it gives none, shape [n].
        carved: The splits that the source doesn't have.
    """

    dataset: Dataset
    source: ImageSource
    unreadable: list[Unreadable]
    notes: list[str]
    given: NDArray[np.int8]
    carved: tuple[str, ...]


def open_dataset(
    data: str,
    config: SplitConfig,
    *,
    columns: Columns = COMMON,
    known: KnownLater | None = None,
    memo: Memo | None = None,
    rehash: bool = False,
) -> Opened:
    """Open what a user names as DATA; its images may have labels, or none.

    Args:
        data: A folder, a manifest, an `.npz` file, a folder of arrays, or a built-in name.
        config: How missing splits are carved.
        columns: Which columns of a manifest are read.
        known: Tells how the same data were split before, the last time at the end: their images keep the splits that
            were carved, and stay together with those of their last groups.
        memo: Where image keys of unchanged files are remembered.
        rehash: Read every file again, whatever the memo says.

    Raises:
        DataError: If it isn't there, can't be read, or has no training images.
    """
    opened = split_again(_opened(data, columns, memo, rehash), config, known)
    dataset = opened.dataset
    if not (dataset.splits == "train").any():
        raise DataError(f"{data} has no training images: {dataset.counts()}")
    notes = [*opened.notes, *twins(dataset.keys, dataset.labels, dataset.splits, dataset.locations)]
    return replace(opened, notes=notes + _lacking(dataset, config))


def split_again(
    opened: Opened, config: SplitConfig, known: KnownLater | None = None, together: Sequence[Sequence[int]] = ()
) -> Opened:
    """Carve the splits that a source doesn't have.

    Args:
        opened: The source.
        config: How.
        known: As in `open_dataset`.
        together: Rows that must not be parted, beside those of the groups that there are.

    Raises:
        DataError: If test images can't be had as `config` says.
    """
    dataset = opened.dataset
    before, groups_before = _as_before(dataset.keys, known)
    named = None if dataset.groups is None else [str(group) for group in dataset.groups.tolist()]
    groups = joined_groups(dataset.keys, named, groups_before, together=together)
    splits = carve(dataset.keys, dataset.labels, opened.given, config, groups=groups, known=before)
    return replace(opened, dataset=replace(dataset, splits=split_names(splits), groups=groups))


def _as_before(keys: NDArray[np.bytes_], load: KnownLater | None) -> tuple[NDArray[np.int8], list[str] | None]:
    """The split and the group that each image had; what tells them is as large as the data, and held only here."""
    before, known = np.full(len(keys), UNKNOWN, np.int8), load() if load else ()
    for one in known:
        for number in reversed(range(len(SPLITS))):  # of an image that lies in several, the first counts
            before[among(keys, one.keys[one.splits == number])] = number
    last = known[-1] if known else None
    if last is None or last.groups is None:
        return before, None
    groups = dict(zip(last.keys.tolist(), last.groups.tolist(), strict=True))
    return before, [str(groups.get(key, "")) for key in keys.tolist()]


def _lacking(dataset: Dataset, config: SplitConfig) -> list[str]:
    """What keeps a classifier from being trained on all of the images, or from being rated."""
    notes = []
    shares = {"val": config.val_fraction, "test": config.test_fraction}
    labelled = (dataset.labels != UNLABELLED).any()
    if missing := [split for split, share in shares.items() if labelled and share and split not in dataset.splits]:
        notes.append(f"No images are left for {' or '.join(missing)}: classes or groups are too small to be divided")
    if unlabelled := int((dataset.labels == UNLABELLED).sum()):
        notes.append(f"{unlabelled:,} of {counted(len(dataset), 'image')} without a label; training leaves them out")
    if len(dataset.class_names) == 1:
        notes.append(f"All labels are {dataset.class_names[0]!r}; a classifier needs two classes or more")
    return notes


def open_labelled(data: str, *, columns: Columns = COMMON, memo: Memo | None = None) -> Opened:
    """Open labelled data to be rated on: splits as the source has them, "" where it has none; one class will do.

    Images without a label are left out.

    Raises:
        DataError: If it isn't there, can't be read, or has no labels.
    """
    opened = _opened(data, columns, memo, rehash=False, least_classes=1)
    unlabelled = opened.dataset.labels == UNLABELLED
    if unlabelled.all():
        raise DataError(
            f"{data} has no labels; give class folders, a table with a column of labels, or tars with .cls, .txt or "
            ".json (--label-key)"
        )
    if unlabelled.any():
        note = f"{int(unlabelled.sum()):,} of {counted(len(unlabelled), 'image')} without a label are left out"
        source = opened.source.take(np.flatnonzero(~unlabelled))
        dataset, given = opened.dataset.without(unlabelled), opened.given[~unlabelled]
        opened = replace(opened, dataset=dataset, source=source, given=given, notes=[*opened.notes, note])
    return opened


def _opened(data: str, columns: Columns, memo: Memo | None, rehash: bool, least_classes: int = 2) -> Opened:
    """The images of a source that can be opened, with the splits it gives."""
    listing = list_source(data, columns, least_classes, memo, again=rehash)
    found = listing.source.keys(memo, rehash=rehash)
    keys, unreadable = found.column, []
    if found.errors:
        unreadable = [Unreadable(listing.locations[row], str(error)) for row, error in sorted(found.errors.items())]
        kept = found.readable()
        if not len(kept):
            raise DataError(f"None of the {len(unreadable):,} images of {data} can be opened: {unreadable[0].cause}")
        _check_left(listing, found.errors)
        listing, keys = listing.take(kept), keys[kept]
    if columns.labels is not None:
        listing, stays = corrected(listing, keys, read_corrections(columns.labels), columns.labels)
        if not stays.all():
            rows = np.flatnonzero(stays)
            listing, keys = listing.take(rows), keys[rows]
    class_names = _class_order(set(listing.labels) - {""})
    for name in class_names:
        if "\0" in name or not _is_text(name):
            raise DataError(f"{data} has a class {name[:100]!r}, which is no text that can be kept; rename it")
    numbers = {"": UNLABELLED, **{name: number for number, name in enumerate(class_names)}}
    labels = np.array([numbers[name] for name in listing.labels], np.int64)
    given = split_numbers(np.array(listing.splits, "S5"))
    groups = joined_groups(keys, listing.groups)
    others = {name: tuple(texts) for name, texts in listing.others.items()}
    locations = Texts.of(listing.locations)
    name, splits = printable(listing.name), split_names(given)
    dataset = Dataset(name, keys, labels, splits, locations, class_names, groups, others)
    carved = tuple(split for number, split in enumerate(SPLITS) if number not in given)
    return Opened(dataset, listing.source, unreadable, listing.notes, given, carved)


def _check_left(listing: Listing, errors: Mapping[int, ImageError]) -> None:
    """Refuse data of which a class, or a split that it names, can't be opened now: the rest would be taken for all."""
    for what, texts in (("class", listing.labels), ("split", listing.splits)):
        left = {text for row, text in enumerate(texts) if row not in errors}
        for row, error in sorted(errors.items()):
            if texts[row] and texts[row] not in left and not error.lasting:
                raise DataError(
                    f"No image of the {what} {texts[row]!r} can be opened ({listing.locations[row]}: {error}); "
                    f"repair the files, or remove the {what}"
                )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _class_order(names: set[str]) -> tuple[str, ...]:
    """Sorted; by value where all names are whole numbers, so that 10 comes after 9."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
