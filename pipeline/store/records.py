"""Records of what was extracted from what, so that later stages find the newest, and say which."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import h5py
import numpy as np

from pipeline.config import ExtractConfig, FeatureSpec
from pipeline.data import BUILT_IN, KEY_DTYPE, Dataset
from pipeline.data.dataset import UNKNOWN, UNLABELLED, KnownSplits, split_numbers
from pipeline.data.packed import is_pattern, parts_of
from pipeline.errors import ConfigError, StoreError
from pipeline.util import log, remote
from pipeline.util.addresses import is_remote
from pipeline.util.checked import here, is_sound, publish_checked
from pipeline.util.files import digest_of, mark_folder, matching, remove
from pipeline.util.references import one_meant, tell
from pipeline.util.sealed import decoded, read_json, write_json
from pipeline.util.texts import Texts

SETTLED = 3600  # seconds after which no other machine that saved the same dataset can be about to read it
TEXTS = 10_000  # read or written at a time


@dataclass(frozen=True, slots=True)
class TableRecord:
    """What was extracted from what, and how to do it again.

    Attributes:
        id: The features id that users see.
        created: Time of the last extract that gave it, ISO 8601, UTC.
        spec: The feature spec.
        dataset: Id of the dataset.
        name: Name of the dataset.
        carved: The splits that the source doesn't have.
        config: Options of that extract.
        complete: Whether that extract came to its end; one that was stopped or failed did not.
        made_by: The command that ran it; "finetune" where nobody asked for these features themselves.
    """

    id: str
    created: str
    spec: FeatureSpec
    dataset: str
    name: str
    carved: tuple[str, ...]
    config: ExtractConfig
    complete: bool = True
    made_by: str = "extract"


def table_id(name: str, spec: FeatureSpec, dataset: str, config: ExtractConfig) -> str:
    """A name that people can read, with a digest of all that makes the table what it is."""
    text = f"{spec.digest()}/{dataset}/{config.views}/{config.augment}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{plain_name(name)}-{plain_name(spec.backbone)}-{digest}"


def plain_name(name: str) -> str:
    """A name that any file, link or terminal can hold."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:40] or "data"


def save_dataset(cache: Path, dataset: Dataset) -> None:
    """Publish a dataset under its id; of the locations and further columns those saved last count."""
    digest, folder = _texts_digest(dataset), cache / "datasets"
    before = _path_of(cache, dataset.id)
    if before is not None and is_sound(before):
        with h5py.File(here(before), "r") as file:
            if file.attrs.get("texts") == digest:
                return
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("key", data=dataset.keys.astype(KEY_DTYPE, copy=False))
        file.create_dataset("label", data=dataset.labels)
        file.create_dataset("split", data=dataset.splits.astype("S5"))
        for name, texts in (
            ("location", dataset.locations),
            ("class_name", dataset.class_names),
            ("other_name", dataset.others),
        ):
            _write_texts(file, name, tuple(texts))
        for number, column in enumerate(dataset.others.values()):
            _write_texts(file, f"other_{number}", column)
        if dataset.groups is not None:
            file.create_dataset("group", data=dataset.groups)
        file.attrs["name"], file.attrs["texts"] = dataset.name, digest
    mark_folder(cache)
    with buffer.getbuffer() as data:
        if before is not None:  # what was saved before the newest is to be the newest
            again = folder / f"{dataset.id}-{digest_of(data)}.h5"
            if again != before:
                remove(again)
        saved = publish_checked(folder, data, ".h5", f"{dataset.id}-")
    for path in matching(folder, f"{dataset.id}-*.h5"):
        if path != saved and path.stat().st_mtime < time.time() - SETTLED:
            remove(path)


def _texts_digest(dataset: Dataset) -> str:
    """Digest of what is saved of a dataset beside what its id is made of."""
    others = {name: Texts(column).digest() for name, column in dataset.others.items()}
    return digest_of(json.dumps([dataset.name, Texts.of(dataset.locations).digest(), others]).encode())


def _path_of(cache: Path, dataset_id: str) -> Path | None:
    """The file of a dataset."""
    found = matching(cache / "datasets", f"{dataset_id}-*.h5")
    return max(found, key=lambda path: path.stat().st_mtime) if len(found) > 1 else next(iter(found), None)


def _write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Write a column of texts a part at a time, as each is held several times while it is written."""
    column = file.create_dataset(name, (len(texts),), h5py.string_dtype())
    for start in range(0, len(texts), TEXTS):
        column[start : start + TEXTS] = texts[start : start + TEXTS]


@contextmanager
def _dataset_file(cache: Path, dataset_id: str) -> Iterator[h5py.File]:
    """The file of a dataset, sound and open.

    Raises:
        StoreError: If it is missing, or doesn't hold what was written.
    """
    # An id may come from a file that anyone could have changed, and a pattern would find some other dataset.
    known = re.fullmatch(r"[0-9a-f]{32}", dataset_id)
    path = _path_of(cache, dataset_id) if known else None
    if path is None:
        raise StoreError(f"The dataset {dataset_id} is not in {cache / 'datasets'}; run tlpipe extract again")
    if not is_sound(path):
        raise StoreError(f"{path} was changed after it was written; run tlpipe extract again")
    with h5py.File(here(path), "r") as file:
        yield file


def load_dataset(cache: Path, dataset_id: str) -> Dataset:
    """Load a dataset's rows and class names.

    Raises:
        StoreError: If it is missing, or doesn't hold what was written.
    """
    with _dataset_file(cache, dataset_id) as file:

        def texts(name: str) -> Texts:
            column = file[name].asstr()
            return Texts(text for start in range(0, len(column), TEXTS) for text in column[start : start + TEXTS])

        others = texts("other_name") if "other_name" in file else ()
        return Dataset(
            name=str(file.attrs["name"]),
            keys=file["key"][:].astype(KEY_DTYPE),
            labels=file["label"][:].astype(np.int64),
            splits=file["split"][:].astype("U5"),
            locations=texts("location"),
            class_names=tuple(texts("class_name")),
            groups=file["group"][:].astype(np.int64) if "group" in file else None,
            others={name: tuple(texts(f"other_{number}")) for number, name in enumerate(others)},
        )


def save_record(cache: Path, record: TableRecord) -> None:
    """Publish a record; it is now the newest."""
    mark_folder(cache)
    write_json(cache / "tables" / f"{record.id}.json", asdict(record))


def now() -> str:
    """The time, ISO 8601, UTC, to the microsecond, so that it sorts."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def records(cache: Path, *, strict: bool = False) -> list[TableRecord]:
    """All records of a cache, the oldest first; what can't be read is left aside, with a warning.

    Args:
        cache: The cache folder.
        strict: Whether all must be sound, as where the newest is asked for: a damaged one might be that.

    Raises:
        StoreError: If `strict`, for one that can't be read.
    """
    found, damaged = _read_records(cache)
    tell(damaged.values(), strict=strict)
    return found


def _read_records(cache: Path) -> tuple[list[TableRecord], dict[str, StoreError]]:
    """All records, the oldest first, and why each of the others can't be read, by its id."""
    paths = matching(cache / "tables", "*.json")
    with ThreadPoolExecutor(remote.READERS if is_remote(cache) else 1) as pool:
        read = {path.stem: one for path, one in zip(paths, pool.map(_read_record, paths), strict=True)}
    found = sorted((one for one in read.values() if isinstance(one, TableRecord)), key=lambda record: record.created)
    return found, {name: one for name, one in read.items() if isinstance(one, StoreError)}


def _read_record(path: Path) -> TableRecord | StoreError:
    try:
        record = decoded(TableRecord, read_json(path))
        if record.id != path.stem:
            raise ValueError(f"it belongs to {record.id!r}")
        datetime.fromisoformat(record.created)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        if is_remote(path) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise StoreError(f"{path} can't be read: {error}; check the account and the network") from error
        return StoreError(
            f"{path} can't be read: {error}; run the same tlpipe extract again, name other features, or "
            f"remove it: rm {shlex.quote(str(path))}"
        )
    return record


def read_record(cache: Path, record_id: str) -> TableRecord | None:
    """The record of this id; None if there is none that can be read."""
    return next((record for record in records(cache) if record.id == record_id), None)


def remove_record(cache: Path, record: TableRecord) -> None:
    """Forget a record."""
    remove(cache / "tables" / f"{record.id}.json")


def records_of_data(cache: Path, data: str, *, strict: bool = False) -> list[TableRecord]:
    """All records of what a user names as DATA, the oldest first; arguments and errors as in `records`."""
    place = place_of(data)
    return [record for record in records(cache, strict=strict) if record.config.data == place]


def newest_pooled(found: Sequence[TableRecord]) -> TableRecord | None:
    """The newest of some records that a user may mean; None if there is none.

    That is one of pooled features where there are any, of an extract that came to its end, and that a user asked for:
    what fine-tuning extracted for itself is newer, but not what is meant.
    """
    known = [record for record in found if record.complete]
    asked = [record for record in known if record.made_by == "extract"] or known
    pooled = [record for record in asked if record.spec.pooling != "none"] or asked
    return pooled[-1] if pooled else None


def place_of(data: str) -> str:
    """What a record holds of DATA: a built-in name, or the whole path, so that a later stage finds it from anywhere."""
    if data in BUILT_IN:
        return data
    parts = parts_of(data) if is_pattern(data) else [data]
    return ",".join(
        remote.whole_address(part) if remote.is_address(part) else str(Path(part).expanduser().resolve())
        for part in parts
    )


def splits_of(cache: Path, *found: TableRecord) -> list[KnownSplits]:
    """How the images of records were split, for data to be split again as they were then.

    It goes back no further than to a record of which all images were split. What can't be read is left out, with a
    warning. Groups come with it only where features told them, as those of a manifest are read anew.

    Args:
        cache: The cache folder.
        found: The records, the oldest first, which is also the order of what is returned.
    """
    known: list[KnownSplits] = []
    seen: set[str] = set()
    for record in reversed(found):
        if record.dataset in seen:
            continue
        seen.add(record.dataset)
        if one := _split_as(cache, record):
            known.insert(0, one)
            if (one.splits != UNKNOWN).all():
                break
    return known


def _split_as(cache: Path, record: TableRecord) -> KnownSplits | None:
    try:
        with _dataset_file(cache, record.dataset) as file:
            # An image without a label was left to training, but not drawn for it.
            splits = np.where(file["label"][:] == UNLABELLED, UNKNOWN, split_numbers(file["split"][:]))
            grouped = record.config.group_duplicates and "group" in file
            groups = file["group"][:].astype(np.int64) if grouped else None
            return KnownSplits(file["key"][:].astype(KEY_DTYPE), splits, groups)
    except StoreError as error:
        log.warning("The earlier splits can't be kept: %s", error)
        return None


def find_record(cache: Path, reference: str | None) -> TableRecord:
    """The record that a user means.

    Args:
        cache: The cache folder.
        reference: A features id, or a part of one; None for the newest, as `newest_pooled` has it.

    Raises:
        StoreError: If there is none, several fit, or one that may be meant can't be read.
    """
    if reference is None:
        known = records(cache, strict=True)
        newest = newest_pooled(known)
        if newest is None:
            stopped = f" but those of extracts that were stopped or failed ({known[-1].id})" if known else ""
            raise StoreError(f"There are no features in {cache}{stopped} yet; make some with: tlpipe extract DATA")
        return newest
    return one_meant(reference, *_read_records(cache), f"features of {cache}", "tlpipe cache ls", StoreError)


def find_records(cache: Path, reference: str | None) -> tuple[TableRecord, ...]:
    """The records that a user means: as `find_record`, or several of them, joined by commas.

    Raises:
        StoreError: If there is none, or several fit one of the references.
        ConfigError: If one is named twice.
    """
    if reference is None or "," not in reference:
        return (find_record(cache, reference),)
    parts = [part.strip() for part in reference.split(",")]
    if not all(parts):
        raise ConfigError(f"{reference!r} has an empty name between or beside its commas; give A,B")
    found = tuple(find_record(cache, part) for part in parts)
    if len({record.id for record in found}) < len(found):
        raise ConfigError(f"{reference} names the same features twice")
    return found
